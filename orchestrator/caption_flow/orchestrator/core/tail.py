"""The end of a run: how idle workers come by what busy ones have. Pure.

Only a worker knows what it has begun: what its results say is old, since finished rows wait for
company before they leave. So a busy worker is asked to give up half of what it has not begun, and
loses nothing but what it names. What it has begun stays with it, unless it is gone or has brought
nothing for long: then a second worker does it, too, and the first commit wins.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from caption_flow.orchestrator.core.records import Lease, Policy, Session


@dataclass(frozen=True, slots=True)
class Offer:
    """Items of a lease that another worker may do, too."""

    lease: Lease
    mask: int


class Tail:
    """What can be shared at one moment. Making it is a look at every lease.

    ``asked`` are the sessions that have not answered yet.
    """

    def __init__(
        self,
        sessions: Collection[Session],
        asked: Collection[Session],
        policy: Policy,
        now: float,
    ) -> None:
        self._busy: dict[frozenset[int], list[Session]] = {}
        """By the stages at which what they hold was leased; the busiest last."""
        busy = (one for one in sessions if one not in asked and may_spare(one))
        for one in sorted(busy, key=lambda session: session.left):
            stages = frozenset(lease.stage for lease in one.leases.values())
            self._busy.setdefault(stages, []).append(one)
        self._offers: dict[int, list[Offer]] = {}
        """By stage; the largest last."""
        offers = (offer for session in sessions for offer in _offers_of(session, policy, now))
        for offer in sorted(offers, key=lambda offer: offer.mask.bit_count()):
            self._offers.setdefault(offer.lease.stage, []).append(offer)

    def busiest(self, helper: Session) -> Session | None:
        """Return who may have the most to spare for a helper and was not returned before.

        Nobody knows what it would give up: the helper must run the next stage of all it holds.
        """
        able = [busy for stages, busy in self._busy.items() if busy and stages <= helper.serves]
        return max(able, key=lambda busy: busy[-1].left).pop() if able else None

    def take(self, session: Session) -> Offer | None:
        """Return what a session without work is to do a second time."""
        for stage in session.serves & self._offers.keys():
            offers = self._offers[stage]
            for at in reversed(range(len(offers))):
                lease = offers[at].lease
                mask = offers[at].mask & ~lease.chunk.held_by(session)
                if mask and lease.session is not session:
                    del offers[at]
                    return Offer(lease, mask)
        return None


def may_spare(session: Session) -> bool:
    """Tell whether a session may have more than its engine has taken in."""
    if session.dropped_at is not None or session.spent or session.holds_isolated:
        return False
    return not session.is_starved and session.left > max(1, session.width)


def _offers_of(session: Session, policy: Policy, now: float) -> Iterator[Offer]:
    gone = session.dropped_at is not None and now - session.dropped_at >= policy.rejoin_seconds
    for lease in session.leases.values():
        if gone or now - lease.progress_at >= policy.straggler_seconds:
            once = lease.mask & ~lease.chunk.held(besides=lease)
            if once:
                yield Offer(lease, once)
