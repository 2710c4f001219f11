"""The end of a run: what idle workers may take over from busy ones. Pure.

Items that a worker has not begun are taken away from it: the last ones of its last lease, since it
begins them lease by lease in ascending order, and may be further on than its results say. Items it
has begun stay with it, unless it is gone or has brought nothing for long: then a second worker does
them, too, and the first commit wins.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from caption_flow.orchestrator.core.masks import lowest
from caption_flow.orchestrator.core.records import Lease, Policy, Session


@dataclass(frozen=True, slots=True)
class Offer:
    """Items of a lease that another worker may have.

    ``moved`` items are taken from the lease; the others are done twice.
    """

    lease: Lease
    mask: int
    moved: bool


@dataclass(slots=True)
class _Spare:
    """What one session can spare; of several offers the last one goes first."""

    offers: list[Offer]

    @property
    def moved(self) -> bool:
        return self.offers[-1].moved

    @property
    def items(self) -> int:
        return sum(offer.mask.bit_count() for offer in self.offers)

    def take(self, session: Session) -> Offer | None:
        """Return what a session is to have of it: of what can be moved, half."""
        offer = self.offers[-1]
        lease = offer.lease
        if lease.session is session or (lease.isolated and session.leases):
            return None
        mask = offer.mask & ~lease.chunk.held_by(session)
        half = (self.items + 1) // 2
        if offer.moved and mask.bit_count() > half:
            mask &= ~lowest(mask, mask.bit_count() - half)
        if not mask:
            return None
        self.offers.pop()
        if offer.mask & ~mask:
            self.offers.append(Offer(lease, offer.mask & ~mask, offer.moved))
        return Offer(lease, mask, offer.moved)


class Offers:
    """What all sessions can spare at one moment. Making it is a look at every lease.

    What can be moved comes first, then what would be done twice, the most of each first.
    """

    def __init__(self, sessions: Iterable[Session], policy: Policy, now: float) -> None:
        spares = (spare for session in sessions for spare in _spares_of(session, policy, now))
        self._heap = [_entry(spare, number) for number, spare in enumerate(spares)]
        heapq.heapify(self._heap)

    def take(self, session: Session) -> Offer | None:
        """Return what a session that has asked is to have.

        A session that still holds something gets no more than others have: two busy workers would
        trade items for ever.
        """
        seen = []
        taken = None
        while self._heap and taken is None:
            _, items, number, spare = heapq.heappop(self._heap)
            seen.append((spare, number))
            if session.left and (not spare.moved or -items <= session.left):
                break
            taken = spare.take(session)
        for spare, number in seen:
            if spare.offers:
                heapq.heappush(self._heap, _entry(spare, number))
        return taken


def _entry(spare: _Spare, number: int) -> tuple[bool, int, int, _Spare]:
    return not spare.moved, -spare.items, number, spare


def _spares_of(session: Session, policy: Policy, now: float) -> Iterator[_Spare]:
    gone = session.dropped_at is not None and now - session.dropped_at >= policy.rejoin_seconds
    begun = max(1, session.width)
    movable = []
    for lease in session.leases.values():
        unbegun = lease.mask & ~lowest(lease.mask, begun)
        begun = max(0, begun - lease.mask.bit_count())
        if unbegun and session.dropped_at is None:
            movable.append(Offer(lease, unbegun, moved=True))
        elif gone or now - lease.progress_at >= policy.straggler_seconds:
            once = lease.mask & ~lease.chunk.held(besides=lease)
            if once:
                yield _Spare([Offer(lease, once, moved=False)])
    if movable:
        yield _Spare(movable)
