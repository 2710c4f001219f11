"""Two workers that run one stage each: items are passed on, whoever is killed meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from caption_flow.protocol.identity import content_hash
from caption_flow.worker.engines.synthetic import synthetic_caption
from tests.support.fleet import (
    Fleet,
    items_between_stages,
    rows_of_parts,
    stored_items,
    until,
    write_images,
)

IMAGES = 400
DESCRIBE = "Describe this picture."
CONDENSE = "Condense this: {detailed}"
STAGES: list[dict[str, Any]] = [
    {"name": "describe", "prompts": [DESCRIBE], "output_field": "detailed", "model": "large"},
    {"name": "condense", "prompts": [CONDENSE], "output_field": "caption", "model": "small"},
]
SLOW = {"latency_ms": 100}


async def test_items_are_passed_on_between_workers_whoever_is_killed(tmp_path: Path) -> None:
    recipe = {"model": "none", "stages": STAGES}
    async with Fleet(tmp_path, vllm=recipe, chunk_size=40, lease_seconds=5) as fleet:
        written = write_images(fleet.images, IMAGES)
        leader = await fleet.orchestrator()
        describing = await fleet.worker("describes", engine=SLOW, stages=["describe"])
        await until(lambda: len(items_between_stages(fleet.data_dir)) >= 40, leader.tail)
        await leader.says("items wait for a stage that no connected worker runs")
        assert "stage=condense" in leader.output
        await leader.kill()
        leader = await fleet.orchestrator()
        condensing = await fleet.worker("condenses", engine=SLOW, stages=["condense"])
        await until(lambda: len(stored_items(fleet.data_dir)) >= 40, leader.tail)
        assert len(items_between_stages(fleet.data_dir)) < IMAGES, (
            "the whole first stage came first"
        )
        await condensing.kill()
        await describing.kill()
        await leader.kill()
        leader = await fleet.orchestrator()
        workers = [
            await fleet.worker("condenses again", stages=["condense"]),
            await fleet.worker("describes again", stages=["describe"]),
        ]
        for worker in workers:
            assert await worker.exit_code() == 0, worker.tail()
        output = await fleet.verify()
        assert "between stages" not in output
        assert "model=large" not in workers[0].output, "it loaded a model that it has no use for"
        assert "model=small" not in workers[1].output, "it loaded a model that it has no use for"
        leader.signal(2)
        assert await leader.exit_code() == 0
    rows = rows_of_parts(fleet.data_dir)
    assert sorted(row["filename"] for row in rows) == sorted(written), "every item exactly once"
    for row in rows:
        digest = content_hash(written[row["filename"]])
        detailed = synthetic_caption(digest, DESCRIBE)
        assert row["detailed"] == [detailed]
        assert row["caption"] == [synthetic_caption(digest, CONDENSE.format(detailed=detailed))]
        assert [stats["stage"] for stats in row["stage_stats"]] == ["describe", "condense"]
        assert row["models"] == ["large", "small"]


async def test_a_worker_for_a_stage_that_is_not_there_is_refused(tmp_path: Path) -> None:
    async with Fleet(tmp_path, vllm={"model": "none", "stages": STAGES}) as fleet:
        write_images(fleet.images, 5)
        await fleet.orchestrator()
        worker = await fleet.worker("mistaken", stages=["describe", "condens"])
        assert await worker.exit_code() == 1
        assert worker.output.rstrip().endswith(
            "Error: --stages (worker.stages): no stage is named 'condens'; did you mean 'condense'?"
        )
