"""Structured output: refused before the run where it cannot be, and checked in every answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from caption_flow.protocol.messages import RecipeSpec
from caption_flow.recipe.quality import Quality, Retry
from caption_flow.recipe.stages import RecipeError, Stage, build_recipe
from caption_flow.recipe.structure import Structure, StructureBroken
from caption_flow.recipe.wire import from_spec, to_spec

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "count": {"type": "integer"},
        "note": {"type": ["string", "null"]},
    },
    "required": ["title"],
}
FACTS = Stage(
    "facts", "m", ("list",), "facts", structure=Structure(SCHEMA, columns=("title", "tags"))
)


def problems(structure: Structure, **stage: Any) -> list[str]:
    with pytest.raises(RecipeError) as error:
        build_recipe([replace(FACTS, structure=structure, **stage)])
    return [str(problem) for problem in error.value.problems]


# --------------------------------------------------------------------------- before the run


@pytest.mark.parametrize(
    ("structure", "said"),
    [
        (Structure({"type": "objekt"}), "json_schema: is not a JSON schema: type: 'objekt'"),
        (Structure({"properties": {"a": {"type": 7}}}), "properties.a.type"),
        (Structure({}), "json_schema: is empty"),
        (Structure({"$ref": "http://127.0.0.1:9/s.json"}), "$ref that leads nowhere within it"),
        (Structure({"items": [{"$ref": "#/$defs/a"}]}), "'#/$defs/a'"),
        (Structure(regex="(a"), "regex: is not a regular expression"),
        (Structure(choice=("a", "b", "a")), "choice[2]: 'a' stands there twice"),
        (Structure(choice=("a", " ")), "choice[1]: is empty"),
        (Structure(choice=("a", "b ")), "choice[1]: begins or ends with a space"),
        (Structure(SCHEMA, choice=("a",)), "choice: cannot be had together with json_schema"),
        (Structure(choice=("a",), regex="a"), "regex: cannot be had together with choice"),
        (Structure(choice=("a",), columns=("title",)), "columns: need a json_schema"),
        (Structure(columns=("title",)), "columns: need a json_schema"),
        (Structure(SCHEMA, columns=("titel",)), "columns[0]: json_schema has no top-level key"),
        (Structure(SCHEMA, columns=("titel",)), "did you mean 'title'?"),
        (Structure(SCHEMA, columns=("title", "title")), "columns[1]: 'title' stands there twice"),
        (Structure({"properties": {"status": {}}}, columns=("status",)), "every row has already"),
        (Structure({"properties": {"a b": {}}}, columns=("a b",)), "no name for an output field"),
        (Structure({"properties": {"facts": {}}}, columns=("facts",)), "takes the whole JSON"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(structure: Structure, said: str) -> None:
    found = problems(structure)
    assert any(said in problem for problem in found), found
    assert all(problem.startswith("stages[0].") for problem in found)


def test_a_structure_said_twice_is_refused() -> None:
    sampling = {"structured_outputs": {"regex": "a"}}
    (problem,) = problems(Structure(choice=("a",)), sampling=sampling)
    assert problem.startswith("stages[0].sampling")


def test_a_retry_that_changes_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="retry needs sampling"):
        build_recipe([replace(FACTS, quality=Quality(retry=Retry(attempts=1)))])
    retry = Retry(1, ("empty",), {"temperature": 1})
    with pytest.raises(RecipeError, match="none of the flags"):
        build_recipe([replace(FACTS, quality=Quality(("length",), retry))])


# --------------------------------------------------------------------------- in each answer


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"title": "A', "is not valid JSON"),
        ("A title", "is not valid JSON"),
        ("", "is not valid JSON"),
        ('{"tags": []}', "does not fit the json_schema: 'title' is a required property"),
        ('{"title": 3}', "does not fit the json_schema: title: 3 is not of type 'string'"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_an_answer_that_is_not_what_the_schema_says_is_told(text: str, said: str) -> None:
    with pytest.raises(StructureBroken, match=said):
        Structure(SCHEMA).read(text)


def test_columns_are_texts_and_lists_are_several() -> None:
    structure = Structure(SCHEMA, columns=("title", "tags", "count", "note"))
    text = '{"title": " Döner ", "tags": ["a", "b", ""], "count": 3, "note": null}'
    assert structure.read(text) == {
        "title": ("Döner",),
        "tags": ("a", "b"),
        "count": ("3",),
        "note": (),
    }
    assert structure.read('{"title": "x"}')["tags"] == ()


def test_what_is_no_text_stays_json() -> None:
    schema: dict[str, Any] = {"properties": {"box": {}, "sure": {}}}
    structure = Structure(schema, columns=("box", "sure"))
    assert structure.read('{"box": [{"x": 1}, {"x": "ö"}], "sure": true}') == {
        "box": ('{"x": 1}', '{"x": "ö"}'),
        "sure": ("true",),
    }


def test_a_schema_may_refer_to_its_own_parts() -> None:
    schema = {"$defs": {"a/b": {"enum": [1]}}, "properties": {"n": {"$ref": "#/$defs/a~1b"}}}
    build_recipe([replace(FACTS, structure=Structure(schema, columns=("n",)))])
    assert Structure(schema, columns=("n",)).read('{"n": 1}') == {"n": ("1",)}
    with pytest.raises(StructureBroken, match="n: 2 is not one of"):
        Structure(schema).read('{"n": 2}')


def test_choices_and_patterns_are_met_as_a_whole() -> None:
    assert Structure(choice=("red", "blue")).read("red") == {}
    assert Structure(regex="[a-z]+").read("red") == {}
    with pytest.raises(StructureBroken, match="one of the choices"):
        Structure(choice=("red", "blue")).read("re")
    with pytest.raises(StructureBroken, match="regex"):
        Structure(regex="[a-z]+").read("red!")


# --------------------------------------------------------------------------- in a recipe


def test_a_column_is_an_output_field_that_later_prompts_have() -> None:
    use = Stage("use", "m", ("{title}|{tags}|{facts.tags}|{facts_output_0}",), "caption")
    recipe = build_recipe([use, FACTS])
    assert recipe.output_fields == ("facts", "title", "tags", "caption")
    assert recipe.optional_fields == {"title", "tags"}
    assert recipe.dependencies["use"] == ("facts",)
    outputs = recipe.no_outputs().add(
        "facts", "facts", ["{}"], {"title": ("Dawn",), "tags": ("a", "b")}
    )
    assert recipe.render("use", outputs, {}) == ("Dawn|a, b|a, b|{}",)
    assert outputs.fields == {"facts": ["{}"], "title": ["Dawn"], "tags": ["a", "b"]}


def test_a_misspelt_column_in_a_prompt_is_told_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"did you mean \{title\}"):
        build_recipe([FACTS, Stage("use", "m", ("{titel}",), "caption")])


def test_structure_and_quality_survive_the_wire() -> None:
    quality = Quality(("length",), Retry(2, ("length",), {"max_tokens": 99}))
    recipe = build_recipe([replace(FACTS, quality=quality)])
    wire = msgspec.msgpack.encode(to_spec(recipe, mock_results=False))
    arrived = from_spec(msgspec.msgpack.decode(wire, type=RecipeSpec))
    assert arrived.stages == recipe.stages
    assert arrived.output_fields == recipe.output_fields
    assert arrived.stage_fingerprints == recipe.stage_fingerprints


def test_the_engine_is_told_of_the_structure_and_of_what_differs_in_a_retry() -> None:
    retry = Retry(1, sampling={"temperature": 1.0})
    stage = Stage(
        "s",
        "m",
        ("p",),
        sampling={"temperature": 0.0, "top_p": 0.5},
        structure=Structure(choice=("a", "b")),
        quality=Quality(retry=retry),
    )
    structured = {"structured_outputs": {"choice": ["a", "b"]}}
    assert stage.samplings() == (
        {"temperature": 0.0, "top_p": 0.5, **structured},
        {"temperature": 1.0, "top_p": 0.5, **structured},
    )
    assert len(replace(stage, quality=Quality()).samplings()) == 1


def test_fingerprints_know_structure_and_retry_but_not_flags() -> None:
    def fingerprint(stage: Stage) -> str:
        return build_recipe([stage]).fingerprint

    plain = replace(FACTS, structure=None)
    retrying = Quality(retry=Retry(1, sampling={"temperature": 1}))
    different = [
        plain,
        FACTS,
        replace(plain, structure=Structure(SCHEMA)),
        replace(plain, structure=Structure({**SCHEMA, "required": []})),
        replace(plain, structure=Structure(regex="a")),
        replace(plain, structure=Structure(regex="b")),
        replace(plain, structure=Structure(choice=("a", "b"))),
        replace(plain, quality=retrying),
        replace(plain, quality=Quality(retry=Retry(2, sampling={"temperature": 1}))),
    ]
    assert len({fingerprint(stage) for stage in different}) == len(different)
    assert fingerprint(replace(plain, quality=Quality(flags=("length",)))) == fingerprint(plain)
