"""The ledger's promises, whatever happens in whatever order.

The machine plays workers that join, ask, finish, send (again after every reconnect, as an outbox
does), vanish and return; a disk that commits in order or rejects; a clock; and orchestrators that
stop at any point and resume from what the disk holds. Items go through up to three stages, of which
workers run some or all, and begin again when their file changes. It keeps books of its own: what is
durable, what was acknowledged, who holds what, who lost what. After every step both books must
agree, as equalities: an implication would let a ledger pass that does nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from caption_flow.orchestrator.core import events as ev
from caption_flow.orchestrator.core.ledger import Ledger, Policy, StoredLease
from caption_flow.orchestrator.core.ranges import RangeSet

Item = tuple[str, int]
NAMES = "xyz"
ALL = frozenset({0, 1, 2})
CREWS = [
    [ALL, ALL, ALL],
    [frozenset({0}), frozenset({1}), frozenset({2})],
    [frozenset({0}), frozenset({1}), ALL],
    [frozenset({0}), frozenset({0, 2}), frozenset({1, 2})],
    [frozenset({0}), frozenset({1, 2}), frozenset({1, 2})],
]
"""The stages that three workers run; those beyond a run's last stage are nobody's."""


@dataclass
class Forget:
    """A write that takes what stages gave to items off the disk."""

    items: set[Item]


Write = ev.Commit | ev.CommitQuarantine | Forget


@dataclass
class Disk:
    """What survives: rows, stages, leases and listed counts. The queue in front of it does not."""

    queue: list[tuple[Write, int]] = field(default_factory=list)
    """Writes on their way, each with the connection that is to be told when it is durable."""
    rows: set[Item] = field(default_factory=set)
    stages: dict[Item, int] = field(default_factory=dict)
    """The next stage of items that have some behind them and no row."""
    leases: dict[int, StoredLease] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Batch:
    seq: int
    lease: int
    items: tuple[int, ...]
    reached: int | None = None
    credited: set[Item] = field(default_factory=set)
    """What of it, once acknowledged, is durable."""


@dataclass
class Worker:
    """A worker with an outbox: what is not acknowledged is sent again on each connection."""

    name: str
    serves: frozenset[int] = ALL
    connection: int = 0
    """Which of its connections is open; 0 for none."""
    heard_at: float = 0.0
    known: bool = True
    """Whether this orchestrator has seen it."""
    leases: dict[int, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    """Every lease it ever got: it may finish items of any of them at any time."""
    stages: dict[int, int] = field(default_factory=dict)
    """The stage that each of these began at."""
    outbox: list[Batch] = field(default_factory=list)
    sent: int = 0
    """How many batches of the outbox have left on this connection."""
    told_finished: bool = False
    recalled: bool = False
    """Whether it was asked to give something up, and has not answered."""


@dataclass
class Held:
    """A live lease in the machine's own books."""

    worker: str
    shard: str
    items: set[int]
    progress_at: float
    stage: int


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.policy = Policy()
        self.ledger = Ledger(self.policy)
        self.disk = Disk()
        self.workers: dict[str, Worker] = {}
        self.held: dict[int, Held] = {}
        self.credit: dict[int, set[Item]] = {}
        """What a report on a lease may still be accepted for, if nobody was faster."""
        self.stages: dict[Item, int] = {}
        """The next stage of items that have some behind them, as the ledger is to see it."""
        self.again: set[Item] = set()
        """What begins again when it is no longer on its way, unless it has a row then."""
        self.acknowledged: dict[Item, int] = {}
        """A stage that an item was said to be behind."""
        self.losses: dict[Item, int] = {}
        self.lease_numbers: set[int] = set()
        self.now = 0.0
        self.incarnation = 0
        self.seq = 0
        self.connections = 0

    @initialize(
        chunk_size=st.sampled_from([1, 5, 8]),
        smallest_grant=st.sampled_from([1, 2, 8]),
        max_attempts=st.sampled_from([1, 2, 3]),
        count=st.integers(0, 16),
        listed=st.booleans(),
        stages=st.sampled_from([1, 2, 3]),
        serves=st.sampled_from(CREWS).flatmap(st.permutations),
    )
    def begin(  # noqa: PLR0917  -- everything that a run may be like
        self,
        chunk_size: int,
        smallest_grant: int,
        max_attempts: int,
        count: int,
        listed: bool,
        stages: int,
        serves: list[frozenset[int]],
    ) -> None:
        self.policy = Policy(
            chunk_size=chunk_size,
            smallest_grant=smallest_grant,
            max_attempts=max_attempts,
            stages=stages,
            lease_seconds=10,
            rejoin_seconds=2,
            straggler_seconds=8,
        )
        self.ledger = Ledger(self.policy)
        self.found("a", count)
        if listed:
            self.feed(ev.ListingFinished())
        for name, positions in zip(NAMES, serves, strict=True):
            self.workers[name] = Worker(name, positions)
            self.join(name, forget=False)

    # -------------------------------------------------------------- the shell

    def feed(self, event: ev.Event) -> list[ev.Effect]:
        effects = self.ledger.handle(event, now=self.now)
        for effect in effects:
            self.apply(effect)
        return effects

    def apply(  # noqa: C901, PLR0912  -- one match over all effects
        self, effect: ev.Effect
    ) -> None:
        match effect:
            case ev.Grant():
                self.granted(effect)
            case ev.Remember():
                self.disk.leases[effect.lease] = stored(effect)
            case ev.EndLease(lease):
                self.disk.leases[lease] = replace(self.disk.leases[lease], live=False)
                self.held.pop(lease, None)
            case ev.ForgetLease(lease):
                del self.disk.leases[lease]
                assert lease not in self.held
            case ev.Trim(session, lease, items):
                if lease in self.held:
                    assert self.held[lease].worker == session
                    self.held[lease].items -= set(items)
            case ev.Recall(session):
                worker = self.workers[session]
                assert worker.connection, "asked a session that is not there"
                assert not worker.recalled, "asked again before it has answered"
                worker.recalled = True
            case ev.Commit():
                self.submit(effect, self.workers[effect.session].connection)
            case ev.CommitQuarantine():
                self.submit(effect, 0)
            case ev.Finish(session):
                assert not self.missing(), "finished with work left"
                for name in [session] if session else list(self.workers):
                    self.workers[name].told_finished = True
            case ev.Refuse():
                raise AssertionError("an honest worker was refused: " + effect.reason)
            case _:
                assert isinstance(effect, ev.Wait)

    def granted(self, effect: ev.Grant) -> None:
        worker = self.workers[effect.session]
        assert worker.connection, "granted to a session that is not there"
        assert effect.lease not in self.lease_numbers, "a lease number was used again"
        assert effect.items == tuple(sorted(set(effect.items)))
        on_the_way = self.on_the_way()
        assert effect.stage in worker.serves, "granted to a worker that does not run the stage"
        for item in effect.items:
            assert (effect.shard, item) not in self.disk.rows, "granted what is done"
            assert (effect.shard, item) not in on_the_way, "granted what was reported"
            assert self.stage_of((effect.shard, item)) == effect.stage, "granted at another stage"
        for held in self.held.values():
            if held.shard == effect.shard and not held.items.isdisjoint(effect.items):
                other = self.workers[held.worker]
                slow = self.now - held.progress_at >= self.policy.straggler_seconds
                assert other is not worker, "two leases of one worker on one item"
                assert slow or not other.connection, "granted what somebody works on"
        self.lease_numbers.add(effect.lease)
        self.credit[effect.lease] = {(effect.shard, item) for item in effect.items}
        worker.leases[effect.lease] = (effect.shard, effect.items)
        worker.stages[effect.lease] = effect.stage
        self.disk.leases[effect.lease] = stored(effect)
        self.held[effect.lease] = Held(
            worker.name, effect.shard, set(effect.items), self.now, effect.stage
        )

    def stage_of(self, item: Item) -> int:
        return self.stages.get(item, 0)

    def submit(self, write: ev.Commit | ev.CommitQuarantine, connection: int) -> None:
        accepted = items_of(write)
        assert accepted.isdisjoint(self.disk.rows), "accepted what is durable"
        assert accepted.isdisjoint(self.on_the_way()), "accepted twice"
        for held in self.held.values():
            held.items -= {item for shard, item in accepted if shard == held.shard}
        self.disk.queue.append((write, connection))

    def on_the_way(self) -> set[Item]:
        commits = (write for write, _ in self.disk.queue if not isinstance(write, Forget))
        return {item for write in commits for item in items_of(write)}

    def missing(self) -> list[Item]:
        return [
            (shard, item)
            for shard, count in self.disk.counts.items()
            for item in range(count)
            if (shard, item) not in self.disk.rows
        ]

    # -------------------------------------------------------------- the source

    def found(self, shard: str, count: int) -> None:
        self.disk.counts[shard] = max(count, self.disk.counts.get(shard, 0))
        self.feed(ev.ItemsFound(shard, count))

    @precondition(lambda self: not self.ledger.listed)
    @rule(shard=st.sampled_from("ab"), more=st.integers(0, 9))
    def list_more(self, shard: str, more: int) -> None:
        self.found(shard, self.disk.counts.get(shard, 0) + more)

    @precondition(lambda self: not self.ledger.listed)
    @rule()
    def finish_listing(self) -> None:
        self.feed(ev.ListingFinished())

    # -------------------------------------------------------------- workers

    def here(self, name: str) -> Worker:
        """Return a worker, which is connected and says something now."""
        if not self.workers[name].connection:
            self.join(name, forget=False)
        worker = self.workers[name]
        worker.heard_at = self.now
        self.feed(ev.Heard(name))
        return worker

    @rule(name=st.sampled_from(NAMES), forget=st.sampled_from([False, False, True]))
    def join(self, name: str, forget: bool) -> None:
        """Connect again: with whatever it was ever given, or with nothing."""
        self.reconnect(name, {} if forget else {k: v[1] for k, v in self.leases_of(name).items()})

    @rule(name=st.sampled_from(NAMES), data=st.data())
    def join_with_less(self, name: str, data: st.DataObject) -> None:
        """Connect again after giving something up that the orchestrator has not heard of."""
        lost = data.draw(st.sets(st.integers(0, 16)))
        named = {
            lease: tuple(item for item in items if item not in lost)
            for lease, (_, items) in self.leases_of(name).items()
        }
        for lease, held in self.held.items():
            if held.worker == name:
                held.items &= set(named.get(lease, ()))
        self.reconnect(name, named)

    def leases_of(self, name: str) -> dict[int, tuple[str, tuple[int, ...]]]:
        return self.workers[name].leases if name in self.workers else {}

    def reconnect(self, name: str, holds: dict[int, tuple[int, ...]]) -> None:
        worker = self.workers.setdefault(name, Worker(name))
        self.connections += 1
        worker.connection, worker.sent, worker.recalled = self.connections, 0, False
        worker.heard_at, worker.known = self.now, True
        serves = None if worker.serves == ALL else worker.serves
        self.feed(ev.SessionJoined(name, name, holds, serves))

    @rule(name=st.sampled_from(NAMES), data=st.data())
    def answer_a_recall(self, name: str, data: st.DataObject) -> None:
        """Give up some of what is held, or nothing; now and then unasked, or what is not held."""
        worker = self.here(name)
        given: dict[int, tuple[int, ...]] = {}
        for lease in sorted(worker.leases)[-3:]:
            items = worker.leases[lease][1]
            given[lease] = tuple(data.draw(st.lists(st.sampled_from(items), max_size=4)))
            if lease in self.held:
                self.held[lease].items -= set(given[lease])
        worker.recalled = False
        self.feed(ev.Recalled(name, given))

    @rule(
        name=st.sampled_from(NAMES),
        chunks=st.integers(1, 3),
        width=st.integers(0, 4),
        idle=st.sampled_from([0, 0, 3]),
    )
    def want(self, name: str, chunks: int, width: int, idle: int) -> None:
        self.here(name)
        effects = self.feed(ev.Wanted(name, chunks, width, idle))
        kinds = {type(e) for e in effects if getattr(e, "session", None) == name}
        assert kinds & {ev.Grant, ev.Wait, ev.Finish}, "no answer"
        assert not (self.ledger.paused and ev.Grant in kinds), "granted while paused"
        holds = any(held.worker == name for held in self.held.values())
        if not self.ledger.paused and not holds:
            stages = {self.stage_of(item) for item in self.waiting()}
            assert stages.isdisjoint(self.workers[name].serves), "left waiting beside its work"

    @rule(name=st.sampled_from(NAMES), data=st.data())
    def finish_items(self, name: str, data: st.DataObject) -> None:
        worker = self.workers[name]
        if worker.leases:
            lease = data.draw(st.sampled_from(sorted(worker.leases)[-4:]))
            items = data.draw(st.lists(st.sampled_from(worker.leases[lease][1]), max_size=4))
            failed = data.draw(st.booleans())
            self.finish(worker, lease, tuple(items), failed=failed)

    def finish(
        self, worker: Worker, lease: int, items: tuple[int, ...], *, failed: bool = False
    ) -> None:
        """Put rows into the outbox: of items that go on elsewhere, or are captioned or failed."""
        reached = worker.stages[lease]
        while reached in worker.serves:
            reached += 1
        self.seq += 1
        final = failed or reached >= self.policy.stages
        worker.outbox.append(Batch(self.seq, lease, items, None if final else reached))

    @rule(name=st.sampled_from(NAMES), batches=st.integers(0, 4))
    def finish_all(self, name: str, batches: int) -> None:
        """Finish whatever is held, lease by lease, and send some of it."""
        for lease, held in self.held.items():
            if held.worker == name:
                self.finish(self.workers[name], lease, tuple(sorted(held.items)))
        self.send(name, batches)

    @rule(name=st.sampled_from(NAMES))
    def work(self, name: str) -> None:
        """Do whatever there is to do, so that others have something to go on with."""
        self.want(name, 2, 1, 0)
        self.finish_all(name, 4)
        self.write(5, reject=False)

    @rule(name=st.sampled_from(NAMES), data=st.data())
    def say_again(self, name: str, data: st.DataObject) -> None:
        """Finish everything that a lease ever had, done or not, and send it."""
        worker = self.workers[name]
        if worker.leases:
            lease = data.draw(st.sampled_from(sorted(worker.leases)[-4:]))
            self.finish(worker, lease, worker.leases[lease][1])
            self.send(name, 4)

    @rule(name=st.sampled_from(NAMES), batches=st.integers(1, 4))
    def send(self, name: str, batches: int) -> None:
        worker = self.here(name)
        for batch in worker.outbox[worker.sent : worker.sent + batches]:
            worker.sent += 1
            shard = worker.leases[batch.lease][0]
            batch.credited = {(shard, i) for i in batch.items} & self.credit.get(batch.lease, set())
            stage = worker.stages[batch.lease]
            news = batch.credited - self.disk.rows - self.on_the_way()
            news = {item for item in news if self.stage_of(item) == stage}
            report = ev.Reported(name, batch.lease, batch.seq, batch.items, batch.reached)
            effects = self.feed(report)
            commits = [e for e in effects if isinstance(e, ev.Commit)]
            assert len(commits) == 1, "every report passes through the disk's queue"
            assert (commits[0].session, commits[0].seq) == (name, batch.seq)
            assert items_of(commits[0]) == news, "what nobody has had yet, and nothing else"
            if news and batch.lease in self.held:
                self.held[batch.lease].progress_at = self.now

    @rule(name=st.sampled_from(NAMES), died=st.booleans(), data=st.data())
    def release(self, name: str, died: bool, data: st.DataObject) -> None:
        worker = self.here(name)
        if not worker.leases:
            return
        lease = data.draw(st.sampled_from(sorted(worker.leases)[-4:]))
        suspects = data.draw(
            st.lists(st.sampled_from(worker.leases[lease][1]), max_size=2, unique=True)
        )
        lost = self.held.get(lease)
        alone = self.alone(name)
        if died and lost is not None:
            suspected = {i for i in lost.items if not suspects or i in suspects}
            self.lose(lost.shard, suspected)
            company = [h for h in self.held.values() if h.worker == name and h is not lost]
            only = len(suspected) == 1 and not company
            alone = {(lost.shard, item) for item in suspected} if only else set()
        effects = self.feed(ev.Released(name, lease, died, tuple(suspects), "test"))
        self.check_quarantines(effects, alone)

    @rule(name=st.sampled_from(NAMES), politely=st.booleans())
    def disappear(self, name: str, politely: bool) -> None:
        worker = self.workers[name]
        if worker.connection:
            worker.connection, worker.recalled = 0, False
            effects = self.feed(ev.SessionLeft(name) if politely else ev.SessionDropped(name))
            self.check_quarantines(effects, set())
            if politely:
                assert not any(held.worker == name for held in self.held.values())

    # -------------------------------------------------------------- blame

    def alone(self, name: str) -> set[Item]:
        """Return the item that a worker holds and nothing beside it, if it is like that."""
        items = [(h.shard, i) for h in self.held.values() if h.worker == name for i in h.items]
        return set(items) if len(items) == 1 else set()

    def lose(self, shard: str, items: set[int]) -> None:
        for item in items:
            self.losses[shard, item] = self.losses.get((shard, item), 0) + 1

    def check_quarantines(self, effects: list[ev.Effect], alone: set[Item]) -> None:
        for effect in effects:
            if isinstance(effect, ev.CommitQuarantine):
                item = (effect.shard, effect.item)
                assert item in alone, "quarantined though others may be to blame"
                assert self.policy.max_attempts <= effect.attempts <= self.losses[item]
                assert effect.worker in effect.evidence

    @rule(seconds=st.sampled_from([0.5, 2.5, 8.5, 10.5]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        alone: set[Item] = set()
        for worker in self.workers.values():
            if self.now - worker.heard_at >= self.policy.lease_seconds and worker.known:
                alone |= self.alone(worker.name)
                for held in self.held.values():
                    if held.worker == worker.name:
                        self.lose(held.shard, held.items)
        effects = self.feed(ev.Ticked())
        self.check_quarantines(effects, alone)
        for held in self.held.values():
            silent = self.now - self.workers[held.worker].heard_at
            assert silent < self.policy.lease_seconds, "a lease outlives its worker"

    # -------------------------------------------------------------- disk and restarts

    @rule(writes=st.integers(1, 5), reject=st.sampled_from([False, False, True]))
    def write(self, writes: int, reject: bool) -> None:
        for _ in range(min(writes, len(self.disk.queue))):
            write, connection = self.disk.queue.pop(0)
            if reject and isinstance(write, ev.Commit) and write.accepted:
                self.reject(write, connection)
                reject = False
            else:
                self.commit(write, connection)

    def commit(self, write: Write, connection: int) -> None:
        if isinstance(write, Forget):
            for item in write.items:
                self.disk.stages.pop(item, None)
            return
        for item in items_of(write):
            assert item not in self.disk.rows, "committed twice"
            self.disk.stages.pop(item, None)
            self.stages.pop(item, None)
            if isinstance(write, ev.Commit) and write.partial:
                self.disk.stages[item] = write.reach
                if item not in self.again:
                    self.stages[item] = write.reach
            else:
                self.disk.rows.add(item)
            self.again.discard(item)
        self.feed(ev.Committed(write.ticket))
        if isinstance(write, ev.Commit):
            worker = self.workers[write.session]
            if worker.connection == connection:
                self.acknowledge(worker, write.seq)

    def acknowledge(self, worker: Worker, seq: int) -> None:
        """Have a worker forget its batches up to one: from now on only the disk has them."""
        while worker.outbox and worker.outbox[0].seq <= seq:
            worker.sent -= 1
            batch = worker.outbox.pop(0)
            for item in batch.credited:
                behind = worker.stages[batch.lease] + 1
                self.acknowledged[item] = max(behind, self.acknowledged.get(item, 0))

    def reject(self, write: ev.Commit, connection: int) -> None:
        """Refuse bad rows: their worker is sent away, and loses that batch for good."""
        for item in items_of(write) & self.again:
            self.stages.pop(item, None)
            self.again.discard(item)
        self.feed(ev.CommitRejected(write.ticket))
        self.no_longer_done(items_of(write))
        worker = self.workers[write.session]
        worker.outbox = [batch for batch in worker.outbox if batch.seq != write.seq]
        if worker.connection == connection:
            worker.connection, worker.recalled = 0, False
            self.feed(ev.SessionDropped(worker.name))
        worker.sent = 0

    @rule(name=st.sampled_from(NAMES))
    def ask_while_paused(self, name: str) -> None:
        self.feed(ev.Paused())
        self.want(name, 1, 1, 0)
        self.feed(ev.Resumed())

    @rule(shard=st.sampled_from("ab"), items=st.sets(st.integers(0, 20), max_size=6))
    def reopen(self, shard: str, items: set[int]) -> None:
        done = {(shard, item) for item in items} & self.disk.rows
        self.disk.rows -= done
        for credit in self.credit.values():
            credit.difference_update(done)  # what was done before the reopening does not count
        self.no_longer_done(done)
        self.feed(ev.Reopened(shard, tuple(sorted(items))))

    @rule(shard=st.sampled_from("ab"), items=st.sets(st.integers(0, 20), max_size=6))
    def rewind(self, shard: str, items: set[int]) -> None:
        """Files have changed: what stages gave to their items is taken off the disk."""
        named = {(shard, item) for item in items}
        self.begin_again(named, ev.Rewound(shard, frozenset(items)))

    @rule()
    def replace_recipe(self) -> None:
        """Another recipe is handed out: whatever has stages behind it begins again."""
        counts = self.disk.counts.items()
        every = {(shard, item) for shard, count in counts for item in range(count)}
        self.begin_again(every, ev.RecipeReplaced())

    @rule(chunk_size=st.sampled_from([1, 3, 8]), max_attempts=st.sampled_from([1, 2, 3]))
    def change_policy(self, chunk_size: int, max_attempts: int) -> None:
        self.policy = replace(self.policy, chunk_size=chunk_size, max_attempts=max_attempts)
        self.feed(ev.PolicyChanged(chunk_size, self.policy.lease_seconds, max_attempts))

    def begin_again(self, named: set[Item], event: ev.Event) -> None:
        on_the_way = named & self.on_the_way()
        between = {item for item in named - on_the_way if item in self.stages}
        self.again |= on_the_way
        for item in between:
            del self.stages[item]
        for credit in self.credit.values():
            credit.difference_update(between | on_the_way)
        self.no_longer_done(between | on_the_way)
        self.feed(event)
        self.disk.queue.append((Forget(named), 0))

    def no_longer_done(self, items: set[Item]) -> None:
        for item in items:
            self.acknowledged.pop(item, None)
        for worker in self.workers.values():
            for batch in worker.outbox:
                batch.credited -= items

    @rule(back=st.sets(st.sampled_from(NAMES)))
    def orchestrator_dies(self, back: set[str]) -> None:
        """What was not on disk is gone; some workers reconnect with what they hold."""
        self.disk.queue.clear()
        self.incarnation += 1
        self.ledger = Ledger(self.policy, first_lease=self.incarnation << 32)
        terminal = {
            shard: RangeSet.of(item for name, item in self.disk.rows if name == shard)
            for shard in self.disk.counts
        }
        leases = list(self.disk.leases.values())
        between: dict[int, dict[str, RangeSet]] = {}
        for (shard, item), stage in self.disk.stages.items():
            between.setdefault(stage, {}).setdefault(shard, RangeSet()).add(item, item + 1)
        self.stages, self.again = dict(self.disk.stages), set()
        self.ledger.restore(terminal, self.disk.counts, leases, between, now=self.now)
        for worker in self.workers.values():
            worker.connection, worker.known, worker.heard_at = 0, False, self.now
            worker.recalled = False
        self.held.clear()
        self.credit.clear()
        for lease in leases:
            left = {
                item
                for item in lease.items
                if (lease.shard, item) not in self.disk.rows
                and self.stage_of((lease.shard, item)) == lease.stage
            }
            assert self.ledger.knows(lease.lease) == bool(left), "kept, or not, without a reason"
            if left:
                self.credit[lease.lease] = {(lease.shard, item) for item in lease.items}
            else:
                del self.disk.leases[lease.lease]
            if left and lease.live:
                self.held[lease.lease] = Held(
                    lease.session, lease.shard, left, self.now, lease.stage
                )
            assert self.ledger.is_live(lease.lease) == (lease.lease in self.held)
        for name in sorted(back):
            self.join(name, forget=False)

    # -------------------------------------------------------------- promises

    @invariant()
    def the_ledger_agrees_with_itself(self) -> None:
        self.ledger.check()

    def waiting(self) -> set[Item]:
        """Return what nobody works on."""
        leased = {(held.shard, item) for held in self.held.values() for item in held.items}
        return set(self.missing()) - leased - self.on_the_way()

    @invariant()
    def what_waits_for_a_stage_that_nobody_runs_is_known(self) -> None:
        here = [worker.serves for worker in self.workers.values() if worker.connection]
        stages = [self.stage_of(item) for item in self.waiting()]
        assert self.ledger.unserved == Counter(
            stage for stage in stages if not any(stage in serves for serves in here)
        )

    @invariant()
    def every_item_is_in_exactly_one_state(self) -> None:
        leased = {(held.shard, item) for held in self.held.values() for item in held.items}
        assert self.ledger.found == sum(self.disk.counts.values())
        assert self.ledger.terminal == len(self.disk.rows)
        assert self.ledger.committing == len(self.on_the_way())
        assert self.ledger.leased == len(leased)
        assert self.ledger.pending == len(self.waiting())
        assert self.ledger.finished == (self.ledger.listed and not self.missing())

    @invariant()
    def every_lease_is_held_by_whom_it_was_granted(self) -> None:
        for name in self.workers:
            ours = {
                lease: len(held.items) for lease, held in self.held.items() if held.worker == name
            }
            theirs = {lease: left for lease, (*_, left) in self.ledger.leases_of(name).items()}
            assert ours == theirs

    @invariant()
    def what_was_acknowledged_is_durable(self) -> None:
        for item, behind in self.acknowledged.items():
            reached = self.disk.stages.get(item, 0)
            assert item in self.disk.rows or reached >= behind, f"{item} is lost"

    def teardown(self) -> None:
        """From any state, one worker for each stage brings the run to its end."""
        self.feed(ev.ListingFinished())
        self.feed(ev.Resumed())
        last = [f"last {stage}" for stage in range(self.policy.stages)]
        for stage, name in enumerate(last):
            self.workers[name] = Worker(name, frozenset({stage}))
            self.join(name, forget=True)
        for _ in range(400):
            self.write(100, reject=False)
            if self.ledger.finished:
                break
            self.now += self.policy.lease_seconds
            for name in last:
                self.workers[name].heard_at = self.now
                self.feed(ev.Heard(name))
            self.feed(ev.Ticked())
            for name in last:
                self.feed(ev.Wanted(name, 2))
                self.finish_all(name, 100)
            self.ledger.check()
        assert self.ledger.finished, self.missing()
        assert not self.missing()
        assert not self.disk.stages, "an item has a row and is between stages"
        assert all(self.workers[name].told_finished for name in last)


def items_of(write: ev.Commit | ev.CommitQuarantine) -> set[Item]:
    if isinstance(write, ev.CommitQuarantine):
        return {(write.shard, write.item)}
    return {(write.shard, write.items[at]) for at in write.accepted}


def stored(effect: ev.Grant | ev.Remember) -> StoredLease:
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


# `tests.mutants` wants to know soon whether there is a counterexample, not the shortest one.
QUICK = bool(os.environ.get("LEDGER_QUICK"))
PHASES = [phase for phase in Phase if not (QUICK and phase in {Phase.shrink, Phase.explain})]
TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(
    max_examples=100 if QUICK else 200, stateful_step_count=60, deadline=None, phases=PHASES
)
