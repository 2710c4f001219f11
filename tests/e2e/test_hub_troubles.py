"""Runs over a hub that loses connections, and whose files disappear."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support import parquet
from tests.support.cli import rows
from tests.support.hub import Hub, Repository
from tests.support.hub_runs import caption_all, check_rows, files_in, fleet_for

MIDDLE = "data/train-00001-of-00003.parquet"


async def test_lost_connections_cost_nothing(
    tmp_path: Path, beside_the_hub: pytest.MonkeyPatch
) -> None:
    repository = Repository({"main": files_in(parquet.dataset(tmp_path / "set", 3, 4))})
    async with Hub(pictures=repository) as hub, fleet_for(tmp_path, "org/pictures") as fleet:
        beside_the_hub.setenv("HF_ENDPOINT", hub.url)
        found = repository.find("main")
        assert found is not None
        at_commit = f"/api/datasets/org/pictures/revision/{found[0]}"
        hub.faults = {at_commit: ["reset", "503"], MIDDLE: ["reset", "503", "", "reset"]}
        await caption_all(fleet)
        assert hub.faults == {at_commit: [], MIDDLE: []}
        check_rows(fleet, 3, 4)


async def test_a_file_that_disappears_fails_alone(
    tmp_path: Path, beside_the_hub: pytest.MonkeyPatch
) -> None:
    repository = Repository({"main": files_in(parquet.dataset(tmp_path / "set", 3, 4))})
    async with Hub(pictures=repository) as hub, fleet_for(tmp_path, "org/pictures") as fleet:
        beside_the_hub.setenv("HF_ENDPOINT", hub.url)
        orchestrator = await fleet.orchestrator()
        await orchestrator.says("the dataset is listed")
        for files in repository.past.values():
            del files[MIDDLE]
        worker = await fleet.worker("worker")
        assert await worker.exit_code() == 0, worker.tail()
        orchestrator.signal(signal.SIGINT)
        assert await orchestrator.exit_code() == 1, orchestrator.tail()
        assert MIDDLE in orchestrator.output.splitlines()[-1]
        found = rows(fleet.data_dir)
    failed = {row["item_key"]: row for row in found if row["status"] == "failed"}
    assert set(failed) == {f"{MIDDLE}#{row}" for row in range(4)}
    assert {row["error_kind"] for row in failed.values()} == {"shard_unreadable"}
    assert all("it is not there (any more)" in row["error"] for row in failed.values())
    assert len(found) == 12
