"""What is decided about models, and said."""

from __future__ import annotations

from typing import Any

import pytest

from caption_flow.recipe.stages import Recipe, Stage, build_recipe
from caption_flow.worker.core.placement import Course, describe, place, route, swaps_a_slab


def recipe(*stages: tuple[str, str, float | None, tuple[str, ...]]) -> Recipe:
    """Make a recipe of (name, model, share, requires)."""
    return build_recipe(
        [
            Stage(
                name,
                model,
                ("p",),
                output_field=name,
                requires=requires,
                engine={} if share is None else {"gpu_memory_utilization": share},
            )
            for name, model, share, requires in stages
        ]
    )


@pytest.mark.parametrize(
    ("shares", "groups"),
    [
        ((0.5, 0.45), (("a", "b"),)),
        ((0.35, 0.6), (("a", "b"),)),
        ((0.5, 0.46), (("a",), ("b",))),
        ((None, 0.1), (("a",), ("b",))),  # what is not said is vLLM's own 0.92
        ((1.0, 0.1), (("a",), ("b",))),
    ],
)
def test_models_share_the_device_up_to_95_percent(
    shares: tuple[float | None, float], groups: tuple[tuple[str, ...], ...]
) -> None:
    both = recipe(("s", "a", shares[0], ()), ("t", "b", shares[1], ("s",)))
    assert place(both).groups == groups


def test_stages_of_one_model_are_one_engine() -> None:
    one = recipe(("s", "a", 0.9, ()), ("t", "a", 0.9, ("s",)))
    assert place(one).groups == (("a",),)
    assert describe(place(one), one, "n items") is None


def test_what_the_owner_of_the_worker_says_counts() -> None:
    both = recipe(("s", "a", 0.9, ()), ("t", "b", 0.9, ("s",)))
    options: dict[str, Any] = {"gpu_memory_utilization": 0.4}
    assert place(both, options).groups == (("a", "b"),)


def test_engines_that_are_elsewhere_always_fit() -> None:
    both = recipe(("s", "a", 0.9, ()), ("t", "b", 0.9, ("s",)))
    placement = place(both, on_device=False)
    assert placement.groups == (("a", "b"),)
    assert describe(placement, both, "n items") is None


def test_models_that_fit_beside_each_other_save_swaps_beside_one_that_does_not() -> None:
    three = recipe(("s", "a", 0.4, ()), ("t", "b", 0.9, ("s",)), ("u", "c", 0.4, ("t",)))
    assert place(three).groups == (("a", "c"), ("b",))
    assert describe(place(three), three, "n items") == (
        "a, b and c do not fit on the device together (gpu_memory_utilization 0.4 + 0.9 + 0.4, "
        "more than 0.95) and are loaded in turn: a with c, then b, then a with c, for n items"
    )


def test_models_that_fit_are_said_to_be_together() -> None:
    both = recipe(("s", "a", 0.4, ()), ("t", "b", 0.5, ("s",)))
    assert describe(place(both), both, "n items") == (
        "a and b are loaded together (gpu_memory_utilization 0.4 + 0.5, at most 0.95)"
    )


def test_a_slab_begins_with_what_is_loaded_where_the_order_of_stages_allows() -> None:
    free = recipe(("s", "a", 0.9, ()), ("t", "b", 0.9, ()))
    bound = recipe(("s", "a", 0.9, ()), ("t", "b", 0.9, ("s",)))
    for either, swaps in ((free, 1), (bound, 2)):
        course = place(either).course(either)
        assert swaps_a_slab(course) == swaps
        assert len(route([(course, frozenset())], 1)) == swaps


def test_of_ways_as_short_the_one_is_taken_that_ends_where_new_items_can_begin() -> None:
    stages = recipe(("u", "c", 0.9, ()), ("s", "a", 0.9, ()), ("t", "b", 0.9, ("s",)))
    placement = place(stages)
    course = placement.course(stages)
    way = route([(course, frozenset())], placement.groups.index(("b",)))
    assert [placement.groups[group] for group in way] == [("a",), ("b",), ("c",)]


def test_a_group_that_would_have_to_be_loaded_again_is_not_loaded_too_early() -> None:
    needs = (frozenset[int](), frozenset({0}), frozenset[int](), frozenset({1, 2}))
    course = Course(groups=(2, 1, 1, 0), needs=needs)
    assert route([(course, frozenset())], None) == (2, 1, 0), "1 could begin, but not end"


def test_many_models_are_placed_without_weighing_every_way() -> None:
    many = recipe(*((f"s{n}", f"m{n}", 0.3, (f"s{n - 1}",) if n else ()) for n in range(12)))
    placement = place(many)
    assert [len(group) for group in placement.groups] == [3, 3, 3, 3]
