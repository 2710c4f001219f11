"""The terminal as the view has it: every key at once, a screen of its own, and back as it was."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import sys
import termios
import tty
from types import TracebackType
from typing import Any, Final, Self

from caption_flow.cli.viewer.pictures import KITTY_CLEAR, Drawn, Size, Way
from caption_flow.cli.viewer.screen import Frame

_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[H\x1b[2J"
"""The other screen, no cursor, and no wrapping: what is too long must not move other lines."""
_LEAVE: Final = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
_BEGIN_UPDATE: Final = "\x1b[?2026h"
_END_UPDATE: Final = "\x1b[?2026l"
QUESTIONS: Final = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[16t\x1b[c"
"""Whether it knows kitty's graphics, how large a cell is, and what it is; nobody has to answer."""
_FALLBACK: Final[Size] = (80, 24)


class Terminal:
    """Standard input and output, which have to be a terminal, as long as the context lasts."""

    def __init__(self) -> None:
        self._in, self._out = sys.stdin.fileno(), sys.stdout.fileno()
        self.encoding = sys.stdout.encoding
        self._before: list[Any] | None = None
        self._shown: tuple[str, ...] = ()
        self._picture: Drawn | None = None
        self._at = (0, 0)
        self._way = Way.NONE

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    @property
    def input(self) -> int:
        """The descriptor that keys come from."""
        return self._in

    def enter(self) -> None:
        """Take the terminal."""
        self._before = termios.tcgetattr(self._in)
        tty.setraw(self._in, termios.TCSADRAIN)  # what is typed already counts
        self.write(_ENTER)
        self.forget()

    def leave(self) -> None:
        """Give the terminal back as it was; idempotent, also where it is gone."""
        if self._before is None:
            return
        before, self._before = self._before, None
        with contextlib.suppress(OSError):
            self._clear_picture()
            self.write(_LEAVE)
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(self._in, termios.TCSAFLUSH, before)

    def suspend(self) -> None:
        """Stop this process as Ctrl-Z does; take the terminal again once it is continued."""
        self.leave()
        os.killpg(os.getpgrp(), signal.SIGTSTP)
        self.enter()

    def ask(self) -> None:
        """Have the terminal say what it can; answers come among the keys."""
        self.write(QUESTIONS)

    def read(self) -> bytes:
        """Return what was typed; nothing: the terminal is gone."""
        try:
            return os.read(self._in, 4096)
        except OSError:
            return b""

    def size(self) -> tuple[Size, Size | None]:
        """Return the columns and rows, and the pixels of a cell where that is known."""
        try:
            packed = fcntl.ioctl(self._out, termios.TIOCGWINSZ, bytes(8))
        except OSError:
            return _FALLBACK, None
        rows, columns, width, height = struct.unpack("HHHH", packed)
        if not rows or not columns:
            return _FALLBACK, None
        cell = (width // columns, height // rows)
        return (columns, rows), cell if min(cell) > 0 else None

    def write(self, text: str) -> None:
        """Write all of a text."""
        data = text.encode(self.encoding, "replace")
        while data:
            data = data[os.write(self._out, data) :]

    def forget(self) -> None:
        """Draw everything next time: the screen is no longer as it was left."""
        self._clear_picture()
        self._shown = ()

    def show(self, frame: Frame, way: Way) -> None:
        """Draw what has changed."""
        changed = [
            at
            for at, line in enumerate(frame.lines)
            if at >= len(self._shown) or self._shown[at] != line
        ]
        is_moved = (frame.picture, frame.at) != (self._picture, self._at)
        if not changed and not is_moved:
            return
        said = [_BEGIN_UPDATE]
        if is_moved and self._picture is not None:
            changed = [*range(len(frame.lines))]  # over what the old picture leaves behind
            if self._picture.sequence:
                said.append(KITTY_CLEAR if self._way is Way.KITTY else "\x1b[2J")
        said += [f"\x1b[{at + 1};1H\x1b[0m\x1b[2K{frame.lines[at]}" for at in changed]
        if frame.picture is not None and frame.picture.sequence:
            rows = range(frame.at[0] - 1, frame.at[0] - 1 + frame.picture.rows)
            if is_moved or (way is not Way.KITTY and any(at in rows for at in changed)):
                said.append(f"\x1b[{frame.at[0]};{frame.at[1]}H{frame.picture.sequence}")
        said.append(_END_UPDATE)
        self.write("".join(said))
        self._shown, self._picture, self._at, self._way = frame.lines, frame.picture, frame.at, way

    def _clear_picture(self) -> None:
        if self._way is Way.KITTY and self._picture is not None and self._picture.sequence:
            self.write(KITTY_CLEAR)
        self._picture = None
