"""So many bytes that all connections share: who finds none waits for a turn."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

REPORTS_BYTES: Final = 64 * 2**20
"""Reports on their way to disk."""


class Budget:
    """So many bytes; something larger finds room when there is nothing else."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.taken = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def wait(self, size: int) -> None:
        """Take room for so many bytes as soon as there is some; `give_back` it."""
        if not self._queue and self._fits(size):
            self.taken += size
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(size)
            else:
                self._queue = deque(entry for entry in self._queue if entry[1] is not turn)
                self.give_back(0)
            raise

    def take(self, size: int) -> None:
        """Take room without waiting, where that was done before."""
        self.taken += size

    def give_back(self, size: int) -> None:
        """Make room again, and let in who waits for it; a negative size takes some."""
        self.taken -= size
        while self._queue and self._fits(self._queue[0][0]):
            waiting, turn = self._queue.popleft()
            if not turn.done():
                self.taken += waiting
                turn.set_result(None)

    def _fits(self, size: int) -> bool:
        return not self.taken or self.taken + size <= self._most
