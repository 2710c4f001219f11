"""The command line as its users meet it: a process of its own, with a folder of images to work on.

Nothing here sleeps to wait: lines of output are waited for as they come, and ends of processes by
the kernel. Each process carries a mark in its environment that its children inherit, so that a test
can tell whether anything of it is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import pty
import random
import re
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
from PIL import Image

from caption_flow.worker.engines.synthetic import synthetic_caption

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = [str(REPOSITORY / name) for name in ("orchestrator", "worker", "shared")]
DEFAULT_PROMPT = "Describe this image in detail."
PATIENCE_SECONDS = 60.0
"""No test waits longer for anything unless it says so; one that gets here has failed."""
_MARK = "CAPTION_FLOW_TEST"
_POLL_SECONDS = 0.05

Argument = str | bytes | Path


@dataclass(frozen=True)
class Finished:
    """A process that has ended; ``cpu_seconds`` include those of the children it waited for."""

    code: int
    out: str
    err: str
    seconds: float
    cpu_seconds: float = 0.0

    @property
    def errors(self) -> list[str]:
        """What it said was wrong, line by line, without the word itself."""
        lines = self.err.splitlines()
        return [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]

    @property
    def said(self) -> str:
        """Everything, for messages of assertions."""
        return f"exit code {self.code}\n{self.out}\n{self.err}"


class Running:
    """A process of the command line that goes on while the test does something."""

    def __init__(
        self,
        arguments: Sequence[Argument],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        columns: int | None = None,
        ignore_sigint: bool = False,
        python: Sequence[str] = (sys.executable,),
    ) -> None:
        """Start it; with ``columns`` on a terminal of that width, else with pipes.

        It leads a process group of its own, as whatever runs in a terminal's foreground does.
        """
        self.mark = secrets.token_hex(8)
        self.lines: list[str] = []
        self._streams: dict[str, str] = {"out": "", "err": ""}
        self._news = threading.Condition()
        self._began = time.monotonic()
        terminal, end = _terminal(columns) if columns else (None, subprocess.PIPE)
        with _sigint(signal.SIG_IGN if ignore_sigint else signal.SIG_DFL):
            self.process = subprocess.Popen(
                [*python, "-m", "caption_flow.cli", *arguments],
                cwd=cwd,
                env=environment(cwd, {**(env or {}), _MARK: self.mark}),
                stdin=subprocess.DEVNULL if terminal is None else end,
                stdout=end,
                stderr=end,
                start_new_session=True,
            )
        if terminal is None:
            assert self.process.stdout is not None
            assert self.process.stderr is not None
            sources = {"out": self.process.stdout.fileno(), "err": self.process.stderr.fileno()}
        else:
            os.close(end)
            sources = {"out": terminal}
        self._readers = [
            threading.Thread(target=self._read, args=(name, source), daemon=True)
            for name, source in sources.items()
        ]
        self._terminal = terminal
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, source: int) -> None:
        """Collect a stream; a terminal says that its other side is gone with an error."""
        with contextlib.suppress(OSError):
            while piece := os.read(source, 65536):
                with self._news:
                    self._streams[name] += piece.decode("utf-8", "surrogateescape")
                    self._news.notify_all()

    @property
    def out(self) -> str:
        return self._streams["out"]

    @property
    def err(self) -> str:
        return self._streams["err"]

    @property
    def said(self) -> str:
        return f"{self.out}\n{self.err}"

    def says(self, pattern: str, *, seconds: float = PATIENCE_SECONDS) -> re.Match[str]:
        """Wait until what it has said so far matches, and return the match."""

        def found() -> re.Match[str] | None:
            return re.search(pattern, self.said, re.MULTILINE)

        ended = False
        with self._news:
            deadline = time.monotonic() + seconds
            while (match := found()) is None and not ended and time.monotonic() < deadline:
                self._news.wait(_POLL_SECONDS)
                ended = self.process.poll() is not None and not any(
                    reader.is_alive() for reader in self._readers
                )
        assert match is not None, f"never said {pattern!r}, but\n{self.said}"
        return match

    def interrupt(self) -> None:
        """Press Ctrl-C: the terminal signals the foreground's whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        """End this one process without a word, as the out-of-memory killer does."""
        self.process.kill()

    def ends(self, *, seconds: float = PATIENCE_SECONDS) -> Finished:
        """Wait for its end."""
        deadline = time.monotonic() + seconds
        usage = None
        while usage is None:
            # wait4 and not wait, for the processor time; a process has no event to wait on here.
            pid, status, resources = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                usage = resources.ru_utime + resources.ru_stime
            else:
                assert time.monotonic() < deadline, f"never ended, but said\n{self.said}"
                time.sleep(_POLL_SECONDS / 2)
        for reader in self._readers:
            reader.join(timeout=PATIENCE_SECONDS)
        took = time.monotonic() - self._began
        return Finished(self.process.returncode, self.out, self.err, took, usage)

    def family(self) -> dict[int, str]:
        """Return the processes that are left of it, itself included: id and command line."""
        wanted = f"{_MARK}={self.mark}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    found[int(entry.name)] = b" ".join(words).decode("utf-8", "replace")
        return found

    def workers(self) -> list[int]:
        """Return the process ids of its workers."""
        return [pid for pid, line in self.family().items() if "caption_flow.cli worker" in line]

    def leaves_nothing(self, *, seconds: float) -> None:
        """Wait until no process of it is left."""
        eventually(
            lambda: not self.family(), lambda: f"left behind: {self.family()}", seconds=seconds
        )

    def clean_up(self) -> None:
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process.returncode is None:
            self.process.wait()
        for reader in self._readers:
            reader.join(timeout=PATIENCE_SECONDS)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        if self._terminal is not None:
            os.close(self._terminal)


@contextlib.contextmanager
def running(*arguments: Argument, cwd: Path, **options: Any) -> Iterator[Running]:
    """Start ``caption-flow`` and leave nothing of it behind; see `Running` for the options."""
    process = Running(arguments, cwd=cwd, **options)
    try:
        yield process
    finally:
        process.clean_up()


def caption_flow(
    *arguments: Argument, cwd: Path, seconds: float = PATIENCE_SECONDS, **options: Any
) -> Finished:
    """Run ``caption-flow`` to its end in the folder ``cwd``."""
    with running(*arguments, cwd=cwd, **options) as process:
        return process.ends(seconds=seconds)


@functools.cache
def as_a_user() -> Sequence[str] | None:
    """Return how to start Python so that permissions count; None where root cannot give that up."""
    if os.geteuid() != 0:
        return (sys.executable,)
    give_up = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    if shutil.which(give_up[0]) is None:
        return None
    possible = subprocess.run([*give_up, "true"], check=False, capture_output=True).returncode == 0
    return (*give_up, sys.executable) if possible else None


def environment(home: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which nobody's configuration files are found but the test's."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CAPTIONFLOW_", "XDG_CONFIG"))
        and name not in {"COLUMNS", "LINES", "PYTHONUNBUFFERED"}
    }
    path = os.pathsep.join([*ROOTS, *filter(None, [inherited.get("PYTHONPATH")])])
    ours = {
        "PYTHONPATH": path,
        "HOME": str(home / "nobody"),
        "TERM": "xterm",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return {**inherited, **ours, **extra}


def eventually(
    condition: Callable[[], bool], why_not: Callable[[], str], *, seconds: float
) -> None:
    """Wait for what no event tells: the state of other processes, or of files."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, why_not()
        time.sleep(_POLL_SECONDS)


# --------------------------------------------------------------------------- images and captions


def make_image(path: Path, number: int, *, kind: str = "PNG") -> Path:
    """Write a picture that no other number has, whatever the file is called."""
    pixels = random.Random(number).randbytes(16 * 12 * 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Image.frombytes("RGB", (16, 12), pixels).save(file, kind)
    return path


def make_images(folder: Path, count: int) -> list[Path]:
    """Write so many pictures, called 000.png and so on."""
    return [make_image(folder / f"{number:03}.png", number) for number in range(count)]


def content_hash(path: Path) -> str:
    """Return what ``b2sum -l 128`` prints for a file."""
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()


def caption_of(image: Path, prompt: str = DEFAULT_PROMPT) -> str:
    """Return what the synthetic engine says of this very picture, and of no other."""
    return synthetic_caption(content_hash(image), prompt)


def text_beside(image: Path) -> str | None:
    """Return what stands in the ``.txt`` beside an image, or None if there is none."""
    return text_for(image, image.parent)


def text_for(image: Path, folder: Path) -> str | None:
    """Return the text of an image in another folder than its own."""
    path = folder / f"{os.path.splitext(image.name)[0]}.txt"  # noqa: PTH122  -- trainers' own rule
    return path.read_text("utf-8") if path.exists() else None


# --------------------------------------------------------------------------- what lies on disk


def rows(data_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's parts, read as anybody would, without our code."""
    found: list[dict[str, Any]] = ds.dataset(data_dir / "captions").to_table().to_pylist()
    return found


def rows_by_name(data_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the rows by file name, each of which must be there once."""
    found = rows(data_dir)
    named = {row["filename"]: row for row in found}
    assert len(named) == len(found), "an item is there more than once"
    return named


def snapshot(folder: Path) -> dict[bytes, tuple[int, int]]:
    """Return every path below a folder with time of change and size; itself included."""
    status = {os.fsencode(path): path.lstat() for path in (folder, *folder.rglob("*"))}
    return {path: (facts.st_mtime_ns, facts.st_size) for path, facts in status.items()}


# --------------------------------------------------------------------------- inside


@contextlib.contextmanager
def _sigint(handler: Any) -> Iterator[None]:
    """Start children with SIGINT handled so: what is ignored stays ignored across exec."""
    before = signal.signal(signal.SIGINT, handler) if _in_main_thread() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _terminal(columns: int) -> tuple[int, int]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return ours, theirs
