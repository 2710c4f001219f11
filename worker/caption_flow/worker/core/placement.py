"""Which models are on the device together, and in what order items come to them.

Pure. vLLM takes ``gpu_memory_utilization`` of the whole device for each engine, and does not start
unless so much is free: engines fit beside each other when their shares add up to less than the
device. Models that do not fit are loaded in turn. A *group* is what is loaded at one time; items
*visit* it and pass through every stage that can be run there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from caption_flow.recipe.stages import Recipe

MAX_SHARE: Final = 0.95
"""What all engines on a device may take together; the rest is the driver's and everybody's."""
DEFAULT_SHARE: Final = 0.92
"""Of an engine of which nothing is said: vLLM's own default."""
SHARE_OPTION: Final = "gpu_memory_utilization"
PARALLEL_OPTION: Final = "tensor_parallel_size"

_MAX_WEIGHED: Final = 7
"""Up to so many models every way to group them is weighed, above they are taken as they come."""

_ELSEWHERE: Final = frozenset({"openai"})
"""Kinds of engine that are not on this machine."""

Done = frozenset[int]
"""Stages that an item is through with, by position in the recipe."""


@dataclass(frozen=True, slots=True)
class Course:
    """A recipe's stages, in its order: the group each is run in, and the stages each waits for."""

    groups: tuple[int, ...]
    needs: tuple[Done, ...]

    def visit(self, done: Done, group: int | None) -> tuple[int, ...]:
        """Return the stages an item goes through when it visits a group, in order."""
        reached = set(done)
        visited: list[int] = []
        for stage, (where, needed) in enumerate(zip(self.groups, self.needs, strict=True)):
            if where == group and stage not in reached and needed <= reached:
                reached.add(stage)
                visited.append(stage)
        return tuple(visited)

    def is_over(self, done: Done) -> bool:
        """Tell whether an item is through with every stage."""
        return len(done) == len(self.groups)


Standing = tuple[Course, Done]
"""How far items are that have the same course and are through with the same stages."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The groups, and the share of the device that each model takes; none if that is elsewhere."""

    groups: tuple[tuple[str, ...], ...]
    shares: Mapping[str, float]

    def course(self, recipe: Recipe) -> Course:
        """Return a recipe's course; its models are all in groups."""
        group_of = {model: group for group, models in enumerate(self.groups) for model in models}
        positions = {stage.name: position for position, stage in enumerate(recipe.stages)}
        return Course(
            groups=tuple(group_of[stage.model] for stage in recipe.stages),
            needs=tuple(
                frozenset(positions[name] for name in recipe.dependencies[stage.name])
                for stage in recipe.stages
            ),
        )


def place(
    recipe: Recipe,
    owner_options: Mapping[str, Any] | None = None,
    *,
    on_device: bool = True,
) -> Placement:
    """Decide which models are loaded together.

    All of them if they fit. Otherwise the groups are those that need the fewest swaps, and no group
    takes more than `MAX_SHARE` unless a single model does. ``owner_options`` are the engine options
    of the worker's owner, laid over the recipe's. Engines that are not ``on_device`` always fit.
    """
    shares = _shares(recipe, owner_options or {})
    models = tuple(shares)
    if not on_device:
        return Placement((models,), {})
    candidates = _groupings(models, shares) if len(models) <= _MAX_WEIGHED else iter(())
    placements = [Placement(groups, shares) for groups in candidates]
    if not placements:
        return Placement(_first_fit(models, shares), shares)

    def cost(placement: Placement) -> tuple[int, int]:
        return len(route([(placement.course(recipe), frozenset())], None)), len(placement.groups)

    return min(placements, key=cost)


def takes_device(engine_kind: str) -> bool:
    """Tell whether engines of a kind take this machine's device, so that they have to fit."""
    return engine_kind not in _ELSEWHERE


def gpus_needed(options: Mapping[str, Any]) -> int:
    """Return how many GPUs one engine with these options takes on its machine."""
    named = options.get(PARALLEL_OPTION)
    return named if isinstance(named, int) else 1


def route(standings: Collection[Standing], loaded: int | None) -> tuple[int, ...]:
    """Return the groups to load after the one that is, so that items get through everything.

    There is no shorter way for these items. Where there are several, one that ends with a group in
    which new items can begin.
    """
    courses = tuple(course for course, _ in standings)
    start = _visited(courses, (done for _, done in standings), loaded)
    ways: deque[tuple[tuple[Done, ...], tuple[int, ...]]] = deque([(start, ())])
    seen = {start}
    while ways:
        state, way = ways.popleft()
        if all(map(Course.is_over, courses, state)):
            return way
        for group in _choices(courses, state):
            after = _visited(courses, state, group)
            if after not in seen:
                seen.add(after)
                ways.append((after, (*way, group)))
    raise AssertionError("a recipe's stages can always be gone through")


def swaps_a_slab(course: Course) -> int:
    """Return how often a group is loaded for each slab of items, once the first one is through."""
    fresh = [(course, Done())]
    first = route(fresh, None)
    second = route(fresh, first[-1])
    third = route(fresh, second[-1] if second else first[-1])
    return max(len(second), len(third))


def describe(placement: Placement, recipe: Recipe, items_at_a_time: str) -> str | None:
    """Say which models are loaded together and which in turn; None where there is only one."""
    shares = placement.shares
    if len(shares) < 2:
        return None
    total = f"{SHARE_OPTION} {' + '.join(f'{share:g}' for share in shares.values())}"
    if len(placement.groups) == 1:
        return f"{_listed(tuple(shares))} are loaded together ({total}, at most {MAX_SHARE:g})"
    way = route([(placement.course(recipe), frozenset())], None)
    turns = ", then ".join(_listed(placement.groups[group], " with ") for group in way)
    return (
        f"{_listed(tuple(shares))} do not fit on the device together ({total}, more than "
        f"{MAX_SHARE:g}) and are loaded in turn: {turns}, for {items_at_a_time}"
    )


def _shares(recipe: Recipe, owner_options: Mapping[str, Any]) -> dict[str, float]:
    """Return each model's share, in the order in which items first come to them."""
    shares: dict[str, float | None] = {}
    for stage in recipe.stages:
        named = owner_options.get(SHARE_OPTION) or stage.engine.get(SHARE_OPTION)
        if shares.get(stage.model) is None:
            shares[stage.model] = named
    return {
        model: DEFAULT_SHARE if share is None else float(share) for model, share in shares.items()
    }


def _fits(models: Iterable[str], shares: Mapping[str, float]) -> bool:
    # What was written as 0.35 and 0.6 must not fail for the last bit of a binary fraction.
    return math.fsum(shares[model] for model in models) <= MAX_SHARE + 1e-9


def _groupings(
    models: Sequence[str], shares: Mapping[str, float]
) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Yield every way to put models into groups that fit; a model alone always does."""
    if not models:
        yield ()
        return
    *others, last = models
    for groups in _groupings(others, shares):
        for number, group in enumerate(groups):
            if _fits((*group, last), shares):
                yield (*groups[:number], (*group, last), *groups[number + 1 :])
        yield (*groups, (last,))


def _first_fit(models: Iterable[str], shares: Mapping[str, float]) -> tuple[tuple[str, ...], ...]:
    groups: list[tuple[str, ...]] = []
    for model in models:
        for number, group in enumerate(groups):
            if _fits((*group, model), shares):
                groups[number] = (*group, model)
                break
        else:
            groups.append((model,))
    return tuple(groups)


def _visited(
    courses: Iterable[Course], state: Iterable[Done], group: int | None
) -> tuple[Done, ...]:
    return tuple(
        done.union(course.visit(done, group)) for course, done in zip(courses, state, strict=True)
    )


def _choices(courses: Sequence[Course], state: Sequence[Done]) -> list[int]:
    """Return the groups worth loading next.

    A group that one visit is through with has to be loaded once more whatever comes before, so it
    may as well be now; then nothing else need be considered.
    """
    useful, final = set[int](), set[int]()
    for group in {group for course in courses for group in course.groups}:
        left = [_left_in(group, *one) for one in zip(courses, state, strict=True)]
        gone = [course.visit(done, group) for course, done in zip(courses, state, strict=True)]
        if any(gone):
            useful.add(group)
            if all(map(_is_all, left, gone)):
                final.add(group)
    if not final:
        return sorted(useful)
    return [min(final, key=lambda group: (_suits_the_end(group, courses, state), group))]


def _left_in(group: int, course: Course, done: Done) -> set[int]:
    return {at for at, where in enumerate(course.groups) if where == group and at not in done}


def _is_all(left: set[int], gone: tuple[int, ...]) -> bool:
    return len(left) == len(gone)


def _suits_the_end(group: int, courses: Sequence[Course], state: Sequence[Done]) -> bool:
    """Tell whether new items can begin in a group that nothing else waits for."""
    for course, done in zip(courses, state, strict=True):
        here = _left_in(group, course, done)
        others = set(range(len(course.groups))) - done - here
        if any(course.needs[other] & here for other in others):
            return False
    return any(course.visit(frozenset(), group) for course in courses)


def _listed(models: Sequence[str], last: str = " and ") -> str:
    return last.join(filter(None, (", ".join(models[:-1]), models[-1])))
