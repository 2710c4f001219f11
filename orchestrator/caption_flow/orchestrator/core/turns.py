"""Who may hold how much of the memory for images on their way to workers. Pure.

Each worker has one small portion that is its own, so that nobody stands still for others. All else
shares one budget: whoever holds least of it comes first, then whoever asked first, and nobody goes
past the first in line, so that large ones have their turn, too. What is larger than the budget
holds all of it, alone.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import NewType

Ticket = NewType("Ticket", int)


@dataclass(slots=True)
class _Held:
    worker: str
    size: int
    is_own: bool
    """It is the worker's own portion, not part of the budget."""


class Turns:
    """Lets requests in, by bytes; at most ``budget`` and a ``portion`` for each worker are held."""

    def __init__(self, *, budget: int, portion: int) -> None:
        self._budget = budget
        self._portion = portion
        self._last = 0
        self._waiting: dict[Ticket, tuple[str, int]] = {}
        self._held: dict[Ticket, _Held] = {}
        self._owners: set[str] = set()
        self._shared: defaultdict[str, int] = defaultdict(int)

    @property
    def held(self) -> int:
        """How much is held in all."""
        return sum(one.size for one in self._held.values())

    def ask(self, worker: str, size: int) -> Ticket:
        """Join the line; see `admit`."""
        self._last += 1
        ticket = Ticket(self._last)
        self._waiting[ticket] = (worker, size)
        return ticket

    def shrink(self, ticket: Ticket, size: int) -> None:
        """Say how much a ticket that was let in really holds; it may be more than was asked for."""
        held = self._held[ticket]
        if not held.is_own:
            self._add(held.worker, size - held.size)
        held.size = size

    def give_back(self, ticket: Ticket) -> None:
        """End a ticket, whether it was let in or still waits."""
        self._waiting.pop(ticket, None)
        held = self._held.pop(ticket, None)
        if held is None:
            return
        if held.is_own:
            self._owners.discard(held.worker)
        else:
            self._add(held.worker, -held.size)

    def admit(self) -> list[Ticket]:
        """Let in whoever can be; return them."""
        admitted = [ticket for ticket in list(self._waiting) if self._admit_own(ticket)]
        while (first := self._first()) is not None:
            worker, size = self._waiting[first]
            room = self._budget - sum(self._shared.values())
            if min(size, self._budget) > room:
                break
            del self._waiting[first]
            self._held[first] = _Held(worker, size, is_own=False)
            self._add(worker, size)
            admitted.append(first)
        return admitted

    def _admit_own(self, ticket: Ticket) -> bool:
        worker, size = self._waiting[ticket]
        if worker in self._owners or size > self._portion:
            return False
        del self._waiting[ticket]
        self._owners.add(worker)
        self._held[ticket] = _Held(worker, size, is_own=True)
        return True

    def _first(self) -> Ticket | None:
        return min(
            self._waiting,
            key=lambda ticket: (self._shared.get(self._waiting[ticket][0], 0), ticket),
            default=None,
        )

    def _add(self, worker: str, size: int) -> None:
        self._shared[worker] += size
        if not self._shared[worker]:
            del self._shared[worker]
