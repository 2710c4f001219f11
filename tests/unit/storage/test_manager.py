"""What other Python programs rely on when they read a run's results."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from caption_flow.protocol.rows import Row as WireRow
from caption_flow.protocol.rows import encode_rows
from caption_flow.storage import StorageContents, StorageError, StorageManager
from caption_flow.storage.exporter import ExportError, StorageExporter
from caption_flow.storage.schema import stored_schema
from caption_flow.storage.store import RunStore
from caption_flow.storage.writes import AppendItems, CatalogEntry, CommitRows

Item = dict[str, Any]


def stored(index: int, shard: str = "default", **more: Any) -> Item:
    row: Item = dict.fromkeys(stored_schema(("captions", "tags")).names)
    name = f"{shard}/{index}.jpg"
    return (
        row
        | {"item_key": name, "filename": name, "shard": shard, "chunk_id": f"{shard}:0"}
        | {"item_index": index, "captions": ["one", "two"], "tags": ["t"], "status": "captioned"}
        | {"committed_at": 0}
        | more
    )


class Store:
    """Rows by shard, in memory; counts its open readers and remembers their threads."""

    def __init__(self, *rows: Item) -> None:
        self.rows = list(rows)
        self.open = 0
        self.threads: set[int] = set()
        self.read: list[tuple[str, ...] | None] = []

    def reader(self, _data_dir: Path) -> Reader:
        self.open += 1
        self.threads.add(threading.get_ident())
        return Reader(self)

    def manager(self) -> StorageManager:
        return StorageManager("run", open_reader=self.reader)


class Reader:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.schema = stored_schema(("captions", "tags"))
        self.columns = tuple(self.schema.names) if store.rows else ()
        self.output_fields = ("captions", "tags") if store.rows else ()
        self.shards = tuple(sorted({row["shard"] for row in store.rows}))

    def count_rows(self, shards: Collection[str] | None = None) -> int:
        return sum(batch.num_rows for batch in self.batches(shards))

    def batches(
        self, shards: Collection[str] | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        self.store.read.append(None if columns is None else tuple(columns))
        for row in self.store.rows:
            if shards is None or row["shard"] in shards:
                batch = pa.RecordBatch.from_pylist([row], self.schema)
                yield batch.select(list(columns or self.columns))

    def close(self) -> None:
        self.store.open -= 1


class DamagedReader(Reader):
    def count_rows(self, _shards: Collection[str] | None = None) -> int:
        raise StorageError("part-7 cannot be read; restore it")


def damaged(data_dir: Path) -> Reader:
    raise StorageError("ledger.sqlite3 cannot be read as a ledger; restore it")


def keys(contents: StorageContents) -> list[str]:
    return [row["item_key"] for row in contents.rows]


# --- what is asked for


async def test_default_means_every_shard() -> None:
    store = Store(stored(0, "train-0"), stored(1, "train-1"))
    contents = await store.manager().get_shard_contents("default")
    assert keys(contents) == ["train-0/0.jpg", "train-1/1.jpg"]
    assert keys(await store.manager().get_storage_contents()) == keys(contents)


async def test_a_shard_that_is_named_comes_alone() -> None:
    store = Store(stored(0, "train-0"), stored(1, "train-1"))
    contents = await store.manager().get_shard_contents("train-1")
    assert (keys(contents), contents.total_rows) == (["train-1/1.jpg"], 1)


async def test_rows_are_dicts_and_an_output_field_is_a_list_of_texts() -> None:
    store = Store(stored(0), stored(1, status="failed", captions=None, error="truncated"))
    contents = await store.manager().get_shard_contents("default")
    first, second = contents.rows
    assert list(first) == contents.columns == list(stored_schema(("captions", "tags")).names)
    assert (first["captions"], first["tags"]) == (["one", "two"], ["t"])
    assert (second["captions"], second["status"], second["error"]) == (None, "failed", "truncated")
    assert contents.output_fields == ["captions", "tags"]
    assert contents.total_rows == 2


async def test_a_limit_bounds_the_rows_and_not_the_total() -> None:
    store = Store(*(stored(index) for index in range(5)))
    for limit in range(7):
        contents = await store.manager().get_shard_contents("default", limit=limit)
        assert (len(contents.rows), contents.total_rows) == (min(limit, 5), 5)
    with pytest.raises(ValueError, match="limit=-1"):
        await store.manager().get_storage_contents(limit=-1)


async def test_only_the_columns_asked_for_are_read_and_given_in_their_order() -> None:
    store = Store(stored(0))
    contents = await store.manager().get_storage_contents(columns=["tags", "item_key", "tags"])
    store.read.clear()
    assert [list(row.items()) for row in contents.rows] == [
        [("tags", ["t"]), ("item_key", "default/0.jpg")]
    ]
    assert (contents.columns, contents.output_fields) == (["tags", "item_key"], ["tags"])
    assert store.read == [("tags", "item_key")]


async def test_a_row_has_the_true_name_of_its_file() -> None:
    odd: Item = {"filename": "caf\\xe9.jpg", "filename_raw": b"caf\xe9.jpg"}
    manager = Store(stored(0, **odd)).manager()
    (row,) = (await manager.get_shard_contents("default")).rows
    assert (row["filename"], row["filename_raw"]) == ("caf\udce9.jpg", b"caf\xe9.jpg")
    (row,) = (await manager.get_shard_contents("default", columns=["filename"])).rows
    assert row == {"filename": "caf\udce9.jpg"}


async def test_times_of_a_nanosecond_clock_can_be_read() -> None:
    table = pa.table({"when": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", "UTC"))})

    class Precise(Reader):
        def batches(self, *_: Any, **__: Any) -> Iterator[pa.RecordBatch]:
            yield from table.to_batches()

    store = Store(stored(0))
    manager = StorageManager("run", open_reader=lambda _: Precise(store))
    (row,) = (await manager.get_storage_contents()).iter_rows(["when"])
    assert row["when"].microsecond == 123_456


async def test_metadata_names_the_folder_and_its_shards_unless_not_wanted() -> None:
    manager = Store(stored(0, "b"), stored(0, "a")).manager()
    contents = await manager.get_storage_contents()
    assert contents.metadata == {"data_dir": "run", "shards": ["a", "b"]}
    assert (await manager.get_storage_contents(include_metadata=False)).metadata == {}


async def test_statistics_count_rows_texts_and_reasons() -> None:
    bad = {"status": "failed", "captions": None, "error_kind": "corrupt_image"}
    store = Store(stored(0), stored(1, tags=[]), stored(2, "b", **bad))
    assert await store.manager().get_caption_stats() == {
        "total_rows": 3,
        "captioned": 2,
        "failed": 1,
        "total_captions": 6,
        "captions_by_field": {"captions": 4, "tags": 2},
        "failures_by_kind": {"corrupt_image": 1},
        "flags": {},
        "shards": ["b", "default"],
    }
    assert store.open == 0


# --- what cannot be given


async def test_nothing_written_yet_is_no_columns_and_a_message() -> None:
    manager = Store().manager()
    for name in ("default", "train-0"):
        contents = await manager.get_shard_contents(name, columns=["captions"])
        assert (contents.columns, contents.rows, contents.total_rows) == ([], [], 0)
        assert contents.metadata["message"] == "nothing has been written to run yet"
        assert "error" not in contents.metadata
    assert (await manager.get_caption_stats())["total_rows"] == 0


async def test_an_unknown_shard_or_column_is_an_error_with_the_nearest_name() -> None:
    manager = Store(stored(0, "train-0")).manager()
    shard = await manager.get_shard_contents("trian-0")
    column = await manager.get_storage_contents(columns=["caption"], include_metadata=False)
    assert "no shard named 'trian-0'; did you mean 'train-0'?" in shard.metadata["error"]
    assert "no column named 'caption'; did you mean 'captions'?" in column.metadata["error"]
    for contents in (shard, column):
        assert contents.rows == []
        assert contents.columns, "something has been written"


@pytest.mark.parametrize("fails_late", [False, True])
async def test_a_damaged_store_is_an_error_and_never_an_empty_export(
    tmp_path: Path, fails_late: bool
) -> None:
    store = Store(stored(0))

    def damaged_late(_: Path) -> Reader:
        store.open += 1
        return DamagedReader(store)

    manager = StorageManager("run", open_reader=damaged_late if fails_late else damaged)
    await manager.initialize()
    contents = await manager.get_shard_contents("default")
    assert contents.columns == []
    assert "cannot be read" in contents.metadata["error"]
    with pytest.raises(ExportError, match="cannot be read"):
        StorageExporter(contents).to_txt(tmp_path)
    assert store.open == 0


async def test_statistics_of_a_damaged_store_are_refused() -> None:
    with pytest.raises(StorageError, match="cannot be read as a ledger"):
        await StorageManager("run", open_reader=damaged).get_caption_stats()


# --- handles, threads, loops


async def test_opening_counting_and_statistics_run_in_a_thread() -> None:
    store = Store(stored(0))
    manager = store.manager()
    await manager.get_shard_contents("default")
    await manager.get_storage_contents()
    await manager.get_caption_stats()
    assert threading.get_ident() not in store.threads


async def test_asking_for_contents_reads_no_rows_until_they_are_used() -> None:
    class Counted(Reader):
        def count_rows(self, _shards: Collection[str] | None = None) -> int:
            return len(self.store.rows)

    store = Store(stored(0))
    manager = StorageManager("run", open_reader=lambda _: Counted(store))
    contents = await manager.get_shard_contents("default")
    assert (contents.columns[0], contents.total_rows) == ("item_key", 1)
    assert store.read == []


async def test_contents_outlive_the_manager_and_hold_nothing_open() -> None:
    store = Store(stored(0), stored(1))
    manager = store.manager()
    contents = await manager.get_shard_contents("default")
    await manager.checkpoint()
    await manager.close()
    await manager.close()
    assert store.open == 0
    rows = contents.iter_rows()
    next(rows)
    assert store.open == 1
    rows.close()
    assert store.open == 0
    assert len(contents.rows) == 2
    assert store.open == 0


async def test_a_limit_reached_closes_the_reader() -> None:
    store = Store(stored(0), stored(1))
    contents = await store.manager().get_shard_contents("default", limit=1)
    assert len(contents.rows) == 1
    assert store.open == 0


async def test_rows_changed_by_their_user_are_what_is_exported(tmp_path: Path) -> None:
    store = Store(stored(0), stored(1))
    contents = await store.manager().get_shard_contents("default")
    contents.rows[0]["captions"] = ["edited"]
    contents.rows = contents.rows[:1]
    assert StorageExporter(contents).to_txt(tmp_path) == 1
    assert (tmp_path / "default/0.txt").read_text() == "edited"


def test_the_storage_may_be_opened_each_second_in_a_fresh_event_loop() -> None:
    store = Store()

    async def poll() -> list[str]:
        manager = store.manager()
        await manager.initialize()
        return (await manager.get_shard_contents("default")).columns

    threads = threading.active_count()
    for _ in range(5):
        assert asyncio.run(poll()) == []
    store.rows.append(stored(0))
    assert asyncio.run(poll())
    gc.collect()  # a handle left open would warn, and warnings are errors
    assert (store.open, threading.active_count()) == (0, threads)


# --- a store on disk


async def write_run(data_dir: Path, first: int, *names: bytes, checkpoint: bool) -> None:
    """Caption these files, the even items; the odd ones fail."""
    store = RunStore(data_dir)
    store.start(lambda _: None)
    items = tuple(range(first, first + len(names)))
    entries = [CatalogEntry(index, path) for index, path in zip(items, names, strict=True)]
    rows = [
        WireRow(index, "failed", error_kind="corrupt_image", error="truncated")
        if index % 2
        else WireRow(index, "captioned", {"captions": [f"caption {index}"]})
        for index in items
    ]
    results = CommitRows(
        shard="default",
        chunk_first=0,
        items=items,
        accepted=tuple(range(len(items))),
        payload=encode_rows(rows, ("captions",)),
        output_fields=("captions",),
        contributor="",
        worker="w",
    )
    results.prepare()
    try:
        await store.write(AppendItems("default", entries))
        await store.write(results)
        if checkpoint:
            await store.checkpoint()
    finally:
        await store.close()


def contents_of(data_dir: Path) -> StorageContents:
    return asyncio.run(StorageManager(data_dir).get_shard_contents("default"))


def test_what_waits_for_a_checkpoint_is_exported_with_the_parts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    asyncio.run(write_run(run, 0, b"a/1.jpg", b"a/2.jpg", b"caf\xe9.png", checkpoint=True))
    asyncio.run(write_run(run, 3, b"b/1.jpg", b"b/2.jpg", checkpoint=False))
    contents = contents_of(run)
    assert (contents.total_rows, contents.output_fields) == (5, ["captions"])
    assert StorageExporter(contents).to_txt(tmp_path / "images") == 3
    written = {path: path.read_text() for path in (tmp_path / "images").rglob("*.txt")}
    assert {str(path.relative_to(tmp_path / "images")): text for path, text in written.items()} == {
        "a/1.txt": "caption 0",
        "caf\udce9.txt": "caption 2",
        "b/2.txt": "caption 4",
    }
    assert StorageExporter(contents).to_jsonl(tmp_path / "rows.jsonl") == 5
    assert asyncio.run(StorageManager(run).get_caption_stats())["failed"] == 2


def test_reading_beside_an_orchestrator_changes_no_file(tmp_path: Path) -> None:
    asyncio.run(write_run(tmp_path, 0, b"1.jpg", checkpoint=True))
    owner = RunStore(tmp_path)
    try:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert len(contents_of(tmp_path).rows) == 1
        after = {path: path.read_bytes() for path in before}
        assert {name for name in before if before[name] != after[name]} <= {
            tmp_path / "ledger.sqlite3-shm"  # where readers of a WAL take their mark
        }
        assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(before)
    finally:
        asyncio.run(owner.close())


def test_a_part_that_is_missing_is_an_error_that_names_it(tmp_path: Path) -> None:
    asyncio.run(write_run(tmp_path, 0, b"1.jpg", checkpoint=True))
    (part,) = (tmp_path / "captions").iterdir()
    part.unlink()
    contents = contents_of(tmp_path)
    assert str(part) in contents.metadata["error"]


def test_a_part_damaged_inside_stops_an_export_and_leaves_no_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    asyncio.run(write_run(run, 0, b"1.jpg", checkpoint=True))
    (part,) = (run / "captions").iterdir()
    whole = part.read_bytes()
    part.write_bytes(whole[:4] + bytes(300) + whole[304:])
    contents = contents_of(run)
    with pytest.raises(StorageError, match="cannot be read"):
        StorageExporter(contents).to_jsonl(tmp_path / "rows.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    contents = contents_of(tmp_path / "none")
    assert (contents.columns, "message" in contents.metadata) == ([], True)
    assert list(tmp_path.iterdir()) == []


def test_polling_a_store_on_disk_leaves_no_handle(tmp_path: Path) -> None:
    async def poll() -> int:
        manager = StorageManager(tmp_path)
        await manager.initialize()
        contents = await manager.get_shard_contents("default", limit=1)
        await manager.close()
        return len(contents.rows)

    asyncio.run(write_run(tmp_path, 0, b"1.jpg", b"2.jpg", checkpoint=False))
    assert asyncio.run(poll()) == 1
    gc.collect()
    handles = len(list(Path("/proc/self/fd").iterdir()))
    assert [asyncio.run(poll()) for _ in range(5)] == [1] * 5
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == handles


# --- the surface other programs were written against


def test_the_signatures_are_those_other_programs_call() -> None:
    shard = inspect.signature(StorageManager.get_shard_contents).parameters
    assert list(shard) == ["self", "shard_name", "limit", "columns", "include_metadata"]
    assert [each.default for each in list(shard.values())[2:]] == [None, None, True]
    txt = list(inspect.signature(StorageExporter.to_txt).parameters.values())
    assert [each.name for each in txt[:4]] == [
        *("self", "output_dir", "filename_column", "export_column"),
    ]
    assert [each.default for each in txt[2:4]] == ["filename", "captions"]
    metadata = inspect.signature(StorageExporter.to_webshart_metadata).parameters
    assert list(metadata)[1:] == ["metadata_path", "filename_column", "export_column"]
