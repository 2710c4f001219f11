"""What holds for every prompt and every value, whatever they contain."""

import string
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from caption_flow.recipe.stages import Problem, Recipe, RecipeError, Stage, build_recipe
from caption_flow.recipe.template import Context, Outputs, parse_template

# Text made mostly of what matters to a template.
MARKUP = st.sampled_from(
    ["{", "}", "{{", "}}", "<", ">", "{caption}", "<caption>", "{column:a b}", "{col:t}", "</", "b"]
)
TEXT = st.lists(MARKUP | st.text(max_size=5), max_size=12).map("".join)
PLAIN = st.text(alphabet=st.characters(exclude_characters="{}<>"))
NAMES = st.text(alphabet=string.ascii_letters + string.digits + "_", min_size=1, max_size=8)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(TEXT, st.dictionaries(st.text(max_size=5) | NAMES, VALUES), st.lists(TEXT, max_size=3))
def test_rendering_is_total(prompt: str, columns: dict[str, Any], texts: list[str]) -> None:
    outputs = Outputs().add("describe", "caption", texts)
    assert isinstance(parse_template(prompt).render(Context.of(outputs, columns)), str)


@given(TEXT, TEXT)
def test_a_value_is_never_read_as_a_template(caption: str, column: str) -> None:
    context = Context.of(Outputs().add("d", "caption", [caption]), {"t": column})
    rendered = parse_template("[{caption}|<caption>|{column:t}|{d_output_0}]").render(context)
    assert rendered == f"[{caption}|{caption}|{column}|{caption}]"


@given(TEXT, TEXT)
def test_a_value_changes_nothing_but_its_own_place(prompt: str, caption: str) -> None:
    # Rendering with a marker and putting the value in afterwards is the same as rendering with it.
    marker = "\ue000"
    template = parse_template(prompt.replace(marker, ""))
    rendered = [
        template.render(Context.of(Outputs().add("d", "caption", [text]), {}))
        for text in (marker, caption)
    ]
    assert rendered[1] == rendered[0].replace(marker, caption)


@given(PLAIN)
def test_text_without_brackets_is_unchanged(text: str) -> None:
    assert parse_template(text).render(Context()) == text


@given(st.recursive(st.none() | st.integers() | PLAIN, st.lists, max_leaves=4))
def test_json_is_unchanged(value: Any) -> None:
    text = f'{{"a": {{"b": {str(value)!r}}}}}'
    assert parse_template(text).render(Context()) == text


@given(NAMES)
def test_a_doubled_brace_group_is_the_group_itself(name: str) -> None:
    context = Context(columns={name: "value"})
    assert parse_template(f"{{{{{name}}}}}").render(context) == f"{{{name}}}"
    assert parse_template(f"{{{name}}}").render(context) == "value"


@given(TEXT)
def test_the_source_of_a_template_can_be_put_together_again(prompt: str) -> None:
    def source(text: str) -> str:
        parts = parse_template(text).segments
        return "".join(part if isinstance(part, str) else part.source for part in parts)

    # Only doubled braces are not kept, since each pair stands for one.
    assert source(prompt).replace("{", "").replace("}", "") == prompt.replace("{", "").replace(
        "}", ""
    )


STAGES = st.builds(
    Stage,
    name=st.sampled_from("abcd"),
    model=st.just("m"),
    prompts=st.lists(
        st.sampled_from(["x", "{f}", "{g}", "<f>", "{column:f}", "{a.f}", "{b_output_0}"]),
        min_size=1,
        max_size=3,
    ).map(tuple),
    output_field=st.sampled_from("fgh"),
    requires=st.lists(st.sampled_from("abcd"), max_size=2, unique=True).map(tuple),
)


@given(st.lists(STAGES, max_size=5), st.none() | st.sets(st.sampled_from("fgh")))
def test_stages_make_a_recipe_in_a_valid_order_or_a_stated_problem(
    stages: list[Stage], columns: set[str] | None
) -> None:
    recipe, problems = attempt(stages, columns)
    assert (recipe is None) == bool(problems)
    if recipe is not None:
        assert_runnable(recipe, stages)


def attempt(
    stages: list[Stage], columns: set[str] | None
) -> tuple[Recipe | None, tuple[Problem, ...]]:
    try:
        return build_recipe(stages, dataset_columns=columns), ()
    except RecipeError as error:
        return None, error.problems


def assert_runnable(recipe: Recipe, stages: list[Stage]) -> None:
    assert sorted(stage.name for stage in recipe.stages) == sorted(stage.name for stage in stages)
    outputs = recipe.no_outputs()
    done: set[str] = set()
    for stage in recipe.stages:
        assert done >= set(recipe.upstream[stage.name]) >= set(recipe.dependencies[stage.name])
        assert set(stage.requires) <= set(recipe.dependencies[stage.name])
        texts = recipe.render(stage.name, outputs, {})
        outputs = outputs.add(stage.name, stage.output_field, texts)
        done.add(stage.name)
    assert tuple(outputs.fields) == recipe.output_fields
