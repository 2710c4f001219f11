"""What this worker holds: leases, their items not begun and begun, and when to ask for more.

Pure: the shell owns the clock and the socket. An item of a lease is *waiting* until the pipeline
begins it, *begun* until its row is finished, and then none of this module's business: the row is
the outbox's. A lease with nothing waiting and nothing begun is over and forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from caption_flow.protocol.messages import GrantedLease, ItemDescription, LeaseId

Key = tuple[LeaseId, int]
"""What tells an item from all others of the session: its lease and its index."""


@dataclass(frozen=True, slots=True)
class Job:
    """One item of one lease, and the fingerprint of the recipe it was granted under.

    ``stage`` is the position of its next stage.
    """

    lease: LeaseId
    item: ItemDescription
    recipe: str
    stage: int = 0

    @property
    def key(self) -> Key:
        """The item's name within the session."""
        return self.lease, self.item.index


@dataclass(slots=True)
class _Held:
    id: LeaseId
    recipe: str
    stage: int
    waiting: dict[int, ItemDescription] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)

    @property
    def is_over(self) -> bool:
        return not self.waiting and not self.begun


class LeaseBook:
    """The leases held, oldest first; items are begun in ascending order, lease by lease."""

    def __init__(self) -> None:
        self._leases: dict[LeaseId, _Held] = {}
        self._waiting = 0
        self._begun = 0
        self._granted = 0

    @property
    def waiting(self) -> int:
        """Items held and not begun."""
        return self._waiting

    @property
    def begun(self) -> int:
        """Items begun whose row is not finished."""
        return self._begun

    @property
    def granted(self) -> int:
        """Items granted so far, less those that were taken away or given back unfinished."""
        return self._granted

    @property
    def held(self) -> tuple[LeaseId, ...]:
        """The leases that are not over, oldest first."""
        return tuple(self._leases)

    def items(self, lease: LeaseId) -> frozenset[int]:
        """Return the items of a lease that are waiting or begun."""
        held = self._leases.get(lease)
        return frozenset() if held is None else frozenset(held.waiting) | held.begun

    def take(self, granted: GrantedLease, recipe: str) -> None:
        """Take a lease in; items of a lease that is already held are added to it."""
        held = self._leases.setdefault(granted.lease, _Held(granted.lease, recipe, granted.stage))
        new = [item for item in granted.items if not self._knows(held, item.index)]
        held.waiting.update((item.index, item) for item in new)
        self._waiting += len(new)
        self._granted += len(new)
        self._close_if_over(held)

    def begin(self) -> Job | None:
        """Begin the next item, or return None when none is waiting."""
        held = next((held for held in self._leases.values() if held.waiting), None)
        if held is None:
            return None
        index = next(iter(held.waiting))
        item = held.waiting.pop(index)
        held.begun.add(index)
        self._waiting -= 1
        self._begun += 1
        return Job(held.id, item, held.recipe, held.stage)

    def finish(self, lease: LeaseId, index: int) -> bool:
        """Note that a begun item has its row; False if the item is no longer this worker's."""
        held = self._leases.get(lease)
        if held is None or index not in held.begun:
            return False
        held.begun.discard(index)
        self._begun -= 1
        self._close_if_over(held)
        return True

    def trim(self, lease: LeaseId, items: Iterable[int]) -> int:
        """Forget those of the items that are not begun; return how many there were."""
        held = self._leases.get(lease)
        if held is None:
            return 0
        forgotten = sum(held.waiting.pop(index, None) is not None for index in items)
        self._forgot(forgotten)
        self._close_if_over(held)
        return forgotten

    def give(self, count: int) -> dict[LeaseId, tuple[int, ...]]:
        """Forget up to ``count`` of the items not begun, those that would be begun last."""
        given: dict[LeaseId, tuple[int, ...]] = {}
        for held in reversed(list(self._leases.values())):
            items = tuple(held.waiting)[max(0, len(held.waiting) - count) :]
            if items:
                given[held.id] = items
                count -= self.trim(held.id, items)
        return given

    def withdraw(self, keys: Iterable[Key]) -> None:
        """Forget begun items that are not worked on any more."""
        for lease, index in keys:
            if self.finish(lease, index):
                self._granted -= 1

    def has_waiting(self, lease: LeaseId) -> bool:
        """Tell whether a lease has items that are not begun."""
        held = self._leases.get(lease)
        return held is not None and bool(held.waiting)

    def forget_waiting(self) -> None:
        """Forget every item not begun."""
        for held in list(self._leases.values()):
            self._forgot(len(held.waiting))
            held.waiting.clear()
            self._close_if_over(held)

    def keep_only(self, leases: Collection[int]) -> tuple[Key, ...]:
        """Forget every other lease, begun items too; return the begun items that are lost."""
        lost = [held for held in self._leases.values() if held.id not in leases]
        return tuple(key for held in lost for key in self._drop(held))

    def _drop(self, held: _Held) -> list[Key]:
        del self._leases[held.id]
        self._forgot(len(held.waiting))
        self._begun -= len(held.begun)
        self._granted -= len(held.begun)
        return [(held.id, index) for index in sorted(held.begun)]

    def _forgot(self, count: int) -> None:
        self._waiting -= count
        self._granted -= count

    def _close_if_over(self, held: _Held) -> None:
        if held.is_over:
            del self._leases[held.id]

    @staticmethod
    def _knows(held: _Held, index: int) -> bool:
        return index in held.waiting or index in held.begun

    def check(self) -> None:
        """Assert the invariants; the `AssertionError` names the broken one."""
        held = self._leases.values()
        assert self._waiting == sum(len(one.waiting) for one in held), "waiting miscounted"
        assert self._begun == sum(len(one.begun) for one in held), "begun miscounted"
        for one in held:
            assert not one.is_over, f"lease {one.id} is over but kept"
            assert not one.begun & one.waiting.keys(), f"lease {one.id}: begun and waiting"


RATE_WINDOW_SECONDS: Final = 30.0
LEAD_SECONDS: Final = 10.0
"""The next lease is asked for when what waits would last less than this."""


class Rate:
    """Items, or tokens, per second: an exponentially weighted mean over the last half minute."""

    def __init__(self) -> None:
        self._level = 0.0
        self._began: float | None = None
        self._at = 0.0

    def note(self, amount: float = 1.0, *, now: float) -> None:
        """Count one finished item, or so many of whatever is counted."""
        if self._began is None:
            self._began = self._at = now
        self._level = self._level * self._fade(now) + amount / RATE_WINDOW_SECONDS
        self._at = now

    def per_second(self, *, now: float) -> float:
        """Return the rate as of ``now``; 0 until a second has passed since the first item."""
        if self._began is None or now - self._began < 1.0:
            return 0.0
        # The window is still filling at first: without this the rate would start far too low.
        seen = 1.0 - math.exp(-(now - self._began) / RATE_WINDOW_SECONDS)
        return self._level * self._fade(now) / seen

    def _fade(self, now: float) -> float:
        return math.exp(-max(0.0, now - self._at) / RATE_WINDOW_SECONDS)


ANSWER_SECONDS: Final = 60.0
"""An unanswered question is asked again after this long: no question may be waited on for ever."""


class Appetite:
    """When to ask for leases: before the present ones run dry, one question at a time."""

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._asked_idle = 0
        self._not_before = -math.inf

    def is_due(self, waiting: int, *, idle: int, width: int, rate: float, now: float) -> bool:
        """Say whether to ask now.

        ``width`` is how many items the engine works on at once, ``idle`` how many are held beyond
        those. A question asked in good time is repeated when nothing is left to begin: it is then
        that others may be asked to give something up.
        """
        if not idle and self._asked_idle:
            return True
        if self._asked_at is not None and now - self._asked_at < ANSWER_SECONDS:
            return False
        return now >= self._not_before and waiting < max(width, math.ceil(rate * LEAD_SECONDS))

    def asked(self, *, idle: int, now: float) -> None:
        """Note that the question is on its way."""
        self._asked_at = now
        self._asked_idle = idle

    def answered(self, *, now: float, again_after_seconds: float = 0.0) -> None:
        """Note the answer, and how long to wait before the next question."""
        self._asked_at = None
        self._not_before = now + again_after_seconds

    def start_over(self) -> None:
        """Forget question and answer: the connection they belonged to is gone."""
        self._asked_at = None
        self._asked_idle = 0
        self._not_before = -math.inf
