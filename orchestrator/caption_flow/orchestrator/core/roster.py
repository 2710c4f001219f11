"""Who is there, who has gone silent, and who waits for work, in the order of asking. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator

from caption_flow.orchestrator.core.records import Session


class Roster:
    """The sessions of a run. Times in seconds of the ledger's clock."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._dropped: set[str] = set()
        self._hungry: OrderedDict[str, None] = OrderedDict()
        self.serving: Counter[int] = Counter()
        """How many connected sessions run each stage."""
        self.wanted: Counter[int] = Counter()
        """How many hungry sessions run each stage."""
        self.rations: dict[str, int] = {}
        """How many more rows may count, of those contributors for whom there is a limit."""

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    @property
    def connected(self) -> int:
        """How many sessions have a connection."""
        return len(self._sessions) - len(self._dropped)

    @property
    def hungry(self) -> list[Session]:
        """The sessions that wait for work, in the order of asking."""
        return [self._sessions[name] for name in self._hungry]

    @property
    def is_anyone_hungry(self) -> bool:
        """Whether any session waits for work."""
        return bool(self._hungry)

    def get(self, session: str) -> Session | None:
        """Return a session that is connected or expected back."""
        return self._sessions.get(session)

    def ration(self, contributor: str, rows: int | None) -> None:
        """Set how many more rows of a contributor may count; None is no limit."""
        if rows is None:
            self.rations.pop(contributor, None)
        else:
            self.rations[contributor] = rows

    def allowance(self, session: Session) -> int | None:
        """Return how many more items a session may be given; None is no limit."""
        ration = self.rations.get(session.contributor)
        if ration is None:
            return None
        held = (one.left for one in self if one.contributor == session.contributor)
        return max(0, ration - sum(held))

    def spend(self, contributor: str, rows: int) -> None:
        """Take rows out of a contributor's ration, if there is one; put them back if negative."""
        if contributor in self.rations:
            self.rations[contributor] -= rows

    def join(
        self, name: str, worker: str, serves: frozenset[int], now: float, contributor: str = ""
    ) -> Session:
        """Note that a session, which runs some stages, is connected, perhaps again."""
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = Session(name, worker, now)
        session.worker = worker
        session.contributor = contributor
        session.known = True
        self.set_hunger(session, 0)
        self.hear(name, now)
        self.serving.subtract(session.serves)
        session.serves = serves
        self.serving.update(serves)
        return session

    def expect(self, name: str, worker: str, now: float) -> Session:
        """Return a session of an earlier orchestrator, which may or may not come back."""
        session = self._sessions.get(name)
        if session is None:
            session = Session(name, worker, now, dropped_at=now, known=False)
            self._sessions[name] = session
            self._dropped.add(name)
        return session

    def hear(self, name: str, now: float) -> Session | None:
        """Note a message: whatever the session holds is renewed by it."""
        session = self._sessions.get(name)
        if session is not None:
            session.heard_at = now
            if session.dropped_at is not None:
                session.dropped_at = None
                self._dropped.discard(name)
                self.serving.update(session.serves)
        return session

    def want(self, name: str, leases: int, width: int, idle: int, now: float) -> None:
        """Note that a session waits for some leases; see `Session` for ``width`` and ``idle``."""
        session = self.hear(name, now)
        if session is not None:
            session.width, session.idle = width, idle
            self.set_hunger(session, leases)

    def drop(self, name: str, now: float) -> None:
        """Note that a session's connection is gone."""
        session = self._sessions.get(name)
        if session is not None:
            if session.dropped_at is None:
                self.serving.subtract(session.serves)
            session.dropped_at = now
            self._dropped.add(name)
            self.set_hunger(session, 0)

    def forget(self, session: Session) -> None:
        """Forget a session that holds nothing."""
        self.set_hunger(session, 0)
        if session.dropped_at is None:
            self.serving.subtract(session.serves)
        self._dropped.discard(session.id)
        del self._sessions[session.id]

    def silent_since(self, moment: float) -> list[Session]:
        """Return the sessions that have not said anything after a moment."""
        return [session for session in self if session.heard_at <= moment]

    def set_hunger(self, session: Session, leases: int) -> None:
        """Note how many leases a session waits for; it keeps its place in the order."""
        if bool(leases) != bool(session.hungry):
            (self.wanted.update if leases else self.wanted.subtract)(session.serves)
        session.hungry = leases
        if leases:
            self._hungry[session.id] = None
        else:
            self._hungry.pop(session.id, None)

    def check(self) -> None:
        """Assert that the sets agree with the sessions."""
        assert self._dropped == {s.id for s in self if s.dropped_at is not None}
        assert set(self._hungry) == {s.id for s in self if s.hungry}
        assert not self._dropped & set(self._hungry), "nobody there to be given anything"
        present = [session for session in self if session.dropped_at is None]
        assert +self.serving == Counter(stage for session in present for stage in session.serves)
        hungry = [session for session in present if session.hungry]
        assert +self.wanted == Counter(stage for session in hungry for stage in session.serves)
        for session in self:
            held = session.leases.values()
            assert not session.holds_isolated or len(held) == 1, "an isolated lease has company"
