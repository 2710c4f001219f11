"""Runs over datasets in the hub's layout, by processes of their own."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from tests.support import parquet
from tests.support.cli import rows
from tests.support.fleet import Fleet

PROMPT = "Describe {column:title}."


def fleet_for(folder: Path, dataset_path: str, **keys: Any) -> Fleet:
    return Fleet(
        folder,
        dataset={"type": "huggingface", "dataset_path": dataset_path, **keys},
        vllm={"model": "none", "inference_prompts": [PROMPT]},
        chunk_size=3,
    )


async def caption_all(fleet: Fleet) -> str:
    """Run to the end; return what the orchestrator said."""
    orchestrator = await fleet.orchestrator()
    worker = await fleet.worker("worker")
    assert await worker.exit_code() == 0, worker.tail()
    orchestrator.signal(signal.SIGINT)
    assert await orchestrator.exit_code() == 0, orchestrator.tail()
    return orchestrator.output


def check_rows(fleet: Fleet, shards: int, per_shard: int, *, side: int = 24) -> None:
    """Every picture has its own text, once."""
    found = {row["item_key"]: row for row in rows(fleet.data_dir)}
    assert len(found) == shards * per_shard
    for number in range(shards * per_shard):
        shard, row = divmod(number, per_shard)
        key = f"data/train-{shard:05}-of-{shards:05}.parquet#{row}"
        picture = parquet.png(number, side=side)
        expected = parquet.caption(picture, f"Describe title {number}.")
        assert found[key]["captions"] == [expected]


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        os.path.relpath(path, folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
