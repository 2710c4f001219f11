"""Bytes are asked for a few at a time, and again after a reconnect."""

from __future__ import annotations

from caption_flow.protocol.messages import Fetch, Image, LeaseId
from caption_flow.worker.core.fetches import SILENCE_SECONDS, Fetches

ONE, TWO = LeaseId(1), LeaseId(2)


def fetches_of(*items: int, in_flight: int = 2) -> Fetches:
    fetches = Fetches(in_flight=in_flight)
    for item in items:
        fetches.want(ONE, item)
    fetches.open()
    return fetches


def test_questions_in_flight_are_bounded_and_the_oldest_go_first() -> None:
    fetches = fetches_of(5, 6, 7)

    assert fetches.due(now=0.0) == [Fetch(ONE, (5,)), Fetch(ONE, (6,))]
    assert fetches.due(now=0.0) == []
    fetches.answered(ONE, 6, now=1.0)
    assert fetches.due(now=1.0) == [Fetch(ONE, (7,))]
    fetches.check()


def test_a_reconnect_asks_again() -> None:
    fetches = fetches_of(5)
    fetches.due(now=0.0)

    fetches.close()
    assert fetches.due(now=0.0) == []
    fetches.open()
    assert fetches.due(now=1.0) == [Fetch(ONE, (5,))]


def test_what_nobody_waits_for_is_not_asked_again() -> None:
    fetches = fetches_of(5, 6)
    fetches.want(TWO, 0)
    fetches.due(now=0.0)
    fetches.drop(ONE, 5)
    fetches.keep_only((TWO,))

    fetches.open()

    assert fetches.due(now=0.0) == [Fetch(TWO, (0,))]
    fetches.check()


def test_an_orchestrator_that_owes_images_and_sends_none_is_noticed() -> None:
    fetches = fetches_of(5, 6)
    assert not fetches.is_stuck(now=SILENCE_SECONDS * 2), "nothing asked, nothing owed"

    fetches.due(now=1000.0)
    assert not fetches.is_stuck(now=1000.0 + SILENCE_SECONDS * 0.9)
    fetches.answered(ONE, 5, now=1000.0 + SILENCE_SECONDS * 0.9)
    assert not fetches.is_stuck(now=1000.0 + SILENCE_SECONDS * 1.5)
    assert fetches.is_stuck(now=1000.0 + SILENCE_SECONDS * 2)


def test_pieces_of_an_image_become_one_and_each_of_them_is_a_sign_of_life() -> None:
    fetches = fetches_of(5, 6)
    fetches.due(now=0.0)

    assert fetches.receive(Image(1, 5, b"ab", offset=0, more=True), now=50.0) is None
    assert fetches.receive(Image(1, 6, b"other"), now=60.0) == Image(1, 6, b"other")
    assert fetches.receive(Image(1, 5, b"cd", offset=2, more=True), now=100.0) is None
    assert not fetches.is_stuck(now=100.0 + SILENCE_SECONDS - 1)
    fetches.check()
    assert fetches.receive(Image(1, 5, b"e", offset=4), now=101.0) == Image(1, 5, b"abcde")
    assert fetches.in_flight == 0
    fetches.check()


def test_pieces_that_nobody_waits_for_are_not_kept() -> None:
    fetches = fetches_of(5)
    fetches.due(now=0.0)
    fetches.receive(Image(1, 5, b"ab", offset=0, more=True), now=1.0)

    fetches.drop(ONE, 5)

    assert fetches.receive(Image(1, 5, b"cd", offset=2, more=True), now=2.0) is None
    assert fetches.receive(Image(1, 5, b"e", offset=4), now=2.0) is None
    fetches.check()


def test_pieces_of_a_lost_connection_are_not_joined_with_those_of_the_next() -> None:
    fetches = fetches_of(5)
    fetches.due(now=0.0)
    fetches.receive(Image(1, 5, b"ab", offset=0, more=True), now=1.0)

    fetches.close()
    fetches.open()
    fetches.due(now=2.0)

    assert fetches.receive(Image(1, 5, b"abc"), now=3.0) == Image(1, 5, b"abc")


def test_an_image_that_fails_in_the_middle_says_why_and_keeps_no_piece() -> None:
    fetches = fetches_of(5)
    fetches.due(now=0.0)
    fetches.receive(Image(ONE, 5, b"half", more=True), now=1.0)

    failed = Image(ONE, 5, error="it has changed", kind="image_changed", offset=4)
    assert fetches.receive(failed, now=2.0) == failed
    assert fetches.in_flight == 0
    fetches.check()
