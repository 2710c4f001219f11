"""Which stages make a recipe, in which order, and what is refused."""

from collections.abc import Collection
from typing import Any

import pytest

from caption_flow.recipe.stages import (
    RESERVED_COLUMNS,
    Recipe,
    RecipeError,
    Stage,
    build_recipe,
)


def stage(name: str, *prompts: str, fills: str = "captions", **rest: Any) -> Stage:
    return Stage(name, "a/model", prompts or ("describe",), fills, **rest)


def names(recipe: Recipe) -> list[str]:
    return [one.name for one in recipe.stages]


def problems(*stages: Stage, columns: Collection[str] | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        build_recipe(stages, dataset_columns=columns)
    assert str(caught.value) == "\n".join(str(one) for one in caught.value.problems)
    return [str(one) for one in caught.value.problems]


# ------------------------------------------------------------------------------------------- order


def test_stages_keep_the_order_of_the_configuration_where_nothing_else_asks() -> None:
    assert names(build_recipe([stage("c"), stage("a"), stage("b")])) == ["c", "a", "b"]


def test_a_required_stage_comes_first() -> None:
    recipe = build_recipe([stage("last", requires=("first",)), stage("free"), stage("first")])
    assert names(recipe) == ["free", "first", "last"]


def test_a_stage_waits_for_earlier_stages_that_fill_a_field_it_refers_to() -> None:
    recipe = build_recipe(
        [
            stage("one", fills="caption"),
            stage("two", fills="caption"),
            stage("use", "{caption}", fills="short"),
            stage("three", fills="caption"),
        ]
    )
    assert recipe.dependencies["use"] == ("one", "two")


def test_a_stage_waits_for_later_stages_when_only_they_fill_the_field() -> None:
    recipe = build_recipe([stage("use", "<caption>"), stage("make", fills="caption")])
    assert names(recipe) == ["make", "use"]


def test_a_dataset_column_is_taken_when_only_later_stages_fill_the_field() -> None:
    recipe = build_recipe(
        [stage("draft", "{caption}", fills="draft"), stage("make", "{draft}", fills="caption")],
        dataset_columns=["caption"],
    )
    assert names(recipe) == ["draft", "make"]
    assert recipe.columns == ("caption",)
    assert recipe.render("draft", recipe.no_outputs(), {"caption": "column"}) == ("column",)


def test_a_field_of_a_required_stage_is_taken_before_a_column_wherever_the_stage_stands() -> None:
    recipe = build_recipe(
        [
            stage("use", "{caption}", fills="short", requires=("make",)),
            stage("make", fills="caption"),
        ],
        dataset_columns=["caption"],
    )
    assert recipe.columns == ()


def test_an_explicit_column_never_waits_for_a_later_stage() -> None:
    recipe = build_recipe(
        [
            stage("draft", "{column:caption}", fills="draft"),
            stage("make", "{draft}", fills="caption"),
        ]
    )
    assert names(recipe) == ["draft", "make"]


def test_an_explicit_column_may_be_an_earlier_field_while_columns_are_unknown() -> None:
    stages = [stage("make", fills="caption"), stage("use", "{column:caption}", fills="short")]
    assert build_recipe(stages).dependencies["use"] == ("make",)
    assert build_recipe(stages, dataset_columns=["caption"]).dependencies["use"] == ()


@pytest.mark.parametrize("prompt", ["{make.caption}", "{make_output_0}", "<make.caption>"])
def test_a_reference_to_a_stage_is_a_dependency(prompt: str) -> None:
    recipe = build_recipe([stage("use", prompt, fills="short"), stage("make", fills="caption")])
    assert names(recipe) == ["make", "use"]


def test_upstream_holds_everything_a_stage_waits_for_in_order() -> None:
    recipe = build_recipe(
        [stage("c", requires=("b",)), stage("b", requires=("a",)), stage("a"), stage("free")]
    )
    assert recipe.upstream == {"a": (), "b": ("a",), "c": ("a", "b"), "free": ()}


# --------------------------------------------------------------------------------------- rendering


def test_a_stage_sees_the_outputs_of_its_upstream_stages_only() -> None:
    recipe = build_recipe(
        [
            stage("one", fills="caption"),
            stage("use", "{caption}", fills="short"),
            stage("unrelated", fills="caption"),
        ]
    )
    outputs = recipe.no_outputs().add("unrelated", "caption", ["x"]).add("one", "caption", ["a"])
    assert recipe.render("use", outputs, {}) == ("a",)


def test_a_stage_may_refer_to_the_field_it_appends_to() -> None:
    recipe = build_recipe(
        [stage("draft", fills="caption"), stage("polish", "better: {caption}", fills="caption")]
    )
    outputs = recipe.no_outputs().add("draft", "caption", ["a cat"])
    assert recipe.render("polish", outputs, {}) == ("better: a cat",)


def test_output_fields_are_in_order_of_first_appearance() -> None:
    recipe = build_recipe(
        [stage("1", fills="b"), stage("2", fills="a"), stage("3", fills="b"), stage("4", fills="c")]
    )
    assert recipe.output_fields == ("b", "a", "c")


def test_columns_are_those_that_prompts_refer_to() -> None:
    recipe = build_recipe(
        [stage("one", "{column:title} {title} <author> <b>", "{col:title}")],
        dataset_columns=["title", "author", "unused"],
    )
    assert recipe.columns == ("title", "author")


# ----------------------------------------------------------------------------------------- refusal


def test_no_stages_are_refused() -> None:
    assert problems() == ["stages: a recipe needs at least one stage"]


def test_a_misspelt_field_is_refused_with_the_nearest_name() -> None:
    assert problems(stage("make", fills="caption"), stage("use", "{captoin}")) == [
        "stages[1].prompts[0]: {captoin} is neither an earlier stage's output field nor a column "
        "of the dataset; did you mean {caption}?"
    ]


def test_a_misspelt_column_is_refused_once_the_columns_are_known() -> None:
    assert problems(stage("use", "{column:titel}"), columns=["title"]) == [
        "stages[0].prompts[0]: {column:titel} is neither an earlier stage's output field nor a "
        "column of the dataset; did you mean {column:title}?"
    ]


def test_a_bare_column_is_refused_with_its_explicit_form_while_columns_are_unknown() -> None:
    [problem] = problems(stage("use", "{title}"))
    assert "write {column:title}" in problem
    assert "for literal braces {{title}}" in problem


def test_a_misspelt_prefix_is_offered_right() -> None:
    [problem] = problems(stage("use", "{colunm:title}"))
    assert problem.endswith("did you mean {column:title}?")


def test_a_stage_cannot_use_what_only_it_fills() -> None:
    [problem] = problems(stage("use", "{captions}"))
    assert "stages[0].prompts[0]: {captions} is neither" in problem
    [problem] = problems(stage("use", "{use.captions}"))
    assert problem == "stages[0].prompts[0]: {use.captions} is this stage's own output"


def test_an_output_beyond_the_last_prompt_is_refused() -> None:
    [problem] = problems(stage("make", "a", "b"), stage("use", "{make_output_2}"))
    assert problem.endswith("its last is {make_output_1}")


def test_text_in_angle_brackets_is_never_refused() -> None:
    assert build_recipe([stage("one", "<captoin> <one_output_5> <image>")]).columns == ()


def test_an_unknown_requirement_is_refused_with_the_nearest_stage() -> None:
    assert problems(stage("detail"), stage("use", requires=("detial",))) == [
        "stages[1].requires: no stage is named 'detial'; did you mean 'detail'?"
    ]


def test_a_cycle_is_refused_by_naming_its_way_round() -> None:
    assert problems(
        stage("free"),
        stage("a", requires=("b",)),
        stage("b", requires=("c",)),
        stage("c", requires=("a",)),
        stage("behind", requires=("a",)),
    ) == ["stages[1].requires: stages wait for one another: a -> b -> c -> a"]


def test_every_cycle_is_named() -> None:
    found = problems(
        stage("self", requires=("self",)), stage("a", requires=("b",)), stage("b", requires=("a",))
    )
    assert [one.rpartition(": ")[2] for one in found] == ["self -> self", "a -> b -> a"]


def test_a_cycle_through_prompts_points_at_prompts() -> None:
    found = problems(stage("a", "{y}", fills="x"), stage("b", "{x}", fills="y"))
    assert found == ["stages[0].prompts: stages wait for one another: a -> b -> a"]


@pytest.mark.parametrize("name", [*sorted(RESERVED_COLUMNS), "FileName"])
def test_an_output_field_cannot_take_the_name_of_a_stored_column(name: str) -> None:
    [problem] = problems(stage("one", fills=name))
    assert problem.startswith(f"stages[0].output_field: '{name}' is a column that every row has")


@pytest.mark.parametrize("name", ["", "two words", "a/b", "a.b", "-a", "a\n", "{a}"])
def test_an_output_field_needs_a_valid_name(name: str) -> None:
    assert problems(stage("one", fills=name))[0].startswith("stages[0].output_field: ")


@pytest.mark.parametrize("name", ["caption", "Caption-2", "légende", "_x", "2nd"])
def test_output_fields_may_have_letters_digits_dashes_and_underscores(name: str) -> None:
    assert build_recipe([stage("one", fills=name)]).output_fields == (name,)


def test_all_problems_are_reported_at_once() -> None:
    found = problems(
        Stage(" ", "m", (), "error"),
        stage("twice", " ", "{nothing}"),
        stage("twice", requires=("absent",)),
    )
    assert [one.split(": ")[0] for one in found] == [
        "stages[0].name",
        "stages[0].prompts",
        "stages[0].output_field",
        "stages[1].prompts[0]",
        "stages[1].prompts[1]",
        "stages[2].name",
        "stages[2].requires",
    ]
