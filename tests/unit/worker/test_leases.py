"""What a worker holds, and when it asks for more."""

from __future__ import annotations

import pytest

from caption_flow.protocol.messages import GrantedLease, ItemDescription, LeaseId
from caption_flow.worker.core.leases import ANSWER_SECONDS, Appetite, Job, LeaseBook, Rate

ONE, TWO = LeaseId(1), LeaseId(2)


def granted(lease: LeaseId, *items: int) -> GrantedLease:
    described = tuple(ItemDescription(index) for index in items)
    return GrantedLease(lease=lease, shard="s", chunk=f"c{lease}", items=described)


def book_of(*leases: GrantedLease) -> LeaseBook:
    book = LeaseBook()
    for lease in leases:
        book.take(lease, "recipe")
    return book


def begin(book: LeaseBook) -> tuple[int, int]:
    job = book.begin()
    assert job is not None
    book.check()
    return job.key


def test_items_are_begun_in_ascending_order_oldest_lease_first() -> None:
    book = book_of(granted(ONE, 3, 4), granted(TWO, 0))

    assert [begin(book) for _ in range(3)] == [(1, 3), (1, 4), (2, 0)]
    assert book.begin() is None


def test_a_job_knows_the_recipe_its_lease_was_granted_under() -> None:
    book = LeaseBook()
    book.take(granted(ONE, 0), "old")
    book.take(granted(TWO, 0), "new")

    assert book.begin() == Job(ONE, ItemDescription(0), "old")
    assert book.begin() == Job(TWO, ItemDescription(0), "new")


def test_a_lease_is_over_when_its_last_item_has_its_row() -> None:
    book = book_of(granted(ONE, 0, 1))
    begin(book)
    begin(book)

    assert book.finish(ONE, 0)
    assert len(book.held) == 1
    assert book.finish(ONE, 1)
    assert not book.held
    book.check()


@pytest.mark.parametrize("item", [0, 1, 7])
def test_only_a_begun_item_can_finish(item: int) -> None:
    book = book_of(granted(ONE, 0, 1))
    begin(book)
    book.finish(ONE, 0)

    assert not book.finish(ONE, item)
    assert not book.finish(TWO, item)
    book.check()


def test_trim_forgets_what_is_not_begun_and_nothing_else() -> None:
    book = book_of(granted(ONE, 0, 1, 2, 3))
    begin(book)

    assert book.trim(ONE, (0, 2, 3, 9)) == 2
    assert (book.waiting, book.begun) == (1, 1)
    assert begin(book) == (1, 1)
    assert book.finish(ONE, 0)


def test_trim_of_everything_ends_the_lease() -> None:
    book = book_of(granted(ONE, 0, 1))

    book.trim(ONE, (0, 1))

    assert book.held == ()
    assert book.trim(ONE, (0, 1)) == 0
    book.check()


def test_granted_counts_what_this_worker_has_or_did() -> None:
    book = book_of(granted(ONE, 0, 1, 2), granted(TWO, 5))
    begin(book)
    book.finish(ONE, 0)
    assert book.granted == 4

    book.trim(ONE, (1,))
    assert book.granted == 3
    book.keep_only((ONE,))
    assert book.granted == 2
    book.forget_waiting()
    assert book.granted == 1


def test_lost_leases_take_their_begun_items_with_them() -> None:
    book = book_of(granted(ONE, 0, 1), granted(TWO, 5, 6))
    for _ in range(3):
        begin(book)

    assert book.keep_only((TWO,)) == ((ONE, 0), (ONE, 1))
    assert not book.finish(ONE, 0)
    assert (book.held, book.waiting, book.begun) == ((TWO,), 1, 1)
    book.check()


def test_forgetting_what_waits_leaves_what_is_begun() -> None:
    book = book_of(granted(ONE, 0, 1), granted(TWO, 5))
    begin(book)

    assert [book.has_waiting(lease) for lease in (ONE, TWO)] == [True, True]
    book.forget_waiting()
    assert [book.has_waiting(lease) for lease in (ONE, TWO)] == [False, False]
    assert (book.held, book.waiting, book.begun) == ((ONE,), 0, 1)
    book.check()


def test_what_is_given_up_is_what_would_be_begun_last() -> None:
    book = book_of(granted(ONE, 0, 1, 2), granted(TWO, 5, 6))
    begin(book)

    assert book.give(3) == {TWO: (5, 6), ONE: (2,)}
    assert (book.held, book.waiting, book.begun, book.granted) == ((ONE,), 1, 1, 2)
    assert book.give(9) == {ONE: (1,)}, "what is begun is kept"
    assert book.give(1) == {}
    book.check()


def test_begun_items_that_are_not_worked_on_any_more_are_forgotten() -> None:
    book = book_of(granted(ONE, 0, 1))
    begin(book)
    begin(book)

    book.withdraw([(ONE, 1), (ONE, 7), (TWO, 0)])

    assert (book.begun, book.granted) == (1, 1)
    assert not book.finish(ONE, 1)
    book.check()


def test_the_items_of_a_lease_are_those_waiting_and_begun() -> None:
    book = book_of(granted(ONE, 0, 1, 2))
    begin(book)
    begin(book)
    book.finish(ONE, 0)

    assert book.items(ONE) == {1, 2}
    assert book.items(TWO) == set()


def test_a_lease_granted_twice_is_held_once() -> None:
    book = book_of(granted(ONE, 0, 1))
    begin(book)

    book.take(granted(ONE, 0, 1, 2), "recipe")

    assert (book.waiting, book.begun) == (2, 1)
    book.check()


def test_an_empty_lease_is_not_held() -> None:
    book = book_of(granted(ONE))

    assert book.held == ()
    book.check()


# --------------------------------------------------------------------------- asking for more


def test_more_is_asked_for_before_the_present_runs_dry() -> None:
    appetite = Appetite()

    assert appetite.is_due(9, idle=9, width=10, rate=0.0, now=0.0)
    assert not appetite.is_due(10, idle=10, width=10, rate=0.0, now=0.0)
    assert appetite.is_due(90, idle=90, width=10, rate=10.0, now=0.0), (
        "ten seconds' worth is the mark"
    )


def test_one_question_at_a_time() -> None:
    appetite = Appetite()
    appetite.asked(idle=0, now=0.0)

    assert not appetite.is_due(0, idle=0, width=10, rate=0.0, now=1.0)
    appetite.answered(now=2.0)
    assert appetite.is_due(0, idle=0, width=10, rate=0.0, now=2.0)


def test_a_question_nobody_answers_is_asked_again() -> None:
    appetite = Appetite()
    appetite.asked(idle=0, now=0.0)

    assert appetite.is_due(0, idle=0, width=10, rate=0.0, now=ANSWER_SECONDS)


def test_wait_is_respected_and_forgotten_with_its_connection() -> None:
    appetite = Appetite()
    appetite.asked(idle=0, now=0.0)
    appetite.answered(now=1.0, again_after_seconds=40.0)

    assert not appetite.is_due(0, idle=0, width=10, rate=0.0, now=40.9)
    assert appetite.is_due(0, idle=0, width=10, rate=0.0, now=41.0)
    appetite.answered(now=1.0, again_after_seconds=40.0)
    appetite.start_over()
    assert appetite.is_due(0, idle=0, width=10, rate=0.0, now=2.0)


def test_a_question_asked_in_good_time_is_repeated_once_when_nothing_is_left_to_begin() -> None:
    appetite = Appetite()
    appetite.asked(idle=3, now=0.0)
    appetite.answered(now=1.0, again_after_seconds=40.0)

    assert not appetite.is_due(1, idle=1, width=10, rate=0.0, now=2.0)
    assert appetite.is_due(0, idle=0, width=10, rate=0.0, now=2.0)
    appetite.asked(idle=0, now=2.0)
    assert not appetite.is_due(0, idle=0, width=10, rate=0.0, now=3.0)


def test_the_rate_is_right_from_the_first_seconds_on_and_fades() -> None:
    rate = Rate()
    assert rate.per_second(now=5.0) == 0.0
    for tick in range(40):
        rate.note(now=tick / 10)

    assert rate.per_second(now=4.0) == pytest.approx(10.0, rel=0.1)
    assert rate.per_second(now=64.0) < 2.0
