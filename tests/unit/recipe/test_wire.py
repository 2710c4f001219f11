"""A worker rebuilds the recipe that the orchestrator built."""

from dataclasses import replace

import msgspec
import pytest

from caption_flow.protocol.messages import RecipeSpec, StageSpec
from caption_flow.recipe.stages import Recipe, RecipeError, Stage, build_recipe
from caption_flow.recipe.wire import from_spec, to_spec

STAGES = [
    Stage("use", "m", ("{title}: {caption} <author> <b>",), "short"),
    Stage(
        "make", "m", ("describe",), "caption", sampling={"stop": ["x"]}, engine={"revision": "r"}
    ),
]


def sent(recipe: Recipe) -> RecipeSpec:
    wire = msgspec.msgpack.encode(to_spec(recipe, mock_results=True))
    return msgspec.msgpack.decode(wire, type=RecipeSpec)


def test_a_recipe_survives_the_wire() -> None:
    recipe = build_recipe(STAGES, dataset_columns=["title", "author"])
    arrived = from_spec(sent(recipe))
    assert [stage.name for stage in arrived.stages] == ["make", "use"]
    assert arrived.stage_fingerprints == recipe.stage_fingerprints
    assert arrived.upstream == recipe.upstream
    assert arrived.output_fields == recipe.output_fields
    outputs = arrived.no_outputs().add("make", "caption", ["a cat"])
    columns = {"title": "Dawn", "author": "Ann"}
    assert arrived.render("use", outputs, columns) == ("Dawn: a cat Ann <b>",)
    assert arrived.render("use", outputs, columns) == recipe.render("use", outputs, columns)


def test_a_worker_infers_no_dependency_the_orchestrator_did_not_see() -> None:
    recipe = build_recipe(
        [
            Stage("one", "m", ("a",), "x"),
            Stage("needs_late", "m", ("b",), "y", requires=("late",)),
            Stage("use", "m", ("{x}",), "z", requires=("slow",)),
            Stage("late", "m", ("c",), "x"),
            Stage("slow", "m", ("d",), "w"),
        ]
    )
    assert recipe.dependencies["use"] == ("one", "slow")
    assert from_spec(sent(recipe)).dependencies == recipe.dependencies


def test_a_column_that_a_later_stage_also_fills_makes_no_cycle_on_the_worker() -> None:
    recipe = build_recipe(
        [Stage("draft", "m", ("{caption}",), "draft"), Stage("make", "m", ("{draft}",), "caption")],
        dataset_columns=["caption"],
    )
    arrived = from_spec(sent(recipe))
    assert arrived.render("draft", arrived.no_outputs(), {"caption": "x"}) == ("x",)


def test_rows_carry_the_fingerprint_of_the_orchestrator() -> None:
    spec = msgspec.structs.replace(sent(build_recipe(STAGES, dataset_columns=["title"])))
    assert from_spec(msgspec.structs.replace(spec, fingerprint="theirs")).fingerprint == "theirs"


def test_mock_results_are_passed_on() -> None:
    recipe = build_recipe([replace(STAGES[1])])
    assert to_spec(recipe, True).mock_results
    assert not to_spec(recipe, False).mock_results


def test_a_recipe_that_cannot_run_is_refused_by_the_worker_too() -> None:
    spec = RecipeSpec((StageSpec("a", "m", ("x",), "url", requires=("gone",)),), "f")
    with pytest.raises(RecipeError) as caught:
        from_spec(spec)
    assert [problem.key for problem in caught.value.problems] == ["requires", "output_field"]
