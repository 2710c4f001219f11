"""A storm over workers that run different stages: no item loses a stage that it has behind it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from caption_flow.protocol.identity import content_hash
from caption_flow.worker.engines.synthetic import synthetic_caption
from tests.chaos.storm import KILLS, OTHERS, SETTINGS, Storm, seed
from tests.support.fleet import Fleet, write_images

DESCRIBE = "Describe this picture."
CONDENSE = "Condense this: {detailed}"
RECIPE: dict[str, Any] = {
    "model": "none",
    "stages": [
        {"name": "describe", "prompts": [DESCRIBE], "output_field": "detailed", "model": "large"},
        {"name": "condense", "prompts": [CONDENSE], "output_field": "caption", "model": "small"},
    ],
}
STAGES = ("describe", "condense")
FAST: dict[str, float] = {"latency_ms": 1, "requests_in_flight": 32}
FIRST, SECOND, ALL = ("describe",), ("condense",), ()


def check_rows(rows: Sequence[Mapping[str, Any]], written: Mapping[str, bytes]) -> None:
    """Every file exactly once, and its second text made from its first one."""
    assert sorted(row["filename"] for row in rows) == sorted(written), "every item exactly once"
    for row in rows:
        digest = content_hash(written[row["filename"]])
        detailed = synthetic_caption(digest, DESCRIBE)
        caption = synthetic_caption(digest, CONDENSE.format(detailed=detailed))
        assert row["status"] == "captioned", row
        assert (row["detailed"], row["caption"]) == ([detailed], [caption]), row
        assert [stats["stage"] for stats in row["stage_stats"]] == [*STAGES], row
        assert row["models"] == ["large", "small"], row


async def test_a_run_with_its_stages_apart_survives_kills_and_broken_connections(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    number = seed()
    chance = random.Random(number)
    plan = 2 * KILLS + ["kill worker", "cut", "freeze", "stop worker", "drain worker"]
    chance.shuffle(plan)
    say(f"\nCHAOS_SEED={number}")
    written = write_images(tmp_path / "images", 2000, folders=20)
    async with (
        Fleet(tmp_path, vllm=RECIPE, **SETTINGS) as fleet,
        Storm(fleet, number, say, STAGES) as storm,
    ):
        engine: dict[str, float] = {
            "latency_ms": 60,
            "latency_jitter": 0.5,
            "requests_in_flight": 4,
        }
        await storm.begin(engine, engine, engine, stages=[FIRST, SECOND, ALL])
        await storm.unleash(plan, pause_seconds=(0.1, 0.8))
        await storm.add_worker(FAST, FIRST)
        await storm.add_worker(FAST, SECOND)
        await storm.end()
        await storm.check(written, check_rows)
        assert storm.kills >= 5
        assert storm.figures.between, "nothing was between stages at any kill"
        say(storm.report())


@pytest.mark.skipif(os.environ.get("CHAOS") != "long", reason="takes minutes: make chaos")
async def test_a_long_run_with_its_stages_apart_survives_fifty_kills_and_more(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    number = seed()
    chance = random.Random(number)
    plan = 27 * KILLS + 5 * OTHERS
    chance.shuffle(plan)
    say(f"\nCHAOS_SEED={number}")
    written = write_images(tmp_path / "images", 15_000, folders=20)
    async with (
        Fleet(tmp_path, vllm=RECIPE, **SETTINGS) as fleet,
        Storm(fleet, number, say, STAGES) as storm,
    ):
        engine: dict[str, float] = {
            "latency_ms": 200,
            "latency_jitter": 0.5,
            "requests_in_flight": 4,
        }
        await storm.begin(engine, engine, engine, engine, stages=[FIRST, SECOND, ALL, SECOND])
        await storm.unleash(plan, pause_seconds=(0.2, 4.0))
        await storm.add_worker(FAST, FIRST)
        await storm.add_worker(FAST, SECOND)
        await storm.end()
        await storm.check(written, check_rows)
        assert storm.kills >= 50
        say(storm.report())
