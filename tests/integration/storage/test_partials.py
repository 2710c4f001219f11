"""What stages gave lies on disk with their acknowledgement, until the item has its row."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from caption_flow.protocol.codec import ProtocolError
from caption_flow.protocol.rows import (
    CAPTIONED,
    FAILED,
    PARTIAL,
    Row,
    StageStats,
    credited_schema,
    decode_rows,
    encode_batch,
    encode_rows,
)
from caption_flow.recipe.serving import Leg
from caption_flow.recipe.stages import Stage, build_recipe
from caption_flow.recipe.structure import Structure
from caption_flow.storage.errors import StorageError
from caption_flow.storage.partials import ForgetPartials
from caption_flow.storage.verify import verify
from caption_flow.storage.writes import CommitFailure, CommitPartials, CommitRows
from tests.integration.storage.folders import (
    SHARD,
    as_a_kill_leaves_it,
    listed,
    opened,
    query,
    rows_in,
    rows_in_parts,
)

RECIPE = build_recipe(
    [
        Stage("one", "m", ("a",), "first"),
        Stage("two", "m", ("{first}",), "second"),
        Stage("three", "m", ("{second}",), "third"),
    ]
)
FIRST, SECOND, LAST = Leg(RECIPE, 0, 1), Leg(RECIPE, 1, 2), Leg(RECIPE, 2, 3)
LEG_FROM_SECOND, WHOLE = Leg(RECIPE, 1, 3), Leg(RECIPE, 0, 3)


def reached(leg: Leg, *items: int, accepted: tuple[int, ...] | None = None) -> CommitPartials:
    """A batch of items that have the stages of a leg behind them."""
    names = [column.name for column in leg.columns]
    texts = {name: [f"{name} of ITEM"] for name in names}
    rows = [
        Row(
            item,
            PARTIAL,
            {name: [text.replace("ITEM", str(item)) for text in of] for name, of in texts.items()},
            recipe=RECIPE.fingerprint,
            stage_stats=stats_of(leg),
        )
        for item in items
    ]
    places = tuple(range(len(items))) if accepted is None else accepted
    payload = encode_rows(rows, names)
    return CommitPartials(SHARD, items, places, payload, leg, f"owner of {names[0]}", names[0])


def stats_of(leg: Leg) -> list[StageStats]:
    return [StageStats(stage.name, 5, 7, ("stop",), 12) for stage in leg.stages]


def final(leg: Leg, *items: int, status: str = CAPTIONED) -> CommitRows:
    """A batch of items at their end, with what the stages of a leg gave."""
    kind = None if status == CAPTIONED else "empty_caption"
    texts = {name: [f"a {name}"] for name in leg.output_fields} if status == CAPTIONED else {}
    stats = stats_of(leg)
    rows = [Row(item, status, texts, error_kind=kind, stage_stats=stats) for item in items]
    return CommitRows(
        shard=SHARD,
        chunk_first=0,
        items=items,
        accepted=tuple(range(len(items))),
        payload=encode_rows(rows, RECIPE.output_fields),
        output_fields=RECIPE.output_fields,
        contributor="somebody",
        worker="worker 1",
        leg=leg,
    )


async def test_what_is_acknowledged_survives_a_kill_and_is_found_again(tmp_path: Path) -> None:
    async with opened(tmp_path / "run") as store:
        await store.write(listed(5))
        await store.write(reached(FIRST, 0, 1, 2))
        await store.write(reached(SECOND, 1))
        copy = as_a_kill_leaves_it(tmp_path / "run")
    async with opened(copy) as store:
        assert store.snapshot.between == {1: {SHARD: [(0, 1), (2, 3)]}, 2: {SHARD: [(1, 2)]}}
        assert store.snapshot.terminal == {}
        partials = await store.partials(SHARD, [1, 2, 3])
        assert {item: partial.get("two.second") for item, partial in partials.items()} == {
            1: ["two.second of 1"],
            2: None,
        }
        assert partials[1]["one.first"] == ["one.first of 1"]


async def test_the_row_has_what_came_before_and_takes_its_place(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(5))
        await store.write(reached(FIRST, 0, 1, 2))
        await store.write(reached(SECOND, 0, 1))
        await store.write(final(LAST, 0))
        await store.write(final(SECOND, 2, status=FAILED))
        assert query(tmp_path, "SELECT item_index FROM partials") == [(1,)]
        rows = rows_in(tmp_path)
        assert (rows[0]["first"], rows[0]["second"], rows[0]["third"]) == (
            ["one.first of 0"],
            ["two.second of 0"],
            ["a third"],
        )
        assert (rows[2]["first"], rows[2]["second"]) == (["one.first of 2"], None)
        assert (rows[0]["recipe"], rows[2]["error_kind"]) == (RECIPE.fingerprint, "empty_caption")
        await store.checkpoint()
    findings = verify(tmp_path)
    assert (findings.captioned, findings.between, findings.breaches) == (1, 1, [])


async def test_all_that_a_contributor_had_a_part_in_is_found_and_taken_back(tmp_path: Path) -> None:
    """Rows that are its own, rows that it had an earlier stage of, and what is between stages."""
    owner = "owner of one.first"
    async with opened(tmp_path) as store:
        await store.write(listed(6))
        await store.write(reached(FIRST, 0, 1, 2))
        await store.write(final(LEG_FROM_SECOND, 0))
        await store.write(final(WHOLE, 3))
        await store.checkpoint()
        await store.write(final(LEG_FROM_SECOND, 1))
        assert await store.partials_of(owner) == {SHARD: frozenset({2})}
        assert await store.partials_of("somebody") == {}
        taken = await store.reopen_contributor(owner)
        assert taken.items == {SHARD: frozenset({0, 1})}
        assert taken.contributors == {"somebody": {"captioned": 2}, owner: {}}
        assert set(rows_in(tmp_path)) == {3}
        assert (await store.reopen_contributor(owner)).items == {}
        assert (await store.reopen_contributor("nobody")).items == {}
        assert (await store.reopen_contributor("somebody")).items == {SHARD: frozenset({3})}
    findings = verify(tmp_path)
    assert (findings.captioned, findings.breaches) == (0, [])


async def test_each_stage_is_credited_to_who_ran_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(5))
        await store.write(reached(FIRST, 0, 1, 2, 3))
        await store.write(reached(SECOND, 0))
        await store.write(final(LAST, 0))
        await store.write(final(Leg(RECIPE, 1, 3), 1))
        await store.write(final(SECOND, 2, status=FAILED))
        lost = Row(3, FAILED, error_kind="quarantined", error="why")
        await store.write(CommitFailure(SHARD, 0, lost, RECIPE.output_fields, ""))
        buffered = rows_in(tmp_path)
        assert not verify(tmp_path).breached
        await store.checkpoint()
    one, two = ("one.first", "owner of one.first"), ("two.second", "owner of two.second")
    last = ("worker 1", "somebody")
    for rows in (buffered, rows_in_parts(tmp_path)):
        credited = {
            item: [(of["worker"], of["contributor"]) for of in row["stage_stats"]]
            for item, row in rows.items()
        }
        assert credited == {0: [one, two, last], 1: [one, last, last], 2: [one, last], 3: [one]}
        assert [of["stage"] for of in rows[0]["stage_stats"]] == ["one", "two", "three"]
        assert {of["tokens_out"] for row in rows.values() for of in row["stage_stats"]} == {7}


async def test_nobody_credits_stages_over_the_wire(tmp_path: Path) -> None:
    forged = final(LAST, 0)
    rows = decode_rows(forged.payload)
    schema = credited_schema(RECIPE.output_fields)
    forged.payload = encode_batch(pa.RecordBatch.from_pylist(rows.to_pylist(), schema))
    async with opened(tmp_path) as store:
        await store.write(listed(1))
        with pytest.raises(ProtocolError, match="another schema"):
            await store.write(forged)


async def test_a_row_is_not_believed_about_what_came_before(tmp_path: Path) -> None:
    forged = final(LAST, 0)
    rows = [Row(0, CAPTIONED, {name: ["forged"] for name in RECIPE.output_fields})]
    forged.payload = encode_rows(rows, RECIPE.output_fields)
    async with opened(tmp_path) as store:
        await store.write(listed(2))
        await store.write(reached(FIRST, 0))
        await store.write(reached(SECOND, 0))
        await store.write(forged)
    row = rows_in(tmp_path)[0]
    assert (row["first"], row["second"]) == (["one.first of 0"], ["two.second of 0"])
    assert row["third"] == ["forged"]


async def test_parts_of_answers_may_be_missing_and_flags_of_all_stages_are_kept(
    tmp_path: Path,
) -> None:
    schema = {"type": "object", "properties": {"tags": {"type": "array"}}}
    structure = Structure(json_schema=schema, columns=("tags",))
    recipe = build_recipe(
        [Stage("one", "m", ("a",), "first", structure=structure), Stage("two", "m", ("b",), "end")]
    )
    names = [column.name for column in Leg(recipe, 0, 1).columns]
    given = {"one.first": ["{}"], "one.tags": []}
    begun = Row(0, PARTIAL, given, recipe=recipe.fingerprint, flags=["length"])
    ended = Row(0, CAPTIONED, {"end": ["x"]}, flags=["length", "repetition"])
    batch = CommitRows(
        shard=SHARD,
        chunk_first=0,
        items=(0,),
        accepted=(0,),
        payload=encode_rows([ended], recipe.output_fields),
        output_fields=recipe.output_fields,
        contributor="",
        worker="",
        optional_fields=recipe.optional_fields,
        leg=Leg(recipe, 1, 2),
    )
    async with opened(tmp_path) as store:
        await store.write(listed(1))
        payload = encode_rows([begun], names)
        await store.write(CommitPartials(SHARD, (0,), (0,), payload, Leg(recipe, 0, 1), "", ""))
        await store.write(batch)
    row = rows_in(tmp_path)[0]
    assert (row["first"], row["tags"], row["end"]) == (["{}"], [], ["x"])
    assert row["flags"] == ["length", "repetition"]
    assert batch.flags == {"length": 1, "repetition": 1}


async def test_a_failure_that_the_orchestrator_found_has_what_came_before(tmp_path: Path) -> None:
    row = Row(0, FAILED, error_kind="quarantined", error="a reason")
    async with opened(tmp_path) as store:
        await store.write(listed(2))
        await store.write(reached(FIRST, 0))
        await store.write(CommitFailure(SHARD, 0, row, RECIPE.output_fields, ""))
    assert rows_in(tmp_path)[0]["first"] == ["one.first of 0"]
    assert query(tmp_path, "SELECT item_index FROM partials") == []


async def test_only_what_is_accepted_is_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(5))
        await store.write(reached(FIRST, 3, 4, accepted=(1,)))
        await store.write(reached(FIRST, 0, accepted=()))
    assert query(tmp_path, "SELECT item_index FROM partials") == [(4,)]


async def test_what_stages_gave_can_be_forgotten(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(5))
        await store.write(reached(FIRST, 0, 1, 2))
        await store.write(ForgetPartials({SHARD: [1, 4]}))
        assert query(tmp_path, "SELECT item_index FROM partials") == [(0,), (2,)]
        await store.write(ForgetPartials())
        assert query(tmp_path, "SELECT item_index FROM partials") == []


async def test_rows_that_are_not_what_the_batch_says_are_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(5))
        mixed = reached(FIRST, 0, 1)
        mixed.items = (1, 0)
        with pytest.raises(ProtocolError, match="not the items it names"):
            await store.write(mixed)
        with pytest.raises(ProtocolError, match="without the last stage"):
            await store.write(final(Leg(RECIPE, 0, 2), 0))
    assert rows_in(tmp_path) == {}


async def test_a_row_without_what_came_before_is_never_stored(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(5))
        with pytest.raises(StorageError, match="not in the ledger any more"):
            await store.write(final(LAST, 0))
    assert rows_in(tmp_path) == {}


async def test_verify_finds_partials_that_should_not_be(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(2))
        await store.write(final(Leg(RECIPE, 0, 3), 0))
        await store.write(reached(FIRST, 0, 1, 2))
    findings = verify(tmp_path)
    assert findings.between == 3
    assert findings.breaches == [
        f"{SHARD}:0 is between stages and has a row",
        f"{SHARD}:2 is between stages and was never listed",
    ]
