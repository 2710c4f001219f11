"""Nothing lost, nothing twice, whatever is killed, cut, frozen or stopped, and whenever."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.storm import KILLS, OTHERS, SETTINGS, Storm, seed
from tests.support.fleet import Fleet, write_images

ITEMS = 20_000


async def test_a_run_survives_kills_cuts_freezes_stops_and_drains(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    number = seed()
    chance = random.Random(number)
    plan = 3 * KILLS + OTHERS
    chance.shuffle(plan)
    say(f"\nCHAOS_SEED={number}")
    written = write_images(tmp_path / "images", ITEMS, folders=20)
    async with Fleet(tmp_path, **SETTINGS) as fleet, Storm(fleet, number, say) as storm:
        engine = {"latency_ms": 60, "latency_jitter": 0.5, "requests_in_flight": 4}
        await storm.begin(engine, engine, {**engine, "latency_ms": 120})
        await storm.unleash(plan, pause_seconds=(0.1, 1.2))
        await storm.add_worker({"latency_ms": 1, "requests_in_flight": 32})
        await storm.end()
        await storm.check(written)
        assert storm.kills >= 5
        say(storm.report())


@pytest.mark.skipif(os.environ.get("CHAOS") != "long", reason="takes minutes: make chaos")
async def test_a_long_run_survives_fifty_kills_and_more(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    number = seed()
    chance = random.Random(number)
    plan = 27 * KILLS + 5 * OTHERS
    chance.shuffle(plan)
    say(f"\nCHAOS_SEED={number}")
    written = write_images(tmp_path / "images", ITEMS, folders=20)
    async with Fleet(tmp_path, **SETTINGS) as fleet, Storm(fleet, number, say) as storm:
        # So slow that the run outlasts the storm.
        engine = {"latency_ms": 200, "latency_jitter": 0.5, "requests_in_flight": 4}
        await storm.begin(engine, engine, {**engine, "latency_ms": 400}, engine)
        await storm.unleash(plan, pause_seconds=(0.2, 4.0))
        await storm.add_worker({"latency_ms": 1, "requests_in_flight": 32})
        await storm.end()
        await storm.check(written)
        assert storm.kills >= 50
        say(storm.report())
