"""How large slabs are: swaps take a twentieth of the time at most, and every slab has bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_flow.worker.core.slabs import MAX_ITEMS, MIN_ITEMS, Slab

seconds = st.floats(0.001, 1000)


@given(seconds, st.floats(0.0001, 10), st.floats(0.0001, 10), st.integers(1, 4))
def test_swaps_take_a_twentieth_of_the_time_or_the_slab_is_at_its_bound(
    swap: float, first: float, second: float, swaps: int
) -> None:
    slab = Slab()
    slab.swapped(swap)
    slab.worked(0, 50 * first, 50)
    slab.worked(1, 20 * second, 20)

    items = slab.items(swaps)
    work = items * (first + second)
    share = swaps * swap / (swaps * swap + work)

    assert MIN_ITEMS <= items <= MAX_ITEMS
    assert share <= 0.05 + 1e-9 or items == MAX_ITEMS
    one_less = (items - 1) * (first + second)
    assert swaps * swap / (swaps * swap + one_less) > 0.05 - 1e-9 or items == MIN_ITEMS


def test_nothing_is_known_at_first() -> None:
    assert Slab().items(2) == MIN_ITEMS
    assert Slab().patience_seconds == 0.0


def test_the_latest_swaps_count_most() -> None:
    slab = Slab()
    slab.swapped(90.0)  # the first one fills the page cache, too
    for _ in range(8):
        slab.swapped(30.0)
    slab.worked(0, 1.0, 1)
    assert slab.items(1) == pytest.approx(30 * 19, rel=0.01)


def test_waiting_for_more_items_costs_next_to_nothing_measured_by_a_swap() -> None:
    slab = Slab()
    slab.swapped(20.0)
    assert slab.patience_seconds == pytest.approx(1.0)
    slab.swapped(1000.0)
    assert slab.patience_seconds == 5.0
