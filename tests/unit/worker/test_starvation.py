"""An engine's empty room is charged to what it waits for, and never to more than there is."""

from __future__ import annotations

import pytest

from caption_flow.worker.core.starvation import (
    Cause,
    Scene,
    Starvation,
    Supply,
    batch_width,
    charges,
)


def charged(scene: Scene) -> dict[Cause, float]:
    return dict(charges(scene))


def test_a_full_engine_is_not_starved() -> None:
    assert charged(Scene(10, 0, rendering=3, loading=5, decoding=2)) == {}


def test_the_tenth_that_waits_in_reserve_is_no_loss_while_it_is_missing() -> None:
    assert [batch_width(slots) for slots in (1, 2, 8, 71, 282)] == [1, 1, 7, 64, 256]


def test_without_leases_the_whole_room_is_charged_to_that() -> None:
    assert charged(Scene(10, 10)) == {Cause.NO_LEASE: 10}


def test_items_that_may_not_be_begun_are_back_pressure() -> None:
    assert charged(Scene(10, 4, supply=Supply.HELD_BACK)) == {Cause.BACK_PRESSURE: 4}


def test_what_is_nearest_to_the_engine_is_charged_first_and_for_no_more_than_it_would_fill() -> (
    None
):
    scene = Scene(10, 10, rendering=2, loading=3, decoding=1)
    assert charged(scene) == {Cause.RENDER: 2, Cause.DECODE: 3, Cause.NO_LEASE: 5}


def test_loading_is_split_by_what_its_threads_are_at() -> None:
    scene = Scene(10, 8, loading=8, fetching=3, decoding=1)
    assert charged(scene) == {Cause.FETCH: 6, Cause.DECODE: 2}


def test_when_the_look_ahead_is_full_loading_is_what_is_too_slow() -> None:
    scene = Scene(10, 9, loading=2, fetching=1, supply=Supply.PLENTY)
    assert charged(scene) == {Cause.FETCH: 9}


def test_room_that_nobody_has_items_for_is_no_starvation_and_counted_apart() -> None:
    scene = Scene(10, 9, loading=2, decoding=1, supply=Supply.ALL_HANDED_OUT)
    assert charged(scene) == {Cause.DECODE: 2}
    starvation = Starvation(now=0.0)
    starvation.see(scene, now=0.0)
    assert starvation.idle_at_end(now=10.0) == pytest.approx(7.0)
    assert starvation.sentence(now=10.0) == (
        "the engine was starved for 2.0 s of 10.0 s (20.0%): decode 2.0 s; "
        "besides, 7.0 s with every item handed out"
    )


def test_room_that_waits_for_a_ready_item_to_fit_is_no_starvation() -> None:
    assert charged(Scene(10, 2, ready=3)) == {}
    assert charged(Scene(10, 2, ready=3, supply=Supply.PLENTY)) == {}
    assert charged(Scene(10, 5, ready=3)) == {Cause.NO_LEASE: 2}


def test_a_second_with_a_quarter_of_the_batch_empty_is_a_quarter_of_a_second() -> None:
    starvation = Starvation(now=0.0)
    starvation.see(Scene(8, 2), now=1.0)
    starvation.see(Scene(8, 0), now=5.0)
    assert starvation.seconds(now=99.0)[Cause.NO_LEASE] == pytest.approx(1.0)


def test_a_scene_that_still_lasts_counts_up_to_now_and_only_once() -> None:
    starvation = Starvation(now=0.0)
    starvation.see(Scene(4, 4), now=0.0)
    assert starvation.seconds(now=2.0)[Cause.NO_LEASE] == 2.0
    assert starvation.seconds(now=2.0)[Cause.NO_LEASE] == 2.0
    assert starvation.seconds(now=3.0)[Cause.NO_LEASE] == 3.0


def test_nothing_is_counted_while_there_is_no_scene() -> None:
    starvation = Starvation(now=0.0)
    starvation.see(Scene(4, 4), now=0.0)
    starvation.see(None, now=1.0)
    starvation.see(Scene(4, 0), now=9.0)
    assert sum(starvation.seconds(now=10.0).values()) == 1.0


def test_the_line_at_the_end_says_how_long_what_share_and_why_the_worst_first() -> None:
    starvation = Starvation(now=0.0)
    starvation.see(Scene(4, 4, loading=1, decoding=1), now=0.0)
    starvation.see(Scene(4, 0), now=2.0)
    assert starvation.sentence(now=20.0) == (
        "the engine was starved for 2.0 s of 20.0 s (10.0%): no lease 1.5 s, decode 0.5 s"
    )


def test_the_line_of_an_engine_that_never_waited_is_short() -> None:
    assert Starvation(now=1.0).sentence(now=61.0) == (
        "the engine was starved for 0.0 s of 60.0 s (0.0%)"
    )
