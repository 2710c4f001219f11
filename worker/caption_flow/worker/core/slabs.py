"""How many items pass through models that are loaded in turn before they are swapped back. Pure.

A slab is as large as it must be for swaps to take at most `SWAP_SHARE` of the time, by what swaps
and items have taken so far. Larger would only mean that more is half done when the worker ends.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

SWAP_SHARE: Final = 0.05
MIN_ITEMS: Final = 256
MAX_ITEMS: Final = 50_000
"""Items half done are kept in memory, some 2 KB each; their pictures are not."""
MAX_PATIENCE_SECONDS: Final = 5.0


@dataclass(slots=True)
class _Pace:
    seconds: float = 0.0
    items: float = 0.0


@dataclass(slots=True)
class Slab:
    """The size of the next slab, learned from swaps and visits."""

    min_items: int = MIN_ITEMS
    max_items: int = MAX_ITEMS
    _swap_seconds: float = 0.0
    _paces: defaultdict[int, _Pace] = field(default_factory=lambda: defaultdict(_Pace))

    def swapped(self, seconds: float) -> None:
        """Note how long it took to load a group in place of another; the latest count most."""
        known = self._swap_seconds
        self._swap_seconds = seconds if not known else (known + seconds) / 2

    def worked(self, group: int, seconds: float, items: int) -> None:
        """Note that so many items visited a group within so many seconds of work."""
        pace = self._paces[group]
        if pace.items > self.max_items:
            pace.seconds, pace.items = pace.seconds / 2, pace.items / 2
        pace.seconds += seconds
        pace.items += items

    def items(self, swaps: int) -> int:
        """Return how many items are to pass between ``swaps`` swaps."""
        item_seconds = sum(pace.seconds / pace.items for pace in self._paces.values() if pace.items)
        if not item_seconds:
            return self.min_items
        # swap / (swap + work) = SWAP_SHARE, solved for the number of items.
        work_seconds = swaps * self._swap_seconds * (1 - SWAP_SHARE) / SWAP_SHARE
        wanted = math.ceil(min(work_seconds / item_seconds, self.max_items))
        return min(max(wanted, self.min_items), self.max_items)

    @property
    def patience_seconds(self) -> float:
        """How long to wait for more items before a swap: next to nothing, measured by a swap."""
        return min(self._swap_seconds * SWAP_SHARE, MAX_PATIENCE_SECONDS)


SPOKEN: Final = (
    f"{MIN_ITEMS} items at a time at first, then as many as keep loading under "
    f"{SWAP_SHARE:.0%} of the time (at most {MAX_ITEMS:,})"
)
"""What is said of slabs before there are any."""
