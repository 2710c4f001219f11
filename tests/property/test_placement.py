"""Which models are loaded together and in what order: nothing too large, and no swap too many."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from caption_flow.recipe.stages import Recipe, Stage, build_recipe
from caption_flow.worker.core.placement import (
    MAX_SHARE,
    Course,
    Done,
    Placement,
    place,
    route,
    swaps_a_slab,
)

MODELS = "ABCD"


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Up to six stages of up to four models, each of which waits for any of those before it."""
    shares = {model: draw(st.sampled_from([None, 0.2, 0.35, 0.475, 0.6, 0.92])) for model in MODELS}
    stages: list[Stage] = []
    for number in range(draw(st.integers(1, 6))):
        model = draw(st.sampled_from(MODELS))
        requires = (
            draw(st.sets(st.sampled_from([stage.name for stage in stages]))) if stages else ()
        )
        engine = {} if shares[model] is None else {"gpu_memory_utilization": shares[model]}
        name = f"s{number}"
        stages.append(
            Stage(name, model, ("p",), output_field=name, requires=tuple(requires), engine=engine)
        )
    return build_recipe(stages)


def fewest_loads(courses: list[tuple[Course, Done]], loaded: int | None) -> int:
    """Try every order in which groups can be loaded, shortest first."""
    groups = sorted({group for course, _ in courses for group in course.groups})
    for length in itertools.count():
        for way in itertools.product(groups, repeat=length):
            if is_through(courses, (loaded, *way)):
                return length
    raise AssertionError


def is_through(courses: list[tuple[Course, Done]], way: tuple[int | None, ...]) -> bool:
    for course, done in courses:
        for group in way:
            done = done.union(course.visit(done, group))  # noqa: PLW2901 - it grows
        if len(done) != len(course.groups):
            return False
    return True


def groupings(models: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Every way to number the models' groups."""
    for numbers in itertools.product(range(len(models)), repeat=len(models)):
        named = [
            tuple(model for model, at in zip(models, numbers, strict=True) if at == number)
            for number in sorted(set(numbers))
        ]
        yield tuple(named)


def fits(group: tuple[str, ...], shares: dict[str, float]) -> bool:
    return len(group) == 1 or sum(shares[model] for model in group) <= MAX_SHARE + 1e-9


@settings(deadline=None)
@given(recipes())
def test_models_are_together_exactly_when_their_shares_fit(recipe: Recipe) -> None:
    placement = place(recipe)
    models = {stage.model for stage in recipe.stages}
    assert sorted(model for group in placement.groups for model in group) == sorted(models)
    assert all(fits(group, dict(placement.shares)) for group in placement.groups)
    assert (len(placement.groups) == 1) == fits(tuple(models), dict(placement.shares))


@settings(deadline=None)
@given(recipes())
def test_no_other_grouping_that_fits_needs_fewer_swaps(recipe: Recipe) -> None:
    placement = place(recipe)
    ours = fewest_loads([(placement.course(recipe), frozenset())], None)
    for groups in groupings(tuple(placement.shares)):
        if all(fits(group, dict(placement.shares)) for group in groups):
            course = Placement(groups, placement.shares).course(recipe)
            assert ours <= fewest_loads([(course, frozenset())], None)


@settings(deadline=None)
@given(recipes(), st.data())
def test_the_way_through_the_groups_has_no_swap_too_many_wherever_items_are(
    recipe: Recipe, data: st.DataObject
) -> None:
    placement = place(recipe)
    course = placement.course(recipe)
    groups = range(len(placement.groups))
    standings: list[tuple[Course, Done]] = []
    for _ in range(data.draw(st.integers(0, 3))):
        done: Done = frozenset()
        for group in data.draw(st.lists(st.sampled_from(groups), max_size=4)):
            done = done.union(course.visit(done, group))
        standings.append((course, done))
    loaded = data.draw(st.none() | st.sampled_from(groups))

    way = route(standings, loaded)

    assert is_through(standings, (loaded, *way))
    assert len(way) == fewest_loads(standings, loaded)


@settings(deadline=None)
@given(recipes())
def test_a_slab_costs_no_more_swaps_than_are_reckoned_with(recipe: Recipe) -> None:
    placement = place(recipe)
    course = placement.course(recipe)
    loaded: int | None = None
    for slab in range(6):
        way = route([(course, frozenset())], loaded)
        loaded = way[-1] if way else loaded
        assert slab == 0 or len(way) <= swaps_a_slab(course)


@settings(deadline=None)
@given(recipes())
def test_a_visit_leaves_no_stage_out_that_could_be_run_and_runs_none_too_early(
    recipe: Recipe,
) -> None:
    placement = place(recipe)
    course = placement.course(recipe)
    done: Done = frozenset()
    for group in (0, *route([(course, done)], 0)):
        for stage in course.visit(done, group):
            assert recipe.stages[stage].model in placement.groups[group]
            assert course.needs[stage] <= done
            done |= {stage}
        assert course.visit(done, group) == ()
    assert course.is_over(done)
