"""A run's folder with rows that a test made up: no captioning, but parts and ledger as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from caption_flow.storage.database import PARTS_FOLDER, open_for_writing, write_meta
from caption_flow.storage.parts import write_part
from caption_flow.storage.schema import stored_schema
from tests.support.stored import Item, stored


def make_run(
    data_dir: Path,
    rows: Sequence[Item],
    *,
    columns: Mapping[str, pa.DataType] | None = None,
    rows_of_a_part: int = 100,
    **facts: str,
) -> Path:
    """Write a run of these rows; ``facts`` are what its ledger remembers besides."""
    data_dir.mkdir(parents=True, exist_ok=True)
    schema = stored_schema(("captions",), {"title": pa.string(), **(columns or {})})
    with closing(open_for_writing(data_dir)) as ledger:
        for name, value in facts.items():
            write_meta(ledger, name, value)
        for number, first in enumerate(range(0, len(rows), rows_of_a_part), start=1):
            table = pa.Table.from_pylist(list(rows[first : first + rows_of_a_part]), schema)
            part = write_part(data_dir / PARTS_FOLDER, number, table)
            ledger.execute(
                "INSERT INTO parts (part, file, rows, bytes, checksum, counts, recorded_at) "
                "VALUES (?, ?, ?, ?, ?, ?, 0)",
                (number, part.file, part.rows, part.bytes, part.checksum, json.dumps(part.counts)),
            )
            for shard in set(table.column("shard").to_pylist()):
                ledger.execute("INSERT INTO part_ranges VALUES (?, ?, ?)", (number, shard, b""))
    return data_dir


def captioned(index: int, **more: Any) -> Item:
    """Return a row whose caption no compression makes much shorter."""
    chance = Random(index)
    return stored(index, captions=[chance.randbytes(600).hex()], contributor="Ada", **more)
