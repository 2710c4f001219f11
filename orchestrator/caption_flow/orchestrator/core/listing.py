"""What the source has listed and nobody has been given yet, shard by shard.

Pure. Chunks are cut here, lazily and in the source's order. Memory follows shards and the holes in
them; cutting costs the same whatever has been listed and done.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from caption_flow.orchestrator.core.masks import mask_of
from caption_flow.orchestrator.core.ranges import RangeSet


@dataclass(slots=True)
class _Shard:
    count: int = 0
    uncut: RangeSet = field(default_factory=RangeSet)


@dataclass(frozen=True, slots=True)
class Cut:
    """Items ready to become a chunk: those of ``mask`` in ``[first, first + count)``."""

    shard: str
    first: int
    count: int
    mask: int


class Listing:
    """The uncut items of a run. A shard that has some is either ready or still growing."""

    def __init__(self, chunk_size: int) -> None:
        self._chunk_size = chunk_size
        self._shards: dict[str, _Shard] = {}
        self._ready: OrderedDict[str, None] = OrderedDict()
        self._growing: OrderedDict[str, None] = OrderedDict()
        """Shards whose rest is shorter than a chunk and may yet become longer."""
        self.finished = False
        self.found = 0
        self.uncut = 0

    def restore(self, name: str, count: int, done: RangeSet) -> int:
        """Take over a shard of which some items are terminal; return how many those are.

        A shard is at least as long as its last terminal item says: the rows are on disk.
        """
        shard = self._shards[name] = _Shard(max(count, done.stop))
        shard.uncut = RangeSet(done.gaps(shard.count))
        uncut = len(shard.uncut)
        self.found += shard.count
        self.uncut += uncut
        self._queue(name, shard)
        return shard.count - uncut

    def grow(self, name: str, count: int) -> bool:
        """Note that a shard has at least ``count`` items; return whether that is news."""
        shard = self._shards.setdefault(name, _Shard())
        if count <= shard.count:
            return False
        self.found += count - shard.count
        self.uncut += count - shard.count
        shard.uncut.add(shard.count, count)
        shard.count = count
        self._queue(name, shard)
        return True

    def cut(self) -> Cut | None:
        """Take the items of the next chunk; a short one only when there is nothing else.

        A chunk spans at most ``chunk_size`` items, and holds those of them that are uncut.
        """
        while self._ready:
            name = next(iter(self._ready))
            shard = self._shards[name]
            first = shard.uncut.first() or 0
            if first + self._chunk_size <= shard.count or self.finished:
                return self._cut(name, shard, first)
            del self._ready[name]
            self._growing[name] = None
        for name in self._growing:
            shard = self._shards[name]
            return self._cut(name, shard, shard.uncut.first() or 0)
        return None

    def resize(self, chunk_size: int) -> None:
        """Cut chunks of another size from now on."""
        self._chunk_size = chunk_size
        # What was shorter than a chunk may be longer than one now.
        self._ready.update(self._growing)
        self._growing.clear()

    def claim(self, name: str, wanted: RangeSet) -> RangeSet:
        """Take those of the wanted items that are uncut."""
        claimed = RangeSet()
        shard = self._shards.get(name)
        if shard is not None:
            for start, stop in wanted:
                claimed.update(RangeSet(shard.uncut.within(start, stop)))
                self._take(name, shard, start, stop)
        return claimed

    def give_back(self, name: str, done: RangeSet) -> int:
        """Make cut items uncut again; return how many. Those never listed or uncut are left."""
        shard = self._shards.get(name)
        if shard is None:
            return 0
        before = len(shard.uncut)
        shard.uncut.update(RangeSet(done.within(0, shard.count)))
        given_back = len(shard.uncut) - before
        self.uncut += given_back
        self._queue(name, shard)
        return given_back

    def has_uncut(self, name: str, items: Iterable[int]) -> bool:
        """Tell whether any of the items is uncut."""
        shard = self._shards.get(name)
        return shard is not None and any(item in shard.uncut for item in items)

    def check(self) -> None:
        """Assert that counts and queues agree with the ranges."""
        assert self.found == sum(shard.count for shard in self._shards.values())
        assert self.uncut == sum(len(shard.uncut) for shard in self._shards.values())
        for name, shard in self._shards.items():
            queues = (name in self._ready) + (name in self._growing)
            assert queues == bool(shard.uncut), f"{name} has work nobody will find"
            assert all(stop <= shard.count for _, stop in shard.uncut)

    def _cut(self, name: str, shard: _Shard, first: int) -> Cut:
        stop = min(first + self._chunk_size, shard.count)
        mask = mask_of(shard.uncut.within(first, stop), first)
        self._take(name, shard, first, stop)
        return Cut(name, first, stop - first, mask)

    def _take(self, name: str, shard: _Shard, start: int, stop: int) -> None:
        self.uncut -= sum(end - first for first, end in shard.uncut.within(start, stop))
        shard.uncut.remove(start, stop)
        if not shard.uncut:
            self._ready.pop(name, None)
            self._growing.pop(name, None)

    def _queue(self, name: str, shard: _Shard) -> None:
        """Have a shard looked at when the next chunk is cut, if there is anything in it."""
        self._growing.pop(name, None)
        if shard.uncut:
            self._ready[name] = None
