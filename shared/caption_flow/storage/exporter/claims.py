"""Which item gets a file that several want: the first by item key, on every run the same one.

Items arrive in the order in which they were captioned, so the answer needs a look at all of them
before the first file is written. What is remembered is eight bytes an item, and names only where
two items really want the same file.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import pyarrow as pa

_HASH_MASK: Final = 2 * sys.maxsize + 1


@dataclass(frozen=True, slots=True)
class Claim:
    """One item's wish for a file. ``name`` is what people know the item by."""

    item_key: str
    target: str
    name: str


class Claims:
    """The wishes of all items, settled.

    Args:
        passes: called for each look at the claims; at most twice.
    """

    def __init__(self, passes: Callable[[], Iterable[Claim]]) -> None:
        self._hashes, contested = _sorted_hashes(_hash(claim.target) for claim in passes())
        self._owners: dict[str, Claim] = {}
        if contested:
            self._settle(claim for claim in passes() if _hash(claim.target) in contested)
        self._taken = bytearray(len(self._hashes))
        self._taken_by_name: set[str] = set()

    def take(self, claim: Claim) -> Claim | None:
        """Take the file for this item; if it is another's, return that item's claim instead.

        An item that appeared after the claims were settled (an orchestrator may be running) takes
        what nobody has.
        """
        owner = self._owners.get(claim.target)
        if owner is not None and owner.item_key != claim.item_key:
            return owner
        return None if self._mark(claim.target, contested=owner is not None) else claim

    def _settle(self, claims: Iterable[Claim]) -> None:
        for claim in claims:
            owner = self._owners.get(claim.target)
            if owner is None or claim.item_key < owner.item_key:
                self._owners[claim.target] = claim

    def _mark(self, target: str, *, contested: bool) -> bool:
        wanted = _hash(target)
        index = bisect_left(self._hashes, wanted)
        unforeseen = index == len(self._hashes) or self._hashes[index] != wanted
        if contested or unforeseen:
            if target in self._taken_by_name:
                return False
            self._taken_by_name.add(target)
            return True
        if self._taken[index]:
            return False
        self._taken[index] = 1
        return True


def _hash(target: str) -> int:
    return hash(target) & _HASH_MASK


def _sorted_hashes(hashes: Iterable[int]) -> tuple[memoryview[int], frozenset[int]]:
    """Return the hashes in order, and those that occur more than once."""
    unsorted = array("Q", hashes)
    values = pa.Array.from_buffers(pa.uint64(), len(unsorted), [None, pa.py_buffer(unsorted)])
    ordered = memoryview(values.sort().buffers()[1] or b"").cast("Q")
    return ordered, frozenset(one for one, next_ in pairwise(ordered) if one == next_)
