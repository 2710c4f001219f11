"""Which items are pending, leased, on their way to disk, and terminal; who gets what next.

Pure: events in, effects out. The shell owns sockets, disk and the clock, and tells the ledger when
something is durable. The rules, which `Ledger.check` asserts as equalities:

- Every item found is in exactly one state: uncut (in no chunk yet), open, committing or terminal.
- An open item is in exactly one waiting piece, or in at least one live lease, never both.
- An item goes through the stages of the recipe in their order, and is leased only to sessions that
  run its next one. A report that it has reached a later stage makes it wait there once durable.
- A report counts once: the first one to be accepted commits, later ones are acknowledged after it.
  It counts only for items whose next stage is still the one they were leased at.
- A lease ends when it is done, given back, or its session is silent for ``lease_seconds``.
- A lost lease's remainder waits in halves. What has been lost ``max_attempts - 1`` times is leased
  to a worker that holds nothing else; a single item that is lost like that is quarantined. A lease
  given back in peace, or by a worker nobody has seen since a restart, blames nobody.
- A worker keeps what it has begun, until it is gone or slow (see `tail`).
- What a lease was granted may be reported until its chunk is done, however long the lease is over
  and however often the orchestrator has restarted.
- The run is finished when the source is listed to its end and every item is terminal, and the
  shell does not wait for anything else.
- A contributor with a ration is granted no more items than may still count of its rows.

Memory follows shards, holes and live leases, not items: an untouched chunk does not exist, a
finished one is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from caption_flow.orchestrator.core import events as ev
from caption_flow.orchestrator.core.backlog import Backlog
from caption_flow.orchestrator.core.book import Book, Effects
from caption_flow.orchestrator.core.handout import HandOut
from caption_flow.orchestrator.core.masks import lowest, mask_of, places_of
from caption_flow.orchestrator.core.ranges import RangeSet
from caption_flow.orchestrator.core.records import (
    Chunk,
    Lease,
    Piece,
    Policy,
    Session,
    StoredLease,
)
from caption_flow.orchestrator.core.roster import Roster
from caption_flow.protocol.messages import LeaseId

__all__ = ["Ledger", "Policy", "StoredLease"]

_NO_TICKET: Final = ev.Ticket(0)
"""Of a commit that moves no item; the ledger does not wait for it."""


class Ledger:
    """The state of one run. See the module's docstring for its rules."""

    def __init__(self, policy: Policy, *, first_lease: int = 1) -> None:
        """Start empty; no lease id below ``first_lease`` is ever given out.

        An orchestrator that restarts must begin above all ids it may have given out before: a late
        report then never meets a new lease with the number of its own.
        """
        policy = self.policy = replace(policy)
        self._backlog = Backlog(policy)
        self._listing = self._backlog.listing
        self._book = Book(policy, first_lease)
        self._roster = Roster()
        self._hand_out = HandOut(policy, self._backlog, self._book, self._roster)
        self._paused = False
        self._awaited = False
        self._announced = False
        self._terminal = 0

    # ------------------------------------------------------------------ what others may know

    @property
    def found(self) -> int:
        """Items the source has listed so far."""
        return self._listing.found

    @property
    def terminal(self) -> int:
        """Items that are captioned or failed, durably."""
        return self._terminal

    @property
    def committing(self) -> int:
        """Items accepted and on their way to disk."""
        return self._book.committing

    @property
    def pending(self) -> int:
        """Items that nobody works on."""
        return self._backlog.items

    @property
    def leased(self) -> int:
        """Items that at least one live lease holds."""
        return self.found - self._terminal - self.committing - self.pending

    @property
    def unserved(self) -> dict[int, int]:
        """Items that wait at a stage that no connected session runs, by stage."""
        stages = (stage for stage in range(self.policy.stages) if not self._roster.serving[stage])
        waiting = {stage: self._backlog.waiting(stage) for stage in stages}
        return {stage: items for stage, items in waiting.items() if items}

    @property
    def listed(self) -> bool:
        """Whether the source has been listed to its end."""
        return self._listing.finished

    @property
    def finished(self) -> bool:
        """Whether every item of the run is terminal and no more can come."""
        return self.all_terminal and not self._awaited

    @property
    def all_terminal(self) -> bool:
        """Whether every item is terminal and no more can come, whatever else is waited for."""
        return self._listing.finished and self._terminal == self._listing.found

    @property
    def paused(self) -> bool:
        """Whether handing out is suspended."""
        return self._paused

    def leases_of(self, session: str) -> dict[LeaseId, tuple[str, int, int]]:
        """Return a session's live leases: id -> (shard, first item of the chunk, items left)."""
        held = self._roster.get(session)
        if held is None:
            return {}
        return {
            lease.id: (lease.chunk.shard, lease.chunk.first, lease.mask.bit_count())
            for lease in held.leases.values()
        }

    def left_of(self, lease: int) -> tuple[int, ...]:
        """Return the items of a lease that its worker is still to do, ascending."""
        held = self._book.lease(lease)
        return () if held is None else held.chunk.items(held.mask)

    def is_live(self, lease: int) -> bool:
        """Tell whether a lease has anything left that its worker is to do."""
        held = self._book.lease(lease)
        return held is not None and held.live

    def knows(self, lease: int) -> bool:
        """Tell whether a lease, live or over, may still bring something."""
        return self._book.lease(lease) is not None

    def may_read(self, session: str, lease: int, items: Iterable[int]) -> str | None:
        """Return the shard if the session holds the lease and all items are within it."""
        held = self._book.lease(lease)
        if held is None or held.session.id != session:
            return None
        named = held.chunk.mask_of(tuple(items))
        return None if named is None or named & ~held.granted else held.chunk.shard

    def reserve_lease(self) -> LeaseId:
        """Return a number that no lease has or will have, for one that is none of the ledger's."""
        return self._book.reserve()

    def may_hold_more(self, session: str) -> bool:
        """Tell whether a session is connected and holds nothing that must be alone."""
        held = self._roster.get(session)
        return held is not None and held.dropped_at is None and not held.holds_isolated

    def story(self, shard: str, item: int) -> list[str]:
        """Say what happened to the live chunks around an item, oldest first, for people."""
        done_or_uncut = f"{shard}:{item} is in no live chunk: done, or not handed out yet"
        return self._book.story(shard, item) or [done_or_uncut]

    # ------------------------------------------------------------------ resuming

    def restore(
        self,
        terminal: Mapping[str, RangeSet],
        counts: Mapping[str, int],
        leases: Iterable[StoredLease],
        between: Mapping[int, Mapping[str, RangeSet]] | None = None,
        *,
        now: float,
    ) -> None:
        """Take over what an earlier orchestrator left on disk; call once, before any event.

        ``between`` are the items that have stages behind them, by the stage that comes next and
        shard. Sessions of restored leases have ``lease_seconds`` to come back. Leases whose items
        are all terminal, or at a later stage, are not restored.
        """
        for name in {**counts, **terminal}:
            done = terminal.get(name) or RangeSet()
            self._terminal += self._listing.restore(name, counts.get(name, 0), done)
        # What is over comes last: its items are whoever's that holds them, or wait.
        stored_leases = sorted(leases, key=lambda stored: not stored.live)
        chunks: dict[tuple[str, int], Chunk] = {}
        for stored in stored_leases:
            granted = _granted(stored)
            self._claim(stored.shard, stored.chunk_first, stored.chunk_count, granted, chunks)
        for stage, shards in (between or {}).items():
            for shard, items in shards.items():
                self._restore_between(stage, shard, items, chunks)
        for stored in stored_leases:
            self._restore_lease(stored, chunks, now)
        for chunk in chunks.values():
            waiting = chunk.open & ~chunk.held()
            for stage in range(self.policy.stages):
                if waiting & chunk.at(stage):
                    self._backlog.put(Piece(chunk, waiting & chunk.at(stage), stage=stage))

    def _claim(
        self,
        shard: str,
        first: int,
        count: int,
        items: RangeSet,
        chunks: dict[tuple[str, int], Chunk],
    ) -> None:
        """Have those of the items that are uncut open in a chunk, which is there already or not."""
        claimed = mask_of(self._listing.claim(shard, items), first)
        if claimed:
            chunk = chunks.setdefault((shard, first), Chunk(shard, first, count, 0))
            chunk.count = max(chunk.count, count)
            chunk.admit(claimed, 0)
            self._book.chunks[chunk] = None

    def _restore_between(
        self, stage: int, shard: str, items: RangeSet, chunks: dict[tuple[str, int], Chunk]
    ) -> None:
        """Note at which stage items are; those that no lease has claimed get chunks, too."""
        left = RangeSet(items)
        while (first := left.first()) is not None:
            stop = first + self.policy.chunk_size
            near = RangeSet(left.within(first, stop))
            self._claim(shard, first, self.policy.chunk_size, near, chunks)
            left.remove(first, stop)
        for chunk in chunks.values():
            if chunk.shard == shard:
                chunk.admit(chunk.open & chunk.among(items), stage)

    def _restore_lease(
        self, stored: StoredLease, chunks: dict[tuple[str, int], Chunk], now: float
    ) -> None:
        chunk = chunks.get((stored.shard, stored.chunk_first))
        if chunk is None:
            return
        # A shard that grew may have had a longer chunk begin where a shorter one did.
        chunk.count = max(chunk.count, stored.chunk_count)
        granted = mask_of(_granted(stored), chunk.first)
        # Items that a lease before this one has claimed were being done twice, and still are.
        open_items = granted & chunk.at(stored.stage)
        if not open_items:
            return
        if stored.live:
            session = self._roster.expect(stored.session, stored.worker, now)
        else:
            session = Session(stored.session, stored.worker, now)
        piece = Piece(chunk, open_items if stored.live else 0, stage=stored.stage)
        self._book.enter(LeaseId(stored.lease), session, piece, granted, now)

    # ------------------------------------------------------------------ events

    def handle(  # noqa: C901, PLR0912, PLR0915  -- one match over all events is the map
        self, event: ev.Event, *, now: float
    ) -> Effects:
        """Apply one event at time ``now`` and return what the shell has to do, in order."""
        effects: Effects = []
        match event:
            case ev.Reported():
                self._report(event, effects, now)
            case ev.Committed(ticket):
                self._arrive(ticket, effects)
            case ev.Heard(session):
                self._roster.hear(session, now)
            case ev.Wanted(session, chunks, width, idle):
                self._roster.want(session, 0 if self.finished else chunks, width, idle, now)
            case ev.Released():
                self._release(event, effects, now)
            case ev.Recalled():
                self._take_back(event, effects, now)
            case ev.ItemsFound(shard, count):
                if self._listing.grow(shard, count):
                    self._announced = False
            case ev.ListingFinished():
                self._listing.finished = True
            case ev.SessionJoined():
                self._join(event, effects, now)
            case ev.SessionDropped(session):
                self._drop(session, now)
            case ev.SessionLeft(session):
                self._leave(session, effects, now)
            case ev.CommitRejected(ticket):
                self._reject(ticket, now)
            case ev.Reopened(shard, items):
                self._reopen(shard, items, effects)
            case ev.Rewound(shard, items):
                self._rewind(shard, RangeSet.of(items), effects)
            case ev.RecipeReplaced():
                self._rewind(None, None, effects)
            case ev.PolicyChanged():
                self._adopt_policy(event)
            case ev.Rationed(contributor, ration):
                self._roster.ration(contributor, ration)
            case ev.Awaited(still):
                self._awaited = still
            case ev.Ticked():
                self._expire(effects, now)
            case ev.Paused():
                self._paused = True
            case ev.Resumed():
                self._paused = False
        if self._roster.is_anyone_hungry and not self._paused:
            self._hand_out.feed(event, effects, now)
        if isinstance(event, ev.Wanted):
            self._answer(event.session, effects)
        elif isinstance(event, ev.Recalled):
            self._tell_idle(effects)
        if self.finished and not self._announced:
            self._announced = True
            effects.append(ev.Finish())
        return effects

    def _rewind(self, shard: str | None, items: RangeSet | None, effects: Effects) -> None:
        for piece in self._book.rewind(shard, items, effects):
            self._backlog.withdraw(piece.chunk, piece.mask)
            self._backlog.join(piece)

    def _adopt_policy(self, new: ev.PolicyChanged) -> None:
        self.policy.chunk_size = new.chunk_size
        self.policy.lease_seconds = new.lease_seconds
        self.policy.max_attempts = new.max_attempts
        self._backlog.adopt_policy()

    def _reopen(self, shard: str, items: Iterable[int], effects: Effects) -> None:
        """Make terminal items uncut: reports on earlier leases of them no longer count."""
        done = RangeSet.of(items)
        for start, stop in self._book.unfinished(shard):
            done.remove(start, stop)
        self._book.disown(shard, done, effects)
        reopened = self._listing.give_back(shard, done)
        self._terminal -= reopened
        self._announced = self._announced and not reopened

    # ------------------------------------------------------------------ sessions

    def _join(self, event: ev.SessionJoined, effects: Effects, now: float) -> None:
        every = frozenset(range(self.policy.stages))
        serves = every if event.serves is None else event.serves & every
        session = self._roster.join(event.session, event.worker, serves, now, event.contributor)
        self._hand_out.answered(session)
        for lease in list(session.leases.values()):
            named = lease.chunk.mask_of(event.holds.get(lease.id, ())) or 0
            # What it gave up, or was told is no longer its own, may not have reached the disk.
            self._take_from(lease, lease.mask & ~named, effects, now)
            # What was taken from it meanwhile, nobody could tell it.
            if named & ~lease.mask:
                effects.append(lease.trim(named & ~lease.mask))
        if self.finished:
            effects.append(ev.Finish(session.id))

    def _drop(self, session_id: str, now: float) -> None:
        self._roster.drop(session_id, now)
        session = self._roster.get(session_id)
        if session is not None:
            self._hand_out.answered(session)

    def _leave(self, session_id: str, effects: Effects, now: float) -> None:
        session = self._roster.get(session_id)
        if session is not None:
            for lease in list(session.leases.values()):
                self._give_up(lease, effects, "worker left", now)
            self._forget(session)

    def _expire(self, effects: Effects, now: float) -> None:
        for session in self._roster.silent_since(now - self.policy.lease_seconds):
            why = f"silent for {now - session.heard_at:.0f} s"
            for lease in list(session.leases.values()):
                if session.dropped_at is None:
                    effects.append(lease.trim(lease.mask))
                if session.known:
                    self._lose(lease, effects, why, now)
                else:
                    self._give_up(lease, effects, "not seen since the restart", now)
            self._roster.set_hunger(session, 0)
            if session.dropped_at is not None:
                self._forget(session)

    def _forget(self, session: Session) -> None:
        self._hand_out.answered(session)
        self._roster.forget(session)

    def _answer(self, name: str, effects: Effects) -> None:
        """Every `Wanted` is answered: by what was granted, by the end, or by a wait."""
        session = self._roster.get(name)
        if self.finished:
            effects.append(ev.Finish(name))
        elif session is not None and not _grants(effects, name):
            all_out = not self._paused and self._hand_out.is_all_out
            rationed = self._roster.allowance(session) == 0
            effects.append(ev.Wait(name, self.policy.lease_seconds / 3, all_out, rationed))

    def _tell_idle(self, effects: Effects) -> None:
        """Say to who is idle that there is nothing to be had: nobody had anything to spare."""
        if self._paused or not self._hand_out.is_all_out:
            return
        idle = (one.id for one in self._roster.hungry if one.is_starved)
        seconds = self.policy.lease_seconds / 3
        effects.extend([ev.Wait(one, seconds, all_handed_out=True) for one in idle])

    # ------------------------------------------------------------------ the end of a lease

    def _release(self, event: ev.Released, effects: Effects, now: float) -> None:
        self._roster.hear(event.session, now)
        lease = self._book.lease(event.lease)
        if lease is None:
            return
        if lease.session.id != event.session:
            effects.append(ev.Refuse(event.session, f"lease {event.lease} is not yours"))
            return
        if not lease.live:
            return
        if not event.engine_died:
            self._give_up(lease, effects, event.reason or "given back", now)
            return
        if event.suspects:
            self._acquit(lease, event.suspects)
        self._lose(lease, effects, event.reason or "its engine died", now)

    def _take_back(self, event: ev.Recalled, effects: Effects, now: float) -> None:
        session = self._roster.hear(event.session, now)
        if session is None:
            return
        self._hand_out.answered(session, spared=any(event.leases.values()))
        for lease_id, items in event.leases.items():
            lease = self._book.lease(lease_id)
            if lease is None or lease.session.id != event.session:
                continue  # over meanwhile; of somebody else's nothing is taken
            named = lease.chunk.mask_of(items) or 0
            self._take_from(lease, lease.mask & named, effects, now)

    def _take_from(self, lease: Lease, mask: int, effects: Effects, now: float) -> None:
        """Let items wait that a lease's worker does not have any more."""
        if mask:
            what = f"{mask.bit_count()} items of lease {lease.id} given up by {lease.worker}"
            lease.chunk.tell(now, what)
            alone = mask & ~lease.chunk.held(besides=lease)
            self._book.shrink(lease, mask, effects)
            self._wait(lease, alone, lease.attempts)

    def _acquit(self, lease: Lease, suspects: Iterable[int]) -> None:
        """Return all items of a lease but the suspects, with nothing against them."""
        suspected = 0
        for item in suspects:
            suspected |= lease.chunk.mask_of((item,)) or 0
        innocent = lease.mask & ~suspected & ~lease.chunk.held(besides=lease)
        lease.mask &= suspected
        self._wait(lease, innocent, lease.attempts)

    def _give_up(self, lease: Lease, effects: Effects, why: str, now: float) -> None:
        """End a lease in peace: what is left of it waits again."""
        self._wait(lease, self._book.end(lease, effects, why, now), lease.attempts)

    def _lose(self, lease: Lease, effects: Effects, why: str, now: float) -> None:
        """End a lease whose worker or engine has died: what is left of it waits in halves."""
        left = self._book.end(lease, effects, why, now)
        attempts, lease.evidence = lease.attempts + 1, f"{lease.worker}: {why}"
        # It may be tried more often now than when it was leased.
        is_last = lease.isolated and attempts >= self.policy.max_attempts
        if is_last and left.bit_count() == 1:
            self._quarantine(lease, left, attempts, effects)
            return
        half = lowest(left, (left.bit_count() + 1) // 2)
        self._wait(lease, half, attempts)
        self._wait(lease, left & ~half, attempts)

    def _wait(self, lease: Lease, mask: int, attempts: int) -> None:
        if mask:
            self._backlog.put(Piece(lease.chunk, mask, attempts, lease.evidence, lease.stage))

    def _quarantine(self, lease: Lease, mask: int, attempts: int, effects: Effects) -> None:
        chunk = lease.chunk
        (item,) = chunk.items(mask)
        ticket = self._book.to_commit(chunk, mask, stage=lease.stage)
        effects.append(
            ev.CommitQuarantine(
                ticket, chunk.shard, chunk.first, item, attempts, lease.evidence, lease.worker
            )
        )

    # ------------------------------------------------------------------ reports and commits

    def _report(self, event: ev.Reported, effects: Effects, now: float) -> None:
        session = self._roster.hear(event.session, now)
        lease = self._book.lease(event.lease)
        if lease is None:
            # An ended lease of a chunk that is done, or of one that was forgotten at a restart:
            # nothing of it is accepted, what is missing is leased again.
            effects.append(
                ev.Commit(_NO_TICKET, event.session, "", event.seq, "", 0, event.items, ())
            )
            return
        if lease.session.id != event.session:
            effects.append(ev.Refuse(event.session, f"lease {event.lease} is not yours"))
            return
        chunk = lease.chunk
        named = chunk.mask_of(event.items)
        if named is None:
            reason = f"a report names items that are not in the chunk of lease {event.lease}"
            effects.append(ev.Refuse(event.session, reason))
            return
        # Not the lease's own session: that of one which is over may be of an earlier day.
        reach = lease.stage if session is None else session.reach(lease.stage)
        onward = lease.stage < reach < self.policy.stages
        if event.reached is not None and not (onward and event.reached == reach):
            reason = f"items of lease {event.lease} cannot have reached stage {event.reached}"
            effects.append(ev.Refuse(event.session, reason))
            return
        accepted = named & lease.granted & chunk.at(lease.stage)
        ticket = _NO_TICKET
        if accepted:
            whose = "" if session is None else session.contributor
            ticket = self._accept(
                lease, accepted, effects, now, reached=event.reached, contributor=whose
            )
        places = places_of(event.items, accepted, chunk.first)
        effects.append(
            ev.Commit(
                ticket,
                event.session,
                lease.worker,
                event.seq,
                chunk.shard,
                chunk.first,
                event.items,
                places,
                lease.stage,
                reach,
                event.reached is not None,
            )
        )

    def _accept(
        self,
        lease: Lease,
        mask: int,
        effects: Effects,
        now: float,
        *,
        reached: int | None,
        contributor: str,
    ) -> ev.Ticket:
        """Move reported items on their way to disk, out of every lease and piece."""
        chunk = lease.chunk
        lease.progress_at = now
        if reached is None:
            self._roster.spend(contributor, mask.bit_count())
        if lease.live:
            self._book.shrink(lease, mask, effects)
        # Late, taken or shared items: somebody else holds them, too, or they wait.
        for other in list(chunk.live_leases()):
            if other.mask & mask:
                self._book.take_from(other, mask, effects)
        if chunk.pieces:
            self._backlog.withdraw(chunk, mask)
        whose = contributor if reached is None else ""
        return self._book.to_commit(
            chunk, mask, stage=lease.stage, reached=reached, contributor=whose
        )

    def _arrive(self, ticket: ev.Ticket, effects: Effects) -> None:
        terminal, onward = self._book.arrived(ticket, effects)
        self._terminal += terminal
        for piece in onward:
            self._backlog.join(piece)

    def _reject(self, ticket: ev.Ticket, now: float) -> None:
        contributor, pieces = self._book.refused(ticket)
        for piece in pieces:
            self._roster.spend(contributor, -piece.mask.bit_count())
            piece.chunk.tell(now, f"{piece.mask.bit_count()} reported items rejected")
            self._backlog.put(piece)

    # ------------------------------------------------------------------ invariants

    def check(self) -> None:
        """Assert every rule of the module's docstring; for tests and post-mortems.

        Raises:
            AssertionError: a rule is broken, and which.
        """
        self._backlog.check(self._book.chunks)
        self._roster.check()
        self._book.check()
        open_items = sum(chunk.open.bit_count() for chunk in self._book.chunks)
        states = (self._listing.uncut, open_items, self.committing, self._terminal)
        assert self.found == sum(states), f"uncut, open, committing, terminal: {states}"
        for chunk in self._book.chunks:
            unfinished = chunk.items(chunk.open | chunk.committing)
            assert not self._listing.has_uncut(chunk.shard, unfinished), f"{chunk}: uncut, too"
        live = {lease for chunk in self._book.chunks for lease in chunk.live_leases()}
        assert live == {lease for session in self._roster for lease in session.leases.values()}


def _granted(stored: StoredLease) -> RangeSet:
    first = stored.chunk_first
    return RangeSet(RangeSet.of(stored.items).within(first, first + stored.chunk_count))


def _grants(effects: Effects, session: str) -> bool:
    return any(isinstance(effect, ev.Grant) and effect.session == session for effect in effects)
