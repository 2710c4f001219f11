"""Counts, rate and time left of a run."""

from __future__ import annotations

import pytest

from caption_flow.orchestrator.core.progress import Progress, Tally, TokenTally


def at(tally: Tally, now: float, *, total: int = 100, listed: bool = True) -> Progress:
    return tally.progress(total=total, listed=listed, pending=5, leased=7, workers=2, now=now)


def test_captions_and_failures_are_counted_apart() -> None:
    tally = Tally({"captioned": 10, "corrupt_image": 2}, now=0.0)

    tally.add({"captioned": 3, "quarantined": 1}, now=1.0)

    now = at(tally, 1.0)
    assert (now.captioned, now.failed, now.done, now.before) == (13, 3, 16, 12)
    assert now.failures == {"corrupt_image": 2, "quarantined": 1}
    assert (now.pending, now.leased, now.workers) == (5, 7, 2)


def test_what_was_done_before_the_start_makes_no_rate() -> None:
    assert at(Tally({"captioned": 50}, now=0.0), 10.0).rate == 0.0


def test_the_rate_is_that_of_the_last_minute() -> None:
    tally = Tally({}, now=0.0)
    tally.add({"captioned": 6000}, now=1.0)
    for second in range(100, 160):
        tally.add({"captioned": 2}, now=float(second))

    assert tally.rate(now=160.0) == pytest.approx(2.0)


def test_a_young_run_s_rate_counts_from_its_start() -> None:
    tally = Tally({}, now=0.0)
    tally.add({"captioned": 30}, now=2.0)

    assert tally.rate(now=3.0) == pytest.approx(10.0)
    assert Tally({}, now=0.0).rate(now=0.0) == 0.0


def test_many_small_commits_are_counted_in_few_buckets() -> None:
    tally = Tally({}, now=0.0)
    for step in range(60_000):
        tally.add({"captioned": 1}, now=step / 1000)

    assert tally.rate(now=60.0) == pytest.approx(1000.0, rel=0.01)
    assert len(tally._recent) <= 121


def test_the_rate_falls_to_nothing_when_nothing_comes() -> None:
    tally = Tally({}, now=0.0)
    tally.add({"captioned": 100}, now=1.0)

    assert at(tally, 120.0).rate == 0.0
    assert at(tally, 120.0).eta_seconds is None


def test_the_time_left_is_said_only_when_everything_is_listed() -> None:
    tally = Tally({}, now=0.0)
    tally.add({"captioned": 10, "failed": 10}, now=1.0)

    assert at(tally, 2.0).eta_seconds == pytest.approx(8.0)
    assert at(tally, 2.0, listed=False).eta_seconds is None


def test_the_average_counts_from_when_something_was_first_handed_out() -> None:
    tally = Tally({"captioned": 1000}, now=0.0)
    tally.begin(now=100.0)
    tally.add({"captioned": 10, "failed": 10}, now=105.0)
    tally.begin(now=200.0)

    assert at(tally, 110.0, total=2000).rate_average == pytest.approx(2.0)
    assert at(tally, 300.0, total=2000).rate_average == pytest.approx(0.1)
    assert Tally({}, now=0.0).average(until=5.0) == 0.0


def test_time_after_the_last_item_does_not_count_for_the_average() -> None:
    tally = Tally({}, now=0.0)
    tally.begin(now=0.0)
    tally.add({"captioned": 100}, now=50.0)

    assert at(tally, 5000.0, total=100).rate_average == pytest.approx(2.0)


def test_tokens_are_counted_in_all_and_by_the_second() -> None:
    tokens = TokenTally(now=0.0)
    tokens.begin(now=10.0)
    tokens.add(300, 20, now=11.0)
    tokens.add(300, 20, now=14.0)

    assert (tokens.total_in, tokens.total_out) == (600, 40)
    assert tokens.rates(now=20.0) == pytest.approx((60.0, 4.0))
    assert tokens.rates(now=100.0) == (0.0, 0.0)


def test_a_kind_of_failure_that_was_taken_back_is_not_named_any_more() -> None:
    tally = Tally({"captioned": 1, "corrupt_image": 2}, now=0.0)
    tally.take_back({"corrupt_image": 2})

    assert at(tally, 1.0).failures == {}
