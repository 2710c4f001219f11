"""Sets of positions within one chunk, as the bits of an integer: a thousand items, one number.

Pure. Bit ``n`` stands for the chunk's item ``first + n``. Work is done run by run where it can be:
the items of a chunk are mostly whole or missing in stretches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def span(start: int, stop: int) -> int:
    """Return the mask of the positions ``[start, stop)``."""
    return ((1 << (stop - start)) - 1) << start


def mask_of(ranges: Iterable[tuple[int, int]], first: int) -> int:
    """Return the mask of ranges of items ``[start, stop)``; position 0 is the item ``first``."""
    return union(span(start - first, stop - first) for start, stop in ranges)


def union(masks: Iterable[int]) -> int:
    """Return the positions that are in any of the masks."""
    joined = 0
    for mask in masks:
        joined |= mask
    return joined


def runs(mask: int) -> Iterator[tuple[int, int]]:
    """Yield the stretches of positions of a mask as ``[start, stop)``, ascending."""
    at = 0
    while mask:
        absent = (mask & -mask).bit_length() - 1
        mask >>= absent
        present = (mask ^ (mask + 1)).bit_length() - 1
        at += absent
        yield at, at + present
        mask >>= present
        at += present


def items_of(mask: int, first: int) -> tuple[int, ...]:
    """Return the items of a mask whose position 0 is the item ``first``, ascending."""
    return tuple(item for start, stop in runs(mask) for item in range(first + start, first + stop))


def places_of(items: tuple[int, ...], mask: int, first: int) -> tuple[int, ...]:
    """Return where in ``items`` those of a mask are; of one named twice, the first time.

    All of the mask is named; no item lies before ``first``.
    """
    if mask.bit_count() == len(items):
        return tuple(range(len(items)))
    places = []
    for at, item in enumerate(items):
        bit = 1 << (item - first)
        if mask & bit:
            mask &= ~bit
            places.append(at)
    return tuple(places)


def lowest(mask: int, count: int) -> int:
    """Return the mask of the ``count`` lowest positions of ``mask`` (all of them if fewer)."""
    if mask.bit_count() <= count:
        return mask
    # The cut below which exactly `count` positions lie, by halving.
    low, high = 0, mask.bit_length()
    while low < high:
        middle = (low + high) // 2
        if (mask & ((1 << middle) - 1)).bit_count() < count:
            low = middle + 1
        else:
            high = middle
    return mask & ((1 << low) - 1)
