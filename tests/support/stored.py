"""A store of made-up rows, without a disk: what exporters are given to write."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa

from caption_flow.storage.contents import RowReader, Selection, StorageContents
from caption_flow.storage.schema import stored_schema

WHEN = dt.datetime(2025, 3, 1, 12, 30, tzinfo=dt.UTC)

Item = dict[str, Any]


def stored(index: int, **more: Any) -> Item:
    row: Item = dict.fromkeys(stored_schema(("captions",), {"title": pa.string()}).names)
    name = f"a/{index}.jpg"
    return (
        row
        | {"item_key": name, "filename": name, "shard": "default", "chunk_id": "default:0"}
        | {"item_index": index, "captions": ["one", "two"], "status": "captioned"}
        | {"image_width": 640, "models": ["m"], "committed_at": WHEN}
        | {"stage_stats": [stats("default")], "title": None}
        | more
    )


def stats(stage: str) -> Item:
    counts = {"tokens_in": 5, "tokens_out": 7, "finish_reasons": ["stop"], "milliseconds": 12}
    return {"stage": stage} | counts | {"worker": "w", "contributor": "somebody"}


def failed(index: int, **more: Any) -> Item:
    reason = {"status": "failed", "error_kind": "corrupt_image", "error": "truncated at byte 7"}
    return stored(index, captions=None, **(reason | more))


class Stored:
    """A reader over batches of the schema that parts have."""

    output_fields = ("captions",)
    shards = ("default",)

    def __init__(self, *batches: list[Item]) -> None:
        self.schema = stored_schema(self.output_fields, {"title": pa.string()})
        self.given = [pa.RecordBatch.from_pylist(rows, self.schema) for rows in batches]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.schema.names)

    def count_rows(self, _shards: Collection[str] | None = None) -> int:
        return sum(batch.num_rows for batch in self.given)

    def batches(
        self, _shards: Collection[str] | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        for batch in self.given:
            yield batch.select(list(columns or self.columns))

    def close(self) -> None:
        pass


def reading(reader: RowReader, limit: int | None = None, **more: Any) -> StorageContents:
    return StorageContents.reading(
        Selection(lambda: reader, limit=limit),
        columns=more.get("columns", reader.columns),
        output_fields=reader.output_fields,
        total_rows=reader.count_rows(),
    )
