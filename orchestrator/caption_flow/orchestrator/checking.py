"""Spot checks carried out: leases for checks, answers compared, and whoever cheats cut off.

What to check and what follows is decided in `core.spot_checks`. The ledger knows nothing of checks
but that the end of the run waits for them; a report on a lease for checks never reaches it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any, Protocol

import structlog

from caption_flow.orchestrator.core import events as ev
from caption_flow.orchestrator.core.spot_checks import Check, CheckPolicy, Score, SpotChecks
from caption_flow.orchestrator.membership import Membership
from caption_flow.orchestrator.server.conversation import Link
from caption_flow.protocol.codec import ProtocolError
from caption_flow.protocol.messages import LeaseId
from caption_flow.storage.people import KeepStanding, Standing
from caption_flow.storage.writer import Write
from caption_flow.storage.writes import CommitRows, CompareRows

log = structlog.get_logger()


class Run(Protocol):
    """What checking needs of the orchestrator."""

    @property
    def links(self) -> Collection[Link]:
        """The connected workers."""
        ...

    @property
    def held(self) -> Collection[str]:
        """Who keeps items from being handed out."""
        ...

    @property
    def clock(self) -> float:
        """The time on the clock of the run, in seconds."""
        ...

    @property
    def all_terminal(self) -> bool:
        """Whether every item of the run has its row."""
        ...

    def apply(self, event: ev.Event) -> None:
        """Tell the ledger and do what it says."""
        ...

    def write(self, write: Write) -> asyncio.Future[None]:
        """Queue a write; the future is done when it is durable."""
        ...

    def look_at(self, write: CompareRows) -> asyncio.Future[None]:
        """Queue a look at rows; the future fails with `ProtocolError` if they are none."""
        ...

    def compare(self, items: tuple[int, ...], payload: bytes) -> CompareRows:
        """Return the write that looks at rows of the run's recipe."""
        ...

    def may_check(self, link: Link) -> bool:
        """Tell whether a worker runs every stage."""
        ...

    def may_hold_more(self, link: Link) -> bool:
        """Tell whether a worker may be given a lease beside those it has."""
        ...

    def reserve_lease(self) -> LeaseId:
        """Return a number that no lease has or will have."""
        ...

    def grant_checks(self, link: Link, lease: LeaseId, shard: str, items: tuple[int, ...]) -> None:
        """Send a worker items to do, as any others."""
        ...

    def begun(self, size: int) -> None:
        """Take note that a report of so many bytes is being looked at."""
        ...

    def settled(self, link: Link, size: int) -> None:
        """Take note that it has been."""
        ...

    def refuse(self, session: str, reason: str) -> None:
        """Close a session that broke the protocol."""
        ...

    def cut_off(self, name: str) -> None:
        """Let a contributor in no more and have all it did done again; then `cut_off_is_done`."""
        ...


class Checking:
    """The spot checks of one run."""

    def __init__(
        self,
        policy: CheckPolicy,
        seed: bytes,
        standings: Mapping[str, Standing],
        membership: Membership,
        run: Run,
        *,
        patience_seconds: float,
    ) -> None:
        """``patience_seconds`` is how long the end waits for a check that nobody answers."""
        self._checks = SpotChecks(policy, seed)
        self._checks.scores = {name: Score(**asdict(one)) for name, one in standings.items()}
        self._membership = membership
        self._run = run
        self._patience_seconds = patience_seconds
        self._ready: set[str] = set()
        """Sessions that have asked for work, so that their engines are there."""
        self._cutting = {name for name, one in standings.items() if one.cut_off}
        self._comparing = 0
        """Answers that are being looked at."""
        self._awaited = False
        self._waiting_since: float | None = None
        self._said_nobody = False

    @property
    def unfinished(self) -> Collection[str]:
        """Contributors who are to be cut off and are not wholly."""
        return self._cutting

    def standings(self) -> dict[str, dict[str, Any]]:
        """Return for the report how those stand who have been checked."""
        return {
            name: {"flagged": one.flagged, "checks": one.checks, "agreement": one.mean}
            for name, one in self._checks.scores.items()
        }

    def adopt(self, policy: CheckPolicy, *, recipe_is_new: bool) -> None:
        """Go by another policy; what was to be compared by another recipe is not."""
        self._checks.policy = policy
        if recipe_is_new:
            self._checks.abandon()

    # ------------------------------------------------------------------ rows of low trust

    def chosen(self, link: Link, shard: str, items: Collection[int]) -> frozenset[int]:
        """Return which items of a report are to be checked."""
        if not self._run.may_check(link) or self._membership.is_trusted(link.identity):
            return frozenset()
        return frozenset(item for item in items if self._checks.chooses(shard, item))

    def stored(self, link: Link, write: CommitRows, now: float) -> None:
        """Have those rows checked that were chosen and are durable now; say this to it first."""
        for item, answer in write.answers.items():
            self._checks.add(Check(write.shard, item, link.contributor, answer))
        if write.answers:
            self.look(now)

    # ------------------------------------------------------------------ what sessions say

    def notices(self, event: ev.Event) -> None:
        """Take note of an event that the ledger hears of, too."""
        match event:
            case ev.SessionJoined(session) | ev.SessionDropped(session) | ev.SessionLeft(session):
                self._ready.discard(session)
                self._checks.lose(session)
            case ev.Wanted(session):
                self._ready.add(session)
            case ev.Recalled(session, leases):
                for lease, items in leases.items():
                    if self._checks.holder(lease) == session:
                        self._checks.give_back(lease, items)
            case _:
                pass

    def takes(self, event: ev.Reported | ev.Released, link: Link | None, payload: bytes) -> bool:
        """Take a message about a lease for checks; False if it is about another lease."""
        holder = self._checks.holder(event.lease)
        if holder is None:
            return False
        if holder != event.session:
            self._run.refuse(event.session, f"lease {event.lease} is not yours")
        elif isinstance(event, ev.Released):
            self._checks.give_back(event.lease)
        elif link is not None:
            self._compare(event, link, payload)
        return True

    def _compare(self, event: ev.Reported, link: Link, payload: bytes) -> None:
        checks = None
        if event.reached is None:
            checks = self._checks.answered(event.lease, event.items)
        if checks is None:
            self._run.refuse(
                event.session, f"a report names items that are not in lease {event.lease}"
            )
            return
        # Of those that nobody asks for any more, nothing is looked at.
        write = self._run.compare(event.items, payload) if checks else CompareRows((), b"", ())

        size = len(payload)

        def compared(done: asyncio.Future[None]) -> None:
            self._comparing -= 1
            self._run.settled(link, size)
            error = None if done.cancelled() else done.exception()
            if isinstance(error, ProtocolError):
                link.refused = True
                for check in checks:
                    self._checks.add(check)
                self._run.refuse(event.session, str(error))
            elif error is None and not done.cancelled():
                self._judge(checks, write, link)
                if not link.refused:
                    link.outgoing.acknowledge(event.seq)
            self.look(self._run.clock, progressed=True)

        self._comparing += 1
        self._run.begun(size)
        self._run.look_at(write).add_done_callback(compared)

    def _judge(self, checks: Collection[Check], write: CompareRows, link: Link) -> None:
        trusted = self._membership.is_trusted(link.identity)
        for check in checks:
            before = dict(self._checks.scores)
            if check.item not in write.answers:
                continue  # made by another recipe
            answer = write.answers[check.item]
            for name in self._checks.judge(check, answer, link.contributor, trusted=trusted):
                self._note(name, before.get(name, Score()), self._checks.scores[name])

    def _note(self, name: str, before: Score, score: Score) -> None:
        """Make a contributor's new score durable, and act on it."""
        self._run.write(KeepStanding(name, Standing(**asdict(score))))
        if score.flagged and not before.flagged:
            log.warning(
                "a contributor's answers differ from what others say of the same images",
                who=name,
                checks=score.checks,
                agreement=None if score.mean is None else round(score.mean, 2),
            )
        if score.cut_off and name not in self._cutting:
            self._cutting.add(name)
            self._checks.forget(name)
            self._run.cut_off(name)

    def cut_off_is_done(self, name: str, now: float) -> None:
        """Note that a contributor's rows are taken back and its items wait again."""
        score = self._checks.scores.get(name, Score())
        done = Standing(**{**asdict(score), "flagged": True, "cut_off": False})
        self._checks.scores[name] = Score(**asdict(done))
        self._run.write(KeepStanding(name, done))
        self._cutting.discard(name)
        self.look(now)

    def forgive(self, name: str) -> None:
        """Forget how a contributor stands: it was let in again."""
        if self._checks.scores.pop(name, None) is not None:
            self._run.write(KeepStanding(name, None))

    def shard_to_read(self, session: str, lease: int, items: Collection[int]) -> str | None:
        """Return the shard of items that a session may read in order to check them."""
        mine = self._checks.holder(lease) == session
        return self._checks.shard_of(lease, items) if mine else None

    # ------------------------------------------------------------------ who checks, and the end

    def look(self, now: float, *, progressed: bool = False) -> None:
        """Hand out checks that wait, and say whether the end of the run is to wait for any."""
        if progressed or self._run.held:
            self._waiting_since = now
        if not self._is_anything_to_do():
            return
        able = [link for link in self._run.links if self._run.may_check(link)]
        trusted = [link for link in able if self._membership.is_trusted(link.identity)]
        pool = trusted or able
        names = {link.contributor for link in pool}
        if self._checks.is_waiting_for(names):
            for link in () if self._run.held else pool:
                self._hand_out(link)
        elif self._checks.has_waiting and not self._said_nobody and able:
            self._said_nobody = True
            log.warning(
                "spot checks wait: nobody is connected whose token is another one, and who runs "
                "every stage"
            )
        self._wait_or_not(names, now)

    def _is_anything_to_do(self) -> bool:
        return (
            self._checks.has_waiting
            or bool(self._checks.under_way)
            or bool(self._comparing)
            or bool(self._cutting)
            or self._awaited
        )

    def _hand_out(self, link: Link) -> None:
        busy = self._checks.has_any(link.session) or not self._run.may_hold_more(link)
        if busy or link.session not in self._ready:
            return
        checks = self._checks.take(link.contributor)
        if checks:
            lease = self._run.reserve_lease()
            self._checks.grant(lease, link.session, checks)
            items = tuple(check.item for check in checks)
            self._run.grant_checks(link, lease, checks[0].shard, items)

    def _wait_or_not(self, names: Collection[str], now: float) -> None:
        under_way = self._checks.under_way + self._comparing
        pending = bool(under_way) or self._checks.is_waiting_for(names)
        if not (pending and self._run.all_terminal):
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        elif now - self._waiting_since >= self._patience_seconds:
            log.warning("spot checks are given up: nobody has answered them")
            self._checks.abandon()
            pending = False
        still = pending or bool(self._cutting)
        if still != self._awaited:
            self._awaited = still
            self._run.apply(ev.Awaited(still))
