"""What exports of this run did to files: which they wrote, and what they replaced.

A file that still holds what we wrote is ours to replace when its caption changes; one that was
edited since, or was there before, is not. Losing this record costs nothing but that freedom.

What the last export replaced is kept apart, and is on disk before the file is touched, so that it
can be put back also after a crash.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

_FILE: Final = "exports.sqlite3"
UNDO_FILE: Final = "undo.sqlite3"
_REPLACED: Final = """
CREATE TABLE IF NOT EXISTS replaced (
    path BLOB PRIMARY KEY, before BLOB NOT NULL, after BLOB NOT NULL
)
"""
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS written (path BLOB PRIMARY KEY, digest BLOB NOT NULL) WITHOUT ROWID
"""


class Exported:
    """The digests of the files this run's exports wrote, by absolute path."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def is_ours(self, path: Path, content: bytes) -> bool:
        """Tell whether the file's present content is what we wrote there last."""
        return self._written(path) == _digest(content)

    def remember(self, path: Path, content: bytes) -> None:
        """Note what a file holds now that we have written it."""
        self._note(path, _digest(content))

    def has_ours(self, path: Path) -> bool:
        """Tell the same of a file of any size, which is read."""
        return self._written(path) == _digest_of_file(path)

    def remember_file(self, path: Path) -> None:
        """Note what a file of any size holds, which is read."""
        self._note(path, _digest_of_file(path))

    def _written(self, path: Path) -> bytes | None:
        query = "SELECT digest FROM written WHERE path = ?"
        with closing(self._connection.execute(query, (_key(path),))) as rows:
            row = rows.fetchone()
        return None if row is None else bytes(row[0])

    def _note(self, path: Path, digest: bytes) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO written VALUES (?, ?)", (_key(path), digest)
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


class Replaced:
    """What files held before the export that is under way, or the last one, replaced it."""

    def __init__(self, connection: sqlite3.Connection, export: int) -> None:
        self._connection = connection
        self._export = export
        self._is_new = True

    def note(self, path: Path, before: bytes, after: bytes) -> None:
        """Note what a file holds that is about to be replaced.

        The first note of an export takes the place of the export's before it: one that replaces
        nothing leaves the one before it to be undone.
        """
        if self._is_new:
            self._is_new = False
            self._forget_earlier()
        self._connection.execute(
            "INSERT OR IGNORE INTO replaced VALUES (?, ?, ?)", (_key(path), before, _digest(after))
        )

    def _forget_earlier(self) -> None:
        (last,) = self._connection.execute("PRAGMA user_version").fetchone()
        if last != self._export:
            self._connection.execute("DELETE FROM replaced")
            self._connection.execute(f"PRAGMA user_version = {self._export:d}")

    def __iter__(self) -> Iterator[tuple[Path, bytes]]:
        """Yield what can be put back, and forget it once it has been."""
        query = "SELECT path FROM replaced ORDER BY path"
        for (key,) in self._connection.execute(query).fetchall():
            found = self._connection.execute("SELECT before FROM replaced WHERE path = ?", (key,))
            yield Path(os.fsdecode(key)), found.fetchone()[0]
            self._connection.execute("DELETE FROM replaced WHERE path = ?", (key,))

    def still_ours(self, path: Path) -> bool:
        """Tell whether a file holds what the export put there.

        Raises:
            FileNotFoundError: it is gone.
        """
        query = "SELECT after FROM replaced WHERE path = ?"
        (after,) = self._connection.execute(query, (_key(path),)).fetchone()
        return bool(after == _digest(path.read_bytes()))


@contextmanager
def replaced_by_export(data_dir: Path, export: int | None = None) -> Iterator[Replaced]:
    """Open the record of what exports replace.

    ``export`` tells exports apart: one that opens the record several times names it (31 bits).

    Raises:
        sqlite3.DatabaseError: the record is damaged or cannot be written.
    """
    with closing(sqlite3.connect(data_dir / UNDO_FILE, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(_REPLACED)
        yield Replaced(connection, secrets.randbits(31) if export is None else export)


def _key(path: Path) -> bytes:
    return os.fsencode(path.absolute())


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _digest_of_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
