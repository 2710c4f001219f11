"""What a worker says and does next: one session with an orchestrator, from hello to farewell.

Pure: events in, effects out; the shell owns socket, engines and clock. `Session.handle` applies an
event and returns what to do, in order. The rules:

- After every (re)connect the unacknowledged rows leave before anything is asked for, so that no
  row of an old lease can meet a new lease of the same number.
- A lease the orchestrator no longer counts as ours is dropped with all its items; its finished
  rows are still sent, since they may be the only ones.
- Leases are asked for only by a worker that could begin at once: connected, engine ready, room in
  the outbox, and no end in sight.
- A lease is given back only after the rows of its begun items have left.
- Asked to give something up, the worker names exactly what it will not do.
- When the recipe changes, what is in no engine yet is given up: it comes back under the new one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

import msgspec

from caption_flow.protocol.messages import (
    DRAIN_ACK_SECONDS,
    DRAIN_WORK_SECONDS,
    Ack,
    Drain,
    Finished,
    Grant,
    Hello,
    Image,
    LeaseId,
    Limits,
    OrchestratorMessage,
    Recall,
    Recalled,
    RecipeChanged,
    RecipeSpec,
    Release,
    Trim,
    Wait,
    Want,
    Welcome,
)
from caption_flow.worker.core.events import (
    Abandon,
    Adopt,
    BytesWanted,
    Closed,
    Deliver,
    Effect,
    EngineLost,
    EngineReady,
    Event,
    Heard,
    Leave,
    Opened,
    Outcome,
    RecipeUnusable,
    Redial,
    RowFinished,
    Send,
    SendBatch,
    SendHeartbeat,
    StopAsked,
    Ticked,
    Withdraw,
    Withdrawn,
)
from caption_flow.worker.core.fetches import Fetches
from caption_flow.worker.core.leases import Appetite, Job, Key, LeaseBook, Rate
from caption_flow.worker.core.outbox import Outbox

R = TypeVar("R")

FINISHED_ACK_SECONDS: Final = 0.5
"""After `Finished` every item is durable somewhere; acknowledgements are a courtesy."""
FINISHED_PAUSE_SECONDS: Final = 10.0
"""How often a worker that stays asks whether a finished run has got new work."""


@dataclass(frozen=True, slots=True)
class _Ending:
    """The session is coming to its end.

    Begun items may finish until ``work_until``; ``ack_seconds`` later it leaves, unless it
    only waits for the orchestrator to close (``leaves`` is false).
    """

    outcome: Outcome
    work_until: float
    ack_seconds: float
    leaves: bool = True
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class _Return:
    """A lease on its way back, and what of it was unfinished when that was decided."""

    release: Release
    items: frozenset[int]


class Session(Generic[R]):
    """One worker's session. See the module's docstring for its rules.

    ``hello`` is what the worker says of itself; ``leaves_when_finished`` decides whether the end of
    the run, and an orchestrator that goes away, are the end of the worker too.
    """

    def __init__(
        self, hello: Hello, *, leaves_when_finished: bool, outbox: Outbox[R] | None = None
    ) -> None:
        self._hello = hello
        self._leaves_when_finished = leaves_when_finished
        self._book = LeaseBook()
        self._outbox: Outbox[R] = Outbox() if outbox is None else outbox
        self._fetches = Fetches()
        self._appetite = Appetite()
        self._rate = Rate()
        self._limits: Limits | None = None
        self._recipe: RecipeSpec | None = None
        self._width: int | None = None
        self._slab = 0
        self._heartbeat_at = -math.inf
        self._ending: _Ending | None = None
        self._ack_until: float | None = None
        self._returns: dict[LeaseId, _Return] = {}
        self._giving: dict[LeaseId, tuple[int, ...]] = {}
        """What is given up on a recall that the pipeline has still to answer."""
        self._stale: frozenset[LeaseId] = frozenset()
        """Leases that are no longer ours and have finished rows to send."""
        self._left = False
        self._total: int | None = None
        self._all_handed_out = False

    # ------------------------------------------------------------------ what others may know

    @property
    def is_connected(self) -> bool:
        """Whether the orchestrator has welcomed this connection."""
        return self._limits is not None

    @property
    def is_ending(self) -> bool:
        """Whether nothing new is begun."""
        return self._ending is not None

    @property
    def waiting(self) -> int:
        """Items held and not begun."""
        return self._book.waiting

    @property
    def begun(self) -> int:
        """Items being worked on."""
        return self._book.begun

    @property
    def is_held_back(self) -> bool:
        """Whether items wait that may not be begun, since their rows would find no room."""
        return self._book.waiting > 0 and self._outbox.room <= self._book.begun

    @property
    def all_handed_out(self) -> bool:
        """Whether the orchestrator has said that nothing more is to be had."""
        return self._all_handed_out

    @property
    def unacknowledged(self) -> int:
        """Finished rows that the orchestrator has not acknowledged."""
        return self._outbox.rows

    @property
    def total(self) -> int:
        """Items of the run if the orchestrator knows, else items granted to this worker so far."""
        return self._book.granted if self._total is None else self._total

    def rate(self, *, now: float) -> float:
        """Items finished per second, of late."""
        return self._rate.per_second(now=now)

    def hello(self) -> Hello:
        """Return the first message of the next connection."""
        leases = {*self._book.held, *self._outbox.leases, *self._returns}
        held = {lease: tuple(sorted(self._unfinished(lease))) for lease in sorted(leases)}
        return msgspec.structs.replace(self._hello, leases=held)

    def _unfinished(self, lease: LeaseId) -> frozenset[int]:
        """Return what the orchestrator is still to hear of a lease."""
        back = self._returns.get(lease)
        given_back = frozenset[int]() if back is None else back.items
        return self._book.items(lease) | self._outbox.items(lease) | given_back

    def begin(self) -> Job | None:
        """Begin the next item, or return None while there is none or its row would not fit."""
        if self._ending is not None or self._outbox.room <= self._book.begun:
            return None
        return self._book.begin()

    # ------------------------------------------------------------------ events

    def handle(  # noqa: C901 - one match over all events is the point
        self, event: Event[R], *, now: float
    ) -> list[Effect[R]]:
        """Apply one event at time ``now`` and return what the shell has to do, in order."""
        if self._left:
            return []
        effects: list[Effect[R]] = []
        match event:
            case Opened(welcome):
                self._open(welcome, effects)
            case Closed():
                self._close()
            case Heard(message):
                self._hear(message, effects, now)
            case RowFinished():
                self._finish(event, now)
            case BytesWanted(lease, item):
                self._fetches.want(lease, item)
            case Withdrawn(items):
                self._give_up(items, effects)
            case EngineReady(width, slab):
                self._width, self._slab = width, slab
            case EngineLost(sentence, suspects):
                self._lose_engine(sentence, suspects)
            case RecipeUnusable(sentence):
                self._fail(sentence, work_until=now + DRAIN_WORK_SECONDS)
            case StopAsked():
                self._drain(leaves=True, now=now)
            case Ticked():
                pass
        self._settle(effects, now)
        return effects

    def _open(self, welcome: Welcome, effects: list[Effect[R]]) -> None:
        self._limits = welcome.limits
        self._total = welcome.total if welcome.total is not None else self._total
        lost = self._book.keep_only(welcome.leases)
        if lost:
            effects.append(Abandon(lost))
        self._outbox.open(window=welcome.limits.max_unacknowledged_batches)
        self._fetches.keep_only(welcome.leases)
        self._fetches.open()
        self._appetite.start_over()
        self._heartbeat_at = -math.inf
        ours = frozenset(welcome.leases)
        self._returns = {one: back for one, back in self._returns.items() if one in ours}
        self._stale = self._outbox.leases - ours
        self._adopt(welcome.recipe, effects)

    def _close(self) -> None:
        self._limits = None
        self._all_handed_out = False
        self._outbox.close()
        self._fetches.close()
        ending = self._ending
        if ending is None:
            return
        if ending.outcome is Outcome.FINISHED or self._leaves_when_finished:
            # The orchestrator is gone and said so before: nobody will acknowledge anything.
            if not ending.leaves or ending.outcome is Outcome.FINISHED:
                self._ending = replace(ending, leaves=True, work_until=-math.inf, ack_seconds=0.0)
        elif not ending.leaves:
            self._ending = self._ack_until = None

    def _hear(  # noqa: C901, PLR0912 - one match over all messages is the point
        self, message: OrchestratorMessage, effects: list[Effect[R]], now: float
    ) -> None:
        match message:
            case Grant(leases):
                self._appetite.answered(now=now)
                self._all_handed_out = False
                for granted in leases:
                    self._book.take(
                        granted, "" if self._recipe is None else self._recipe.fingerprint
                    )
                    self._returns.pop(granted.lease, None)
                if self._ending is not None:
                    self._give_back()
            case Wait(seconds, all_handed_out):
                self._all_handed_out = all_handed_out
                self._appetite.answered(now=now, again_after_seconds=seconds)
            case Ack(seq):
                self._outbox.acknowledge(seq)
            case Trim(lease, items):
                self._book.trim(LeaseId(lease), items)
            case Recall():
                self._recall(effects)
            case Image():
                if (whole := self._fetches.receive(message, now=now)) is not None:
                    effects.append(Deliver(whole))
            case RecipeChanged(recipe, limits):
                self._limits = limits or self._limits
                self._adopt(recipe, effects)
            case Drain():
                self._drain(leaves=False, now=now)
            case Finished():
                self._hear_finished(now)
            case _:
                pass  # a second Welcome, Status, Problem: nothing to do with the state

    @property
    def _idle(self) -> int:
        """Items held beyond what the engine works on, as far as can be told from here."""
        return self._book.waiting + max(0, self._book.begun - (self._width or 0))

    def _recall(self, effects: list[Effect[R]]) -> None:
        """Give up half of what is not in the engine: what would be begun last, then what was."""
        self._give((self._idle + 1) // 2, effects)

    def _give(self, count: int, effects: list[Effect[R]]) -> None:
        given = self._book.give(count)
        for lease, items in given.items():
            self._giving[lease] = (*self._giving.get(lease, ()), *items)
        effects.append(Withdraw(count - sum(map(len, given.values()))))

    def _give_up(self, withdrawn: tuple[Key, ...], effects: list[Effect[R]]) -> None:
        self._book.withdraw(withdrawn)
        for lease, item in withdrawn:
            self._fetches.drop(lease, item)
            self._giving[lease] = (*self._giving.get(lease, ()), item)
        effects.append(Send(Recalled({int(one): items for one, items in self._giving.items()})))
        self._giving = {}

    def _hear_finished(self, now: float) -> None:
        self._appetite.answered(now=now, again_after_seconds=FINISHED_PAUSE_SECONDS)
        self._all_handed_out = True
        if self._leaves_when_finished:
            self._end(_Ending(Outcome.FINISHED, -math.inf, FINISHED_ACK_SECONDS))

    def _finish(self, event: RowFinished[R], now: float) -> None:
        if not self._book.finish(event.lease, event.item):
            return
        self._fetches.drop(event.lease, event.item)
        self._rate.note(now=now)
        self._outbox.add(
            event.lease,
            event.item,
            event.row,
            size_bytes=event.size_bytes,
            reached=event.reached,
            now=now,
        )

    def _adopt(self, recipe: RecipeSpec, effects: list[Effect[R]]) -> None:
        if recipe == self._recipe:
            return
        is_first, self._recipe = self._recipe is None, recipe
        effects.append(Adopt(recipe))
        held = self._book.waiting + self._book.begun
        if held and not is_first and self._ending is None:
            # Whoever changed a prompt wants as few answers to the old one as can be.
            self._give(held, effects)

    def _drain(self, *, leaves: bool, now: float) -> None:
        self._end(_Ending(Outcome.DRAINED, now + DRAIN_WORK_SECONDS, DRAIN_ACK_SECONDS, leaves))

    def _lose_engine(self, sentence: str, suspects: tuple[Key, ...]) -> None:
        for lease in self._book.held:
            blamed = tuple(sorted(item for suspect, item in suspects if suspect == lease))
            # A lease that had nothing in the engine is given back in peace.
            release = Release(lease, engine_died=bool(blamed), suspects=blamed, reason=sentence)
            self._returns[lease] = _Return(release, self._book.items(lease))
        self._fail(sentence, work_until=-math.inf)

    def _fail(self, sentence: str, *, work_until: float) -> None:
        self._end(_Ending(Outcome.FAILED, work_until, DRAIN_ACK_SECONDS, sentence=sentence))

    def _end(self, ending: _Ending) -> None:
        """Begin to end. Of two endings the sooner counts, and the one that says more."""
        old = self._ending
        if old is not None:
            # An engine that dies when every item is terminal fails nobody.
            rank = [Outcome.DRAINED, Outcome.FAILED, Outcome.FINISHED]
            ending = replace(
                max(ending, old, key=lambda one: rank.index(one.outcome)),
                work_until=min(old.work_until, ending.work_until),
                ack_seconds=min(old.ack_seconds, ending.ack_seconds),
                leaves=old.leaves or ending.leaves,
            )
        self._ending = ending
        self._give_back()

    def _give_back(self) -> None:
        for lease in self._book.held:
            if self._book.has_waiting(lease):
                self._give_lease_back(lease)
        self._book.forget_waiting()

    def _give_lease_back(self, lease: LeaseId) -> None:
        """Give a lease back when the rows of what is begun have left, unless it is on its way."""
        release = Release(lease, reason="the worker is stopping")
        self._returns.setdefault(lease, _Return(release, self._book.items(lease)))

    # ------------------------------------------------------------------ what follows

    def _settle(self, effects: list[Effect[R]], now: float) -> None:
        """Add whatever the present state asks for, in the order in which it has to leave."""
        ending = self._ending
        if ending is not None and now >= ending.work_until and self._book.begun:
            self._give_up_begun(effects)
        idle = not self._book.waiting and not self._book.begun
        flush = ending is not None or self._has_stale_rows()
        batches = self._outbox.due(now=now, idle=idle, flush=flush)
        effects.extend(SendBatch(batch) for batch in batches)
        if self._limits is not None:
            self._converse(self._limits, effects, now)
        if ending is not None and self._may_leave(ending, now):
            self._left = True
            effects.append(Leave(ending.outcome, ending.sentence))

    def _converse(self, limits: Limits, effects: list[Effect[R]], now: float) -> None:
        held = self._book.held
        back = [
            lease
            for lease in self._returns
            if lease not in held and not self._outbox.has_unsent(lease)
        ]
        effects.extend(Send(self._returns.pop(lease).release) for lease in back)
        effects.extend(Send(fetch) for fetch in self._fetches.due(now=now))
        if self._wants_more(now):
            self._appetite.asked(idle=self._idle, now=now)
            effects.append(Send(Want(limits.chunks_per_request, self._width or 0, self._idle)))
        if now - self._heartbeat_at >= limits.heartbeat_seconds:
            self._heartbeat_at = now
            effects.append(SendHeartbeat())
        if self._fetches.is_stuck(now=now):
            self._fetches.close()
            effects.append(Redial("the orchestrator sends no images"))

    def _wants_more(self, now: float) -> bool:
        if self._width is None or self._ending is not None or not self._outbox.room:
            return False
        if self._has_stale_rows():
            return False
        return self._appetite.is_due(
            self._book.waiting,
            idle=self._idle,
            width=max(self._width, self._slab - self._book.begun),
            rate=self._rate.per_second(now=now),
            now=now,
        )

    def _has_stale_rows(self) -> bool:
        return any(self._outbox.has_unsent(lease) for lease in self._stale)

    def _give_up_begun(self, effects: list[Effect[R]]) -> None:
        for lease in self._book.held:
            self._give_lease_back(lease)
        effects.append(Abandon(self._book.keep_only(())))
        self._fetches.keep_only(())

    def _may_leave(self, ending: _Ending, now: float) -> bool:
        if not ending.leaves or self._book.begun:
            return False
        if not self._outbox.rows and not self._returns:
            return True
        if self._ack_until is None:
            self._ack_until = now + ending.ack_seconds
        return now >= self._ack_until

    # ------------------------------------------------------------------ invariants

    def check(self) -> None:
        """Assert the invariants of all parts; the `AssertionError` names the broken one."""
        self._book.check()
        self._outbox.check()
        self._fetches.check()
        assert self._ending is None or not self._book.waiting, "ending, but items wait"
