"""A run without sockets: workers, a shard and a disk that tests tell what to do, one line each.

    run = rehearsal(items=4)
    ada = run.worker("ada")
    lease = ada.asks()
    ada.reports(lease, 0, 1)
    run.writes()

After every event the ledger's own equalities are checked.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from caption_flow.orchestrator.core import events as ev
from caption_flow.orchestrator.core.ledger import Ledger, Policy, StoredLease
from caption_flow.orchestrator.core.ranges import RangeSet

SHARD = "shard"
Write = ev.Commit | ev.CommitQuarantine
E = TypeVar("E", bound=ev.Effect)


class Run:
    """One ledger, what its disk holds, and what it told whom."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.ledger = Ledger(policy)
        self.now = 1000.0
        self.rows: dict[int, str] = {}
        """Durable items of the shard, and who did them."""
        self.stages: dict[int, int] = {}
        """The next stage, as the disk has it, of items that are between two."""
        self.quarantined: dict[int, ev.CommitQuarantine] = {}
        self.queue: list[Write] = []
        self.remembered: dict[int, StoredLease] = {}
        self.workers: dict[str, Worker] = {}
        self.listed = 0
        self.told: list[ev.Effect] = []
        self.seq = 0

    def feed(self, event: ev.Event) -> list[ev.Effect]:
        effects = self.ledger.handle(event, now=self.now)
        self.ledger.check()
        for effect in effects:
            self.told.append(effect)
            match effect:
                case ev.Commit() | ev.CommitQuarantine():
                    self.queue.append(effect)
                case ev.Grant():
                    self.remembered[effect.lease] = _stored(effect)
                    given = Given(effect.lease, effect.items, effect.shard, effect.stage)
                    self.workers[effect.session].is_given(given)
                case ev.Remember():
                    self.remembered[effect.lease] = _stored(effect)
                case ev.EndLease(lease):
                    if lease in self.remembered:
                        self.remembered[lease] = replace(self.remembered[lease], live=False)
                case ev.ForgetLease(lease):
                    self.remembered.pop(lease, None)
        return effects

    def tells(self, kind: type[E], session: str | None = None) -> list[E]:
        """Return what was said of one kind, to one session or to all, since the last call."""
        said: list[E] = [e for e in self.told if isinstance(e, kind) and _concerns(e, session)]
        self.told = [e for e in self.told if e not in said]
        return said

    def lists(self, count: int, *, to_the_end: bool = False) -> None:
        self.listed = max(self.listed, count)
        self.feed(ev.ItemsFound(SHARD, count))
        if to_the_end:
            self.feed(ev.ListingFinished())

    def worker(self, name: str, *serves: int) -> Worker:
        """Have a worker join that runs some stages, all if none is named."""
        worker = self.workers[name] = Worker(self, name, frozenset(serves) or None)
        worker.joins()
        return worker

    def waits(self, seconds: float) -> None:
        self.now += seconds
        self.feed(ev.Ticked())

    def writes(self) -> None:
        """Commit whatever is queued."""
        while self.queue:
            write = self.queue.pop(0)
            for item in [write.item] if isinstance(write, ev.CommitQuarantine) else accepted(write):
                assert item not in self.rows, f"item {item} is written twice"
                if isinstance(write, ev.Commit) and write.partial:
                    self.stages[item] = write.reach
                else:
                    self.stages.pop(item, None)
                    self.rows[item] = write.worker
            if isinstance(write, ev.CommitQuarantine):
                self.quarantined[write.item] = write
            self.feed(ev.Committed(write.ticket))

    def rejects(self) -> None:
        """Refuse the oldest queued write."""
        self.feed(ev.CommitRejected(self.queue.pop(0).ticket))

    def restarts(self) -> None:
        """Lose everything but the disk: rows, listed count, leases."""
        self.queue.clear()
        self.told.clear()
        newest = max(self.remembered, default=0)
        self.ledger = Ledger(self.policy, first_lease=newest + 1000)
        done = {SHARD: RangeSet.of(self.rows)}
        stored = list(self.remembered.values())
        between: dict[int, dict[str, RangeSet]] = {}
        for item, stage in self.stages.items():
            between.setdefault(stage, {SHARD: RangeSet()})[SHARD].add(item, item + 1)
        self.ledger.restore(done, {SHARD: self.listed}, stored, between, now=self.now)
        self.ledger.check()
        self.remembered = {k: v for k, v in self.remembered.items() if self.ledger.knows(k)}

    def reopens(self, *items: int) -> None:
        for item in items:
            self.rows.pop(item, None)
        self.feed(ev.Reopened(SHARD, items))

    def rewinds(self, *items: int) -> None:
        """Files of items have changed: what their stages gave is taken back."""
        self.feed(ev.Rewound(SHARD, frozenset(items)))
        self.writes()
        for item in items:
            self.stages.pop(item, None)

    @property
    def finished(self) -> bool:
        return self.ledger.finished


@dataclass(slots=True)
class Given:
    """A lease as its worker got it; ``shard`` and ``chunk`` say where it is from."""

    id: int
    items: tuple[int, ...]
    shard: str = SHARD
    stage: int = 0


@dataclass
class Worker:
    run: Run
    name: str
    serves: frozenset[int] | None = None
    leases: list[Given] = field(default_factory=list)
    """Every lease it was ever given."""
    inbox: list[Given] = field(default_factory=list)

    def joins(self, *holds: Given) -> None:
        """Connect, still having all of some leases, or what is left of them."""
        held = {lease.id: lease.items for lease in holds}
        self.run.feed(ev.SessionJoined(self.name, self.name, held, self.serves))

    def asks(self, chunks: int = 1, *, width: int = 1, idle: int = 0) -> Given | None:
        """Ask for leases; return the first one granted, or None for the time being."""
        self.inbox.clear()
        self.run.feed(ev.Wanted(self.name, chunks, width, idle))
        return self.was_given()

    def is_asked_to_share(self) -> bool:
        """Tell whether it was asked to give something up since this was last looked at."""
        return bool(self.run.tells(ev.Recall, self.name))

    def gives_up(self, lease: Given | None = None, *items: int) -> None:
        """Answer a recall, with nothing if no lease is named."""
        given = {} if lease is None else {lease.id: items}
        self.run.feed(ev.Recalled(self.name, given))

    def gets(self) -> Given:
        """Ask, and be given something."""
        lease = self.asks()
        assert lease is not None
        return lease

    def was_given(self) -> Given | None:
        """Return the next lease it was given and has not looked at."""
        return self.inbox.pop(0) if self.inbox else None

    def is_given(self, lease: Given) -> None:
        self.leases.append(lease)
        self.inbox.append(lease)

    def trims(self) -> list[ev.Trim]:
        """Return what was trimmed from it since this was last looked at."""
        return self.run.tells(ev.Trim, self.name)

    def trimmed(self) -> set[int]:
        """Return the items it was told are somebody else's now."""
        return {item for trim in self.trims() for item in trim.items}

    def reports(
        self, lease: Given | int, *items: int, reached: int | None = None
    ) -> tuple[int, ...]:
        """Report items of a lease, all of them if none is named; return those accepted."""
        if isinstance(lease, Given):
            items = items or lease.items
            lease = lease.id
        self.run.seq += 1
        effects = self.run.feed(ev.Reported(self.name, lease, self.run.seq, items, reached))
        (commit,) = [e for e in effects if isinstance(e, ev.Commit)]
        return accepted(commit)

    def passes_on(self, lease: Given, *items: int, reached: int = 1) -> tuple[int, ...]:
        """Report that items have reached a later stage, and have that written."""
        accepted = self.reports(lease, *items, reached=reached)
        self.run.writes()
        return accepted

    def is_refused(self, lease: Given | int, *items: int, reached: int | None = None) -> bool:
        """Report something it has no right to; tell whether it was refused, and nothing else."""
        number = lease if isinstance(lease, int) else lease.id
        effects = self.run.feed(ev.Reported(self.name, number, 1, items, reached))
        return [type(effect) for effect in effects] == [ev.Refuse]

    def works(self) -> set[int]:
        """Ask and report until there is nothing for it; return the items it was given."""
        done: set[int] = set()
        while (lease := self.was_given() or self.asks()) is not None:
            done.update(lease.items)
            self.reports(lease)
        return done

    def drops(self) -> None:
        self.run.feed(ev.SessionDropped(self.name))

    def leaves(self) -> None:
        self.run.feed(ev.SessionLeft(self.name))

    def heard(self) -> None:
        self.run.feed(ev.Heard(self.name))

    def returns(self, lease: Given) -> None:
        """Give a lease back in peace."""
        self.run.feed(ev.Released(self.name, lease.id))

    def loses_engine(self, lease: Given, *suspects: int, reason: str = "CUDA error") -> None:
        self.run.feed(ev.Released(self.name, lease.id, True, suspects, reason))

    def dies(self) -> None:
        """Vanish for good with whatever it holds, and be replaced under the same name."""
        self.drops()
        self.run.waits(self.run.policy.lease_seconds)
        self.joins()


def rehearsal(items: int = 10, *, listed: bool = True, **policy: Any) -> Run:
    """Start a run over one shard of some items, listed to its end unless told otherwise."""
    options = {"chunk_size": 10, "lease_seconds": 30.0, "smallest_grant": 10} | policy
    run = Run(Policy(**options))
    run.lists(items, to_the_end=listed)
    return run


def accepted(commit: ev.Commit) -> tuple[int, ...]:
    return tuple(commit.items[at] for at in commit.accepted)


def _stored(effect: ev.Grant | ev.Remember) -> StoredLease:
    return StoredLease(
        effect.lease,
        effect.session,
        effect.session,
        effect.shard,
        effect.chunk_first,
        effect.chunk_count,
        effect.items,
        effect.live if isinstance(effect, ev.Remember) else True,
        effect.stage,
    )


def _concerns(effect: ev.Effect, session: str | None) -> bool:
    return session is None or getattr(effect, "session", None) == session
