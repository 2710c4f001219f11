"""A fingerprint changes exactly when what a stage gives would change."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from caption_flow.recipe.stages import Stage, build_recipe

FIRST = Stage("first", "a/model", ("describe",), "caption", sampling={"temperature": 0, "stop": ()})
SECOND = Stage("second", "a/model", ("{caption}",), "short")
THIRD = Stage("third", "a/model", ("tags",), "tags")


def fingerprints(*stages: Stage) -> list[str]:
    return list(build_recipe(stages).stage_fingerprints.values())


def changed(before: Sequence[str], after: Sequence[str]) -> list[int]:
    return [i for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": ("describe!",)},
        {"prompts": ("describe", "again")},
        {"model": "another/model"},
        {"sampling": {"temperature": 0.5}},
        {"engine": {"revision": "abc"}},
    ],
)
def test_changing_a_stage_changes_it_and_what_depends_on_it_only(change: dict[str, Any]) -> None:
    before = fingerprints(FIRST, SECOND, THIRD)
    assert changed(before, fingerprints(replace(FIRST, **change), SECOND, THIRD)) == [0, 1]


def test_a_later_stage_leaves_earlier_ones_as_they_were() -> None:
    before = fingerprints(FIRST, SECOND, THIRD)
    after = fingerprints(FIRST, replace(SECOND, prompts=("shorter {caption}",)), THIRD)
    assert changed(before, after) == [1]


def test_the_output_field_is_part_of_what_a_stage_gives() -> None:
    assert fingerprints(FIRST) != fingerprints(replace(FIRST, output_field="other"))


@pytest.mark.parametrize(
    "change",
    [
        {"engine": {"gpu_memory_utilization": 0.5, "tensor_parallel_size": 2}},
        {"sampling": {"stop": [], "temperature": 0.0}},
        {"name": "renamed"},
    ],
)
def test_what_only_moves_work_about_changes_nothing(change: dict[str, Any]) -> None:
    assert fingerprints(FIRST) == fingerprints(replace(FIRST, **change))


def test_a_recipe_has_one_fingerprint_of_all_its_stages() -> None:
    whole = build_recipe([FIRST, SECOND]).fingerprint
    assert whole != build_recipe([FIRST]).fingerprint
    assert whole == build_recipe([SECOND, FIRST]).fingerprint


def test_fingerprints_are_the_same_in_every_process_and_release() -> None:
    assert build_recipe([FIRST, SECOND]).fingerprint == "0bc6259e7ae33f16"


def test_any_sampling_value_has_a_fingerprint() -> None:
    sampling = {"logit_bias": {1: 1.0, "x": float("nan")}, "seed": None, "odd": object}
    assert len(build_recipe([replace(FIRST, sampling=sampling)]).fingerprint) == 16
