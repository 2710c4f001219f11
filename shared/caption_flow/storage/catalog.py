"""The listed items of a run: which index a file has, for good.

An item keeps its index for the life of the run's folder, however the dataset is listed later, so
that a new file never shifts the captions of the others. Reading only; `writes.AppendItems` adds.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pyarrow as pa

from caption_flow.storage.database import (
    LEDGER_FILE,
    PARTS_FOLDER,
    damaged,
    open_for_reading,
)
from caption_flow.storage.partials import read_partials
from caption_flow.storage.parts import read_table
from caption_flow.storage.reader import read_buffered
from caption_flow.storage.reopen import parts_with_items
from caption_flow.storage.writes import CatalogEntry

_BY_INDEX = """
SELECT item_index, path, size, mtime_ns, key, url, columns FROM items
WHERE shard = ? AND item_index BETWEEN ? AND ? ORDER BY item_index
"""
# Named: without statistics SQLite takes the primary key's `shard` and goes through all its items.
_BY_PATH = """
SELECT item_index, size, mtime_ns FROM items INDEXED BY items_by_path WHERE shard = ? AND path = ?
"""


_HASH_COLUMNS = ("shard", "item_index", "content_hash")


class Catalog:
    """Look-ups in the catalog; blocking, callable from any thread.

    Raises:
        StorageError: from any of them, when the ledger cannot be read.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    def entries(self, shard: str, items: Sequence[int]) -> list[CatalogEntry]:
        """Return the entries of some items, in ascending order of index."""
        if not items:
            return []
        wanted = set(items)
        span = (shard, min(wanted), max(wanted))
        with self._reading() as connection, closing(connection.execute(_BY_INDEX, span)) as rows:
            return [
                CatalogEntry(
                    index,
                    path,
                    size,
                    mtime_ns,
                    key,
                    url,
                    None if columns is None else msgspec.msgpack.decode(columns),
                )
                for index, path, size, mtime_ns, key, url, columns in rows
                if index in wanted
            ]

    def find(
        self, shard: str, paths: Sequence[bytes]
    ) -> dict[bytes, tuple[int, int | None, int | None]]:
        """Return index, size and mtime of those of the paths that the catalog has."""
        found: dict[bytes, tuple[int, int | None, int | None]] = {}
        with self._reading() as connection:
            for path in paths:
                with closing(connection.execute(_BY_PATH, (shard, path))) as rows:
                    row = rows.fetchone()
                if row is not None:
                    found[path] = row
        return found

    def content_hashes(self, shard: str, items: Sequence[int]) -> dict[int, str | None]:
        """Return the content hash of each item that has a row; None where it is unknown.

        For an item between stages it is that of the file that the first of them saw.

        Reads the parts that hold any of the items, one column of them.
        """
        wanted = frozenset(items)
        hashes: dict[int, str | None] = {}
        with self._reading() as connection:
            for _, file in parts_with_items(connection, {shard: wanted}):
                table = read_table(self._data_dir / PARTS_FOLDER / file, _HASH_COLUMNS)
                hashes.update(_hashes(table, shard, wanted))
            for batch in read_buffered(connection):
                hashes.update(_hashes(batch, shard, wanted))
            for item, partial in read_partials(connection, shard, wanted).items():
                hashes[item] = partial.get("content_hash")
        return hashes

    def close(self) -> None:
        """Close the database; idempotent."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._open()
            except sqlite3.DatabaseError as error:
                raise damaged(self._data_dir / LEDGER_FILE, error) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = open_for_reading(self._data_dir)
        if self._connection is None:
            raise RuntimeError(f"{self._data_dir} has no ledger yet")
        return self._connection


def _hashes(
    rows: pa.Table | pa.RecordBatch, shard: str, wanted: frozenset[int]
) -> dict[int, str | None]:
    columns = [rows.column(name).to_pylist() for name in _HASH_COLUMNS]
    return {
        index: digest
        for of_shard, index, digest in zip(*columns, strict=True)
        if of_shard == shard and index in wanted
    }
