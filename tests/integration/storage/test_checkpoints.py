"""Checkpoints: part first, record after; a crash between leaves debris, never a lost row."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from structlog.testing import capture_logs

from caption_flow.storage import store as store_module
from caption_flow.storage.database import PARTS_FOLDER
from caption_flow.storage.errors import StorageError, StorageFullError
from caption_flow.storage.parts import Part, part_file, write_part
from caption_flow.storage.reader import StorageReader
from caption_flow.storage.store import RunStore
from caption_flow.storage.verify import verify
from tests.integration.storage.folders import (
    PATIENCE_SECONDS,
    as_a_kill_leaves_it,
    captioned,
    disk_full,
    items_in,
    listed,
    opened,
    parts,
    query,
    rows_in,
    rows_in_parts,
)


def table_of(data_dir: Path) -> pa.Table:
    with closing(StorageReader(data_dir)) as reader:
        return pa.Table.from_batches(reader.batches())


async def test_a_checkpoint_moves_each_row_into_captions_exactly_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(20))
        await store.write(captioned(*range(5)))
        await store.write(captioned(*range(5, 10)))
        before = rows_in(tmp_path)
        assert await store.checkpoint() == 10
        assert rows_in(tmp_path) == rows_in_parts(tmp_path) == before
        assert await store.checkpoint() == 0
        await store.write(captioned(15))
        assert items_in(tmp_path) == {*range(10), 15}
        assert await store.checkpoint() == 1
        assert set(rows_in_parts(tmp_path)) == {*range(10), 15}
    assert not verify(tmp_path).breached
    assert parts(tmp_path) == [part_file(1), part_file(2)]


async def test_a_checkpoint_leaves_the_parts_before_it_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(20))
        await store.write(captioned(1))
        await store.checkpoint()
        first = tmp_path / PARTS_FOLDER / part_file(1)
        before = first.stat()
        await store.write(captioned(2))
        await store.checkpoint()
        after = first.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


async def test_a_kill_before_the_part_is_recorded_loses_nothing_and_repeats_nothing(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / "run"
    async with opened(data_dir) as store:
        await store.write(listed(20))
        await store.write(captioned(1, 2))
        await store.checkpoint()
        await store.write(captioned(3, 4))
        write_part(data_dir / PARTS_FOLDER, 2, table_of(data_dir))  # renamed, and then the kill
        left = as_a_kill_leaves_it(data_dir)
    assert items_in(left) == {1, 2, 3, 4}
    async with opened(left) as store:
        assert parts(left) == [part_file(1)]
        assert items_in(left) == {1, 2, 3, 4}
        assert await store.checkpoint() == 2
    assert set(rows_in_parts(left)) == {1, 2, 3, 4}
    assert not verify(left).breached


async def test_a_kill_after_the_part_is_recorded_repeats_nothing(tmp_path: Path) -> None:
    data_dir = tmp_path / "run"
    async with opened(data_dir) as store:
        await store.write(listed(20))
        await store.write(captioned(1, 2))
        await store.checkpoint()
        left = as_a_kill_leaves_it(data_dir)
    async with opened(left) as store:
        assert await store.checkpoint() == 0
    assert set(rows_in_parts(left)) == {1, 2}


async def test_half_written_files_of_a_kill_are_removed(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(20))
        await store.write(captioned(1))
        await store.checkpoint()
    folder = tmp_path / PARTS_FOLDER
    (folder / ".part-00000002.tmp").write_bytes(b"PAR1 and then the power went")
    (folder / part_file(2)).write_bytes(b"PAR1 half a part")
    assert items_in(tmp_path) == {1}
    assert verify(tmp_path).debris == [".part-00000002.tmp", part_file(2)]
    async with opened(tmp_path):
        assert parts(tmp_path) == [part_file(1)]
    assert items_in(tmp_path) == {1}


async def test_a_part_that_no_crash_explains_is_named_and_stays(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(20))
        for item in (1, 2, 3):
            await store.write(captioned(item))
            await store.checkpoint()
    folder = tmp_path / PARTS_FOLDER
    strange = folder / part_file(0)
    strange.write_bytes((folder / part_file(1)).read_bytes())
    with capture_logs() as logs:
        async with opened(tmp_path):
            pass
    assert strange.exists()
    assert any(part_file(0) in str(entry) for entry in logs)
    assert items_in(tmp_path) == {1, 2, 3}


async def test_a_ledger_older_than_its_parts_is_refused_and_no_part_is_removed(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / "run"
    async with opened(data_dir) as store:
        await store.write(listed(20))
        backup = as_a_kill_leaves_it(data_dir)
        for item in (1, 2, 3):
            await store.write(captioned(item))
            await store.checkpoint()
    before = parts(data_dir)
    for file in data_dir.glob("ledger.sqlite3*"):
        file.unlink()
    for file in backup.glob("ledger.sqlite3*"):
        file.rename(data_dir / file.name)
    with pytest.raises(StorageError, match="older than") as caught:
        RunStore(data_dir)
    assert part_file(1) in str(caught.value)
    assert parts(data_dir) == before


async def test_results_committed_during_a_checkpoint_are_in_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    async with opened(tmp_path) as store:
        await store.write(listed(20))
        await store.write(captioned(1))
        checkpoint = asyncio.create_task(store.checkpoint())
        await held.reached()
        await store.write(captioned(2))
        assert items_in(tmp_path) == {1, 2}
        held.go.set()
        # Both moved: a checkpoint goes on until nothing is buffered.
        assert await checkpoint == 2
    assert set(rows_in_parts(tmp_path)) == {1, 2}
    assert not verify(tmp_path).breached


async def test_a_checkpoint_that_is_given_up_half_way_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a drain: the regular checkpoint is cancelled, the final one follows."""
    held = Held(monkeypatch)
    async with opened(tmp_path) as store:
        await store.write(listed(20))
        await store.write(captioned(1))
        checkpoint = asyncio.create_task(store.checkpoint())
        await held.reached()
        checkpoint.cancel()
        with pytest.raises(asyncio.CancelledError):
            await checkpoint
        await store.write(captioned(2))
        held.go.set()
        await store.checkpoint()
        assert items_in(tmp_path) == {1, 2}
    assert set(rows_in_parts(tmp_path)) == {1, 2}
    assert not verify(tmp_path).breached


async def test_a_checkpoint_cancelled_before_its_record_is_not_overwritten_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(20))
        await store.write(captioned(1))
        submitted = asyncio.Event()
        write = store.write

        def noticed(change: Any) -> asyncio.Future[None]:
            submitted.set()
            return write(change)

        monkeypatch.setattr(store, "write", noticed)
        checkpoint = asyncio.create_task(store.checkpoint())
        await submitted.wait()  # the part has its name, its record is on the way
        checkpoint.cancel()
        with pytest.raises(asyncio.CancelledError):
            await checkpoint
        await write(captioned(2))
        await store.checkpoint()
        assert items_in(tmp_path) == {1, 2}
    assert set(rows_in_parts(tmp_path)) == {1, 2}
    assert not verify(tmp_path).breached


async def test_many_rows_make_several_parts_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_ROWS_PER_PART", 10)
    async with opened(tmp_path) as store:
        await store.write(listed(100))
        for first in range(0, 100, 5):
            await store.write(captioned(*range(first, first + 5)))
        assert await store.checkpoint() == 100
    assert len(parts(tmp_path)) == 10
    assert set(rows_in_parts(tmp_path)) == set(range(100))
    assert [rows for (rows,) in query(tmp_path, "SELECT rows FROM parts")] == [10] * 10


async def test_a_part_without_room_leaves_its_rows_in_the_ledger_and_no_file_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(table: pa.Table, file: Any, **_: Any) -> None:
        file.write(b"the disk takes this much")
        file.flush()
        raise OSError(28, "No space left on device")

    async with opened(tmp_path) as store:
        await store.write(listed(20))
        await store.write(captioned(1, 2))
        with monkeypatch.context() as patch:
            patch.setattr("caption_flow.storage.parts.pq.write_table", no_room)
            with pytest.raises(StorageFullError, match="is full"):
                await store.checkpoint()
        assert parts(tmp_path) == []
        assert items_in(tmp_path) == {1, 2}
        assert await store.checkpoint() == 2
    assert set(rows_in_parts(tmp_path)) == {1, 2}


async def test_a_store_told_to_stop_waiting_gives_a_checkpoint_up_on_a_full_disk(
    tmp_path: Path,
) -> None:
    """The part fits, its record does not: an orchestrator that drains must end all the same."""
    troubles: list[Any] = []
    async with opened(tmp_path, troubles) as store:
        await store.write(listed(20))
        await store.write(captioned(1))
        full = Full(store)
        checkpoint = asyncio.create_task(store.checkpoint())
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not troubles:  # noqa: ASYNC110  -- a thread sets no event of this loop
                await asyncio.sleep(0.005)
        assert not checkpoint.done()
        store.stop_waiting()
        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(StorageFullError):
                await checkpoint
            with pytest.raises(StorageFullError):
                await store.checkpoint()
        full.over()
    assert items_in(tmp_path) == {1}


class Held:
    """Holds up the writing of parts until the test lets it go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self._reached = threading.Event()

        def write_slowly(folder: Path, number: int, table: pa.Table) -> Part:
            self._reached.set()
            assert self.go.wait(PATIENCE_SECONDS)
            return write_part(folder, number, table)

        monkeypatch.setattr(store_module, "write_part", write_slowly)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, PATIENCE_SECONDS)


class Full:
    """Lets a store's commits fail for want of room until it is over."""

    def __init__(self, store: RunStore) -> None:
        assert store._writer is not None
        self._transaction: Callable[..., None] = store._writer._transaction
        self._writer = store._writer
        self._writer._transaction = self._fail  # type: ignore[method-assign, assignment]

    def _fail(self, _group: Any) -> None:
        raise disk_full()

    def over(self) -> None:
        self._writer._transaction = self._transaction  # type: ignore[method-assign]
