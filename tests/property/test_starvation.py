"""Whatever happens on the way to the engine: what is charged was empty, and has a reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_flow.worker.core.starvation import (
    Cause,
    Scene,
    Starvation,
    Supply,
    charges,
    empty_at_end,
)

counts = st.integers(0, 300)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    width = draw(st.integers(1, 256))
    return Scene(
        width,
        draw(st.integers(-26, width)),
        rendering=draw(counts),
        ready=draw(counts),
        loading=draw(counts),
        fetching=draw(counts),
        decoding=draw(counts),
        supply=draw(st.sampled_from(Supply)),
    )


@given(scenes())
def test_no_more_is_charged_than_there_is_room_and_nothing_of_it_twice(scene: Scene) -> None:
    parts = list(charges(scene))
    assert len({cause for cause, _ in parts}) == len(parts)
    assert all(requests > 0 for _, requests in parts)
    assert sum(requests for _, requests in parts) <= max(0, scene.room) + 1e-9


@given(scenes())
def test_everything_is_charged_unless_something_ready_or_plenty_is_there(scene: Scene) -> None:
    if scene.ready or (scene.supply is Supply.PLENTY and not scene.loading):
        return
    charged = sum(requests for _, requests in charges(scene))
    assert charged + empty_at_end(scene) == pytest.approx(max(0, scene.room))


@given(scenes())
def test_a_cause_is_charged_only_where_it_is_at_work(scene: Scene) -> None:
    at_work = {
        Cause.RENDER: scene.rendering > 0,
        Cause.FETCH: scene.loading > 0 and scene.fetching > 0,
        Cause.DECODE: scene.loading > 0,
        Cause.NO_LEASE: scene.supply is Supply.NO_LEASE,
        Cause.BACK_PRESSURE: scene.supply is Supply.HELD_BACK,
    }
    assert all(at_work[cause] for cause, _ in charges(scene))


@given(st.lists(st.tuples(st.floats(0, 100), st.none() | scenes())))
def test_starved_seconds_never_exceed_the_time_and_do_not_depend_on_who_asks(
    story: list[tuple[float, Scene | None]],
) -> None:
    asked, unasked = Starvation(now=0.0), Starvation(now=0.0)
    now = 0.0
    for seconds, scene in story:
        asked.see(scene, now=now)
        unasked.see(scene, now=now)
        asked.seconds(now=now + seconds / 2)
        now += seconds
    totals = asked.seconds(now=now), unasked.seconds(now=now)
    assert totals[0] == pytest.approx(totals[1])
    assert sum(totals[0].values()) <= now + 1e-6
