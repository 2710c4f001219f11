"""Who may use an engine: a counted gate that lets the oldest item pass first.

An engine is kept full when as many requests are in it as it asks for, and no more: what waits
here has not been submitted and can still be overtaken by nothing but an older item. That an item's
next stage passes before the first stage of younger items follows from its age alone.
"""

from __future__ import annotations

import asyncio
import heapq
from itertools import count


class Gate:
    """``capacity`` slots, given to waiters in order of age; strictly, so nobody starves."""

    def __init__(self, capacity: int) -> None:
        self.capacity = max(1, capacity)
        self._free = self.capacity
        self._waiters: list[tuple[int, int, int, asyncio.Future[None]]] = []
        self._order = count()

    @property
    def in_use(self) -> int:
        """Slots that are taken."""
        return self.capacity - self._free

    def enqueue(self, slots: int, age: int) -> asyncio.Future[None]:
        """Join the queue; the future is done when the slots are the caller's."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (age, next(self._order), slots, turn))
        self._admit()
        return turn

    def release(self, slots: int) -> None:
        """Give slots back."""
        self._free += slots
        self._admit()

    def _admit(self) -> None:
        while self._waiters:
            _, _, slots, turn = self._waiters[0]
            if turn.cancelled():
                heapq.heappop(self._waiters)
                continue
            if slots > self._free:
                return
            heapq.heappop(self._waiters)
            self._free -= slots
            turn.set_result(None)


class Seat:
    """The slots one item holds, at one gate at a time; ``age`` is its place in line."""

    def __init__(self, age: int) -> None:
        self._age = age
        self._gate: Gate | None = None
        self._held = 0

    async def move(self, gate: Gate, slots: int) -> None:
        """Hold ``slots`` at ``gate``, at most as many as it has, and nothing elsewhere.

        Never keeps some while it waits for more: two items that did would wait for each other.
        """
        if self._gate is gate and self._held >= slots:
            gate.release(self._held - slots)
            self._held = slots
            return
        turn = gate.enqueue(slots, self._age)  # before leaving: what is freed may be ours at once
        self.leave()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                gate.release(slots)
            gate.release(0)  # whoever stood behind in the queue
            raise
        self._gate, self._held = gate, slots

    def shrink(self) -> None:
        """Give one slot back, but never the last: the next stage goes on in it."""
        if self._gate is not None and self._held > 1:
            self._held -= 1
            self._gate.release(1)

    def leave(self) -> None:
        """Give everything back; idempotent."""
        gate, held = self._gate, self._held
        self._gate, self._held = None, 0
        if gate is not None:
            gate.release(held)
