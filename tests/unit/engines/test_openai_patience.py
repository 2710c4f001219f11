"""When an unwilling server is asked again, and whose fault it is in the end."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from caption_flow.worker.engines.base import EngineDied, EngineUnavailable, RequestRefused
from caption_flow.worker.engines.openai_patience import (
    SERVER_FAULT,
    Health,
    Patience,
    Trouble,
    TroubleKind,
    retry_after_seconds,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
AWAY = Trouble(TroubleKind.AWAY, "away")
BUSY = Trouble(TroubleKind.BUSY, "busy")
BROKEN = Trouble(TroubleKind.BROKEN, "broken")
FAULT = Trouble(TroubleKind.FAULT, "fault")
TIMEOUT = Trouble(TroubleKind.TIMEOUT, "hung", lasted_seconds=60)


def patience(health: Health | None = None, seconds: float = 100) -> Patience:
    return Patience(health or Health(), patience_seconds=seconds, first_delay_seconds=0.5)


def delays(trouble: Trouble, count: int, *, chance: float = 0) -> list[float]:
    one = patience()
    return [one.delay_after(trouble, now=0, chance=chance) for _ in range(count)]


def test_waits_double_up_to_half_a_minute() -> None:
    assert delays(AWAY, 8) == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_chance_takes_up_to_half_of_a_wait() -> None:
    assert delays(AWAY, 3, chance=1) == [0.25, 0.5, 1]


def test_what_the_server_asks_for_is_waited_in_full_and_no_more_than_two_minutes() -> None:
    for asked, waited in ((7, 7), (0, 0), (3600, 120)):
        busy = Trouble(TroubleKind.BUSY, "busy", retry_after_seconds=asked)
        assert patience(seconds=1000).delay_after(busy, now=0, chance=0) == waited
        assert waited <= patience(seconds=1000).delay_after(busy, now=0, chance=1) <= waited + 0.5


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 1.5 ", 1.5),
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
        ("Sun, 01 Mar 2026 12:00:30 -0000", 30),
        ("-5", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, now=NOW) == seconds


@pytest.mark.parametrize("trouble", [AWAY, BUSY])
def test_a_server_away_or_busy_for_too_long_is_nobodys_fault(trouble: Trouble) -> None:
    one = patience(seconds=100)
    one.delay_after(trouble, now=0, chance=0)
    one.delay_after(trouble, now=98.9, chance=0)
    with pytest.raises(EngineUnavailable, match=r"\(asked 3 times in 99 s\)"):
        one.delay_after(trouble, now=98.9, chance=0)


def test_patience_begins_anew_whenever_the_server_answers_somebody() -> None:
    health = Health()
    one = patience(health, seconds=100)
    for now in range(0, 1000, 50):
        health.answered_at = now - 40
        one.delay_after(BUSY, now=now, chance=0)


def test_a_hung_server_has_used_up_its_patience_by_the_time_that_is_seen() -> None:
    one = patience(seconds=50)
    with pytest.raises(EngineDied, match="hung"):
        one.delay_after(TIMEOUT, now=60, chance=0)


def test_four_faults_while_others_are_answered_are_the_requests_own() -> None:
    health = Health()
    one = patience(health)
    for now in (0, 1, 2):
        one.delay_after(FAULT, now=now, chance=0)
    health.answered_at = 2.5
    with pytest.raises(RequestRefused, match="4 times, while it answered other requests") as told:
        one.delay_after(FAULT, now=3, chance=0)
    assert told.value.kind == SERVER_FAULT


def test_two_timeouts_while_others_are_answered_are_the_requests_own() -> None:
    health = Health()
    one = patience(health)
    one.delay_after(TIMEOUT, now=60, chance=0)
    health.answered_at = 90
    with pytest.raises(RequestRefused):
        one.delay_after(TIMEOUT, now=120, chance=0)


def test_what_was_answered_before_the_first_fault_proves_nothing() -> None:
    one = patience(Health(answered_at=0))
    for now in range(1, 7):
        one.delay_after(FAULT, now=now, chance=0)
    with pytest.raises(EngineDied, match=r"\(7 times in a row\)"):
        one.delay_after(FAULT, now=7, chance=0)


@pytest.mark.parametrize("trouble", [AWAY, BROKEN])
def test_faults_of_a_server_that_went_away_meanwhile_prove_nothing(trouble: Trouble) -> None:
    health = Health()
    one, other = patience(health), patience(health)
    for now in (0, 1, 2):
        one.delay_after(FAULT, now=now, chance=0)
    other.delay_after(trouble, now=2.5, chance=0)  # seen by another request
    health.answered_at = 2.8
    for now in (3, 4, 5):
        one.delay_after(FAULT, now=now, chance=0)
    health.answered_at = 5.5
    with pytest.raises(RequestRefused):
        one.delay_after(FAULT, now=6, chance=0)


def test_three_connections_broken_by_one_request_make_it_a_suspect() -> None:
    health = Health()
    one = patience(health)
    for now in (0, 10):
        one.delay_after(BROKEN, now=now, chance=0)
        health.answered_at = now + 5
    with pytest.raises(EngineDied, match="3 times with the same request"):
        one.delay_after(BROKEN, now=20, chance=0)


def test_a_server_that_cannot_be_reached_breaks_nothing() -> None:
    one = patience()
    for _ in range(10):
        one.delay_after(AWAY, now=0, chance=0)
