"""The chunks that somebody works on, all their leases, and what is on its way to disk. Pure.

A chunk is here from its first lease until its last item is terminal; a lease stays, ended or not,
as long as its chunk: late reports count. Whatever changes a lease says here what its worker and the
disk have to know of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count as counter

from caption_flow.orchestrator.core import events as ev
from caption_flow.orchestrator.core.masks import runs, union
from caption_flow.orchestrator.core.ranges import RangeSet
from caption_flow.orchestrator.core.records import Chunk, Lease, OnTheWay, Piece, Policy, Session
from caption_flow.protocol.messages import LeaseId

Effects = list[ev.Effect]


class Book:
    """Chunks, leases and commits by name."""

    def __init__(self, policy: Policy, first_lease: int) -> None:
        self._policy = policy
        self.chunks: dict[Chunk, None] = {}
        self._leases: dict[LeaseId, Lease] = {}
        self._on_the_way: dict[ev.Ticket, OnTheWay] = {}
        self._lease_ids = counter(first_lease)
        self._ticket_ids = counter(1)
        self.committing = 0

    def lease(self, lease_id: int) -> Lease | None:
        """Return a lease, ended or not, of a chunk that is not done."""
        return self._leases.get(LeaseId(lease_id))

    def grant(self, session: Session, piece: Piece, effects: Effects, now: float) -> None:
        """Lease a piece under a new number."""
        lease = self.enter(LeaseId(next(self._lease_ids)), session, piece, piece.mask, now)
        chunk, count = lease.chunk, lease.mask.bit_count()
        session.idle += count
        session.spent = False
        chunk.tell(now, f"lease {lease.id}: {count} items to {session.worker}")
        effects.append(
            ev.Grant(
                session.id,
                lease.id,
                chunk.shard,
                chunk.first,
                chunk.count,
                chunk.items(lease.mask),
                lease.stage,
            )
        )

    def enter(
        self, lease_id: LeaseId, session: Session, piece: Piece, granted: int, now: float
    ) -> Lease:
        """Lease a piece, which is what is left of the items that were ``granted``.

        A lease with nothing left is over; it is known for what it may still bring.
        """
        lease = Lease(
            lease_id,
            session,
            session.worker,
            piece.chunk,
            granted,
            piece.mask,
            progress_at=now,
            stage=piece.stage,
            attempts=piece.attempts,
            evidence=piece.evidence,
            isolated=self._policy.isolates(piece.attempts),
            live=bool(piece.mask),
        )
        self.chunks[piece.chunk] = None
        self._leases[lease_id] = lease
        if lease.live:
            session.leases[lease_id] = lease
        piece.chunk.leases.append(lease)
        return lease

    def end(self, lease: Lease, effects: Effects, why: str, now: float) -> int:
        """End a lease; return what is left of it and no other live lease holds."""
        left = lease.mask & ~lease.chunk.held(besides=lease)
        lease.chunk.tell(
            now, f"lease {lease.id} of {lease.worker} over, {left.bit_count()} left: {why}"
        )
        self.shrink(lease, lease.mask, effects)
        return left

    def shrink(self, lease: Lease, mask: int, effects: Effects) -> None:
        """Take items out of a live lease, which ends with its last one."""
        lease.mask &= ~mask
        if not lease.mask:
            lease.live = False
            del lease.session.leases[lease.id]
            effects.append(ev.EndLease(lease.id))

    def take_from(self, lease: Lease, mask: int, effects: Effects) -> None:
        """Take items out of a live lease whose worker does not know it yet."""
        effects.append(lease.trim(lease.mask & mask))
        self.shrink(lease, mask, effects)

    def disown(self, shard: str, items: RangeSet, effects: Effects) -> None:
        """Have no lease bring anything for items any more: they have changed."""
        for chunk in self.chunks:
            if chunk.shard == shard:
                self._disown(chunk, chunk.among(items), effects)

    def rewind(self, shard: str | None, items: RangeSet | None, effects: Effects) -> list[Piece]:
        """Have items with stages behind them begin again; return them, whom nobody holds any more.

        None stands for every shard, and for every item. What is on its way to a later stage begins
        again when it is there.
        """

        def meant(chunk: Chunk) -> int:
            if shard is not None and chunk.shard != shard:
                return 0
            return chunk.open | chunk.committing if items is None else chunk.among(items)

        for commit in self._on_the_way.values():
            commit.again |= commit.mask & meant(commit.chunk)
        rewound: list[Piece] = []
        for chunk in self.chunks:
            mask = meant(chunk)
            self._disown(chunk, mask & chunk.committing, effects)
            mask &= union(chunk.between.values())
            self._disown(chunk, mask, effects)
            if mask:
                chunk.dismiss(mask)
                chunk.admit(mask, 0)
                rewound.append(Piece(chunk, mask))
        return rewound

    def _disown(self, chunk: Chunk, mask: int, effects: Effects) -> None:
        """Have no lease hold items any more, nor bring anything for them."""
        for lease in chunk.leases:
            if lease.mask & mask:
                self.take_from(lease, mask, effects)
            if lease.granted & mask:
                lease.granted &= ~mask
                effects.append(lease.remember())

    def reserve(self) -> LeaseId:
        """Return a number that no lease has or will have."""
        return LeaseId(next(self._lease_ids))

    def to_commit(
        self,
        chunk: Chunk,
        mask: int,
        *,
        stage: int,
        reached: int | None = None,
        contributor: str = "",
    ) -> ev.Ticket:
        """Note that open items, which nobody holds any more, are on their way to disk."""
        chunk.dismiss(mask)
        chunk.committing |= mask
        self.committing += mask.bit_count()
        ticket = ev.Ticket(next(self._ticket_ids))
        self._on_the_way[ticket] = OnTheWay(chunk, mask, stage, reached, contributor=contributor)
        return ticket

    def arrived(self, ticket: ev.Ticket, effects: Effects) -> tuple[int, list[Piece]]:
        """Note that a commit's items are durable. Done chunks are forgotten.

        Returns how many are terminal, and those that are at a later stage now, whom nobody holds.
        """
        commit = self._on_the_way.pop(ticket, None)
        if commit is None:
            return 0, []
        chunk = self._off_the_way(commit)
        if commit.reached is not None:
            return 0, _open_again(commit, commit.reached)
        if not chunk.open and not chunk.committing:
            del self.chunks[chunk]
            for lease in chunk.leases:
                del self._leases[lease.id]
                effects.append(ev.ForgetLease(lease.id))
        return commit.mask.bit_count(), []

    def refused(self, ticket: ev.Ticket) -> tuple[str, list[Piece]]:
        """Note that a commit did not happen: its items are open again, and nobody holds them.

        Returns them, and whose ration they were taken from.
        """
        commit = self._on_the_way.pop(ticket, None)
        if commit is None:
            return "", []
        self._off_the_way(commit)
        return commit.contributor, _open_again(commit, commit.stage)

    def unfinished(self, shard: str) -> Iterator[tuple[int, int]]:
        """Yield the ranges of a shard's items that are open or on their way to disk."""
        for chunk in self.chunks:
            if chunk.shard == shard:
                for start, stop in runs(chunk.open | chunk.committing):
                    yield chunk.first + start, chunk.first + stop

    def story(self, shard: str, item: int) -> list[str]:
        """Say what happened to the chunks whose stretch contains an item, oldest first."""
        lines: list[str] = []
        for chunk in self.chunks:
            if chunk.shard == shard and chunk.first <= item < chunk.first + chunk.count:
                lines += [str(chunk), *chunk.history]
        return lines

    def _off_the_way(self, commit: OnTheWay) -> Chunk:
        commit.chunk.committing &= ~commit.mask
        self.committing -= commit.mask.bit_count()
        return commit.chunk

    def check(self) -> None:
        """Assert that every open item is in one piece or leased, and that all masks agree."""
        on_the_way = dict.fromkeys(self.chunks, 0)
        for commit in self._on_the_way.values():
            assert not on_the_way[commit.chunk] & commit.mask, "on its way twice"
            on_the_way[commit.chunk] |= commit.mask
        leases = [lease for chunk in self.chunks for lease in chunk.leases]
        assert set(self._leases.values()) == set(leases), "leases of other chunks are kept"
        unfinished: dict[str, RangeSet] = {}
        for chunk in self.chunks:
            assert chunk.committing == on_the_way[chunk]
            _check_chunk(chunk)
            of_shard = unfinished.setdefault(chunk.shard, RangeSet())
            for item in chunk.items(chunk.open | chunk.committing):
                assert item not in of_shard, f"item {item} is in two chunks"
                of_shard.add(item, item + 1)
        for lease in leases:
            assert bool(lease.mask) == lease.live, f"lease {lease.id} is live and empty, or over"
            assert lease.mask & ~lease.granted == 0
            assert lease.mask & ~lease.chunk.at(lease.stage) == 0, "leased at another stage"
            assert self._leases[lease.id] is lease
        assert self.committing == sum(chunk.committing.bit_count() for chunk in self.chunks)


def _open_again(commit: OnTheWay, stage: int) -> list[Piece]:
    """Have the items of a commit open at a stage; those that begin again, at the first one."""
    chunk, again = commit.chunk, commit.again
    pieces = [Piece(chunk, commit.mask & ~again, stage=stage), Piece(chunk, again)]
    for piece in pieces:
        chunk.admit(piece.mask, piece.stage)
    return [piece for piece in pieces if piece.mask]


def _check_chunk(chunk: Chunk) -> None:
    waiting, leased = union(piece.mask for piece in chunk.pieces), chunk.held()
    assert chunk.open | chunk.committing, f"{chunk} is done but kept"
    assert not (chunk.open | chunk.committing) >> chunk.count, f"{chunk}: items beyond it"
    assert not chunk.open & chunk.committing, f"{chunk}: open and committing"
    assert not waiting & leased, f"{chunk}: waiting and leased"
    assert waiting | leased == chunk.open, f"{chunk}: open items lost"
    between = list(chunk.between.values())
    assert union(between) & ~chunk.open == 0, f"{chunk}: between stages and not open"
    assert union(between).bit_count() == sum(map(int.bit_count, between)), f"{chunk}: at two stages"
    for piece in chunk.pieces:
        assert piece.mask & ~chunk.at(piece.stage) == 0, f"{chunk}: waiting at another stage"
