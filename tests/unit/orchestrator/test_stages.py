"""Items on their way through stages that different workers run."""

from __future__ import annotations

from caption_flow.orchestrator.core import events as ev
from tests.unit.orchestrator.rehearsal import rehearsal

ALL = tuple(range(10))


def test_an_item_is_terminal_only_after_its_last_stage() -> None:
    run = rehearsal(items=2, stages=2)
    first, second = run.worker("first", 0), run.worker("second", 1)
    first.passes_on(first.gets())
    assert (run.ledger.terminal, run.ledger.pending, run.finished) == (0, 2, False)
    second.reports(second.gets())
    assert not run.finished
    run.writes()
    assert run.finished


def test_a_stage_is_leased_to_whom_it_is_of_use_as_soon_as_items_are_there() -> None:
    run = rehearsal(items=10, stages=2)
    first, second = run.worker("first", 0), run.worker("second", 1)
    assert second.asks() is None
    lease = first.gets()
    first.passes_on(lease, 3, 4)
    given = second.was_given()
    assert given is not None
    assert (given.items, given.stage) == ((3, 4), 1)
    first.passes_on(lease, 5)
    assert first.asks() is None, "what is left is for the other one"


def test_nothing_is_passed_on_before_it_is_durable() -> None:
    run = rehearsal(items=1, stages=2)
    first, second = run.worker("first", 0), run.worker("second", 1)
    first.reports(first.gets(), reached=1)
    assert second.asks() is None
    run.writes()
    assert second.was_given()


def test_items_that_reach_a_stage_gather_until_somebody_takes_them() -> None:
    run = rehearsal(items=10, stages=2)
    first, second = run.worker("first", 0), run.worker("second", 1)
    lease = first.gets()
    for item in ALL:
        first.passes_on(lease, item)
    assert second.gets().items == ALL


def test_what_has_been_begun_is_done_before_more_is_begun() -> None:
    run = rehearsal(items=20, stages=2)
    first, both = run.worker("first", 0), run.worker("both")
    first.passes_on(first.gets())
    assert both.gets().stage == 1
    assert both.gets().stage == 0


def test_a_worker_carries_items_as_far_as_it_runs_their_stages() -> None:
    run = rehearsal(items=1, stages=4)
    middle, ends = run.worker("middle", 1, 2), run.worker("ends", 0, 3)
    lease = ends.gets()
    assert ends.is_refused(lease, 0, reached=2)
    ends.joins(lease)
    ends.passes_on(lease, reached=1)
    lease = middle.gets()
    assert lease.stage == 1
    assert middle.is_refused(lease, 0, reached=2), "it runs that stage itself"
    middle.joins(lease)
    middle.passes_on(lease, reached=3)
    ends.reports(ends.gets())
    run.writes()
    assert run.finished


def test_a_worker_that_runs_the_last_stage_passes_nothing_on() -> None:
    run = rehearsal(items=1, stages=2)
    both = run.worker("both")
    assert both.is_refused(both.gets(), 0, reached=2)


def test_a_stage_is_reported_once_however_often_it_is_sent() -> None:
    run = rehearsal(items=2, stages=2)
    first, second = run.worker("first", 0), run.worker("second", 1)
    lease = first.gets()
    assert first.passes_on(lease, 0) == (0,)
    assert first.passes_on(lease, 0) == (), "it waits at the next stage"
    given = second.gets()
    assert first.passes_on(lease, 0) == (), "it is leased at the next stage"
    second.reports(given)
    assert first.passes_on(lease, 0) == (), "it is on its way"
    assert first.reports(lease, 0) == (), "not even as a failure"


def test_a_failure_is_final_at_any_stage() -> None:
    run = rehearsal(items=1, stages=2)
    first = run.worker("first", 0)
    first.reports(first.gets())
    run.writes()
    assert run.finished


def test_what_a_lost_worker_had_of_a_later_stage_waits_there() -> None:
    run = rehearsal(items=4, stages=2)
    first, second = run.worker("first", 0), run.worker("second", 1)
    first.passes_on(first.gets())
    lost = second.gets()
    second.dies()
    assert first.asks() is None
    again = second.gets()
    assert again.stage == 1
    assert set(again.items) < set(lost.items)


def test_a_restart_goes_on_at_the_stage_where_it_was() -> None:
    run = rehearsal(items=10, stages=2)
    first, second = run.worker("first", 0), run.worker("second", 1)
    lease = first.gets()
    first.passes_on(lease, 0, 1, 2)
    held = second.gets()
    run.restarts()
    run.lists(10, to_the_end=True)
    first.joins(lease)
    second.joins(held)
    assert run.ledger.left_of(held.id) == (0, 1, 2)
    assert run.ledger.left_of(lease.id) == ALL[3:]
    second.reports(held)
    first.passes_on(lease, *ALL[3:])
    second.reports(second.gets())
    run.writes()
    assert run.finished


def test_items_between_stages_that_no_lease_names_are_found_after_a_restart() -> None:
    run = rehearsal(items=10, stages=2)
    first = run.worker("first", 0)
    first.passes_on(first.gets(), 0, 1, 7)
    run.remembered.clear()
    run.restarts()
    second = run.worker("second", 1)
    assert second.gets().items == (0, 1, 7)
    assert run.ledger.pending == 7


def test_a_lease_whose_items_have_all_gone_on_is_not_remembered() -> None:
    run = rehearsal(items=2, stages=2)
    first = run.worker("first", 0)
    lease = first.gets()
    first.passes_on(lease)
    run.restarts()
    assert not run.ledger.knows(lease.id)


def test_a_worker_gives_up_only_what_the_idle_one_can_take() -> None:
    run = rehearsal(items=10, stages=2)
    first, second, other = run.worker("first", 0), run.worker("second", 1), run.worker("other", 0)
    first.gets()
    assert second.asks() is None
    assert not first.is_asked_to_share()
    assert other.asks() is None
    assert first.is_asked_to_share()


def test_a_straggler_is_helped_by_whom_runs_the_stage() -> None:
    run = rehearsal(items=1, stages=2, straggler_seconds=10, lease_seconds=30)
    slow, second, other = run.worker("slow", 0), run.worker("second", 1), run.worker("other", 0)
    lease = slow.gets()
    run.waits(15)
    assert second.asks() is None
    helping = other.gets()
    assert helping.items == lease.items
    other.passes_on(helping)
    assert slow.trimmed() == {0}
    assert slow.passes_on(lease) == ()


def test_what_waits_for_a_stage_that_nobody_runs_is_told() -> None:
    run = rehearsal(items=2, stages=2)
    first = run.worker("first", 0)
    assert run.ledger.unserved == {}
    first.passes_on(first.gets())
    assert run.ledger.unserved == {1: 2}
    second = run.worker("second", 1)
    assert run.ledger.unserved == {}
    second.drops()
    assert run.ledger.unserved == {1: 2}


def test_an_item_whose_file_has_changed_begins_again() -> None:
    run = rehearsal(items=10, stages=3)
    first, second, third = (run.worker(name, stage) for stage, name in enumerate("abc"))
    lease = first.gets()
    first.passes_on(lease, 0, 1, 2)
    held = second.gets()
    second.passes_on(held, 0, reached=2)
    second.reports(held, 1, reached=2)
    run.rewinds(0, 1, 2)
    assert second.trimmed() == {2}
    assert second.passes_on(held, reached=2) == ()
    assert first.passes_on(lease, 0, 1, 2) == (), "what it said was of the old files"
    assert third.asks() is None
    assert first.gets().items == (0, 1, 2)


def test_a_refused_batch_leaves_its_items_at_their_stage_unless_they_begin_again() -> None:
    run = rehearsal(items=2, stages=2)
    first, second = run.worker("first", 0), run.worker("second", 1)
    first.passes_on(first.gets())
    second.reports(second.gets())
    run.feed(ev.Rewound("shard", frozenset({1})))
    run.rejects()
    assert second.gets().items == (0,)
    assert first.gets().items == (1,)


def test_the_end_of_a_stage_is_shared_among_those_who_run_it() -> None:
    run = rehearsal(items=40, stages=2, chunk_size=40, smallest_grant=1)
    first = run.worker("first", 0)
    other, second = run.worker("other", 0), run.worker("second", 1)
    assert len(first.gets().items) == 10, "40 over two leases for each of two workers"
    other.leaves()
    assert second.asks() is None
