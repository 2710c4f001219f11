"""What a run would find in a dataset that is no folder of images: its source is asked.

The source gets an empty folder in place of the run's, which is gone afterwards: whatever it keeps
for next time leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from contextlib import closing
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from caption_flow.cli.folders import for_people
from caption_flow.cli.outlook import SHOWN, Outlook
from caption_flow.cli.plan import Plan
from caption_flow.orchestrator.sources.base import (
    Item,
    Listed,
    PassedOver,
    RunFolder,
    ShardError,
    Source,
)
from caption_flow.orchestrator.sources.registry import source_for
from caption_flow.storage.database import open_for_reading
from caption_flow.storage.opening import KnownShard, known_shards
from caption_flow.storage.reader import StorageReader
from caption_flow.storage.writer import Write


def look_through(plan: Plan) -> Outlook:
    """Sort the items of a dataset as a run would. Raises `SourceError`, `StorageError`."""
    dataset = plan.config.dataset
    with TemporaryDirectory(prefix="caption-flow-") as nowhere:
        folder = RunFolder(
            Path(nowhere),
            _forget,
            shards=_known_shards(plan.data_dir),
            columns=plan.config.recipe().columns,
            limit=plan.limit,
        )
        with closing(source_for(dataset.processor_type).open(dataset, folder)) as source:
            return asyncio.run(_look(source, _done_items(plan.data_dir), plan.limit))


async def _forget(_: Write) -> None:
    """Take what a run would keep."""


async def _look(source: Source, done: dict[str, set[int]], limit: int | None) -> Outlook:
    counts: dict[str, int] = {}
    outlook = Outlook()
    async for finding in source.listing():
        if isinstance(finding, Listed):
            counts[finding.shard] = finding.count
        elif isinstance(finding, PassedOver):
            outlook.passed_over[finding.shard] = finding.reason
    outlook.shards, outlook.videos = len(counts), source.videos_left_out
    room = sum(counts.values()) if limit is None else limit
    for shard, count in counts.items():
        within = min(count, room)
        room -= within
        finished = done.get(shard, set())
        outlook.beyond_limit += count - within
        outlook.done += len(finished)
        outlook.wanted += within - len(finished)
        fresh = (item for item in range(within) if item not in finished)
        shown = list(islice(fresh, SHOWN - len(outlook.first)))
        if shown:
            try:
                found = await asyncio.to_thread(source.describe, shard, shown)
            except ShardError as error:
                outlook.passed_over.setdefault(shard, str(error))
                found = error.items
            outlook.first += [for_people(_name_of(item)) for item in found]
    return outlook


def _name_of(item: Item) -> str:
    return item.key or os.fsdecode(item.path or b"") or item.url or f"item {item.index}"


def _known_shards(data_dir: Path) -> dict[str, KnownShard]:
    """Return the shards that an earlier run has listed."""
    connection = open_for_reading(data_dir)
    if connection is None:
        return {}
    with closing(connection):
        return known_shards(connection)


def _done_items(data_dir: Path) -> dict[str, set[int]]:
    """Return the items that have a row, by shard."""
    done: defaultdict[str, set[int]] = defaultdict(set)
    with closing(StorageReader(data_dir)) as reader:
        for batch in reader.batches(None, ["shard", "item_index"]) if reader.columns else ():
            pairs = zip(batch["shard"].to_pylist(), batch["item_index"].to_pylist(), strict=True)
            for shard, item in pairs:
                done[shard].add(item)
    return done
