"""Reading a run's rows, finished or not, beside an orchestrator or without one.

Read-only: parts the ledger names, then what is committed but not yet checkpointed, each item once.
One read transaction spans the reader's life, so that a checkpoint in between changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from caption_flow.protocol.codec import ProtocolError
from caption_flow.protocol.rows import decode_rows
from caption_flow.storage.database import (
    LEDGER_FILE,
    PARTS_FOLDER,
    damaged,
    open_for_reading,
    read_catalog,
)
from caption_flow.storage.errors import StorageError
from caption_flow.storage.parts import read_batches, read_schema
from caption_flow.storage.schema import StoredBatch, complete, conform, output_fields_of, unify

_BUFFERED = """
SELECT batch, shard, chunk_first, contributor, worker, committed_at, rows FROM batches
WHERE batch <= ? ORDER BY batch
"""
_EVERY_BATCH = 2**62


class StorageReader:
    """The rows of one run's folder.

    Raises:
        StorageError: the ledger or a part is damaged or newer; the sentence says which and what to
            do. A folder that does not exist or is empty is a run that has written nothing.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._connection = open_for_reading(data_dir)
        self._parts: list[str] = []
        self._schema: pa.Schema | None = None
        if self._connection is None:
            return
        try:
            self._connection.execute("BEGIN")
            self._parts = [row[0] for row in self._query("SELECT file FROM parts ORDER BY part")]
            self._schema = self._unified_schema()
        except BaseException:
            self.close()
            raise

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of every row; empty when nothing has been written."""
        return () if self._schema is None else tuple(self._schema.names)

    @property
    def schema(self) -> pa.Schema:
        """The columns with their types; none when nothing has been written."""
        return self._schema or pa.schema([])

    @property
    def output_fields(self) -> tuple[str, ...]:
        """The columns that hold texts the models wrote."""
        return () if self._schema is None else output_fields_of(self._schema)

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards with at least one row."""
        query = "SELECT DISTINCT shard FROM part_ranges UNION SELECT DISTINCT shard FROM batches"
        return tuple(sorted(str(row[0]) for row in self._query(query)))

    def count_rows(self, shards: Collection[str] | None = None) -> int:
        """Count rows, of all shards or of some."""
        if shards is None:
            query = "SELECT COALESCE(SUM(rows), 0) FROM parts"
            in_parts = sum(int(row[0]) for row in self._query(query))
            return in_parts + sum(int(batch.num_rows) for batch in self._buffered(None))
        return sum(int(batch.num_rows) for batch in self.batches(shards, ["shard"]))

    def batches(
        self, shards: Collection[str] | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield all rows, or those of some shards, with all columns or some, in that order."""
        if self._schema is None:
            return
        for file in self._parts:
            for batch in self._part(file):
                yield from self._shaped(batch, shards, columns)
        for batch in self._buffered(shards):
            yield from self._shaped(batch, shards, columns)

    def close(self) -> None:
        """Close the database; idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ------------------------------------------------------------------ inside

    def _query(self, query: str) -> Iterator[tuple[Any, ...]]:
        if self._connection is None:
            return
        try:
            with closing(self._connection.execute(query)) as rows:
                yield from rows
        except sqlite3.DatabaseError as error:
            raise damaged(self._data_dir / LEDGER_FILE, error) from error

    def _part(self, file: str) -> Iterator[pa.RecordBatch]:
        path = self._data_dir / PARTS_FOLDER / file
        try:
            yield from read_batches(path)
        except StorageError as error:
            if path.exists() or self._is_still_named(file):
                raise
            raise StorageError(
                f"{path} was replaced while it was being read, since some of its items are to be "
                "done again: read once more"
            ) from error

    def _is_still_named(self, file: str) -> bool:
        """Tell whether the ledger as it is now, not as this reader sees it, names a part."""
        connection = open_for_reading(self._data_dir)
        if connection is None:
            return False
        with (
            closing(connection),
            closing(connection.execute("SELECT 1 FROM parts WHERE file = ?", (file,))) as rows,
        ):
            return rows.fetchone() is not None

    def _unified_schema(self) -> pa.Schema | None:
        folder = self._data_dir / PARTS_FOLDER
        schemas: list[pa.Schema] = []
        for file in self._parts:
            schema = read_schema(folder / file)
            if schema not in schemas:
                schemas.append(schema)
        for batch in self._buffered(None):
            if batch.schema not in schemas:
                schemas.append(batch.schema)
        return unify(schemas) if schemas else None

    def _buffered(self, shards: Collection[str] | None) -> Iterator[pa.RecordBatch]:
        if self._connection is None:
            return
        try:
            for batch in read_buffered(self._connection):
                if shards is None or batch.column("shard")[0].as_py() in shards:
                    yield batch
        except (sqlite3.DatabaseError, ProtocolError) as error:
            raise damaged(self._data_dir / LEDGER_FILE, error) from error

    def _shaped(
        self,
        batch: pa.RecordBatch,
        shards: Collection[str] | None,
        columns: Sequence[str] | None,
    ) -> Iterator[pa.RecordBatch]:
        if self._schema is None:
            return
        shaped = conform(batch, self._schema)
        if shards is not None:
            wanted = pc.is_in(shaped.column("shard"), value_set=pa.array(sorted(shards)))
            shaped = shaped.filter(wanted)
        if columns is not None:
            shaped = shaped.select(list(columns))
        if shaped.num_rows:
            yield shaped


def read_buffered(connection: Connection, up_to: int = _EVERY_BATCH) -> Iterator[pa.RecordBatch]:
    """Yield the committed batches that are in no part yet, as stored rows, oldest first."""
    with closing(connection.execute(_BUFFERED, (up_to,))) as found:
        for values in found:
            batch = StoredBatch(*values)
            rows = decode_rows(batch.rows, stored=True)
            indices = rows.column("item_index").to_pylist()
            yield complete(batch, rows, read_catalog(connection, batch.shard, indices))
