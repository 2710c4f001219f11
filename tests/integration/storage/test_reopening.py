"""Items taken back: each is as it was or open, never both, whatever moment the kill picks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from caption_flow.storage.database import PARTS_FOLDER
from caption_flow.storage.errors import StorageError
from caption_flow.storage.parts import part_file
from caption_flow.storage.reader import StorageReader
from caption_flow.storage.reopen import TakenBack, rewrite, these_items
from caption_flow.storage.store import RunStore
from caption_flow.storage.verify import verify
from tests.integration.storage.folders import (
    SHARD,
    as_a_kill_leaves_it,
    captioned,
    failed,
    items_in,
    listed,
    opened,
    parts,
    rows_in,
    rows_in_parts,
)


def only(*items: int) -> dict[str, frozenset[int]]:
    return {SHARD: frozenset(items)}


def terminal_in(store: RunStore) -> set[int]:
    spans = store.snapshot.terminal.get(SHARD, [])
    return {item for start, stop in spans for item in range(start, stop)}


async def fill(store: RunStore) -> None:
    """Items 0 to 5 in one part, 6 to 8 in another, 9 and 10 in the buffer; 5 and 8 failed."""
    await store.write(listed(20))
    await store.write(captioned(0, 1, 2, 3, 4))
    await store.write(failed(5))
    await store.checkpoint()
    await store.write(captioned(6, 7))
    await store.write(failed(8, kind="quarantined"))
    await store.checkpoint()
    await store.write(captioned(9, 10))


async def test_what_is_taken_back_is_gone_and_everything_else_stays(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await fill(store)
        before = rows_in(tmp_path)
        taken = await store.reopen(only(1, 3, 6))
        assert taken.items == only(1, 3, 6)
        assert taken.counts == {"captioned": 3}
        expected = {item: row for item, row in before.items() if item not in {1, 3, 6}}
        assert rows_in(tmp_path) == rows_in_parts(tmp_path) == expected
    assert not verify(tmp_path).breached
    again = RunStore(tmp_path)
    try:
        assert terminal_in(again) == {0, 2, 4, 5, 7, 8, 9, 10}
        assert again.snapshot.totals == {"captioned": 6, "image_damaged": 1, "quarantined": 1}
    finally:
        again.release()


async def test_a_row_that_is_still_buffered_is_taken_back_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await fill(store)
        assert (await store.reopen(only(9))).items == only(9)
        assert items_in(tmp_path) == {0, 1, 2, 3, 4, 5, 6, 7, 8, 10}


async def test_a_part_of_which_nothing_is_left_is_gone(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await fill(store)
        await store.reopen(only(6, 7, 8))
        assert part_file(2) not in parts(tmp_path)
        assert set(rows_in_parts(tmp_path)) == {0, 1, 2, 3, 4, 5, 9, 10}
        # The next part does not take the number of one that was recorded.
        await store.write(captioned(6))
        await store.checkpoint()
    assert not verify(tmp_path).breached
    assert items_in(tmp_path) == {0, 1, 2, 3, 4, 5, 6, 9, 10}


async def test_items_without_a_row_are_no_reason_to_write_anything(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await fill(store)
        await store.checkpoint()
        before = parts(tmp_path)
        assert not (await store.reopen(only(15))).counts
        assert parts(tmp_path) == before


@pytest.mark.parametrize(
    ("kind", "taken"), [(None, {5, 8}), ("quarantined", {8}), ("image_damaged", {5})]
)
async def test_failures_are_taken_back_by_kind_and_captions_never(
    tmp_path: Path, kind: str | None, taken: set[int]
) -> None:
    async with opened(tmp_path) as store:
        await fill(store)
        opened_again = await store.reopen_failures(kind)
        assert opened_again.items == only(*taken)
        assert items_in(tmp_path) == set(range(11)) - taken


def rewritten(data_dir: Path, *items: int) -> Iterator[TakenBack]:
    """Do the first half of taking items of part 1 back: its new file is there, no record is."""
    return rewrite(data_dir, [(1, part_file(1))], these_items(only(*items)), 4)


async def test_a_kill_before_the_swap_leaves_every_item_as_it_was(tmp_path: Path) -> None:
    data_dir = tmp_path / "run"
    async with opened(data_dir) as store:
        await fill(store)
        await store.checkpoint()
        assert next(rewritten(data_dir, 1)).items == only(1)
        left = as_a_kill_leaves_it(data_dir)
    assert part_file(4) in parts(left)
    assert items_in(left) == set(range(11))
    async with opened(left) as store:
        assert part_file(4) not in parts(left)
        assert terminal_in(store) == set(range(11))
    assert set(rows_in_parts(left)) == set(range(11))


async def test_a_kill_after_the_swap_leaves_the_item_open_and_no_old_file(tmp_path: Path) -> None:
    data_dir = tmp_path / "run"
    async with opened(data_dir) as store:
        await fill(store)
        await store.checkpoint()
        await store.write(next(rewritten(data_dir, 1)).write)
        left = as_a_kill_leaves_it(data_dir)  # the old file has not been removed yet
    assert part_file(1) in parts(left)
    assert items_in(left) == set(range(11)) - {1}
    async with opened(left) as store:
        assert part_file(1) not in parts(left)
        assert terminal_in(store) == set(range(11)) - {1}
    assert set(rows_in_parts(left)) == set(range(11)) - {1}
    assert not verify(left).breached


async def test_taking_back_that_is_given_up_half_way_leaves_no_part_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as store:
        await fill(store)
        await store.checkpoint()
        submitted = asyncio.Event()
        write = store.write

        def noticed(change: object) -> asyncio.Future[None]:
            submitted.set()
            return write(change)  # type: ignore[arg-type]  # whatever the store itself writes

        monkeypatch.setattr(store, "write", noticed)
        taking = asyncio.create_task(store.reopen(only(1)))
        await submitted.wait()
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        await write(captioned(12))
        await store.checkpoint()
        assert items_in(tmp_path) == (set(range(11)) - {1}) | {12}
    assert not verify(tmp_path).breached


async def test_a_part_that_is_missing_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await fill(store)
        (tmp_path / PARTS_FOLDER / part_file(1)).unlink()
        with pytest.raises(StorageError, match=part_file(1)):
            await store.reopen(only(1))
        await store.write(captioned(15))  # what works goes on working
        await store.checkpoint()


async def test_a_reader_whose_part_is_replaced_meanwhile_is_told_to_read_again(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as store:
        await fill(store)
        with closing(StorageReader(tmp_path)) as reader:
            await store.reopen(only(1))
            with pytest.raises(StorageError, match="again"):
                list(reader.batches())
        assert items_in(tmp_path) == set(range(11)) - {1}


async def test_a_reader_sees_one_state_however_much_is_written_beside_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await fill(store)
        with closing(StorageReader(tmp_path)) as reader:
            await store.write(captioned(11, 12))
            await store.checkpoint()
            seen = [i for b in reader.batches(columns=["item_index"]) for i in b[0].to_pylist()]
            assert sorted(seen) == list(range(11))
            assert reader.count_rows() == 11
        assert items_in(tmp_path) == set(range(13))


async def test_readers_beside_a_busy_writer_never_miss_or_double_a_row(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(400))
        durable: set[int] = set()
        reading = True
        counts: list[int] = []

        def read_on() -> None:
            while reading:
                known = set(durable)
                seen = items_in(tmp_path)
                assert known <= seen
                counts.append(len(seen))

        task = asyncio.create_task(asyncio.to_thread(read_on))
        for first in range(0, 400, 4):
            await store.write(captioned(*range(first, first + 4)))
            durable.update(range(first, first + 4))
            if first % 60 == 0:
                await store.checkpoint()
        reading = False
        await task
    assert counts == sorted(counts)
    assert items_in(tmp_path) == set(range(400))
