"""Which rows are exported: by how they ended, and by conditions on their columns."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence

import pyarrow as pa
import pytest

from caption_flow.storage.choice import ENDINGS, Choice, ChoiceError
from caption_flow.storage.contents import Selection, StorageContents

ROWS = pa.table(
    {
        "item_key": ["a", "b", "c", "d"],
        "status": ["captioned", "captioned", "failed", "captioned"],
        "flags": pa.array([None, ["length"], None, []], pa.list_(pa.string())),
        "width": [100, 200, None, 400],
        "captions": [["a cat"], ["a dog"], None, ["two cats", "it's"]],
    }
)


class Store:
    """Two batches of rows."""

    columns = tuple(ROWS.schema.names)
    output_fields = ("captions",)
    shards = ("default",)

    def count_rows(self, _shards: Collection[str] | None = None) -> int:
        return int(ROWS.num_rows)

    def batches(
        self, _shards: Collection[str] | None = None, columns: Sequence[str] | None = None
    ) -> Generator[pa.RecordBatch]:
        yield from ROWS.select(list(columns or self.columns)).to_batches(max_chunksize=3)

    def close(self) -> None:
        pass


def chosen(choice: Choice, limit: int | None = None) -> str:
    contents = StorageContents.reading(
        Selection(Store, None, limit, choice),
        columns=["item_key"],
        output_fields=[],
        total_rows=ROWS.num_rows,
    )
    assert all(set(row) == {"item_key"} for row in contents.iter_rows())
    return "".join(row["item_key"] for row in contents.iter_rows())


@pytest.mark.parametrize(
    ("endings", "keys"),
    [(["ok"], "ad"), (["flagged"], "b"), (["failed"], "c"), (["ok", "failed"], "acd")],
)
def test_rows_are_chosen_by_how_they_ended(endings: list[str], keys: str) -> None:
    assert chosen(Choice(frozenset(endings))) == keys  # type: ignore[arg-type]


def test_every_row_ended_in_exactly_one_way() -> None:
    assert sorted("".join(chosen(Choice(frozenset({ending}))) for ending in ENDINGS)) == [*"abcd"]


@pytest.mark.parametrize(
    ("condition", "keys"),
    [
        ("width >= 200", "bd"),
        ("NOT width >= 200", "a"),
        ("width IS NULL OR len(captions) > 1", "cd"),
        ("list_contains(captions, 'a dog')", "b"),
        ("captions[2] = 'it''s' -- a comment", "d"),
        ("width", "abd"),
    ],
)
def test_a_condition_is_sql_and_null_is_no(condition: str, keys: str) -> None:
    assert chosen(Choice(condition=condition)) == keys


def test_a_limit_counts_what_is_chosen() -> None:
    assert chosen(Choice(frozenset({"ok"}), "width > 100"), limit=1) == "d"


def test_what_is_left_out_is_counted_once_however_often_the_rows_are_read() -> None:
    choice = Choice(frozenset({"ok"}), "width > 100")
    assert chosen(choice) == "d"
    assert choice.left_out == 3


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("widht > 3", "widht"),
        ("width >", "syntax|Parser"),
        ("item_key IN (SELECT * FROM read_csv('/etc/passwd'))", "disabled|permission"),
    ],
)
def test_a_condition_that_cannot_be_asked_is_refused_before_any_row(
    condition: str, says: str
) -> None:
    with pytest.raises(ChoiceError, match=says):
        Choice(condition=condition).check(ROWS.schema)


def test_a_condition_that_fails_on_a_value_says_so() -> None:
    with pytest.raises(ChoiceError, match="many"):
        chosen(Choice(condition="width > 'many'"))
