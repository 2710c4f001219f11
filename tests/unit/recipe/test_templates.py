"""What a placeholder becomes, and what is no placeholder at all."""

from typing import Any

import pytest

from caption_flow.recipe.template import Context, Outputs, parse_template

OUTPUTS = (
    Outputs(order=("describe", "tag.v2", "again"))
    .add("describe", "caption", ["a cat", "a dog"])
    .add("tag.v2", "tags", ["red"])
    .add("again", "caption", ["a fox"])
)
COLUMNS: dict[str, Any] = {
    "title": "Dawn",
    "null": None,
    "words": ["one", None, "two"],
    "count": 3,
    "share": 0.5,
    "safe": True,
    "raw": "é".encode(),
    "Alt text (en)": "alt",
    "json.caption": "nested",
    "tags": "column tags",
}


def render(prompt: str) -> str:
    return parse_template(prompt).render(Context.of(OUTPUTS, COLUMNS))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Shorten: {caption}.", "Shorten: a cat, a dog, a fox."),
        ("Shorten: <caption>.", "Shorten: a cat, a dog, a fox."),
        ("{column:title} / {col:title}", "Dawn / Dawn"),
        ("{title} <title>", "Dawn Dawn"),
        ("{column: title }", "Dawn"),
        ("{column:Alt text (en)}", "alt"),
        ("{column:words}", "one, two"),
        ("{count} {share} {safe}", "3 0.5 True"),
        ("{raw}", "é"),
        ("{describe.caption}", "a cat, a dog"),
        ("{tag.v2.tags}", "red"),
        ("{describe_output_0}{describe_output_1}", "a cata dog"),
        ("{json.caption}", "nested"),
        ("{tags}", "red"),
        ("{column:tags}", "column tags"),
        ("{column:caption}", "a cat, a dog, a fox"),
        ('{"caption": "{caption}"}', '{"caption": "a cat, a dog, a fox"}'),
        ('{"a": {title}}', '{"a": Dawn}'),
    ],
)
def test_a_placeholder_becomes_what_it_names(prompt: str, expected: str) -> None:
    assert render(prompt) == expected


@pytest.mark.parametrize(
    "prompt",
    ["{column:null}", "{null}", "<null>", "{column:absent}", "{absent}", "{describe_output_9}"],
)
def test_a_missing_or_null_value_leaves_nothing(prompt: str) -> None:
    assert render(f"[{prompt}]") == "[]"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("{{caption}}", "{caption}"),
        ("{{{title}}}", "{Dawn}"),
        ('{{"a": 1}}', '{"a": 1}'),
        ('{{"a": {"b": 1}}}', '{"a": {"b": 1}}'),
        ('{"a": {{title}}}', '{"a": {title}}'),
        ("{{column:title}}", "{column:title}"),
    ],
)
def test_doubled_braces_are_literal_braces(prompt: str, expected: str) -> None:
    assert render(prompt) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "}",
        "{ }",
        "{}",
        "{...}",
        "{ caption }",
        '{"a": 1}',
        '{"a": {"b": 1}}',
        "{'caption'}",
        "{cap tion}",
        "{caption",
        "caption}",
        "}{",
        "}}",
        "{{",
        "{{caption}",
        "<b>",
        "</b>",
        "<|im_end|>",
        "<image>",
        "a < b > c",
        "< caption >",
        "\\frac{ }",
        "\ud800 lone surrogate",
    ],
)
def test_what_does_not_look_like_a_placeholder_is_left_alone(text: str) -> None:
    assert render(text) == text


def test_a_tag_with_its_end_is_markup_and_not_a_placeholder() -> None:
    assert render("<title>{title}</title>") == "<title>Dawn</title>"


def test_a_value_that_looks_like_a_placeholder_is_not_expanded() -> None:
    outputs = Outputs().add("describe", "caption", ["{column:secret} {{x}} <secret>"])
    context = Context.of(outputs, {"secret": "leaked"})
    rendered = parse_template("{caption} {column:note}").render(context)
    assert rendered == "{column:secret} {{x}} <secret> "


def test_fields_append_in_the_order_of_the_stages_and_not_of_their_arrival() -> None:
    outputs = Outputs(order=("first", "second"))
    late_first = outputs.add("second", "caption", ["b"]).add("first", "caption", ["a"])
    assert late_first.fields == {"caption": ["a", "b"]}


def test_outputs_are_never_changed_in_place() -> None:
    before = Outputs()
    after = before.add("first", "caption", ["a"])
    assert before.fields == {}
    assert after.by_stage["first"].texts == ("a",)


def test_outputs_of_some_stages_leave_out_all_others() -> None:
    assert OUTPUTS.only(["again"]).fields == {"caption": ["a fox"]}
