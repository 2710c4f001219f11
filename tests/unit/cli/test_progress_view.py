from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from caption_flow.cli.progress_view import Moment, duration, rate, step
from caption_flow.orchestrator.core.progress import Progress


def moment(
    *, seconds: float = 0.0, trouble: bool = False, stopping: bool = False, **said: Any
) -> Moment:
    values: dict[str, Any] = {
        "total": 100,
        "listed": True,
        "captioned": 0,
        "failures": {},
        "pending": 0,
        "leased": 0,
        "workers": 1,
        "rate": 0.0,
        "eta_seconds": None,
        "before": 0,
    }
    return Moment(Progress(**{**values, **said}), seconds, trouble, stopping)


def test_a_line_has_count_rate_failures_and_time_left() -> None:
    now = moment(captioned=40, failures={"corrupt": 2}, rate=3.25, eta_seconds=4000)
    assert step(now) == "step 42/100 3.2/s, 2 failed, 1 h 6 min left"


def test_a_total_that_may_still_grow_says_so() -> None:
    assert step(moment(captioned=1, listed=False, rate=1.0)).startswith("step 1/100+ ")


def test_what_is_waited_for_at_first_is_said_and_for_how_long() -> None:
    assert step(moment(workers=0)) == "step 0/100 starting"
    assert step(moment(seconds=75)) == "step 0/100 loading the model, 1 min 15 s"
    # What earlier runs did is no sign that this one has begun.
    assert "loading the model" in step(moment(captioned=7, before=7))


def test_a_run_that_is_done_has_no_time_left() -> None:
    now = moment(captioned=100, rate=50.0, eta_seconds=0.0)
    assert step(now) == "step 100/100 50/s, 0 failed"


def test_a_run_that_stops_promises_no_end() -> None:
    now = moment(captioned=3, rate=1.0, eta_seconds=97.0, stopping=True)
    assert step(now) == "step 3/100 1.0/s, 0 failed, stopping"


def test_trouble_with_the_disk_comes_before_all_else() -> None:
    assert step(moment(captioned=3, rate=1.0, trouble=True)) == (
        "step 3/100 waiting: results cannot be stored"
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (700, "11 min"), (7322, "2 h 2 min")],
)
def test_times_are_as_precise_as_people_want_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("per_second", "said"), [(1234.5, "1,234/s"), (12.3, "12/s"), (0.5, "0.5/s"), (0.05, "3.0/min")]
)
def test_rates_are_in_the_unit_in_which_they_are_readable(per_second: float, said: str) -> None:
    assert rate(per_second) == said


def test_a_run_that_its_owner_paused_says_how_it_goes_on() -> None:
    paused = replace(moment(captioned=3, rate=1.0), paused=True)
    assert step(paused) == "step 3/100 paused: `caption-flow resume` lets it go on"
    busy = replace(moment(captioned=3, leased=4, rate=1.0), paused=True)
    assert "1.0/s" in step(busy), "what workers have, they finish"
