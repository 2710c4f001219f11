"""What can be wrong with a run's folder; each error is one sentence with the way out."""

from __future__ import annotations

import errno
import sqlite3


class StorageError(Exception):
    """A run's folder cannot be used as it is."""


class StorageBusyError(StorageError):
    """Another orchestrator owns the folder."""

    def __init__(self, data_dir: str, pid: int, host: str) -> None:
        super().__init__(
            f"{data_dir} is in use by another orchestrator (pid {pid} on {host}); "
            "stop it first, or use another storage.data_dir"
        )
        self.pid = pid
        self.host = host


class StorageFullError(StorageError):
    """The disk that holds the folder is full."""


_FULL_CODES = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_FSYNC,
        sqlite3.SQLITE_IOERR_SHMSIZE,  # there is no room for the memory that readers share
    }
)


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error of SQLite or the operating system means that space ran out."""
    if isinstance(error, sqlite3.OperationalError):
        code = getattr(error, "sqlite_errorcode", None)
        return code in _FULL_CODES
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
