"""Columns that came later: what was stored without them is read as it was, and what has them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caption_flow.protocol.codec import ProtocolError
from caption_flow.protocol.rows import (
    CAPTIONED,
    FAILED,
    LATER_FIELDS,
    STAGE_STATS,
    Row,
    decode_rows,
    encode_batch,
    encode_rows,
)
from caption_flow.storage import StorageManager
from caption_flow.storage.database import LEDGER_FILE, PARTS_FOLDER
from caption_flow.storage.exporter import StorageExporter
from caption_flow.storage.parts import checksum_of
from caption_flow.storage.verify import verify
from caption_flow.storage.writes import CommitRows
from tests.integration.storage.folders import (
    FIELDS,
    batch,
    captioned,
    failed,
    listed,
    opened,
    query,
    rows_in,
    rows_in_parts,
)

STATS = {
    "stage": "default",
    "tokens_in": 5,
    "tokens_out": 7,
    "finish_reasons": ["stop"],
    "milliseconds": 12,
}


def earlier(write: CommitRows) -> CommitRows:
    """The same batch as a worker sent it before there were these columns."""
    rows = decode_rows(write.payload)
    names = [name for name in rows.schema.names if name not in LATER_FIELDS]
    return replace(write, payload=encode_batch(rows.select(names)))


async def store_an_earlier_part(data_dir: Path) -> None:
    """A run with one part and one buffered batch, as they were before."""
    async with opened(data_dir) as store:
        await store.write(listed(20))
        await store.write(captioned(0, 1))
        await store.write(failed(2))
        await store.checkpoint()
        await store.write(earlier(captioned(3)))
    (path,) = (data_dir / PARTS_FOLDER).iterdir()
    table = pq.read_table(path)
    uncredited = pa.array(table.column("stage_stats").to_pylist(), STAGE_STATS)
    place = table.schema.get_field_index("stage_stats")
    table = table.set_column(place, pa.field("stage_stats", STAGE_STATS), uncredited)
    pq.write_table(table.drop_columns(sorted(LATER_FIELDS)), path, compression="zstd")
    _record(data_dir, path)


def _record(data_dir: Path, path: Path) -> None:
    with closing(sqlite3.connect(data_dir / LEDGER_FILE)) as ledger:
        facts = (path.stat().st_size, checksum_of(path))
        ledger.execute("UPDATE parts SET bytes = ?, checksum = ?", facts)
        ledger.commit()


async def test_parts_and_batches_without_them_stay_readable(tmp_path: Path) -> None:
    await store_an_earlier_part(tmp_path)
    found = rows_in(tmp_path)
    assert sorted(found) == [0, 1, 2, 3]
    assert {row["flags"] for row in found.values()} == {None}
    assert found[1]["stage_stats"] == [{**STATS, "worker": None, "contributor": None}]
    by = {"worker": "worker 1", "contributor": "somebody"}
    assert found[3]["stage_stats"] == [{**STATS, **by}]
    assert found[2]["stage_stats"] == []
    assert not verify(tmp_path).breached
    contents = await StorageManager(tmp_path).get_shard_contents("default")
    assert contents.output_fields == ["captions"]
    exporter = StorageExporter(contents)
    assert exporter.to_jsonl(tmp_path / "out.jsonl") > 0
    assert exporter.to_csv(tmp_path / "out.csv") > 0
    assert exporter.to_txt(tmp_path / "texts", "filename", "captions") == 3


async def test_a_run_goes_on_from_them_and_takes_rows_back_from_them(tmp_path: Path) -> None:
    await store_an_earlier_part(tmp_path)
    flagged = Row(4, CAPTIONED, {"captions": ["x"]}, flags=("length",), image_scaled_to="96x96")
    async with opened(tmp_path) as store:
        assert store.snapshot.totals == {"captioned": 3, "image_damaged": 1}
        await store.write(batch([flagged]))
        await store.checkpoint()
        opened_again = await store.reopen_failures(None)
    assert {shard: set(items) for shard, items in opened_again.items.items()} == {"default": {2}}
    found = rows_in(tmp_path)
    assert sorted(found) == [0, 1, 3, 4]
    assert (found[4]["flags"], found[4]["image_scaled_to"]) == (["length"], "96x96")
    assert found[0]["flags"] is None
    assert not verify(tmp_path).breached


async def test_flags_are_in_the_parts_and_counted(tmp_path: Path) -> None:
    rows = [
        Row(0, CAPTIONED, {"captions": ["x"]}, flags=("length", "repetition")),
        Row(1, CAPTIONED, {"captions": ["x"]}),
        Row(2, FAILED, error_kind="empty_caption", error="no", flags=("empty",)),
        Row(3, CAPTIONED, {"captions": ["x"]}, flags=("length",)),
    ]
    write = batch(rows)
    async with opened(tmp_path) as store:
        await store.write(listed(20))
        await store.write(write)
        await store.checkpoint()
    assert write.flags == {"length": 2, "repetition": 1, "empty": 1}
    assert {item: row["flags"] for item, row in rows_in_parts(tmp_path).items()} == {
        0: ["length", "repetition"],
        1: [],
        2: ["empty"],
        3: ["length"],
    }
    stats = await StorageManager(tmp_path).get_caption_stats()
    assert stats["flags"] == {"length": 2, "repetition": 1, "empty": 1}


async def test_rows_of_a_batch_that_are_not_accepted_are_not_counted(tmp_path: Path) -> None:
    rows = [Row(item, CAPTIONED, {"captions": ["x"]}, flags=("length",)) for item in range(3)]
    write = replace(batch(rows), accepted=(1,))
    async with opened(tmp_path) as store:
        await store.write(listed(20))
        await store.write(write)
    assert write.flags == {"length": 1}


async def test_a_flag_nobody_knows_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(20))
        with pytest.raises(ProtocolError, match="flag"):
            await store.write(batch([Row(0, CAPTIONED, {"captions": ["x"]}, flags=("evil",))]))
    assert query(tmp_path, "SELECT * FROM batches") == []


FACTS = ("facts", "tags")


def with_tags(tags: list[str] | None) -> CommitRows:
    outputs: dict[str, Any] = {"facts": ["{}"]} | ({} if tags is None else {"tags": tags})
    return CommitRows(
        shard="default",
        chunk_first=0,
        items=(0,),
        accepted=(0,),
        payload=encode_rows([Row(0, CAPTIONED, outputs)], FACTS),
        output_fields=FACTS,
        contributor="",
        worker="w",
        optional_fields=frozenset({"tags"}),
    )


async def test_only_an_optional_field_may_be_an_empty_list_and_none_may_be_missing(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(20))
        with pytest.raises(ProtocolError, match="no text in tags"):
            await store.write(with_tags(None))
        with pytest.raises(ProtocolError, match="no text in tags"):
            await store.write(replace(with_tags([]), optional_fields=frozenset()))
        await store.write(with_tags([]))
    assert rows_in(tmp_path)[0]["tags"] == []


def test_a_stream_of_yet_another_schema_is_refused() -> None:
    rows = decode_rows(encode_rows([Row(0, CAPTIONED, {"captions": ["x"]})], FIELDS))
    for name in ("flags", "recipe", "captions"):
        wrong = rows.drop_columns([name])
        with pytest.raises(ProtocolError, match="schema"):
            decode_rows(encode_batch(wrong), FIELDS)
    renamed = rows.rename_columns(
        ["flag" if name == "flags" else name for name in rows.schema.names]
    )
    with pytest.raises(ProtocolError, match="schema"):
        decode_rows(encode_batch(renamed), FIELDS)
