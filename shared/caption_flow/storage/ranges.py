"""Item indices as half-open ranges ``[start, stop)``. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def ranges_of(indices: Iterable[int]) -> list[tuple[int, int]]:
    """Coalesce indices, in any order, into sorted half-open ranges."""
    ranges: list[tuple[int, int]] = []
    for index in sorted(indices):
        if ranges and ranges[-1][1] >= index:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return ranges
