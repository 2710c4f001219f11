"""The columns of a stored row, and how a row gets those that no worker may choose.

A worker's batch names its items by index. Keys, file names and the dataset's own columns come from
the catalog in the ledger's database, so that nothing from the network becomes a path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from caption_flow.protocol.rows import CREDITED_STATS, LATER_FIELDS, TEXTS, wire_output_fields
from caption_flow.storage.errors import StorageError
from caption_flow.storage.ranges import ranges_of

COMMITTED_AT: Final = pa.timestamp("us", tz="UTC")

_BEFORE_OUTPUTS: Final[tuple[pa.Field, ...]] = (
    pa.field("item_key", pa.string(), nullable=False),
    pa.field("shard", pa.string(), nullable=False),
    pa.field("chunk_id", pa.string(), nullable=False),
    pa.field("item_index", pa.int64(), nullable=False),
    pa.field("filename", pa.string()),
    pa.field("filename_raw", pa.binary()),
    pa.field("url", pa.string()),
    pa.field("image_width", pa.int32()),
    pa.field("image_height", pa.int32()),
    pa.field("image_format", pa.string()),
    pa.field("image_scaled_to", pa.string()),
    pa.field("file_size", pa.int64()),
    pa.field("content_hash", pa.string()),
)
_AFTER_OUTPUTS: Final[tuple[pa.Field, ...]] = (
    pa.field("status", pa.string(), nullable=False),
    pa.field("error_kind", pa.string()),
    pa.field("error", pa.string()),
    pa.field("flags", TEXTS),
    pa.field("stage_stats", CREDITED_STATS),
    pa.field("contributor", pa.string()),
    pa.field("worker", pa.string()),
    pa.field("models", TEXTS),
    pa.field("recipe", pa.string()),
    pa.field("committed_at", COMMITTED_AT, nullable=False),
)
_OUTPUT_FIELDS: Final = b"caption_flow.output_fields"
FIXED_COLUMNS: Final = tuple(f.name for f in (*_BEFORE_OUTPUTS, *_AFTER_OUTPUTS))
COLUMNS_OF_EVERY_PART: Final = tuple(name for name in FIXED_COLUMNS if name not in LATER_FIELDS)


@dataclass(frozen=True, slots=True)
class CatalogItem:
    """What the orchestrator knows of an item; ``path`` is relative to the dataset, as bytes."""

    key: str | None = None
    path: bytes | None = None
    url: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    def item_key(self, shard: str, index: int) -> str:
        """Return the item's stable identity: its own key, or its path, or where it is."""
        if self.key is not None:
            return self.key
        return f"{shard}#{index}" if self.path is None else readable_path(self.path)


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A committed, not yet checkpointed batch: a worker's rows and who sent them."""

    batch: int
    shard: str
    chunk_first: int
    contributor: str
    worker: str
    committed_at: float
    rows: bytes


def readable_path(path: bytes) -> str:
    r"""Return a path as valid Unicode; bytes that are not UTF-8 become ``\xNN``."""
    return path.decode("utf-8", "backslashreplace")


def is_utf8(path: bytes) -> bool:
    """Tell whether a path is valid UTF-8, so that `readable_path` is exact."""
    try:
        path.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def native_path(filename: str, raw: bytes | None) -> str:
    """Return the name to use with the file system for a stored row's ``filename``."""
    return filename if raw is None else os.fsdecode(raw)


def stored_schema(
    output_fields: Sequence[str], dataset_columns: Mapping[str, pa.DataType] | None = None
) -> pa.Schema:
    """Return the schema of a part; its metadata names the output fields."""
    return pa.schema(
        [
            *_BEFORE_OUTPUTS,
            *(pa.field(name, TEXTS) for name in output_fields),
            *_AFTER_OUTPUTS,
            *(pa.field(name, kind) for name, kind in (dataset_columns or {}).items()),
        ],
        metadata={_OUTPUT_FIELDS: json.dumps(list(output_fields)).encode()},
    )


def output_fields_of(schema: pa.Schema) -> tuple[str, ...]:
    """Return the output fields that a part's schema names."""
    return tuple(json.loads((schema.metadata or {}).get(_OUTPUT_FIELDS, b"[]")))


def unify(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return the one schema that rows of all these parts fit into, missing columns being null.

    Raises:
        StorageError: a column has types that cannot be reconciled.
    """
    fields: dict[str, None] = {}
    extra: dict[str, pa.DataType] = {}
    for schema in schemas:
        fields.update(dict.fromkeys(output_fields_of(schema)))
        for column in schema:
            if column.name not in FIXED_COLUMNS and column.name not in fields:
                extra[column.name] = _common_type(column, extra.get(column.name))
    return stored_schema(tuple(fields), extra)


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch with exactly the columns of ``schema``; absent ones are null."""
    columns = [
        _conformed(batch.column(column.name), column.type)
        if column.name in batch.schema.names
        else pa.nulls(batch.num_rows, column.type)
        for column in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _conformed(values: pa.Array, kind: pa.DataType) -> pa.Array:
    # Not every version of pyarrow casts a struct to one with more fields.
    return credited(values) if kind == CREDITED_STATS else values.cast(kind)


def credited(
    stats: pa.ListArray, worker: str | None = None, contributor: str | None = None
) -> pa.ListArray:
    """Return stage stats that say who ran each stage: as they do already, or the one given."""
    if stats.type == CREDITED_STATS:
        return stats
    stages = stats.flatten()
    whose = [pa.array([name], pa.string()).take(_zeros(stages)) for name in (worker, contributor)]
    structs = pa.StructArray.from_arrays(
        [*stages.flatten(), *whose], fields=list(CREDITED_STATS.value_type)
    )
    ends = pc.cumulative_sum(pc.fill_null(pc.list_value_length(stats), 0))
    offsets = pa.concat_arrays([pa.array([0], ends.type), ends])
    return pa.ListArray.from_arrays(offsets, structs, CREDITED_STATS, mask=stats.is_null())


def _zeros(values: pa.Array) -> pa.Array:
    return pa.repeat(pa.scalar(0, pa.int32()), len(values))


def _common_type(column: pa.Field, seen: pa.DataType | None) -> pa.DataType:
    if seen is None or seen.equals(column.type):
        return column.type
    pair = [pa.schema([(column.name, seen)]), pa.schema([(column.name, column.type)])]
    try:
        return pa.unify_schemas(pair, promote_options="permissive").field(0).type
    except pa.ArrowException as error:
        raise StorageError(f"column {column.name} has different types in parts: {error}") from error


def complete(
    batch: StoredBatch, rows: pa.RecordBatch, catalog: Mapping[int, CatalogItem]
) -> pa.RecordBatch:
    """Turn a worker's rows into stored rows by adding what the orchestrator knows.

    ``catalog`` maps each item index of the batch to its entry.
    """
    indices: list[int] = rows.column("item_index").to_pylist()
    items = [catalog.get(index, CatalogItem()) for index in indices]
    paths = [item.path for item in items]
    count = len(indices)
    known: dict[str, Any] = {
        "item_key": [
            item.item_key(batch.shard, index) for item, index in zip(items, indices, strict=True)
        ],
        "shard": [batch.shard] * count,
        "chunk_id": [f"{batch.shard}:{batch.chunk_first}"] * count,
        "filename": [None if path is None else readable_path(path) for path in paths],
        "filename_raw": [None if path is None or is_utf8(path) else path for path in paths],
        "url": [item.url for item in items],
        "contributor": [batch.contributor] * count,
        "worker": [batch.worker] * count,
        "committed_at": [int(batch.committed_at * 1_000_000)] * count,
    }
    fields = wire_output_fields(rows.schema)
    extra = _dataset_columns(items, {*FIXED_COLUMNS, *fields})
    schema = stored_schema(fields, {name: values.type for name, values in extra.items()})
    columns = []
    for column in schema:
        if column.name == "stage_stats":
            columns.append(credited(rows.column(column.name), batch.worker, batch.contributor))
        elif column.name in known:
            columns.append(pa.array(known[column.name], column.type))
        elif column.name in extra:
            columns.append(extra[column.name])
        else:
            columns.append(rows.column(column.name))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _dataset_columns(items: Sequence[CatalogItem], taken: Container[str]) -> dict[str, pa.Array]:
    """Return the dataset's own columns; one whose name a row has already is ``column_NAME``."""
    names = dict.fromkeys(name for item in items for name in item.columns)
    return {
        f"column_{name}" if name in taken else name: pa.array(
            [item.columns.get(name) for item in items]
        )
        for name in names
    }


def ranges_by_shard(table: pa.Table) -> dict[str, list[tuple[int, int]]]:
    """Return the items of a table of stored rows, as half-open ranges by shard."""
    shards = table.column("shard").to_pylist()
    indices = table.column("item_index").to_pylist()
    by_shard: dict[str, list[int]] = {}
    for shard, index in zip(shards, indices, strict=True):
        by_shard.setdefault(shard, []).append(index)
    return {shard: ranges_of(items) for shard, items in by_shard.items()}
