"""A set of ranges is a set of integers, whatever is added and removed in whatever order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caption_flow.orchestrator.core.masks import (
    items_of,
    lowest,
    mask_of,
    places_of,
    runs,
    union,
)
from caption_flow.orchestrator.core.ranges import RangeSet

LIMIT = 60
bounds = st.tuples(st.integers(0, LIMIT), st.integers(0, LIMIT))
changes = st.lists(st.tuples(st.sampled_from(["add", "remove", "update"]), bounds), max_size=40)
values = st.sets(st.integers(0, LIMIT))
masks = st.integers(0, 2**LIMIT)


def ranges_of(wanted: set[int]) -> list[tuple[int, int]]:
    """The plain way: maximal stretches, ascending."""
    starts = sorted(v for v in wanted if v - 1 not in wanted)
    stops = sorted(v + 1 for v in wanted if v + 1 not in wanted)
    return list(zip(starts, stops, strict=True))


@given(changes)
def test_adding_and_removing_is_what_it_is_for_a_plain_set(
    steps: list[tuple[str, tuple[int, int]]],
) -> None:
    ranges, model = RangeSet(), set[int]()
    for change, (start, stop) in steps:
        if change == "remove":
            ranges.remove(start, stop)
            model -= set(range(start, stop))
        elif change == "add":
            ranges.add(start, stop)
            model |= set(range(start, stop))
        else:
            ranges.update(RangeSet([(start, stop), (stop + 3, stop + 5)]))
            model |= set(range(start, stop)) | {stop + 3, stop + 4}
        assert list(ranges) == ranges_of(model), "maximal, disjoint and ascending"
        assert len(ranges) == len(model)
        assert bool(ranges) == bool(model)
        assert ranges.first() == min(model, default=None)
        assert ranges.stop == max(model, default=-1) + 1


@given(values, bounds)
def test_looking_into_a_stretch_finds_what_is_there_and_what_is_missing(
    model: set[int], stretch: tuple[int, int]
) -> None:
    ranges = RangeSet.of(model)
    start, stop = stretch

    assert list(ranges.within(start, stop)) == ranges_of(model & set(range(start, stop)))
    assert list(ranges.gaps(stop)) == ranges_of(set(range(stop)) - model)
    assert {v for v in range(-1, LIMIT + 2) if v in ranges} == model


@given(st.lists(bounds, max_size=30))
def test_ranges_may_be_given_in_any_order_and_overlap(given: list[tuple[int, int]]) -> None:
    model = {value for start, stop in given for value in range(start, stop)}

    assert list(RangeSet(given)) == ranges_of(model)
    assert RangeSet(given) == RangeSet.of([*model, *model])


@given(values, values)
def test_many_ranges_are_merged_as_few_are(one: set[int], other: set[int]) -> None:
    spread = {value * 7 for value in range(100)} | other  # more than are added one by one
    few, many = RangeSet.of(one), RangeSet.of(one)

    few.update(RangeSet.of(other))
    many.update(RangeSet.of(spread))

    assert list(few) == ranges_of(one | other)
    assert list(many) == ranges_of(one | spread)
    assert few != many or one | other == one | spread


def test_sets_show_their_ranges() -> None:
    assert repr(RangeSet([(0, 2), (4, 5)])) == "RangeSet([(0, 2), (4, 5)])"
    assert RangeSet() != "no set"


# --------------------------------------------------------------------------- masks


@given(masks, st.integers(0, 100))
def test_a_mask_is_a_set_of_positions(mask: int, first: int) -> None:
    positions = {at for at in range(LIMIT + 1) if mask >> at & 1}
    stretches = list(runs(mask))

    assert stretches == ranges_of(positions)
    assert items_of(mask, first) == tuple(first + at for at in sorted(positions))
    assert mask_of(((first + a, first + b) for a, b in stretches), first) == mask


@given(masks, st.integers(0, LIMIT + 5))
def test_the_lowest_of_a_mask_are_its_first_positions(mask: int, count: int) -> None:
    taken = lowest(mask, count)

    assert items_of(taken, 0) == items_of(mask, 0)[:count]


@given(st.lists(masks, max_size=5))
def test_a_union_holds_what_any_mask_holds(several: list[int]) -> None:
    joined = union(several)

    assert all(mask & ~joined == 0 for mask in several)
    assert joined.bit_count() == len({at for mask in several for at in items_of(mask, 0)})


@given(st.lists(st.integers(10, 30)), st.data())
def test_places_name_each_accepted_item_once_and_no_other(
    named: list[int], data: st.DataObject
) -> None:
    accepted = data.draw(st.sets(st.sampled_from(named)) if named else st.just(set()))
    mask = mask_of(((item, item + 1) for item in accepted), 10)

    places = places_of(tuple(named), mask, 10)

    assert [named[at] for at in places] == list(dict.fromkeys(i for i in named if i in accepted))
