"""A desk for pipelines under test: what to do is a list, what comes of it a dictionary."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from caption_flow.protocol.messages import ItemDescription, LeaseId
from caption_flow.protocol.rows import Row
from caption_flow.recipe.stages import Recipe
from caption_flow.worker.core.leases import Job
from tests.support.engines import PATIENCE_SECONDS

Earlier = dict[str, dict[str, tuple[str, ...]]]
"""What stages on other workers gave, by stage and output field."""


class ListedDesk:
    """Hands out items from a list, and collects rows."""

    def __init__(
        self,
        recipe: Recipe,
        items: Iterable[int],
        columns: Mapping[int, Any] | None = None,
        earlier: Earlier | None = None,
    ) -> None:
        self.recipe = recipe
        self.waiting = deque(items)
        self.columns = columns or {}
        self.earlier = earlier
        self.begun: list[int] = []
        self.rows: dict[int, Row] = {}
        self.moved = asyncio.Event()
        self.is_held_back = False
        self.all_handed_out = False

    def next_job(self) -> Job | None:
        if not self.waiting or self.is_held_back:
            return None
        index = self.waiting.popleft()
        self.begun.append(index)
        self.moved.set()
        columns = {"n": f"item {index}"} | self.columns.get(index, {})
        item = ItemDescription(index, columns=columns, earlier=self.earlier)
        return Job(LeaseId(1), item, self.recipe.fingerprint, len(self.earlier or {}))

    def deliver(self, job: Job, row: Row) -> None:
        assert job.item.index == row.item_index
        assert row.item_index not in self.rows, "one row per item"
        self.rows[row.item_index] = row
        self.moved.set()

    async def has_begun(self, count: int) -> None:
        """Wait until so many items have been begun."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.begun) != count:
                self.moved.clear()
                await self.moved.wait()

    async def has_rows(self, *items: int) -> list[Row]:
        """Wait until these items have their rows, and return them."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not all(item in self.rows for item in items):
                self.moved.clear()
                await self.moved.wait()
        return [self.rows[item] for item in items]
