"""Who gets what next: what waits goes to whoever asked first; then the tail is shared. Pure."""

from __future__ import annotations

from typing import Final

from caption_flow.orchestrator.core import events as ev
from caption_flow.orchestrator.core.backlog import Backlog
from caption_flow.orchestrator.core.book import Book, Effects
from caption_flow.orchestrator.core.masks import lowest
from caption_flow.orchestrator.core.records import Piece, Policy, Session
from caption_flow.orchestrator.core.roster import Roster
from caption_flow.orchestrator.core.tail import Tail, may_spare

_SMALL_CREW: Final = 256
"""Up to so many sessions the tail is shared as soon as somebody is idle, above at ticks: sharing is
a look at every lease."""


class HandOut:
    """Brings the hungry of the roster and the backlog together; what is granted is in the book."""

    def __init__(self, policy: Policy, backlog: Backlog, book: Book, roster: Roster) -> None:
        self._policy = policy
        self._backlog = backlog
        self._book = book
        self._roster = roster
        self._asked: dict[Session, Session] = {}
        """Who was asked to give something up and has not answered, and on whose behalf."""
        self._helped: set[Session] = set()

    def answered(self, session: Session, *, spared: bool = True) -> None:
        """Note that a session has answered a recall, or that its answer will not come."""
        self._helped.discard(self._asked.pop(session, session))
        session.spent = not spared

    @property
    def is_all_out(self) -> bool:
        """Whether nothing is to be had any more: all that is left is with workers that are at it.

        Not while somebody may give something up, may be gone, or brings items that go on elsewhere.
        """
        if self._backlog.items or not self._backlog.listing.finished or self._asked:
            return False
        return not any(
            session.dropped_at is not None
            or may_spare(session)
            or any(session.reach(lease.stage) < self._policy.stages for lease in leases)
            for session in self._roster
            if (leases := session.leases.values())
        )

    def feed(self, event: ev.Event, effects: Effects, now: float) -> None:
        """Grant what can be granted after an event, in the order of asking."""
        sharing = self._is_time_to_share(event)
        if not (sharing or any(map(self._backlog.has_ordinary_work, +self._roster.wanted))):
            return
        tail: Tail | None = None
        serving = self._roster.serving
        for session in self._roster.hungry:
            while session.hungry:
                most = self._roster.allowance(session)
                if most == 0:
                    self._roster.set_hunger(session, 0)  # it asks again
                    break
                piece = self._backlog.next_for(session, serving, most)
                if piece is None:
                    break
                self._book.grant(session, piece, effects, now)
                more = self._backlog.has_any_for(session)
                self._roster.set_hunger(session, session.hungry - 1 if more else 0)
            if session.is_starved and sharing and not session.holds_isolated:
                tail = tail or Tail(list(self._roster), self._asked, self._policy, now)
                self._share(session, tail, effects, now)

    def _is_time_to_share(self, event: ev.Event) -> bool:
        match event:
            case ev.Ticked():
                return True
            case ev.Wanted(name) | ev.Reported(name) if len(self._roster) <= _SMALL_CREW:
                session = self._roster.get(name)
                asked = isinstance(event, ev.Wanted)
                return session is not None and session.hungry > 0 and (asked or not session.leases)
            case ev.Recalled():
                return len(self._roster) <= _SMALL_CREW
        return False

    def _share(self, session: Session, tail: Tail, effects: Effects, now: float) -> None:
        """Nothing waits for it: let a session help the one with the most left to do."""
        most = self._roster.allowance(session)
        if most == 0:
            self._roster.set_hunger(session, 0)
            return
        busy = None if session in self._helped else tail.busiest(session)
        if busy is not None:
            self._asked[busy] = session
            self._helped.add(session)
            effects.append(ev.Recall(busy.id))
            return
        offer = None if session.left else tail.take(session)
        if offer is not None:
            lease = offer.lease
            mask = offer.mask if most is None else lowest(offer.mask, most)
            piece = Piece(lease.chunk, mask, lease.attempts, lease.evidence, lease.stage)
            self._book.grant(session, piece, effects, now)
            self._roster.set_hunger(session, 0)
