"""Datasets that keep no catalog in the ledger: what is known of leased items, and for how long."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from caption_flow.storage.database import LEDGER_FILE
from caption_flow.storage.opening import KnownShard, look
from caption_flow.storage.verify import verify
from caption_flow.storage.writes import CatalogEntry, ListShard, RememberItems
from tests.integration.storage.folders import (
    SHARD,
    as_a_kill_leaves_it,
    captioned,
    listed,
    opened,
    query,
    rows_in,
    rows_in_parts,
)


def leased(*items: int, title: str = "title") -> RememberItems:
    """What a source says of items when they are leased; they may share a file's name."""
    return RememberItems(
        SHARD,
        [
            CatalogEntry(
                item, b"image.png", key=f"a key {item}", columns={"title": f"{title} {item}"}
            )
            for item in items
        ],
    )


def known_items(data_dir: Path) -> list[int]:
    return [item for (item,) in query(data_dir, "SELECT item_index FROM items ORDER BY 1")]


async def test_a_row_says_what_was_known_when_its_item_was_leased(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(ListShard(SHARD, 100, "facts"))
        await store.write(leased(3, 4, 5))
        await store.write(captioned(3, 4))
        before = rows_in(as_a_kill_leaves_it(tmp_path))
        assert {(row["item_key"], row["filename"], row["title"]) for row in before.values()} == {
            ("a key 3", "image.png", "title 3"),
            ("a key 4", "image.png", "title 4"),
        }
        await store.checkpoint()
        assert rows_in(tmp_path) == rows_in_parts(tmp_path) == before
    assert not verify(tmp_path).breached


async def test_what_is_in_a_part_is_known_no_longer_and_the_rest_is(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(ListShard(SHARD, 100, ""))
        await store.write(leased(*range(10)))
        await store.write(captioned(0, 1, 5))
        await store.checkpoint()
        assert known_items(tmp_path) == [2, 3, 4, 6, 7, 8, 9]


async def test_the_catalog_of_a_folder_of_files_is_never_forgotten(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(10))
        await store.write(captioned(*range(10)))
        await store.checkpoint()
        assert known_items(tmp_path) == list(range(10))


async def test_an_item_that_is_leased_again_is_known_as_it_is_now(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(ListShard(SHARD, 100, ""))
        await store.write(leased(1))
        await store.write(leased(1, 2, title="other"))
        await store.write(captioned(1))
        assert rows_in(tmp_path)[1]["title"] == "other 1"


async def test_a_row_of_an_item_that_nothing_is_known_of_is_named_by_its_place(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as store:
        await store.write(ListShard(SHARD, 100, ""))
        await store.write(captioned(7))
        await store.checkpoint()
    assert rows_in(tmp_path)[7]["item_key"] == f"{SHARD}#7"


async def test_a_shard_is_remembered_with_what_its_source_noted(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(ListShard("a", 100, "one"))
        await store.write(ListShard("b", 50, ""))
        await store.write(ListShard("a", 90, "two"))
    expected = {"a": KnownShard(100, "two"), "b": KnownShard(50)}
    assert look(tmp_path).snapshot.shards == expected


async def test_a_ledger_from_before_shards_had_facts_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(10))
        await store.write(captioned(1))
    with closing(sqlite3.connect(tmp_path / LEDGER_FILE)) as connection:
        for column in ("catalogued", "facts"):
            connection.execute(f"ALTER TABLE shards DROP COLUMN {column}")
        connection.commit()
    async with opened(tmp_path) as store:
        assert store.snapshot.counts == {SHARD: 10}
        await store.write(captioned(2))
        await store.checkpoint()
    assert known_items(tmp_path) == list(range(10))
    assert set(rows_in(tmp_path)) == {1, 2}
