"""The end of a run with workers of very different speed, in the ledger's own time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest

from caption_flow.orchestrator.core import events as ev
from tests.unit.orchestrator.rehearsal import Given, Run, Worker, rehearsal

STEP_SECONDS = 0.05


@dataclass
class Engine:
    """A worker that begins ``width`` items at a time, in order, and takes ``seconds`` for each."""

    worker: Worker
    width: int
    seconds: float
    waiting: deque[tuple[Given, int]] = field(default_factory=deque)
    begun: dict[tuple[int, int], tuple[Given, float]] = field(default_factory=dict)
    done: int = 0
    asked: bool = False

    def steps(self, now: float) -> None:
        self.hears()
        for (_, item), (lease, until) in list(self.begun.items()):
            if now >= until:
                del self.begun[lease.id, item]
                self.done += 1
                self.worker.reports(lease, item)
        self.hears()
        while self.waiting and len(self.begun) < self.width:
            lease, item = self.waiting.popleft()
            self.begun[lease.id, item] = (lease, now + self.seconds)
        idle = len(self.waiting)
        if idle < self.width and not (idle and self.asked):
            self.worker.asks(width=self.width, idle=idle)
            self.asked = True
            self.hears()

    def shares(self) -> None:
        given: dict[int, tuple[int, ...]] = {}
        for _ in range((len(self.waiting) + 1) // 2):
            lease, item = self.waiting.pop()
            given[lease.id] = (*given.get(lease.id, ()), item)
        self.worker.run.feed(ev.Recalled(self.worker.name, given))

    def hears(self) -> None:
        for lease in self.worker.leases:
            self.waiting += [(lease, item) for item in lease.items]
        self.asked = self.asked and not self.worker.leases
        self.worker.leases.clear()
        self.worker.inbox.clear()
        if self.worker.is_asked_to_share():
            self.shares()
        for trim in self.worker.trims():
            gone = {(trim.lease, item) for item in trim.items}
            kept = [(lease, item) for lease, item in self.waiting if (lease.id, item) not in gone]
            self.waiting = deque(kept)


def race(run: Run, engines: list[Engine]) -> float:
    """Let everybody work to the end; return the seconds from the last hand-out of new work."""
    dry = None
    while not run.finished:
        run.now += STEP_SECONDS
        for engine in engines:
            engine.steps(run.now)
        run.writes()
        if dry is None and not run.ledger.pending:
            dry = run.now
    assert dry is not None
    return run.now - dry


@pytest.mark.parametrize("smallest_grant", [1, 8])
@pytest.mark.parametrize("chunk_size", [50, 400])
def test_the_tail_takes_at_most_twice_the_slowest_item(
    chunk_size: int, smallest_grant: int
) -> None:
    run = rehearsal(
        items=400, chunk_size=chunk_size, smallest_grant=smallest_grant, lease_seconds=1e6
    )
    pace = {"fast": (16, 0.2), "middling": (8, 0.5), "slow": (2, 1.0), "slowest": (1, 4.0)}
    crew = [Engine(run.worker(name), *each) for name, each in pace.items()]

    tail_seconds = race(run, crew)

    assert tail_seconds <= 2 * 4.0
    assert sum(engine.done for engine in crew) <= 400 + 4, "next to nothing is done twice"
    assert crew[0].done > crew[1].done > crew[2].done > crew[3].done > 0


def test_a_worker_that_vanishes_in_the_tail_does_not_hold_it_up() -> None:
    run = rehearsal(items=60, chunk_size=60, lease_seconds=1e6, rejoin_seconds=5)
    gone = run.worker("gone")
    gone.asks(width=8)
    gone.leases.clear()
    gone.drops()

    tail_seconds = race(run, [Engine(run.worker(name), 4, 0.5) for name in ("ada", "bob")])

    assert tail_seconds <= 5 + 2 * 0.5 + 4.0


# --------------------------------------------------------------------------- that it is one


def hears_of_the_end(worker: Worker) -> bool:
    """Ask with nothing left to begin; tell whether the answer is that nothing is to be had."""
    worker.asks(width=4, idle=0)
    return any(wait.all_handed_out for wait in worker.run.tells(ev.Wait, worker.name))


def test_who_is_idle_hears_that_every_item_is_handed_out() -> None:
    run = rehearsal(items=4)
    ada = run.worker("ada")
    ada.asks(width=4)

    assert hears_of_the_end(ada)


def test_while_the_source_is_listed_more_may_come() -> None:
    run = rehearsal(items=4, listed=False)
    ada = run.worker("ada")
    ada.asks(width=4)

    assert not hears_of_the_end(ada)


def test_what_a_busy_worker_could_give_up_is_to_be_had_until_it_says_otherwise() -> None:
    run = rehearsal(items=10)
    ada, bob = run.worker("ada"), run.worker("bob")
    ada.asks(width=4)

    assert not hears_of_the_end(bob)
    ada.gives_up()

    assert [wait.all_handed_out for wait in run.tells(ev.Wait, "bob")] == [True]


def test_what_somebody_gives_up_is_not_announced_as_the_end() -> None:
    run = rehearsal(items=10)
    ada, bob = run.worker("ada"), run.worker("bob")
    lease = ada.asks(width=4)
    assert lease is not None
    bob.asks(width=4)
    run.tells(ev.Wait)

    ada.gives_up(lease, *lease.items[6:])

    assert bob.was_given() is not None
    assert not run.tells(ev.Wait)


def test_what_a_vanished_worker_holds_is_still_to_be_had() -> None:
    run = rehearsal(items=4)
    ada, bob = run.worker("ada"), run.worker("bob")
    ada.asks(width=4)
    ada.drops()

    assert not hears_of_the_end(bob)


def test_items_that_come_from_another_workers_stage_are_still_to_be_had() -> None:
    run = rehearsal(items=4, stages=2)
    first, second = run.worker("first", 0), run.worker("second", 1)
    first.asks(width=4)

    assert not hears_of_the_end(second)


def test_a_paused_run_has_more_to_hand_out() -> None:
    run = rehearsal(items=4)
    ada = run.worker("ada")
    ada.asks(width=4)
    run.feed(ev.Paused())

    assert not hears_of_the_end(ada)


def test_in_a_large_crew_the_end_is_not_announced_before_anybody_was_asked_to_share() -> None:
    run = rehearsal(items=10)
    ada, *others = [run.worker(f"worker {number}") for number in range(300)]
    ada.asks(width=4)

    assert not hears_of_the_end(others[0]), "sharing is done at ticks"
