"""The gauge sees what the engine waits for, wherever the items are."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator

import pytest

from caption_flow.protocol.messages import ItemDescription, LeaseId
from caption_flow.worker.core.leases import Job
from caption_flow.worker.core.starvation import Cause, Supply
from caption_flow.worker.gauge import Gauge, Place
from caption_flow.worker.loading import Activity, ImageLoader
from caption_flow.worker.supervision import SupervisedEngine
from tests.support.engines import ScriptedEngine


class Watched:
    """A gauge with engines, and a clock that the test moves."""

    def __init__(self, *engines: SupervisedEngine) -> None:
        self.now = 0.0
        self.activity = Activity()
        self.engines = engines
        self.gauge = Gauge(lambda: engines, self.activity, clock=lambda: self.now)

    def charged(self) -> dict[Cause, float]:
        """Let a second pass and return what it was charged to."""
        before = self.gauge.seconds()
        self.now += 1.0
        after = self.gauge.seconds()
        return {
            cause: after[cause] - before[cause] for cause in Cause if after[cause] - before[cause]
        }


async def engine(name: str = "m", slots: int = 11) -> SupervisedEngine:
    supervised = SupervisedEngine(ScriptedEngine(model=name, width=slots), backoff_seconds=0.0)
    await supervised.start()
    return supervised


@pytest.fixture
async def it() -> AsyncIterator[Watched]:
    supervised = await engine()
    yield Watched(supervised)
    await supervised.stop()


async def test_an_idle_engine_waits_for_a_lease(it: Watched) -> None:
    assert it.charged() == {Cause.NO_LEASE: 1.0}


async def test_an_item_counts_as_its_prompts_while_it_is_decoded(it: Watched) -> None:
    with it.activity.at("decode"):
        it.gauge.put(0, Place.LOADING, 5)
        assert it.charged() == {Cause.DECODE: 0.5, Cause.NO_LEASE: 0.5}


async def test_an_item_that_has_gone_on_is_no_longer_loading(it: Watched) -> None:
    it.gauge.put(0, Place.LOADING, 10)
    it.gauge.put(0, Place.READY, 10)
    assert it.charged() == {}
    it.gauge.remove(0)
    it.gauge.remove(0)
    assert it.charged() == {Cause.NO_LEASE: 1.0}


async def test_slots_taken_by_requests_that_are_still_rendered_are_not_the_engines_work(
    it: Watched,
) -> None:
    (supervised,) = it.engines
    await supervised.gate.enqueue(10, 0)
    it.gauge.look()
    assert it.charged() == {}
    with it.gauge.rendering(supervised):
        assert it.charged() == {Cause.RENDER: pytest.approx(0.1)}
    assert it.charged() == {}


async def test_what_may_not_be_begun_is_back_pressure(it: Watched) -> None:
    it.gauge.supply(Supply.HELD_BACK)
    assert it.charged() == {Cause.BACK_PRESSURE: 1.0}


async def test_of_two_engines_on_one_device_the_fullest_counts() -> None:
    busy, idle = await engine("busy"), await engine("idle")
    watched = Watched(busy, idle)
    await busy.gate.enqueue(8, 0)
    watched.gauge.look()
    assert watched.charged() == {Cause.NO_LEASE: pytest.approx(0.2)}


async def test_an_engine_that_is_down_has_no_room() -> None:
    down = SupervisedEngine(ScriptedEngine(width=11))
    assert Watched(down).charged() == {}


async def test_the_loader_says_whether_it_fetches_or_decodes() -> None:
    seen: list[tuple[int, int]] = []

    async def fetch(_: Job) -> bytes:
        seen.append((activity.fetching, activity.decoding))
        return b"no picture"

    activity = Activity()
    loader = ImageLoader(fetch, threads=1, activity=activity)
    with pytest.raises(Exception, match="not a picture"):
        await loader.load(Job(LeaseId(1), ItemDescription(0), "r"), None)
    await loader.close()
    assert seen == [(1, 0)]
    assert (activity.fetching, activity.decoding) == (0, 0)


def test_activity_is_counted_right_from_several_threads() -> None:
    activity, together = Activity(), threading.Barrier(9)

    def decode() -> None:
        for _ in range(200):
            with activity.at("decode"):
                pass
        with activity.at("decode"):
            together.wait()
            together.wait()

    threads = [threading.Thread(target=decode) for _ in range(8)]
    for thread in threads:
        thread.start()
    together.wait()
    assert activity.decoding == 8
    together.wait()
    for thread in threads:
        thread.join()
    assert activity.decoding == 0
