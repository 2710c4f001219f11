"""What the ledger keeps: chunks that somebody works on, their leases and pieces, sessions. Data.

A mask is a set of positions within a chunk (see `masks`). Nothing here exists for an item alone,
for a chunk that nobody has begun, or for one that is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from caption_flow.orchestrator.core import events as ev
from caption_flow.orchestrator.core.masks import items_of, mask_of, union
from caption_flow.orchestrator.core.ranges import RangeSet
from caption_flow.protocol.messages import LeaseId

_LONGEST_HISTORY: Final = 64


@dataclass(slots=True)
class Policy:
    """How work is handed out; times in seconds, sizes in items. A ledger changes its own copy.

    ``stages`` is how many stages an item goes through, one after the other.
    ``rejoin_seconds`` is how long a session may be disconnected before idle workers share what it
    holds, and ``straggler_seconds`` how long a lease must have been without a result before the
    items that its worker has begun are given to a second one. Both matter only when nothing else
    is left to hand out.
    """

    chunk_size: int = 1000
    lease_seconds: float = 120.0
    max_attempts: int = 3
    smallest_grant: int = 8
    stages: int = 1
    rejoin_seconds: float = 5.0
    straggler_seconds: float = 60.0

    def isolates(self, attempts: int) -> bool:
        """Tell whether items with so many lost leases are leased to a worker with nothing else."""
        return attempts >= max(1, self.max_attempts - 1)


@dataclass(frozen=True, slots=True)
class StoredLease:
    """A lease as it was remembered on disk, live or over; ``items`` are item indices."""

    lease: int
    session: str
    worker: str
    shard: str
    chunk_first: int
    chunk_count: int
    items: Iterable[int]
    live: bool = True
    stage: int = 0


@dataclass(slots=True, eq=False)
class Chunk:
    """A stretch of one shard with items that are leased, waiting for it, or on their way to disk.

    ``open`` are its items that are neither terminal nor on their way to disk: each is in one of
    ``pieces`` or in at least one live lease. Positions in neither mask are none of its business.
    ``between`` are the open items with stages behind them, by the stage that comes next; the other
    open ones are at stage 0.
    """

    shard: str
    first: int
    count: int
    open: int
    committing: int = 0
    between: dict[int, int] = field(default_factory=dict)
    leases: list[Lease] = field(default_factory=list)
    """Every lease there ever was on this chunk: a late report of an ended one still counts."""
    pieces: list[Piece] = field(default_factory=list)
    history: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.shard}:{self.first}+{self.count}"

    def items(self, mask: int) -> tuple[int, ...]:
        """Return the item indices of a mask."""
        return items_of(mask, self.first)

    def mask_of(self, items: tuple[int, ...]) -> int | None:
        """Return the mask of items that a worker names, or None if one is not in this chunk."""
        if not items:
            return 0
        # Whatever comes from the network is compared before anything is shifted by it.
        smallest = min(items)
        if smallest < self.first or max(items) >= self.first + self.count:
            return None
        mask = 0
        for item in items:
            mask |= 1 << (item - smallest)
        return mask << (smallest - self.first)

    def among(self, items: RangeSet) -> int:
        """Return the mask of those items that lie in this stretch."""
        return mask_of(items.within(self.first, self.first + self.count), self.first)

    def at(self, stage: int) -> int:
        """Return the open items for which this stage comes next."""
        if stage:
            return self.between.get(stage, 0)
        return self.open & ~union(self.between.values())

    def admit(self, mask: int, stage: int) -> None:
        """Have items open for which this stage comes next."""
        self.open |= mask
        if stage and mask:
            self.between[stage] = self.at(stage) | mask

    def dismiss(self, mask: int) -> None:
        """Have items open no longer."""
        self.open &= ~mask
        left = {stage: items & ~mask for stage, items in self.between.items()}
        self.between = {stage: items for stage, items in left.items() if items}

    def live_leases(self) -> Iterator[Lease]:
        """Yield the leases that have not ended."""
        return (lease for lease in self.leases if lease.live)

    def held(self, *, besides: Lease | None = None) -> int:
        """Return what live leases hold, all or all but one of them."""
        return union(lease.mask for lease in self.live_leases() if lease is not besides)

    def held_by(self, session: Session) -> int:
        """Return what a session's leases hold of this chunk."""
        return union(lease.mask for lease in self.live_leases() if lease.session is session)

    def tell(self, now: float, what: str) -> None:
        """Add a line to the chunk's history, which forgets its oldest ones."""
        self.history.append(f"{now:.1f} {what}")
        if len(self.history) > _LONGEST_HISTORY:
            del self.history[0]


@dataclass(slots=True, eq=False)
class Piece:
    """Open items of one chunk that wait to be leased, with the lost leases against them.

    For all of them the same stage comes next.
    """

    chunk: Chunk
    mask: int
    attempts: int = 0
    evidence: str = ""
    stage: int = 0


@dataclass(slots=True, eq=False)
class Lease:
    """One session's right to items of one chunk, for all of which the same stage came next."""

    id: LeaseId
    session: Session
    worker: str
    chunk: Chunk
    granted: int
    mask: int
    """What of it is neither reported nor given to somebody else."""
    progress_at: float
    """When it was granted, or last brought a result."""
    stage: int = 0
    attempts: int = 0
    evidence: str = ""
    isolated: bool = False
    """Its session holds nothing else: if it is lost, this lease's items are to blame."""
    live: bool = True

    def trim(self, mask: int) -> ev.Trim:
        """Return the word to its worker that some items are no longer its own."""
        return ev.Trim(self.session.id, self.id, self.chunk.items(mask))

    def remember(self) -> ev.Remember:
        """Return the word to the disk that what it was granted has changed."""
        chunk = self.chunk
        return ev.Remember(
            self.id,
            self.session.id,
            self.worker,
            chunk.shard,
            chunk.first,
            chunk.count,
            chunk.items(self.granted),
            self.live,
            self.stage,
        )


@dataclass(slots=True, eq=False)
class Session:
    """A worker as the ledger knows it, connected or expected back."""

    id: str
    worker: str
    heard_at: float
    serves: frozenset[int] = frozenset()
    """The stages it runs; none while it is not known whether it comes back."""
    width: int = 0
    """How many items it works on at once; 0 if it did not say."""
    idle: int = 0
    """How many items it had beyond those when it last asked, and was given since."""
    hungry: int = 0
    """How many leases it waits for."""
    spent: bool = False
    """Whether it has said that it has nothing to spare, and was given nothing since."""
    dropped_at: float | None = None
    known: bool = True
    """Whether it has said anything since this orchestrator started."""
    contributor: str = ""
    leases: dict[LeaseId, Lease] = field(default_factory=dict)

    def reach(self, stage: int) -> int:
        """Return how far it carries an item for which this stage comes next: the stage after."""
        while stage in self.serves:
            stage += 1
        return stage

    @property
    def holds_isolated(self) -> bool:
        """Whether it must not be given anything beside what it holds."""
        return any(lease.isolated for lease in self.leases.values())

    @property
    def is_starved(self) -> bool:
        """Whether it waits for work and has nothing left to begin."""
        return self.hungry > 0 and not self.idle

    @property
    def left(self) -> int:
        """How many items it has still to report; it may have finished some of them."""
        return sum(lease.mask.bit_count() for lease in self.leases.values())


@dataclass(slots=True, eq=False)
class OnTheWay:
    """Items of one commit that is not on disk yet.

    They were at ``stage``, and are at ``reached`` once it is, or terminal if that is None.
    """

    chunk: Chunk
    mask: int
    stage: int = 0
    reached: int | None = None
    again: int = 0
    """What of it begins at stage 0 again, unless it is terminal then."""
    contributor: str = ""
    """Whose ration it was taken from."""
