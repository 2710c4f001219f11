"""Footers and columns of Parquet files in a storage whose connections are lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from caption_flow.places.base import NotHereError, PlaceError, UnreachableError
from caption_flow.places.parquet import NoColumnError, ParquetColumns
from caption_flow.protocol.places import ObjectPlace
from tests.support import parquet
from tests.support.flaky import FlakyStorage

PLACE = ObjectPlace("flaky://set/one.parquet")


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[type[FlakyStorage]]:
    """A storage with one file, titled; nobody waits between attempts."""
    written = parquet.write(tmp_path / "one.parquet", title=["a", "b"])
    with FlakyStorage.holding({"set/one.parquet": written.read_bytes()}) as storage:
        yield storage


def test_a_lost_connection_is_tried_again(storage: type[FlakyStorage]) -> None:
    columns = ParquetColumns()
    storage.losses = [ConnectionResetError("reset"), TimeoutError("late")]
    assert columns.footer(PLACE).num_rows == 2
    storage.losses = [ConnectionResetError("reset"), TimeoutError("late")]
    assert columns.column(PLACE, 0, "title").to_pylist() == ["a", "b"]


def test_patience_ends_and_says_that_it_may_pass(storage: type[FlakyStorage]) -> None:
    storage.losses = [ConnectionResetError("reset")] * 99
    with pytest.raises(UnreachableError, match=r"flaky://set/one\.parquet cannot be read: reset"):
        ParquetColumns().footer(PLACE)
    assert len(storage.losses) == 99 - 3
    storage.losses = []
    assert ParquetColumns().footer(PLACE).num_rows == 2


@pytest.mark.parametrize("loss", [FileNotFoundError("gone"), PermissionError("no")])
def test_what_will_not_pass_is_not_asked_for_again(
    storage: type[FlakyStorage], loss: OSError
) -> None:
    storage.losses = [loss] * 2
    with pytest.raises(NotHereError) as refused:
        ParquetColumns().footer(PLACE)
    assert not isinstance(refused.value, UnreachableError)
    assert len(storage.losses) == 1


def test_damage_and_a_missing_column_are_told_apart(storage: type[FlakyStorage]) -> None:
    with pytest.raises(NoColumnError):
        ParquetColumns().column(PLACE, 0, "other")
    storage.files["set/one.parquet"] = storage.files["set/one.parquet"][:-3]
    with pytest.raises(PlaceError, match="is damaged") as damaged:
        ParquetColumns().footer(PLACE)
    assert not isinstance(damaged.value, NoColumnError)
