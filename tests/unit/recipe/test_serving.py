"""Which stages a worker runs, and how far it carries an item."""

from caption_flow.recipe.serving import (
    StageColumn,
    by_field,
    by_stage,
    leg,
    positions,
    served,
    unknown_stage,
)
from caption_flow.recipe.stages import Stage, build_recipe
from caption_flow.recipe.structure import Structure

RECIPE = build_recipe(
    [
        Stage("a.b", "m", ("x",), "text"),
        Stage("judge", "m", ("{text}",), "verdict"),
        Stage("more", "m", ("{verdict}",), "text"),
    ]
)


def test_a_worker_carries_an_item_to_the_first_stage_that_it_does_not_run() -> None:
    assert [stage.name for stage in leg(RECIPE, 0, ["a.b", "more"]).stages] == ["a.b"]
    assert leg(RECIPE, 0, ["a.b", "judge"]).stop == 2
    assert not leg(RECIPE, 0, ["a.b", "judge"]).is_last
    assert leg(RECIPE, 1, ["judge", "more"]).is_last
    assert leg(RECIPE, 0, ["judge"]).stages == ()
    assert leg(RECIPE, 0, []).is_last, "no name stands for all stages"


def test_stages_are_numbered_in_the_order_in_which_items_take_them() -> None:
    assert positions(RECIPE, ["more", "a.b"]) == {0, 2}
    assert positions(RECIPE, ["nothing we know"]) == frozenset()
    assert positions(RECIPE, []) == {0, 1, 2}


def test_a_worker_waits_for_no_stage_of_another() -> None:
    ours = served(RECIPE, ["a.b", "more"])
    assert [stage.name for stage in ours.stages] == ["a.b", "more"]
    assert ours.dependencies == {"a.b": (), "more": ()}
    assert served(RECIPE, []).dependencies == dict(RECIPE.dependencies)


def test_parts_of_answers_have_columns_of_their_own() -> None:
    schema = {"type": "object", "properties": {"tags": {"type": "array"}}}
    structure = Structure(json_schema=schema, columns=("tags",))
    recipe = build_recipe([Stage("look", "m", ("x",), "seen", structure=structure)])
    columns = leg(recipe, 0, []).columns
    assert [(column.name, column.is_part) for column in columns] == [
        ("look.seen", False),
        ("look.tags", True),
    ]


def test_an_unknown_stage_is_answered_with_the_nearest() -> None:
    assert unknown_stage(RECIPE, ["judge", "a.b"]) is None
    assert unknown_stage(RECIPE, ["juge"]) == ("no stage is named 'juge'; did you mean 'judge'?")
    assert unknown_stage(RECIPE, ["xyz"]) == (
        "no stage is named 'xyz'; there are 'a.b', 'judge', 'more'"
    )


def test_what_stages_gave_has_a_column_each_and_can_be_told_apart() -> None:
    names = [column.name for column in leg(RECIPE, 0, []).columns]
    assert names == ["a.b.text", "judge.verdict", "more.text"]
    assert StageColumn.of("a.b.text") == StageColumn("a.b", "text")
    assert StageColumn.of("content_hash") is None
    given = {"a.b.text": ["one"], "status": "partial", "judge.verdict": ["ok"], "more.text": ["2"]}
    assert by_stage(given) == {
        "a.b": {"text": ("one",)},
        "judge": {"verdict": ("ok",)},
        "more": {"text": ("2",)},
    }
    assert by_field(given) == {"text": ["one", "2"], "verdict": ["ok"]}
