"""The ledger's database, ``ledger.sqlite3``: its tables, and opening it safely.

Durability: WAL journal with ``synchronous=FULL``, so that a committed transaction survives the loss
of power (https://www.sqlite.org/pragma.html#pragma_synchronous). Ranges of item indices are stored
as msgpack lists of half-open ``[start, stop)`` pairs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from caption_flow.storage.errors import StorageError
from caption_flow.storage.schema import CatalogItem

LEDGER_FILE: Final = "ledger.sqlite3"
PARTS_FOLDER: Final = "captions"
FORMAT_VERSION: Final = 1

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shards (
    shard TEXT PRIMARY KEY, count INTEGER NOT NULL,
    catalogued INTEGER NOT NULL DEFAULT 1, facts TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
    shard TEXT NOT NULL, item_index INTEGER NOT NULL,
    key TEXT, path BLOB, url TEXT, size INTEGER, mtime_ns INTEGER, columns BLOB,
    PRIMARY KEY (shard, item_index)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_by_path ON items (shard, path);
CREATE TABLE IF NOT EXISTS parts (
    part INTEGER PRIMARY KEY, file TEXT NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL,
    checksum TEXT NOT NULL, counts TEXT NOT NULL, recorded_at REAL NOT NULL, contributors TEXT
);
CREATE TABLE IF NOT EXISTS part_ranges (
    part INTEGER NOT NULL REFERENCES parts, shard TEXT NOT NULL, ranges BLOB NOT NULL,
    PRIMARY KEY (part, shard)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (
    batch INTEGER PRIMARY KEY, shard TEXT NOT NULL, chunk_first INTEGER NOT NULL,
    ranges BLOB NOT NULL, counts TEXT NOT NULL,
    contributor TEXT NOT NULL, worker TEXT NOT NULL, committed_at REAL NOT NULL, rows BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS tokens (
    digest BLOB PRIMARY KEY, role TEXT NOT NULL, name TEXT NOT NULL, limits BLOB NOT NULL,
    revoked INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS standings (
    contributor TEXT PRIMARY KEY, checks INTEGER NOT NULL, agreement REAL NOT NULL,
    trusted_checks INTEGER NOT NULL, trusted_agreement REAL NOT NULL,
    flagged INTEGER NOT NULL, cut_off INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS discarded (file TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    lease INTEGER PRIMARY KEY, session TEXT NOT NULL, worker TEXT NOT NULL, shard TEXT NOT NULL,
    chunk_first INTEGER NOT NULL, chunk_count INTEGER NOT NULL, ranges BLOB NOT NULL,
    live INTEGER NOT NULL, stage INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS partials (
    shard TEXT NOT NULL, item_index INTEGER NOT NULL, stage INTEGER NOT NULL, row BLOB NOT NULL,
    PRIMARY KEY (shard, item_index)
) WITHOUT ROWID;
"""
_COLUMNS_SINCE: Final = (
    ("shards", "catalogued", "INTEGER NOT NULL DEFAULT 1"),
    ("shards", "facts", "TEXT NOT NULL DEFAULT ''"),
    ("parts", "contributors", "TEXT"),
)
"""What tables of earlier ledgers lack: table, column, and its declaration."""


def open_for_writing(data_dir: Path) -> sqlite3.Connection:
    """Open or create the database of a run; the caller already owns the folder's lock.

    Raises:
        StorageError: the file is damaged, of a newer version, or missing beside existing parts.
    """
    path = data_dir / LEDGER_FILE
    parts = data_dir / PARTS_FOLDER
    if not path.exists() and next(parts.glob("part-*.parquet"), None) is not None:
        raise StorageError(
            f"{parts} holds captions but {path} is missing: restore that file from a backup, "
            "or choose another storage.data_dir and keep this folder as it is"
        )
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        # One connection writes, readers come and go: nobody waits long.
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        check_version(connection, path)
        connection.executescript(_TABLES)
        _add_columns(connection)
        connection.execute(
            "INSERT OR IGNORE INTO meta VALUES ('format_version', ?)", (str(FORMAT_VERSION),)
        )
    except sqlite3.DatabaseError as error:
        connection.close()
        raise damaged(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_reading(data_dir: Path) -> sqlite3.Connection | None:
    """Open the database read-only, beside a running orchestrator or not; None if there is none.

    Raises:
        StorageError: the file is damaged or of a newer version.
    """
    path = data_dir / LEDGER_FILE
    if not path.exists():
        return None
    quoted = path.resolve().as_uri()
    connection = sqlite3.connect(f"{quoted}?mode=ro", uri=True, check_same_thread=False)
    try:
        connection.execute("PRAGMA busy_timeout = 10000")
        check_version(connection, path)
        if not _has_tables(connection):
            connection.close()
            return None
    except sqlite3.DatabaseError as error:
        connection.close()
        raise damaged(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _add_columns(connection: sqlite3.Connection) -> None:
    for table, column, declaration in _COLUMNS_SINCE:
        if column not in columns_of(connection, table):
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {declaration}")


def columns_of(connection: sqlite3.Connection, table: str) -> set[str]:
    """Return the names of a table's columns: an earlier ledger has fewer."""
    with closing(connection.execute("SELECT name FROM pragma_table_info(?)", (table,))) as rows:
        return {name for (name,) in rows}


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database of a newer format; an empty database is of no version yet."""
    if not _has_tables(connection):
        return
    version = read_meta(connection, "format_version")
    if version is not None and int(version) > FORMAT_VERSION:
        raise StorageError(
            f"{path} was written by a newer CaptionFlow (format {version}, this one knows "
            f"{FORMAT_VERSION}): upgrade with pip install -U caption-flow"
        )


def _has_tables(connection: sqlite3.Connection) -> bool:
    with closing(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'leases'")) as rows:
        return rows.fetchone() is not None


def damaged(path: Path, error: Exception) -> StorageError:
    """Return the sentence for a database that SQLite, or we, cannot make sense of."""
    return StorageError(
        f"{path} cannot be read as a ledger ({error}); nothing was changed: restore it from a "
        "backup, or move the folder away to start anew"
    )


def read_meta(connection: sqlite3.Connection, key: str) -> str | None:
    """Return one remembered fact about the run, or None."""
    with closing(connection.execute("SELECT value FROM meta WHERE key = ?", (key,))) as rows:
        row = rows.fetchone()
    return None if row is None else str(row[0])


def write_meta(connection: sqlite3.Connection, key: str, value: str) -> None:
    """Remember one fact about the run."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def pack_ranges(ranges: Iterable[tuple[int, int]]) -> bytes:
    """Pack half-open ranges for a database column."""
    return msgspec.msgpack.encode(list(ranges))


def unpack_ranges(packed: bytes) -> list[tuple[int, int]]:
    """Unpack what `pack_ranges` made."""
    return msgspec.msgpack.decode(packed, type=list[tuple[int, int]])


def read_catalog(
    connection: sqlite3.Connection, shard: str, indices: Sequence[int]
) -> dict[int, CatalogItem]:
    """Return the catalog's entries of one shard for the given item indices."""
    if not indices:
        return {}
    wanted = set(indices)
    query = (
        "SELECT item_index, key, path, url, columns FROM items "
        "WHERE shard = ? AND item_index BETWEEN ? AND ?"
    )
    with closing(connection.execute(query, (shard, min(wanted), max(wanted)))) as rows:
        return {
            index: CatalogItem(
                key, path, url, msgspec.msgpack.decode(columns) if columns is not None else {}
            )
            for index, key, path, url, columns in rows
            if index in wanted
        }
