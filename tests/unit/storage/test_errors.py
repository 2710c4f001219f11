"""Which errors mean that a disk is full: then results wait for room, and nothing fails."""

from __future__ import annotations

import errno
import sqlite3

import pytest

from caption_flow.storage.errors import is_disk_full


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    "code",
    [
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_FSYNC,
        sqlite3.SQLITE_IOERR_SHMSIZE,
    ],
)
def test_sqlite_without_room_is_a_full_disk(code: int) -> None:
    assert is_disk_full(sqlite_error(code))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_and_no_quota_are_a_full_disk(number: int) -> None:
    assert is_disk_full(OSError(number, "no room"))


@pytest.mark.parametrize(
    "error",
    [
        sqlite_error(sqlite3.SQLITE_BUSY),
        sqlite_error(sqlite3.SQLITE_IOERR_READ),
        OSError(errno.EACCES, "denied"),
        sqlite3.DatabaseError("malformed"),
        ValueError(),
    ],
)
def test_anything_else_is_not(error: Exception) -> None:
    assert not is_disk_full(error)
