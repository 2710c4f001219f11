"""Which files an earlier export of this run wrote, so that they are told from other people's.

A file that still holds what we wrote is ours to replace when its caption changes; one that was
edited since, or was there before, is not. Losing this record costs nothing but that freedom.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

_FILE: Final = "exports.sqlite3"
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS written (path BLOB PRIMARY KEY, digest BLOB NOT NULL) WITHOUT ROWID
"""


class Exported:
    """The digests of the files this run's exports wrote, by absolute path."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def is_ours(self, path: Path, content: bytes) -> bool:
        """Tell whether the file's present content is what we wrote there last."""
        query = "SELECT digest FROM written WHERE path = ?"
        with closing(self._connection.execute(query, (_key(path),))) as rows:
            row = rows.fetchone()
        return row is not None and row[0] == _digest(content)

    def remember(self, path: Path, content: bytes) -> None:
        """Note what a file holds now that we have written it."""
        self._connection.execute(
            "INSERT OR REPLACE INTO written VALUES (?, ?)", (_key(path), _digest(content))
        )


@contextmanager
def exported_from(data_dir: Path) -> Iterator[Exported]:
    """Open the record of a run's exports; what was noted is kept also when the export fails.

    Raises:
        sqlite3.DatabaseError: the record is damaged or cannot be written.
    """
    with closing(sqlite3.connect(data_dir / _FILE, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(_TABLE)
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield Exported(connection)
        finally:
            connection.execute("COMMIT")


@contextmanager
def written_by(data_dir: Path) -> Iterator[Exported | None]:
    """Open the record of a run's exports for reading; None if there is none that can be read."""
    path = data_dir / _FILE
    if not path.exists():
        yield None
        return
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        try:
            connection.execute("SELECT 1 FROM written LIMIT 1").fetchall()
        except sqlite3.DatabaseError:
            yield None
        else:
            yield Exported(connection)


def _key(path: Path) -> bytes:
    return os.fsencode(path.absolute())


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
