"""Memory for images on their way to workers: whoever reads one waits here until there is room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from caption_flow.orchestrator.core.turns import Ticket, Turns
from caption_flow.places.portions import PORTION_BYTES, Hold

IMAGE_BYTES: Final = 256 * 2**20
"""Of all workers together; besides, each may have one portion."""


class Allowance:
    """The orchestrator's memory for images, shared by `Turns`."""

    def __init__(self, budget: int = IMAGE_BYTES, portion: int = PORTION_BYTES) -> None:
        self._turns = Turns(budget=budget, portion=portion)
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def hold(self, worker: str, size: int) -> AsyncIterator[Hold]:
        """Wait until there is room for ``size`` bytes of a worker's, and keep it meanwhile."""
        ticket = self._turns.ask(worker, size)
        turn = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        try:
            self._admit()
            await turn
            yield _Hold(self, ticket)
        finally:
            self._waiting.pop(ticket, None)
            self._turns.give_back(ticket)
            self._admit()

    def shrink(self, ticket: Ticket, size: int) -> None:
        """Say how much of what a ticket stands for is really used."""
        self._turns.shrink(ticket, size)
        self._admit()

    @property
    def held(self) -> int:
        """How many bytes are held in all."""
        return self._turns.held

    def _admit(self) -> None:
        for ticket in self._turns.admit():
            turn = self._waiting.pop(ticket)
            if not turn.done():  # whoever waited may have been cancelled a moment ago
                turn.set_result(None)


class _Hold:
    def __init__(self, allowance: Allowance, ticket: Ticket) -> None:
        self._allowance = allowance
        self._ticket = ticket

    def shrink(self, size: int) -> None:
        """See the port."""
        self._allowance.shrink(self._ticket, size)
