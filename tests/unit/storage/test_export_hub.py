"""What goes to the hub: the same files for the same rows, splits, and a card that keeps theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from caption_flow.storage.exporter.errors import ExportError
from caption_flow.storage.exporter.hub_card import (
    BEGIN,
    END,
    CardFacts,
    StageFacts,
    merged_card,
    size_category,
)
from caption_flow.storage.exporter.hub_shards import (
    Shard,
    ShardWriter,
    Splitting,
    split_of_shard,
)
from caption_flow.storage.exporter.hub_tally import Tally
from caption_flow.storage.schema import stored_schema
from tests.support.made_run import captioned
from tests.support.stored import Item, failed, stored

SCHEMA = stored_schema(("captions",), {"title": pa.string()})


def batch(rows: list[Item], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema)


def written(folder: Path, batches: list[pa.RecordBatch], splitting: Splitting) -> list[Shard]:
    folder.mkdir()
    writer = ShardWriter(folder, batches[0].schema, shard_bytes=20_000)
    try:
        shards = [
            shard
            for one in batches
            for split, rows in splitting.of(one)
            for shard in writer.add(split, rows)
        ]
        return [*shards, *writer.finish()]
    finally:
        writer.abandon()


def tally(*rows: Item) -> Tally:
    counted = Tally()
    counted.add(batch(list(rows)), ["captions"])
    counted.splits["train"] = len(rows)
    return counted


def facts(*rows: Item, **more: Any) -> CardFacts:
    known: dict[str, Any] = {"name": "words", "schema": SCHEMA, "output_fields": ["captions"]}
    return CardFacts(**known, tally=tally(*(rows or [stored(0)])), **more)


def parted(card: str) -> tuple[dict[str, Any], str]:
    _, head, text = card.split("---\n", 2)
    return yaml.safe_load(head), text


# ------------------------------------------------------------------------------------- files


def test_the_same_rows_make_the_same_files(tmp_path: Path) -> None:
    batches = [batch([captioned(10 * at + one) for one in range(10)]) for at in range(12)]
    first = written(tmp_path / "a", batches, Splitting())
    second = written(tmp_path / "b", batches, Splitting())
    assert len(first) > 2
    assert [(one.path, one.sha256, one.git) for one in first] == [
        (one.path, one.sha256, one.git) for one in second
    ]
    names = [name for one in first for name in pq.read_table(one.file)["filename"].to_pylist()]
    assert names == [f"a/{number}.jpg" for number in range(120)]
    assert sum(one.rows for one in first) == 120


def test_more_rows_leave_the_first_files_as_they_were(tmp_path: Path) -> None:
    batches = [batch([captioned(10 * at + one) for one in range(10)]) for at in range(12)]
    few = written(tmp_path / "a", batches[:8], Splitting())
    more = written(tmp_path / "b", batches, Splitting())
    assert len(more) > len(few)
    assert [one.sha256 for one in few[:-1]] == [one.sha256 for one in more[: len(few) - 1]]


def test_large_batches_do_not_make_large_files(tmp_path: Path) -> None:
    (whole,) = written(tmp_path / "a", [batch([captioned(0)])], Splitting())
    shards = written(tmp_path / "b", [batch([captioned(one) for one in range(300)])], Splitting())
    assert max(one.size for one in shards) < 20_000 + 20_000 + whole.size


def test_rows_say_their_split_or_their_source_does() -> None:
    schema = SCHEMA.append(pa.field("split", pa.string()))
    kinds = ["test", None, "my set", "test", " "]
    rows = batch([stored(at, split=kind) for at, kind in enumerate(kinds)], schema)
    found = {split: part.num_rows for split, part in Splitting().of(rows)}
    assert found == {"test": 2, "train": 2, "my_set": 1}
    found = {split: part.num_rows for split, part in Splitting(source="validation").of(rows)}
    assert found == {"test": 2, "validation": 1, "my_set": 1, "train": 1}
    assert [split for split, _ in Splitting(fixed="all", source="x").of(rows)] == ["all"]
    assert [split for split, _ in Splitting(source="x").of(batch([stored(0)]))] == ["x"]


@pytest.mark.parametrize(
    ("shard", "split"),
    [
        ("data/val-00000-of-00003.parquet", "validation"),
        ("large/test/0000.parquet", "test"),
        ("pictures-training-0001.tar", "train"),
        ("default", None),
        ("valley-0001.tar", None),
        ("contest/0001.tar", None),
    ],
)
def test_names_of_shards_say_their_split(shard: str, split: str | None) -> None:
    assert split_of_shard(shard) == split


def test_what_has_too_many_values_is_no_split(tmp_path: Path) -> None:
    schema = SCHEMA.append(pa.field("split", pa.string()))
    rows = batch([stored(at, split=f"s{at}") for at in range(17)], schema)
    with pytest.raises(ExportError, match="more than 16 splits: --split NAME"):
        written(tmp_path / "a", [rows], Splitting())


# ------------------------------------------------------------------------------------- the card


def test_a_card_tells_what_was_made_of_what_and_by_whom() -> None:
    stages = [StageFacts("s", "org/model", ["Describe."], "captions")]
    rows = [stored(0, contributor="Ada"), failed(1), stored(2, flags=["length"])]
    card = merged_card(None, facts(*rows, stages=stages, source="them/set", license="mit"))
    head, text = parted(card)
    assert head["license"] == "mit"
    assert head["size_categories"] == ["n<1K"]
    assert "3 rows, 2 of them captioned" in text
    for told in (
        "Captions of [them/set](https://huggingface.co/datasets/them/set)",
        "Not captioned: corrupt\\_image (1).",
        "Flagged: length (1).",
        "`captions` | `list of string` | texts of the models, 4 in all",
        "`title` | `string` | the dataset's own",
        "Stage `s`, `org/model`, fills `captions`:",
        "```text\nDescribe.\n```",
        "Captioned by Ada (1), somebody.",
    ):
        assert told in text


def test_nobody_is_credited_by_the_name_of_a_runs_own_token() -> None:
    mine = stored(0, contributor="local", stage_stats=[])
    assert "Contributors" not in merged_card(None, facts(mine))


def test_a_card_that_needs_no_change_stays_as_it_is_byte_by_byte() -> None:
    made = merged_card(None, facts())
    assert merged_card(made, facts()) == made
    edited = made.replace("pretty_name: words", 'pretty_name:   "My words" # mine') + "\nMore.\n"
    assert merged_card(edited, facts()) == edited


def test_what_people_wrote_is_kept_and_only_our_part_is_new() -> None:
    theirs = (
        "---\n# careful\nlicense: other\ntags: [mine]\nconfigs:\n- config_name: old\n"
        "  data_files: old/*.csv\n---\nHello.\n"
    )
    first = merged_card(theirs, facts(tags=["x"], nsfw=True))
    head, text = parted(first)
    assert "# careful" in first
    assert head["license"] == "other"
    assert head["tags"] == ["mine", "captions", "caption-flow", "x", "not-for-all-audiences"]
    assert [one["config_name"] for one in head["configs"]] == ["old", "default"]
    assert text.startswith("Hello.\n")
    second = merged_card(first + "Bye.\n", facts(stored(0), stored(1)))
    assert "1 row," in first
    assert "1 row," not in second
    assert second.endswith(f"{END}\nBye.\n")
    assert second.count(BEGIN) == 1
    assert parted(second)[0]["tags"] == head["tags"], "a tag is never taken away"


def test_what_others_wrote_never_becomes_markup_or_ends_our_part() -> None:
    name = "Eve](https://evil) <b>|*`"
    prompt = f"Say ```this```\n{END}\n---"
    stages = [StageFacts("s`", "m|", [prompt], "captions")]
    row = stored(0, contributor=name, stage_stats=[])
    card = merged_card(None, facts(row, stages=stages))
    assert card.count(END) == 1
    assert card.endswith(f"{END}\n")
    assert "````text" in card
    assert "](https://evil)" not in card
    assert "<b>" not in card
    again = merged_card(card, facts(row, stages=stages))
    assert again == card


@pytest.mark.parametrize("head", ["a: [", "- a", "text"])
def test_a_head_that_is_none_is_refused(head: str) -> None:
    with pytest.raises(ExportError, match="README"):
        merged_card(f"---\n{head}\n---\n", facts())


def test_sizes_have_the_hubs_words() -> None:
    assert [size_category(rows) for rows in (0, 999, 1000, 10**7, 10**9)] == [
        "n<1K",
        "n<1K",
        "1K<n<10K",
        "10M<n<100M",
        "1B<n<10B",
    ]
