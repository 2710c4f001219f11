"""Rows by number: each once, in order, while the run goes on beside whoever looks."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from caption_flow.protocol.rows import CAPTIONED, Row
from caption_flow.storage import browse
from caption_flow.storage.browse import RowIndex, Wanted
from caption_flow.storage.choice import Choice, ChoiceError, Ending
from caption_flow.storage.errors import StorageError
from caption_flow.storage.search import Search
from caption_flow.storage.writes import SetMeta
from tests.integration.storage.folders import batch, captioned, failed, listed, opened, parts


def items(index: RowIndex) -> list[int]:
    rows = [index.row(position) for position in range(index.total)]
    return [row["item_index"] for row in rows if row is not None]


def looked(index: RowIndex, start: int, wanted: Wanted, *, backward: bool = False) -> int | None:
    *_, last = [None, *index.look(wanted, start, backward=backward)]
    return None if last is None else last.found


def ended(*endings: Ending) -> Wanted:
    return Wanted(Choice(frozenset(endings)))


def flagged(item: int) -> object:
    return batch([Row(item, CAPTIONED, {"captions": ["again again"]}, flags=("repetition",))])


async def test_rows_have_numbers_from_the_oldest_part_to_what_waits(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(9))
        await store.write(SetMeta({"output_fields": "captions", "dataset": "/photos"}))
        await store.write(captioned(2, 0))
        await store.checkpoint()
        await store.write(failed(1))
        await store.checkpoint()
        await store.write(captioned(8, 3))
        with closing(RowIndex(tmp_path)) as index:
            assert index.total == 5
            assert items(index) == [0, 2, 1, 8, 3]
            assert index.row(-1) is index.row(5) is None
            assert index.output_fields == ("captions",)
            assert index.dataset == "/photos"
            row = index.row(3)
            assert row is not None
            assert row["captions"] == ["caption of 8"]
            assert row["committed_at"].tzinfo is not None


async def test_new_rows_are_found_and_a_folder_may_be_empty_at_first(tmp_path: Path) -> None:
    with closing(RowIndex(tmp_path)) as index:
        assert (index.total, index.row(0), index.schema) == (0, None, None)
        async with opened(tmp_path) as store:
            await store.write(listed(3))
            await store.write(captioned(0))
            assert index.refresh()
            assert items(index) == [0]
            assert not index.refresh()
            await store.write(captioned(1))
            assert items(index) == [0]
            assert index.refresh()
            assert items(index) == [0, 1]


async def test_a_row_is_found_again_wherever_a_checkpoint_or_a_retry_put_it(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(9))
        await store.write(captioned(8, 3))
        with closing(RowIndex(tmp_path)) as index:
            assert index.total == 2
            await store.checkpoint()  # sorts
            # Nobody has looked for news, and the batch is gone from where it was.
            row = index.row(0)
            assert row is not None
            assert row["item_index"] == 3
            assert index.position_of("default", 8, near=0) == 1
            await store.write(captioned(1))
            await store.reopen({"default": frozenset({3})})
            index.refresh()
            assert sorted(items(index)) == [1, 8]
            assert index.position_of("default", 3, near=0) is None
            assert items(index)[index.position_of("default", 8, near=1) or 0] == 8


async def test_looking_passes_over_what_is_not_wanted_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "_ROWS_AT_ONCE", 2)
    async with opened(tmp_path) as store:
        await store.write(listed(20))
        await store.write(captioned(0, 1, 2, 3, 4))
        await store.checkpoint()
        await store.write(failed(5))
        await store.write(captioned(6, text="a dog"))
        await store.checkpoint()
        await store.write(flagged(7))  # type: ignore[arg-type]
        await store.write(captioned(8, text="a Dog"))
    with closing(RowIndex(tmp_path)) as index:
        assert items(index) == list(range(9))
        dog = Wanted(search=Search("dog"))
        assert looked(index, 0, dog) == 6
        assert looked(index, 7, dog) == 8
        assert looked(index, 9, dog) == 8  # from the last one there is
        assert looked(index, 8, dog, backward=True) == 8
        assert looked(index, 7, dog, backward=True) == 6
        assert looked(index, 5, dog, backward=True) is None
        assert looked(index, 0, ended("failed")) == 5
        assert looked(index, 6, ended("failed")) is None
        assert looked(index, 8, ended("flagged"), backward=True) == 7
        assert looked(index, 5, ended("ok", "flagged")) == 6
        only_ok_dogs = Wanted(Choice(frozenset({"ok"})), Search("again"))
        assert looked(index, 0, only_ok_dogs) is None
        wide = Wanted(Choice(condition="item_index % 4 = 3"))
        assert [looked(index, start, wide) for start in (0, 3, 4, 8)] == [3, 3, 7, None]
        with pytest.raises(ChoiceError):
            looked(index, 0, Wanted(Choice(condition="nonsense = 1")))
        assert sum(one.rows for one in index.look(ended("failed"), 6)) == 3
        assert [row["item_index"] for row in index.rows(dog)] == [6, 8]
        assert [row["item_index"] for row in index.rows(Wanted())] == list(range(9))


async def test_parts_without_any_row_of_the_kind_are_not_read(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(9))
        await store.write(captioned(0, 1))
        await store.checkpoint()
        await store.write(failed(2))
        await store.checkpoint()
    (tmp_path / "captions" / parts(tmp_path)[0]).write_bytes(b"not Parquet any more")
    with closing(RowIndex(tmp_path)) as index:
        assert looked(index, 0, ended("failed")) == 2
        with pytest.raises(StorageError, match="cannot be read"):
            looked(index, 0, ended("ok"))
        with pytest.raises(StorageError, match="cannot be read"):
            index.row(0)


async def test_what_was_opened_as_of_now_stays_so(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(9))
        await store.write(captioned(4, 2))
        with closing(RowIndex(tmp_path, as_of_now=True)) as index:
            await store.checkpoint()
            await store.write(captioned(5))
            assert [row["item_index"] for row in index.rows(Wanted())] == [4, 2]


async def test_a_part_that_is_gone_is_an_error_and_no_endless_look(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(9))
        await store.write(captioned(0, 1))
        await store.checkpoint()
    (tmp_path / "captions" / parts(tmp_path)[0]).unlink()
    with closing(RowIndex(tmp_path)) as index:
        for attempt in (
            lambda: index.row(0),
            lambda: looked(index, 0, ended("ok")),
            lambda: list(index.rows(Wanted())),
        ):
            with pytest.raises(StorageError, match="cannot be read"):
                attempt()
