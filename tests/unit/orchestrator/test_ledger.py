"""The ledger's promises, each as a short story."""

from __future__ import annotations

import pytest

from caption_flow.orchestrator.core import events as ev
from caption_flow.orchestrator.core.ledger import Ledger, StoredLease
from tests.unit.orchestrator.rehearsal import SHARD, Given, Run, accepted, rehearsal

# --------------------------------------------------------------------------- handing out


def test_the_first_lease_goes_out_before_the_listing_ends() -> None:
    run = rehearsal(items=3, listed=False)

    assert run.worker("ada").gets().items == (0, 1, 2)


def test_chunks_follow_the_source_s_order_and_no_item_is_given_twice() -> None:
    run = rehearsal(items=25, listed=False)
    ada, bob = run.worker("ada"), run.worker("bob")

    given = [worker.gets().items for worker in (ada, bob, ada)]

    assert given == [tuple(range(10)), tuple(range(10, 20)), tuple(range(20, 25))]


def test_a_worker_gets_as_many_leases_as_it_asked_for() -> None:
    run = rehearsal(items=50, listed=False)
    ada = run.worker("ada")

    ada.asks(chunks=3)

    assert [lease.items[0] for lease in ada.leases] == [0, 10, 20]


def test_a_short_chunk_waits_while_its_shard_grows() -> None:
    run = rehearsal(items=4, listed=False)
    run.feed(ev.ItemsFound("other", 10))
    ada = run.worker("ada")

    first = ada.gets()
    run.lists(10)

    assert (first.shard, len(first.items)) == ("other", 10)
    assert ada.gets().items == tuple(range(10))


def test_a_hungry_worker_is_fed_as_soon_as_something_is_listed() -> None:
    run = rehearsal(items=0, listed=False)
    ada = run.worker("ada")
    assert ada.asks() is None

    run.lists(3)

    assert ada.was_given() is not None


def test_whoever_asked_first_is_fed_first() -> None:
    run = rehearsal(items=0, listed=False)
    ada, bob = run.worker("ada"), run.worker("bob")
    bob.asks()
    ada.asks()

    run.lists(5)

    assert bob.was_given() is not None
    assert ada.was_given() is None


def test_every_question_is_answered() -> None:
    run = rehearsal(items=0, listed=False)
    ada = run.worker("ada")

    ada.asks()

    assert [wait.session for wait in run.tells(ev.Wait)] == ["ada"]


def test_nothing_is_handed_out_while_paused_and_results_are_still_taken() -> None:
    run = rehearsal(items=20, listed=False)
    ada, bob = run.worker("ada"), run.worker("bob")
    lease = ada.gets()
    run.feed(ev.Paused())

    assert bob.asks() is None
    assert ada.reports(lease) == lease.items
    run.feed(ev.Resumed())
    assert bob.was_given() is not None


# --------------------------------------------------------------------------- leases and sessions


def test_any_message_renews_a_lease() -> None:
    run = rehearsal(lease_seconds=30)
    ada = run.worker("ada")
    lease = ada.gets()

    for _ in range(3):
        run.waits(29)
        ada.heard()

    assert run.ledger.is_live(lease.id)


def test_a_lease_ends_when_its_worker_is_silent_for_lease_seconds() -> None:
    run = rehearsal(lease_seconds=30)
    lease = run.worker("ada").gets()

    run.waits(29.9)
    assert run.ledger.is_live(lease.id)
    run.waits(0.1)
    assert not run.ledger.is_live(lease.id)
    assert run.ledger.pending == 10


def test_a_silent_worker_that_is_connected_is_told_what_it_lost() -> None:
    run = rehearsal()
    ada = run.worker("ada")
    lease = ada.gets()

    run.waits(30)

    assert ada.trimmed() == set(lease.items)


def test_what_a_lost_worker_had_finished_stays() -> None:
    run = rehearsal()
    ada, bob = run.worker("ada"), run.worker("bob")
    ada.reports(ada.gets(), 0, 1, 2)
    ada.drops()
    run.waits(20)
    bob.heard()
    run.waits(10)

    assert bob.works() == set(range(3, 10))
    run.writes()
    assert run.finished


def test_the_same_session_keeps_its_leases_when_it_reconnects() -> None:
    run = rehearsal()
    ada = run.worker("ada")
    lease = ada.gets()
    ada.drops()
    run.waits(29)

    ada.joins(lease)
    run.waits(29)

    assert run.ledger.is_live(lease.id)
    assert ada.reports(lease) == lease.items


def test_what_a_returning_worker_does_not_name_is_handed_out_again() -> None:
    run = rehearsal(items=20, listed=False)
    ada, bob = run.worker("ada"), run.worker("bob")
    kept, lost = ada.gets(), ada.gets()
    ada.drops()

    ada.joins(kept)

    assert bob.gets().items == lost.items
    assert run.ledger.is_live(kept.id)
    assert not run.ledger.is_live(lost.id)


def test_what_a_leaving_worker_holds_goes_back_at_once_and_whole() -> None:
    run = rehearsal()
    ada, bob = run.worker("ada"), run.worker("bob")
    lease = ada.gets()

    ada.leaves()

    assert bob.gets().items == lease.items


def test_a_lease_given_back_is_handed_out_again() -> None:
    run = rehearsal()
    ada = run.worker("ada")
    lease = ada.gets()
    ada.reports(lease, 4)

    ada.returns(lease)

    assert ada.gets().items == (0, 1, 2, 3, 5, 6, 7, 8, 9)


def test_a_lease_that_is_done_is_forgotten_on_disk() -> None:
    run = rehearsal()
    ada = run.worker("ada")
    lease = ada.gets()
    assert lease.id in run.remembered

    ada.reports(lease)
    assert not run.remembered[lease.id].live
    run.writes()

    assert run.remembered == {}


# --------------------------------------------------------------------------- reports


def test_a_report_is_terminal_only_when_it_is_durable() -> None:
    run = rehearsal()
    ada = run.worker("ada")

    ada.reports(ada.gets())
    assert (run.ledger.terminal, run.ledger.committing, run.finished) == (0, 10, False)
    run.writes()
    assert (run.ledger.terminal, run.ledger.committing, run.finished) == (10, 0, True)


def test_a_report_said_twice_counts_once_and_is_acknowledged_twice() -> None:
    run = rehearsal()
    ada = run.worker("ada")
    lease = ada.gets()

    assert ada.reports(lease, 1, 2) == (1, 2)
    assert ada.reports(lease, 2, 3) == (3,)
    assert ada.reports(lease, 3) == ()
    assert [commit.seq for commit in run.queue if isinstance(commit, ev.Commit)] == [1, 2, 3]


def test_an_item_named_twice_in_one_report_counts_once() -> None:
    run = rehearsal()
    ada = run.worker("ada")
    lease = ada.gets()

    ada.reports(lease, 7, 7, 2)

    (commit,) = run.queue
    assert isinstance(commit, ev.Commit)
    assert commit.accepted == (0, 2)


def test_an_empty_report_is_acknowledged_in_its_turn() -> None:
    run = rehearsal()
    ada = run.worker("ada")

    assert ada.reports(ada.gets().id) == ()
    assert len(run.queue) == 1


def test_a_late_report_after_expiry_is_taken_if_nobody_was_faster() -> None:
    run = rehearsal()
    ada = run.worker("ada")
    lease = ada.gets()
    run.waits(30)

    assert ada.reports(lease, 3, 4) == (3, 4)
    assert ada.works() == {0, 1, 2, 5, 6, 7, 8, 9}


def test_the_first_commit_wins() -> None:
    run = rehearsal()
    ada, bob = run.worker("ada"), run.worker("bob")
    late = ada.gets()
    run.waits(30)
    taken = bob.gets()

    assert bob.reports(taken, 0) == (0,)
    assert ada.reports(late, 0, 1) == (1,)
    assert bob.reports(taken, 1, 2) == (2,)


def test_whoever_holds_what_somebody_else_has_just_done_is_told() -> None:
    run = rehearsal()
    ada, bob = run.worker("ada"), run.worker("bob")
    late = ada.gets()
    run.waits(30)
    bob.gets()

    ada.reports(late, 0, 1)

    assert bob.trimmed() == {0, 1}


def test_a_foreign_lease_is_refused() -> None:
    run = rehearsal()
    ada, eve = run.worker("ada"), run.worker("eve")
    lease = ada.gets()

    assert eve.is_refused(lease, 0)
    assert ada.reports(lease, 0) == (0,)


def test_a_foreign_lease_cannot_be_given_back() -> None:
    run = rehearsal()
    ada, eve = run.worker("ada"), run.worker("eve")
    lease = ada.gets()

    run.feed(ev.Released("eve", lease.id))

    assert [refusal.session for refusal in run.tells(ev.Refuse)] == [eve.name]
    assert run.ledger.is_live(lease.id)


@pytest.mark.parametrize("item", [-1, 10, 25, 2**48])
def test_an_item_outside_the_chunk_is_refused(item: int) -> None:
    run = rehearsal(items=30)
    ada = run.worker("ada")
    lease = ada.gets()

    assert ada.is_refused(lease, 0, item)
    assert run.queue == []


def test_an_item_of_the_chunk_that_the_lease_never_had_is_not_accepted() -> None:
    run = rehearsal(smallest_grant=2)
    ada, bob = run.worker("ada"), run.worker("bob")
    ours, theirs = ada.gets(), bob.gets()

    assert ada.reports(ours, ours.items[0], theirs.items[0]) == ours.items[:1]


def test_a_report_on_an_unknown_lease_is_acknowledged_after_the_disk_and_accepts_nothing() -> None:
    run = rehearsal()
    ada = run.worker("ada")

    assert ada.reports(4711, 0, 1) == ()
    assert len(run.queue) == 1, "it passes through the disk's queue"
    assert run.ledger.pending == 10


def test_rows_that_are_rejected_leave_their_items_as_if_never_reported() -> None:
    run = rehearsal()
    ada, bob = run.worker("ada"), run.worker("bob")
    ada.reports(ada.gets())

    run.rejects()

    assert run.ledger.pending == 10
    assert bob.works() == set(range(10))


def test_images_are_read_only_for_items_of_the_worker_s_own_lease() -> None:
    run = rehearsal(smallest_grant=2)
    ada, bob = run.worker("ada"), run.worker("bob")
    ours, theirs = ada.gets(), bob.gets()
    may_read = run.ledger.may_read

    assert may_read("ada", ours.id, ours.items) == SHARD
    assert may_read("ada", ours.id, theirs.items) is None
    assert may_read("ada", theirs.id, theirs.items) is None
    assert may_read("ada", 4711, (0,)) is None


# --------------------------------------------------------------------------- the tail


def test_near_the_end_leases_become_shares() -> None:
    run = rehearsal(items=40, chunk_size=40, smallest_grant=2)
    ada, bob = run.worker("ada"), run.worker("bob")

    sizes = [len(worker.gets().items) for worker in (ada, bob, ada, bob, ada)]

    assert sizes == [10, 7, 5, 4, 3]


def test_an_idle_worker_gets_what_a_busy_one_gives_up() -> None:
    run = rehearsal(items=9)
    ada, bob = run.worker("ada"), run.worker("bob")
    lease = ada.asks(width=3)
    assert lease is not None
    assert bob.asks() is None
    assert ada.is_asked_to_share()

    ada.gives_up(lease, 6, 7, 8)

    taken = bob.was_given()
    assert taken is not None
    assert taken.items == (6, 7, 8)
    assert run.ledger.left_of(lease.id) == (0, 1, 2, 3, 4, 5)


def test_nothing_is_taken_from_a_worker_that_gives_nothing_up() -> None:
    run = rehearsal(items=9)
    ada, bob = run.worker("ada"), run.worker("bob")
    ada.asks(width=3)
    bob.asks()

    ada.gives_up()

    assert bob.was_given() is None
    assert ada.trimmed() == set()


def test_a_worker_whose_engine_may_have_all_it_holds_is_not_asked() -> None:
    run = rehearsal(items=4)
    ada, bob = run.worker("ada"), run.worker("bob")
    ada.asks(width=4)

    assert bob.asks() is None
    assert not ada.is_asked_to_share()


def test_the_worker_with_the_most_left_is_asked_and_then_the_next() -> None:
    run = rehearsal(items=25, listed=False)
    ada, bob, cleo = (run.worker(name) for name in ("ada", "bob", "cleo"))
    ada.asks()
    bob.asks()
    assert cleo.asks(chunks=1) is not None
    lease = cleo.leases[-1]
    cleo.reports(lease)
    ada.reports(ada.leases[-1], 0)
    assert cleo.asks() is None

    assert (bob.is_asked_to_share(), ada.is_asked_to_share()) == (True, False)
    bob.gives_up()
    assert (bob.is_asked_to_share(), ada.is_asked_to_share()) == (False, True)


def test_a_worker_is_asked_once_for_each_that_is_idle_and_not_again_before_it_answers() -> None:
    run = rehearsal(items=20)
    ada, bob, cleo = (run.worker(name) for name in ("ada", "bob", "cleo"))
    ada.asks(chunks=2)
    for _ in range(3):
        bob.asks()
        cleo.asks()

    assert len(run.tells(ev.Recall)) == 1


def test_for_one_idle_worker_one_other_is_asked_at_a_time() -> None:
    run = rehearsal(items=20, listed=False)
    ada, bob, cleo = (run.worker(name) for name in ("ada", "bob", "cleo"))
    ada.asks()
    bob.asks()
    for _ in range(3):
        cleo.asks()

    assert len(run.tells(ev.Recall)) == 1


def test_who_has_given_up_something_is_asked_for_more() -> None:
    run = rehearsal(items=20)
    ada, bob, cleo = (run.worker(name) for name in ("ada", "bob", "cleo"))
    lease = ada.gets()
    ada.asks()
    bob.asks()
    cleo.asks()
    run.tells(ev.Recall)

    ada.gives_up(lease, 9)

    assert bob.was_given() is not None
    assert ada.is_asked_to_share(), "on behalf of cleo"


def test_who_has_nothing_to_spare_is_asked_again_only_when_it_was_given_something() -> None:
    run = rehearsal(items=9)
    ada, bob = run.worker("ada"), run.worker("bob")
    lease = ada.gets()
    bob.asks()
    ada.gives_up()
    run.tells(ev.Recall)
    bob.asks()
    assert not ada.is_asked_to_share()

    ada.returns(lease)
    taken = bob.was_given()
    assert taken is not None
    bob.returns(taken)
    ada.gets()
    bob.asks()

    assert ada.is_asked_to_share()


def test_nobody_is_asked_for_a_worker_that_has_something_to_begin() -> None:
    run = rehearsal(items=9)
    ada, bob = run.worker("ada"), run.worker("bob")
    ada.gets()

    assert bob.asks(idle=1) is None

    assert not ada.is_asked_to_share()


@pytest.mark.parametrize("noticed", [True, False])
def test_who_has_vanished_before_it_answered_is_asked_anew(noticed: bool) -> None:
    run = rehearsal(items=9, rejoin_seconds=5)
    ada, bob = run.worker("ada"), run.worker("bob")
    lease = ada.gets()
    bob.asks()
    assert ada.is_asked_to_share()
    if noticed:
        ada.drops()
    ada.joins(lease)

    bob.asks()

    assert ada.is_asked_to_share()


def test_what_is_given_up_of_somebody_else_s_lease_or_of_none_changes_nothing() -> None:
    run = rehearsal(items=20, listed=False)
    ada, eve = run.worker("ada"), run.worker("eve")
    lease = ada.gets()

    eve.gives_up(lease, 5)
    eve.gives_up(Given(4711, ()), 5)
    ada.gives_up(lease, 25)

    assert run.ledger.left_of(lease.id) == tuple(range(10))
    assert run.ledger.pending == 10


def test_a_begun_item_is_done_a_second_time_only_if_it_takes_long() -> None:
    run = rehearsal(items=1, straggler_seconds=60, lease_seconds=1000)
    ada, bob = run.worker("ada"), run.worker("bob")
    slow = ada.gets()
    run.waits(59)
    assert bob.asks() is None

    run.waits(1)

    second = bob.was_given()
    assert second is not None
    assert run.ledger.is_live(slow.id), "it is not taken away"
    assert bob.reports(second) == (0,)
    assert ada.reports(slow) == ()


def test_a_worker_that_brings_results_is_no_straggler_however_old_its_lease() -> None:
    run = rehearsal(items=8, straggler_seconds=60, lease_seconds=1000)
    ada, bob = run.worker("ada"), run.worker("bob")
    lease = ada.asks(width=8)
    assert lease is not None
    for item in range(6):
        run.waits(50)
        ada.reports(lease, item)

    assert bob.asks() is None
    run.waits(60)
    assert bob.was_given() is not None


def test_a_worker_that_never_answers_is_waited_for_no_longer_than_any_straggler() -> None:
    run = rehearsal(items=9, straggler_seconds=60, lease_seconds=1000)
    ada, bob = run.worker("ada"), run.worker("bob")
    lease = ada.gets()
    assert bob.asks() is None
    assert ada.is_asked_to_share()
    run.waits(59)
    assert bob.was_given() is None

    run.waits(1)

    given = bob.was_given()
    assert given is not None
    assert given.items == lease.items


def test_what_can_be_given_up_is_shared_before_anything_is_done_twice() -> None:
    run = rehearsal(items=14, chunk_size=10, straggler_seconds=60, lease_seconds=1000)
    ada, bob, cleo = (run.worker(name) for name in ("ada", "bob", "cleo"))
    ada.asks(width=10)
    run.waits(60)
    lease = bob.gets()
    assert lease.items == (10, 11, 12, 13)
    assert cleo.asks() is None
    assert bob.is_asked_to_share()

    bob.gives_up(lease, 12, 13)

    given = cleo.was_given()
    assert given is not None
    assert given.items == (12, 13), "none of ada's ten"


def test_a_straggler_s_item_is_done_by_no_more_than_two() -> None:
    run = rehearsal(items=1, straggler_seconds=60, lease_seconds=1000)
    for name in ("ada", "bob"):
        run.worker(name).asks()
        run.waits(60)

    assert run.worker("cleo").asks() is None


def test_a_straggler_s_item_goes_to_a_third_when_the_second_is_lost() -> None:
    run = rehearsal(items=1, straggler_seconds=60, lease_seconds=1000)
    ada, bob, cleo = (run.worker(name) for name in ("ada", "bob", "cleo"))
    ada.gets()
    run.waits(60)
    assert bob.gets().items == (0,)

    bob.leaves()

    assert cleo.gets().items == (0,)


def test_idle_workers_share_what_a_disconnected_one_holds() -> None:
    run = rehearsal(rejoin_seconds=5)
    ada, bob = run.worker("ada"), run.worker("bob")
    lease = ada.gets()
    ada.drops()
    run.waits(4)
    assert bob.asks() is None

    run.waits(1)

    assert bob.was_given() is not None
    ada.joins(lease)
    assert ada.reports(lease, 0) == (0,), "it has come back with its lease"


def test_what_is_done_twice_can_be_shared_further() -> None:
    run = rehearsal(rejoin_seconds=5)
    ada, bob, cleo = (run.worker(name) for name in ("ada", "bob", "cleo"))
    ada.gets()
    ada.drops()
    run.waits(5)
    lease = bob.gets()
    assert len(lease.items) == 10
    cleo.asks()

    bob.gives_up(lease, 5, 6, 7, 8, 9)
    bob.gives_up()

    part = cleo.was_given()
    assert part is not None
    assert part.items == (5, 6, 7, 8, 9)
    assert cleo.reports(part) == part.items
    assert run.ledger.leases_of("ada") == {1: (SHARD, 0, 5)}


def test_what_a_returning_worker_has_given_up_meanwhile_is_handed_out_again() -> None:
    run = rehearsal(items=9)
    ada, bob = run.worker("ada"), run.worker("bob")
    lease = ada.gets()
    ada.drops()

    ada.joins(Given(lease.id, (0, 1, 2)))

    assert bob.gets().items == (3, 4, 5, 6, 7, 8)
    assert ada.reports(lease, 0, 1, 2) == (0, 1, 2)


def test_a_worker_that_returns_is_told_what_was_done_without_it() -> None:
    run = rehearsal(rejoin_seconds=5)
    ada, bob = run.worker("ada"), run.worker("bob")
    lease = ada.gets()
    ada.drops()
    run.waits(5)
    bob.reports(bob.gets(), 8, 9)
    ada.trimmed()

    ada.joins(lease)

    assert ada.trimmed() == {8, 9}


def test_a_large_crew_shares_at_ticks() -> None:
    run = rehearsal(items=9)
    ada = run.worker("ada")
    ada.gets()
    for number in range(300):
        run.ledger.handle(ev.SessionJoined(f"w{number}", "w"), now=run.now)
    run.worker("bob").asks()
    assert not ada.is_asked_to_share()

    run.waits(0.5)

    assert ada.is_asked_to_share()


# --------------------------------------------------------------------------- the end


def test_the_end_is_told_to_all_once_every_item_is_durable() -> None:
    run = rehearsal(items=2)
    ada = run.worker("ada")
    ada.reports(ada.gets())
    assert run.tells(ev.Finish) == []

    run.writes()

    assert run.tells(ev.Finish) == [ev.Finish(None)]


def test_there_is_no_end_before_the_listing_ends() -> None:
    run = rehearsal(items=2, listed=False)
    ada = run.worker("ada")
    ada.works()
    run.writes()
    assert run.tells(ev.Finish) == []

    run.feed(ev.ListingFinished())

    assert run.tells(ev.Finish) == [ev.Finish(None)]


def test_an_empty_dataset_ends_at_once() -> None:
    run = rehearsal(items=0)

    assert run.tells(ev.Finish) == [ev.Finish(None)]


def test_who_joins_after_the_end_is_told_so_and_again_when_it_asks() -> None:
    run = rehearsal(items=0)
    run.told.clear()
    ada = run.worker("ada")
    assert run.tells(ev.Finish) == [ev.Finish("ada")]

    assert ada.asks() is None

    assert run.tells(ev.Finish) == [ev.Finish("ada")]


def test_items_found_after_the_end_are_done_and_the_end_is_told_again() -> None:
    run = rehearsal(items=1)
    ada = run.worker("ada")
    ada.works()
    run.writes()
    run.told.clear()

    run.lists(2)
    assert ada.works() == {1}
    run.writes()

    assert run.tells(ev.Finish, None)[-1] == ev.Finish(None)


# --------------------------------------------------------------------------- lost leases, poison


def test_a_lost_lease_s_remainder_is_leased_again_in_halves() -> None:
    run = rehearsal(items=10)
    ada = run.worker("ada")
    ada.reports(ada.gets(), 0)

    ada.dies()

    assert [ada.gets().items for _ in range(2)] == [(1, 2, 3, 4, 5), (6, 7, 8, 9)]


def test_an_item_that_kills_its_worker_is_quarantined_with_the_evidence() -> None:
    run = rehearsal(items=1, max_attempts=3)
    ada = run.worker("ada")
    for _ in range(3):
        ada.gets()
        ada.dies()
    run.writes()

    evidence = run.quarantined[0]
    assert (evidence.attempts, evidence.worker) == (3, "ada")
    assert evidence.evidence == "ada: silent for 30 s"
    assert run.finished


def test_items_that_were_lost_together_are_tried_alone_before_one_is_quarantined() -> None:
    run = rehearsal(items=2, chunk_size=1, max_attempts=1, listed=False)
    ada = run.worker("ada")
    ada.asks(chunks=2)
    ada.dies()
    assert run.queue == []

    ada.gets()
    ada.dies()

    run.writes()
    assert set(run.quarantined) == {0}


def test_two_lost_leases_are_not_enough_for_three_attempts() -> None:
    run = rehearsal(items=1, max_attempts=3)
    ada = run.worker("ada")
    for _ in range(2):
        ada.gets()
        ada.dies()

    assert run.queue == []
    assert ada.works() == {0}


def test_only_the_poison_is_quarantined_however_its_neighbours_were_leased() -> None:
    run = rehearsal(items=10, chunk_size=10)
    deaths = _work_with_poison(run, poison={6})

    assert set(run.quarantined) == {6}
    assert set(run.rows) == set(range(10))
    assert deaths <= 6
    assert run.finished


def test_two_poisons_in_one_chunk_are_both_found_and_nobody_else() -> None:
    run = rehearsal(items=40, chunk_size=40, smallest_grant=8)
    _work_with_poison(run, poison={3, 29})

    assert set(run.quarantined) == {3, 29}
    assert run.finished


def test_a_suspected_piece_is_leased_to_a_worker_that_holds_nothing_else() -> None:
    run = rehearsal(items=20, chunk_size=1, max_attempts=2, listed=False)
    ada = run.worker("ada")
    ada.gets()
    ada.dies()
    bob = run.worker("bob")

    ada.asks(chunks=2)
    bob.asks(chunks=2)

    assert [lease.items for lease in ada.leases[1:]] == [(0,)], "the suspect, and nothing beside it"
    assert [lease.items for lease in bob.leases] == [(1,), (2,)]


def test_a_worker_with_a_suspect_is_fed_when_that_is_done() -> None:
    run = rehearsal(items=2, chunk_size=1, max_attempts=2, listed=False)
    ada = run.worker("ada")
    ada.gets()
    ada.dies()
    suspect = ada.gets()
    assert ada.asks() is None

    ada.reports(suspect)

    assert ada.was_given() is not None


def test_a_quarantined_item_ends_the_run_though_nobody_is_there() -> None:
    run = rehearsal(items=1, max_attempts=2)
    ada = run.worker("ada")
    for _ in range(2):
        ada.gets()
        ada.dies()
    ada.leaves()

    run.writes()

    assert run.finished


def test_an_engine_s_death_blames_its_suspects_alone() -> None:
    run = rehearsal(items=10, max_attempts=2)
    ada, bob, cleo = (run.worker(name) for name in ("ada", "bob", "cleo"))
    ada.loses_engine(ada.gets(), 4, 5)

    suspects = [ada.gets().items, bob.gets().items]

    assert suspects == [(4,), (5,)], "in halves, each alone"
    assert cleo.gets().items == (0, 1, 2, 3, 6, 7, 8, 9), "nothing is against these"
    for worker, lease in ((ada, ada.leases[-1]), (cleo, cleo.leases[-1])):
        worker.loses_engine(lease, lease.items[0])
    run.writes()
    assert set(run.quarantined) == {4}


def test_an_engine_s_death_without_suspects_blames_the_whole_lease() -> None:
    run = rehearsal(items=2, max_attempts=2)
    ada = run.worker("ada")
    ada.loses_engine(ada.gets())

    ada.loses_engine(ada.gets(), reason="out of memory")

    run.writes()
    assert run.quarantined[0].evidence == "ada: out of memory"
    assert 1 not in run.quarantined


def test_suspects_that_are_not_of_the_lease_blame_nobody() -> None:
    run = rehearsal(items=4)
    ada = run.worker("ada")

    ada.loses_engine(ada.gets(), 99)

    assert ada.gets().items == (0, 1, 2, 3)


@pytest.mark.parametrize("how", ["leaves", "returns", "rejoins without it"])
def test_nobody_is_blamed_for_what_is_given_back_in_peace(how: str) -> None:
    run = rehearsal(items=1, max_attempts=2)
    ada = run.worker("ada")
    for _ in range(5):
        lease = ada.gets()
        if how == "leaves":
            ada.leaves()
        elif how == "returns":
            ada.returns(lease)
        ada.joins()

    ada.gets()
    ada.dies()
    assert run.queue == [], "its first attempt, as far as anybody is to blame"
    assert ada.works() == {0}


def test_an_innocent_neighbour_is_cleared_by_its_report() -> None:
    run = rehearsal(items=2, max_attempts=2)
    ada = run.worker("ada")
    ada.gets()
    ada.dies()

    assert ada.works() == {0, 1}
    run.writes()
    assert run.quarantined == {}


def test_a_late_result_saves_an_item_from_quarantine() -> None:
    run = rehearsal(items=1, max_attempts=2)
    ada, bob = run.worker("ada"), run.worker("bob")
    ada.gets()
    ada.dies()
    second = ada.gets()
    ada.drops()
    run.waits(29)
    bob.heard()
    ada.joins(second)
    ada.reports(second)
    run.writes()

    assert run.quarantined == {}
    assert run.rows == {0: "ada"}


def _work_with_poison(run: Run, *, poison: set[int]) -> int:
    """Have one worker, which asks for two leases at a time, die of every poisoned item it gets."""
    ada = run.worker("ada")
    deaths = 0
    while not run.finished:
        assert deaths < 50, "it is not found"
        first = ada.was_given() or ada.asks(chunks=2)
        assert first is not None, "there is work left, and nobody else to do it"
        leases = [first, *ada.inbox]
        ada.inbox.clear()
        if poison.isdisjoint(item for lease in leases for item in lease.items):
            for lease in leases:
                ada.reports(lease)
        else:
            deaths += 1
            ada.dies()
        run.writes()
    return deaths


# --------------------------------------------------------------------------- reopening


def test_reopened_items_are_done_again() -> None:
    run = rehearsal(items=4)
    ada = run.worker("ada")
    ada.works()
    run.writes()
    assert run.finished

    run.reopens(1, 2)

    assert not run.finished
    assert ada.works() == {1, 2}
    run.writes()
    assert run.finished


def test_reopening_items_of_a_live_chunk_leaves_its_leases_alone() -> None:
    run = rehearsal(items=10, listed=False)
    ada, bob = run.worker("ada"), run.worker("bob")
    lease = ada.gets()
    ada.reports(lease, 0, 1)
    run.writes()

    run.reopens(0)

    assert bob.gets().items == (0,)
    assert ada.reports(lease, 2) == (2,)


def test_a_result_from_before_the_reopening_does_not_count() -> None:
    run = rehearsal(items=10, listed=False)
    ada = run.worker("ada")
    lease = ada.gets()
    ada.reports(lease, 0)
    run.writes()
    run.reopens(0)

    assert ada.reports(lease, 0) == ()
    assert ada.gets().items == (0,)


def test_items_that_are_not_terminal_cannot_be_reopened() -> None:
    run = rehearsal(items=30, listed=False)
    ada = run.worker("ada")
    ada.reports(ada.gets(), 3)

    run.reopens(0, 3, 15, 99)

    assert (run.ledger.terminal, run.ledger.pending) == (0, 20)


def test_reopening_what_no_shard_has_changes_nothing() -> None:
    run = rehearsal(items=1)

    run.feed(ev.Reopened("nowhere", (0,)))

    assert run.ledger.pending == 1


def test_scattered_items_that_are_reopened_share_a_chunk() -> None:
    run = rehearsal(items=1000, chunk_size=100, smallest_grant=1000)
    ada, bob = run.worker("ada"), run.worker("bob")
    ada.works()
    run.writes()
    ada.leaves()

    run.reopens(*range(0, 1000, 10))

    assert bob.gets().items == tuple(range(0, 100, 10))


# --------------------------------------------------------------------------- restarts


def test_after_a_restart_terminal_items_stay_terminal_and_the_rest_is_done() -> None:
    run = rehearsal(items=10)
    ada = run.worker("ada")
    ada.reports(ada.gets(), 0, 1, 5)
    run.writes()
    run.restarts()

    assert (run.ledger.terminal, run.ledger.found) == (3, 10)
    ada.joins()
    run.feed(ev.ListingFinished())
    assert ada.works() == {2, 3, 4, 6, 7, 8, 9}


def test_what_was_reported_and_not_durable_is_open_again_after_a_restart() -> None:
    run = rehearsal(items=2)
    ada = run.worker("ada")
    lease = ada.gets()
    ada.reports(lease)

    run.restarts()

    assert run.ledger.terminal == 0
    ada.joins(lease)
    assert ada.works() == {0, 1}


def test_a_lease_survives_a_restart_and_takes_reports_sent_again() -> None:
    run = rehearsal(items=4)
    ada = run.worker("ada")
    lease = ada.gets()
    ada.reports(lease, 0, 1)
    run.writes()
    run.restarts()

    ada.joins(lease)

    assert run.ledger.is_live(lease.id)
    assert ada.reports(lease, 0, 1, 2) == (2,), "what is durable is dropped, and acknowledged"


def test_nobody_else_gets_the_items_of_a_lease_that_survived_a_restart() -> None:
    run = rehearsal(items=20, chunk_size=10, listed=False)
    ada, bob = run.worker("ada"), run.worker("bob")
    ada.gets()
    run.restarts()

    bob.joins()

    assert bob.gets().items == tuple(range(10, 20))


def test_a_lease_s_worker_that_never_comes_back_after_a_restart_blames_nobody() -> None:
    run = rehearsal(items=1, max_attempts=1)
    ada = run.worker("ada")
    ada.gets()
    for _ in range(4):
        run.restarts()
        run.waits(30)
        assert run.ledger.pending == 1
        ada.joins()
        ada.gets()

    assert run.queue == []


def test_a_restart_is_not_counted_among_an_item_s_attempts() -> None:
    run = rehearsal(items=1, max_attempts=2)
    run.worker("ada").gets()
    run.restarts()
    run.waits(30)
    bob = run.worker("bob")

    bob.gets()
    bob.dies()

    assert run.queue == []


def test_a_longer_chunk_may_begin_where_a_shorter_one_did() -> None:
    run = rehearsal(items=10)
    short = StoredLease(7, "ada", "ada", SHARD, 5, 2, (5,))
    longer = StoredLease(8, "ada", "ada", SHARD, 5, 5, (6, 7, 8, 9))
    run.ledger = Ledger(run.policy, first_lease=100)
    run.ledger.restore({}, {SHARD: 10}, [longer, short], now=run.now)
    ada = run.worker("ada")
    ada.joins(Given(7, (5,)), Given(8, (6, 7, 8, 9)))

    assert ada.reports(8, 6, 7, 8, 9) == (6, 7, 8, 9)
    assert ada.reports(7, 5) == (5,)


def test_lease_numbers_are_never_used_again_after_a_restart() -> None:
    run = rehearsal(items=20)
    ada = run.worker("ada")
    old = ada.gets()
    run.restarts()
    ada.joins()

    assert ada.gets().id > old.id


def test_a_lease_with_nothing_left_is_not_restored() -> None:
    run = rehearsal(items=4)
    ada = run.worker("ada")
    lease = ada.gets()
    stored = dict(run.remembered)
    ada.reports(lease)
    run.writes()
    run.remembered = stored

    run.restarts()

    assert run.remembered == {}
    assert run.ledger.leases_of("ada") == {}


def test_items_that_two_leases_held_are_still_held_by_both_after_a_restart() -> None:
    run = rehearsal(items=1, straggler_seconds=60, lease_seconds=1000)
    ada, bob = run.worker("ada"), run.worker("bob")
    slow = ada.gets()
    run.waits(60)
    second = bob.gets()

    run.restarts()
    ada.joins(slow)
    bob.joins(second)

    assert ada.reports(slow) == (0,)
    assert bob.reports(second) == ()


def test_after_a_restart_a_worker_holds_what_it_says_it_has() -> None:
    run = rehearsal(items=9)
    ada, bob = run.worker("ada"), run.worker("bob")
    first = ada.gets()
    bob.asks()
    bob.leaves()
    ada.gives_up(first, 5, 6, 7, 8)
    run.restarts()

    ada.joins(Given(first.id, (0, 1, 2, 3, 4)))

    assert run.ledger.left_of(first.id) == (0, 1, 2, 3, 4)
    assert run.ledger.pending == 4


def test_what_was_given_up_is_not_refused_after_a_restart() -> None:
    run = rehearsal(items=9)
    ada, bob = run.worker("ada"), run.worker("bob")
    first = ada.gets()
    bob.asks()
    ada.gives_up(first, 8)
    run.restarts()
    ada.joins(first)

    assert ada.reports(first, 0, 8) == (0, 8)


@pytest.mark.parametrize("how", ["expired", "given back", "left"])
def test_a_lease_that_ended_before_a_restart_may_still_bring_something(how: str) -> None:
    run = rehearsal(items=10)
    ada, bob = run.worker("ada"), run.worker("bob")
    lease = ada.gets()
    if how == "expired":
        run.waits(30)
    elif how == "left":
        ada.leaves()
    else:
        ada.returns(lease)
    run.restarts()
    bob.joins()
    ada.joins(lease)

    assert run.ledger.pending == 10, "it holds nothing"
    assert ada.reports(lease, 3, 4) == (3, 4)
    assert bob.works() == {0, 1, 2, 5, 6, 7, 8, 9}


def test_after_a_restart_whoever_holds_an_item_now_keeps_it_until_it_is_reported() -> None:
    run = rehearsal(items=10)
    ada, bob = run.worker("ada"), run.worker("bob")
    late = ada.gets()
    ada.returns(late)
    taken = bob.gets()
    run.restarts()
    ada.joins(late)
    bob.joins(taken)

    assert run.ledger.pending == 0
    assert ada.reports(late, 0) == (0,)
    assert bob.trimmed() == {0}
    assert bob.reports(taken) == tuple(range(1, 10))


def test_a_result_from_before_the_reopening_does_not_count_after_a_restart_either() -> None:
    run = rehearsal(items=10, listed=False)
    ada = run.worker("ada")
    lease = ada.gets()
    ada.reports(lease, 0)
    run.writes()
    run.reopens(0)
    run.restarts()
    ada.joins(lease)

    assert ada.reports(lease, 0, 1) == (1,)


def test_a_restored_shard_is_as_long_as_its_rows_say() -> None:
    run = rehearsal(items=5)
    ada = run.worker("ada")
    ada.works()
    run.writes()
    run.listed = 2

    run.restarts()

    assert (run.ledger.found, run.ledger.terminal) == (5, 5)


def test_leases_of_shards_that_are_gone_are_not_restored() -> None:
    run = rehearsal(items=3)
    run.worker("ada").gets()
    run.listed = 0

    run.restarts()

    assert run.remembered == {}


# --------------------------------------------------------------------------- for people


def test_the_story_of_a_chunk_tells_who_had_it_and_why_it_was_lost() -> None:
    run = rehearsal(items=3)
    ada = run.worker("ada")
    ada.gets()
    ada.dies()
    ada.gets()

    told = run.ledger.story(SHARD, 1)

    assert told == [
        "shard:0+3",
        "1000.0 lease 1: 3 items to ada",
        "1030.0 lease 1 of ada over, 3 left: silent for 30 s",
        "1030.0 lease 2: 2 items to ada",
    ]


def test_the_story_of_an_item_that_nobody_holds_says_so() -> None:
    assert "no live chunk" in rehearsal(items=3).ledger.story(SHARD, 1)[0]


def test_a_long_story_forgets_its_beginning() -> None:
    run = rehearsal(items=1)
    ada = run.worker("ada")
    for _ in range(100):
        ada.returns(ada.gets())

    assert len(run.ledger.story(SHARD, 0)) == 65


def test_what_is_left_of_a_lease_can_be_asked() -> None:
    run = rehearsal(items=9)
    ada, bob = run.worker("ada"), run.worker("bob")
    lease = ada.gets()
    bob.asks()
    ada.gives_up(lease, 5, 6, 7, 8)
    ada.reports(lease, 0)

    assert run.ledger.left_of(lease.id) == (1, 2, 3, 4)
    assert run.ledger.left_of(4711) == ()


def test_the_ledger_counts_every_state() -> None:
    run = rehearsal(items=40, listed=False)
    ada = run.worker("ada")
    lease = ada.gets()
    ada.reports(lease, 0, 1)
    run.writes()
    ada.reports(lease, 2)

    counts = (run.ledger.found, run.ledger.terminal, run.ledger.committing)
    assert (*counts, run.ledger.leased, run.ledger.pending) == (40, 2, 1, 7, 30)
    assert run.ledger.leases_of("ada") == {lease.id: (SHARD, 0, 7)}
    assert run.ledger.leases_of("nobody") == {}
    assert accepted(run.queue[0]) == (2,)  # type: ignore[arg-type]


# ---------------------------------------------------------------- changes on the way


def test_chunks_of_another_size_are_cut_from_the_moment_it_is_set() -> None:
    run = rehearsal(items=20, listed=False, chunk_size=8)
    ada, bob = run.worker("ada"), run.worker("bob")
    before = ada.gets()

    run.feed(ev.PolicyChanged(chunk_size=3, lease_seconds=30.0, max_attempts=3))

    assert len(before.items) == 8
    assert bob.gets().items == (8, 9, 10)
    run.ledger.check()


def test_what_was_shorter_than_a_chunk_is_one_when_chunks_are_smaller() -> None:
    run = rehearsal(items=5, listed=False, chunk_size=8)
    run.feed(ev.PolicyChanged(chunk_size=5, lease_seconds=30.0, max_attempts=3))

    assert run.worker("ada").gets().items == (0, 1, 2, 3, 4)


def test_silence_is_measured_by_the_new_time() -> None:
    run = rehearsal(items=4)
    run.worker("ada").gets()
    run.feed(ev.PolicyChanged(chunk_size=8, lease_seconds=5.0, max_attempts=3))

    run.waits(6.0)

    assert run.ledger.leased == 0


def test_what_may_be_tried_more_often_is_not_put_aside_yet() -> None:
    run = rehearsal(items=1, max_attempts=2)
    ada = run.worker("ada")
    first = ada.gets()
    run.feed(ev.Released("ada", first.id, engine_died=True))
    second = ada.gets()
    run.feed(ev.PolicyChanged(chunk_size=8, lease_seconds=30.0, max_attempts=3))

    run.feed(ev.Released("ada", second.id, engine_died=True))
    run.writes()
    assert not run.quarantined

    third = ada.gets()
    run.feed(ev.Released("ada", third.id, engine_died=True))
    run.writes()
    assert set(run.quarantined) == {0}


def test_another_recipe_has_all_items_between_stages_begin_again() -> None:
    run = rehearsal(items=6, stages=2)
    ada, bob = run.worker("ada", 0), run.worker("bob", 1)
    lease = ada.gets()
    ada.reports(lease, 0, 1, reached=1)
    run.writes()
    held = bob.gets()
    ada.reports(lease, 2, reached=1)  # on its way to the disk

    run.feed(ev.RecipeReplaced())
    run.writes()

    assert run.ledger.unserved == {}
    assert set(held.items) == {0, 1}
    assert run.ledger.leases_of("bob") == {}, "what it would be done with is of another recipe"
    run.ledger.check()
    run.told.clear()
    bob.asks()
    assert not run.tells(ev.Grant, "bob"), "nothing has a stage behind it"
