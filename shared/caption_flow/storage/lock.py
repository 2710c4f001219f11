"""One run owns a folder: the lock, and who holds it.

The lock is the kernel's (``flock``): it ends with its process, however that ends, so that a stale
one cannot exist. The file's contents only name the owner for the one who is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from caption_flow.storage.errors import StorageBusyError

LOCK_FILE: Final = "owner.lock"


class FolderLock:
    """Exclusive ownership of a run's folder until `release`."""

    def __init__(self, data_dir: Path) -> None:
        """Take the lock; raises `StorageBusyError` naming the owner's pid and host."""
        path = data_dir / LOCK_FILE
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = _owner(self._file.read())
            self._file.close()
            raise StorageBusyError(str(data_dir), *owner) from None
        # The kernel's lock is what counts: a full disk must not keep anybody from reading this run.
        with suppress(OSError):
            self._file.truncate(0)
            ours = {"pid": os.getpid(), "host": socket.gethostname()}
            os.write(self._file.fileno(), json.dumps(ours).encode())

    def release(self) -> None:
        """Give the folder up; idempotent."""
        self._file.close()


def _owner(text: str) -> tuple[int, str]:
    try:
        owner = json.loads(text)
        return int(owner["pid"]), str(owner["host"])
    except (ValueError, KeyError, TypeError):
        return 0, "unknown"
