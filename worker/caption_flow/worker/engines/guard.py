"""Ending an engine's processes, also when the worker itself was killed without a word.

An engine's processes hold gigabytes of a device and, left alone, outlive a worker that died by
SIGKILL. Each engine therefore marks its processes through their environment, which their own
children inherit, and keeps a watchman: this file, run as a program of its own in a session of its
own. The watchman waits until the worker is gone, kills whatever bears the mark, and ends. It works
from outside, so it reaches processes that hang, that are stopped, or that were born a moment ago.

Linux only (``/proc``). Standard library only: the watchman starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

MARK_VARIABLE = "CAPTION_FLOW_ENGINE"
_DISMISSED = b"dismissed\n"
_LOOK_SECONDS = 1.0


def new_mark() -> str:
    """Return a mark no other engine has, now or later."""
    return f"{os.getpid()}-{secrets.token_hex(8)}"


def environment(mark: str) -> dict[str, str]:
    """Return the variables that mark a process which is started with them.

    Without ``SPT_NOENV`` the setproctitle package, which vLLM uses, writes the process's title over
    the very memory in which ``/proc/<pid>/environ`` shows the variables.
    """
    return {MARK_VARIABLE: mark, "SPT_NOENV": "1"}


def marked(mark: str) -> list[int]:
    """Return the ids of all living processes with this mark, except the calling one."""
    wanted = f"{MARK_VARIABLE}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # Gone meanwhile, or somebody else's. A zombie's environment reads as empty.
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def births(mark: str) -> dict[int, bytes | None]:
    """Return the ids of all living processes with this mark, and when each was born."""
    return {pid: _born(pid) for pid in marked(mark)}


def end_marked(
    mark: str, *, seen: Mapping[int, bytes | None] | None = None, within_seconds: float = 10.0
) -> bool:
    """Kill every process with this mark; return whether all are gone ``within_seconds``.

    A dying process loses its environment, and with it its mark, before its memory is free. Those in
    ``seen``, from `births`, are waited for although they bear their mark no more.
    """
    deadline = time.monotonic() + within_seconds
    waited_for = dict(seen or {})
    while True:
        alive = births(mark)
        waited_for.update(alive)
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # One round more after the last was found: it may just have had a child.
        is_any_left = any(_born(pid) == born is not None for pid, born in waited_for.items())
        if not alive and not is_any_left:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)


def _born(pid: int) -> bytes | None:
    """Return when a process was started, in clock ticks since boot; None if it is gone.

    Process ids are used again, together with the time of birth they are not. A zombie is gone once
    its last thread is. proc(5), stat: fields 3, 20 and 22, counted from behind the name, which may
    contain anything.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    is_zombie = fields[0] in b"ZX" and int(fields[17]) <= 1
    return None if is_zombie else fields[19]


class Watchman:
    """The process that outlives the worker long enough to end its engine's processes."""

    def __init__(self, mark: str) -> None:
        """Start it; it watches from the moment this returns.

        Raises:
            OSError: no process could be started.
        """
        self._process = subprocess.Popen(  # noqa: S603 - this very file
            [sys.executable, "-I", "-S", __file__, mark, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            # A signal to the worker's process group must not take the watchman along.
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """Send it home: nothing is left to end. Idempotent."""
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.communicate(_DISMISSED, timeout=5)


def main(mark: str, worker: int) -> None:
    """Wait for the end of the process ``worker`` or for a dismissal; end what bears ``mark``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == worker:
        # The pipe's end tells at once; the parent's id also when another process holds the pipe.
        if select.select([0], [], [], _LOOK_SECONDS)[0]:
            if os.read(0, len(_DISMISSED)) == _DISMISSED:
                return
            break
    end_marked(mark)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
