"""A terminal as a person has it: keys go in, and what is on the screen comes out.

`pyte` plays the terminal, on a real pseudo-terminal. It knows no graphics: their sequences are
taken out and kept, each with where the cursor was.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyte

from tests.support.cli import PATIENCE_SECONDS, Argument, environment

_POLL_SECONDS = 0.05
_GRAPHICS = re.compile(rb"\x1b_.*?\x1b\\|\x1bP.*?\x1b\\|\x1b\]1337;.*?\x07", re.DOTALL)
_BEGUN = re.compile(rb"\x1b(?:[_P].*|\](?:1(?:3(?:3(?:7(?:;.*)?)?)?)?)?)?\Z", re.DOTALL)


class Graphic(NamedTuple):
    """A sequence that draws a picture, and the row and column of the cursor, from 1."""

    text: str
    at: tuple[int, int]


class Cell(NamedTuple):
    """What a cell shows; colours as `pyte` calls them: hexadecimal, or a name."""

    text: str
    front: str
    back: str


class Screen:
    """``caption-flow`` on a terminal of so many columns and rows.

    ``answers`` maps what the terminal is asked to what it says; ``cell`` is the size in pixels.
    """

    def __init__(
        self,
        *arguments: Argument,
        cwd: Path,
        size: tuple[int, int] = (80, 30),
        cell: tuple[int, int] = (0, 0),
        env: Mapping[str, str] | None = None,
        answers: Mapping[bytes, bytes] | None = None,
        program: Sequence[str] = ("-m", "caption_flow.cli"),
    ) -> None:
        self._ours, theirs = pty.openpty()
        self._cell = cell
        self._screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self._screen)
        self._answers = dict(answers or {})
        self._set_size(size)
        self._news = threading.Condition()
        self._held = b""
        self.raw = b""
        self.graphics: list[Graphic] = []
        self.before = termios.tcgetattr(theirs)
        self._theirs = theirs
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=cwd,
            env=environment(
                cwd, {"TERM": "xterm-256color", "COLORTERM": "truecolor", **(env or {})}
            ),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            # A group of its own in our session: an orphaned one could not be stopped by Ctrl-Z.
            process_group=0,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    # ------------------------------------------------------------------ what a person does

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._ours, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Drag the window's corner."""
        with self._news:
            self._screen.resize(rows, columns)
        self._set_size((columns, rows))
        os.kill(self.process.pid, signal.SIGWINCH)

    # ------------------------------------------------------------------ what a person sees

    @property
    def lines(self) -> list[str]:
        """The rows of the screen, as texts."""
        with self._news:
            return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """The whole screen."""
        return "\n".join(self.lines)

    def cell(self, row: int, column: int) -> Cell:
        """Return what is at a row and column, from 1."""
        with self._news:
            found = self._screen.buffer[row - 1][column - 1]
        return Cell(found.data, found.fg, found.bg)

    def shows(self, pattern: str, *, seconds: float = PATIENCE_SECONDS) -> re.Match[str]:
        """Wait until the screen matches, and return the match."""
        found: re.Match[str] = self.until(
            lambda: re.search(pattern, self.text, re.MULTILINE), pattern, seconds
        )
        return found

    def until(
        self, found: Callable[[], Any], what: object = "it", seconds: float = PATIENCE_SECONDS
    ) -> Any:
        """Wait until something holds, which is asked whenever something was drawn."""
        deadline = time.monotonic() + seconds
        while not (result := found()):
            assert time.monotonic() < deadline, f"never came to {what!r}:\n{self.text}"
            assert self._reader.is_alive(), f"ended before {what!r}:\n{self.text}"
            with self._news:
                self._news.wait(_POLL_SECONDS)
        return result

    def ends(self, *, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for the end, and return the exit code."""
        code = self.process.wait(timeout=seconds)
        self._close_theirs()
        self._reader.join(timeout=seconds)
        return code

    def is_as_before(self) -> bool:
        """Whether the terminal takes keys as it did before the command."""
        return termios.tcgetattr(self._ours) == self.before

    # ------------------------------------------------------------------ inside

    def _set_size(self, size: tuple[int, int]) -> None:
        columns, rows = size
        packed = struct.pack("HHHH", rows, columns, columns * self._cell[0], rows * self._cell[1])
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, packed)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while piece := os.read(self._ours, 65536):
                with self._news:
                    self.raw += piece
                    self._take(self._held + piece)
                    self._news.notify_all()
                for question in [one for one in self._answers if one in self.raw]:
                    os.write(self._ours, self._answers.pop(question))

    def _take(self, data: bytes) -> None:
        """Feed all but graphics, and what may become one."""
        begun = _BEGUN.search(_GRAPHICS.sub(lambda found: b"\0" * len(found.group()), data))
        end = len(data) if begun is None else begun.start()
        data, self._held = data[:end], data[end:]
        at = 0
        for found in _GRAPHICS.finditer(data):
            self._stream.feed(data[at : found.start()])
            where = (self._screen.cursor.y + 1, self._screen.cursor.x + 1)
            self.graphics.append(Graphic(found.group().decode(), where))
            at = found.end()
        self._stream.feed(data[at:])

    def _close_theirs(self) -> None:
        if self._theirs >= 0:
            os.close(self._theirs)
            self._theirs = -1

    def clean_up(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._close_theirs()
        self._reader.join(timeout=PATIENCE_SECONDS)
        os.close(self._ours)


@contextlib.contextmanager
def on_screen(*arguments: Argument, cwd: Path, **options: Any) -> Iterator[Screen]:
    """Start ``caption-flow`` on a terminal; see `Screen` for the options."""
    screen = Screen(*arguments, cwd=cwd, **options)
    try:
        yield screen
    finally:
        screen.clean_up()
