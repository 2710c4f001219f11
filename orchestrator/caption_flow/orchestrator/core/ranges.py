"""Sets of item indices as sorted, disjoint ranges: small however many items they hold. Pure."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain
from operator import itemgetter
from typing import Final

_FEW: Final = 64
"""So many ranges are added one by one; more are merged in one pass over the whole set."""


class RangeSet:
    """A set of non-negative integers kept as half-open ranges ``[start, stop)``.

    Adding or removing a range costs a binary search and a splice; 16 bytes hold a range. Memory
    follows the number of holes and not the number of items. The ranges lie in descending order, as
    their negatives in ascending order: work is taken from the front of a set all day, and that is
    the end of these arrays, where it costs the same however long they are.
    """

    __slots__ = ("_highs", "_lows")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Take ranges in any order; they may overlap."""
        self._lows = array("q")
        self._highs = array("q")
        for start, stop in sorted(ranges, key=itemgetter(1), reverse=True):
            if start >= stop:
                continue
            if self._highs and -stop <= self._highs[-1]:
                # Descending stops: what overlaps or touches the last range extends it downwards.
                self._highs[-1] = max(self._highs[-1], -start)
            else:
                self._lows.append(-stop)
                self._highs.append(-start)

    @classmethod
    def of(cls, values: Iterable[int]) -> RangeSet:
        """Return the set of the given integers."""
        return cls(_runs(sorted(values)))

    def add(self, start: int, stop: int) -> None:
        """Add every integer of ``[start, stop)``; those already present stay."""
        if start >= stop:
            return
        low, high = -stop, -start
        # Ranges that overlap or touch the new one are replaced by their union with it.
        begin = bisect_left(self._highs, low)
        end = bisect_right(self._lows, high)
        if begin < end:
            low = min(low, self._lows[begin])
            high = max(high, self._highs[end - 1])
        self._replace(begin, end, ((low, high),))

    def update(self, other: RangeSet) -> None:
        """Add every integer of another set."""
        if len(other._lows) > _FEW:
            other = RangeSet(chain(self, other))
            self._lows, self._highs = other._lows, other._highs
        else:
            for start, stop in other:
                self.add(start, stop)

    def remove(self, start: int, stop: int) -> None:
        """Remove every integer of ``[start, stop)``; those absent stay absent."""
        if start >= stop:
            return
        low, high = -stop, -start
        begin = bisect_right(self._highs, low)
        end = bisect_left(self._lows, high)
        if begin >= end:
            return
        edges = ((self._lows[begin], low), (high, self._highs[end - 1]))
        self._replace(begin, end, [edge for edge in edges if edge[0] < edge[1]])

    def first(self) -> int | None:
        """Return the smallest integer of the set."""
        return -self._highs[-1] if self._highs else None

    @property
    def stop(self) -> int:
        """One more than the largest integer of the set; 0 for an empty set."""
        return -self._lows[0] if self._lows else 0

    def within(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of the set that lie in ``[start, stop)``, cut to it, ascending."""
        if start >= stop:
            return
        begin = bisect_right(self._highs, -stop)
        end = bisect_left(self._lows, -start)
        for at in range(end - 1, begin - 1, -1):
            yield max(start, -self._highs[at]), min(stop, -self._lows[at])

    def gaps(self, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of ``[0, stop)`` that are absent, ascending."""
        at = 0
        for first, last in self.within(0, stop):
            if at < first:
                yield at, first
            at = last
        if at < stop:
            yield at, stop

    def __contains__(self, value: int) -> bool:
        at = bisect_right(self._lows, -value - 1) - 1
        return at >= 0 and -value <= self._highs[at]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over the ranges, ascending."""
        for at in range(len(self._lows) - 1, -1, -1):
            yield -self._highs[at], -self._lows[at]

    def __len__(self) -> int:
        """Return how many integers the set holds."""
        return sum(self._highs) - sum(self._lows)

    def __bool__(self) -> bool:
        return bool(self._lows)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RangeSet)
            and self._lows == other._lows
            and self._highs == other._highs
        )

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"RangeSet({list(self)!r})"

    def _replace(self, begin: int, end: int, ranges: Iterable[tuple[int, int]]) -> None:
        kept = list(ranges)
        self._lows[begin:end] = array("q", [low for low, _ in kept])
        self._highs[begin:end] = array("q", [high for _, high in kept])


def _runs(ascending: Iterable[int]) -> Iterator[tuple[int, int]]:
    start = stop = None
    for value in ascending:
        if start is None or stop is None:
            start, stop = value, value + 1
        elif value <= stop:
            stop = max(stop, value + 1)
        else:
            yield start, stop
            start, stop = value, value + 1
    if start is not None and stop is not None:
        yield start, stop
