"""Who gets what next: what waits goes to whoever asked first; then the tail is shared. Pure."""

from __future__ import annotations

from typing import Final

from caption_flow.orchestrator.core import events as ev
from caption_flow.orchestrator.core.backlog import Backlog
from caption_flow.orchestrator.core.book import Book, Effects
from caption_flow.orchestrator.core.records import Piece, Policy, Session
from caption_flow.orchestrator.core.roster import Roster
from caption_flow.orchestrator.core.tail import Offers

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

    def feed(self, event: ev.Event, effects: Effects, now: float) -> None:
        """Grant what can be granted after an event, in the order of asking."""
        sharing = self._is_time_to_share(event)
        if not (sharing or self._backlog.has_ordinary_work):
            return
        offers: Offers | None = None
        connected = self._roster.connected
        for session in self._roster.hungry:
            while session.hungry:
                piece = self._backlog.next_for(session, connected=connected)
                if piece is None:
                    break
                self._book.grant(session, piece, effects, now)
                self._roster.set_hunger(session, session.hungry - 1 if self._backlog.items else 0)
            if session.hungry and sharing and not session.holds_isolated:
                offers = offers or Offers(self._roster, self._policy, now)
                self._share(session, offers, effects, now)

    def _is_time_to_share(self, event: ev.Event) -> bool:
        match event:
            case ev.Ticked():
                return True
            case ev.Wanted(name) | ev.Reported(name) if len(self._roster) <= _SMALL_CREW:
                session = self._roster.get(name)
                asked = isinstance(event, ev.Wanted)
                return session is not None and session.hungry > 0 and (asked or not session.leases)
        return False

    def _share(self, session: Session, offers: Offers, effects: Effects, now: float) -> None:
        """Nothing waits for it: let a session help the one with the most left to do."""
        offer = offers.take(session)
        if offer is None:
            return
        lease = offer.lease
        piece = Piece(lease.chunk, offer.mask, lease.attempts, lease.evidence)
        if offer.moved:
            self._book.move_from(lease, offer.mask, effects)
        self._book.grant(session, piece, effects, now)
        self._roster.set_hunger(session, 0)
