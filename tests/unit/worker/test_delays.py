"""When a worker that has lost its orchestrator dials again."""

from __future__ import annotations

from itertools import islice

import pytest

from caption_flow.worker.client import LONGEST_DELAY_SECONDS, delays, longest_delay


@pytest.mark.parametrize("lease_seconds", [0.5, 5.0, 120.0, 3600.0])
def test_there_is_time_for_several_dials_within_a_lease(lease_seconds: float) -> None:
    waited = list(islice(delays(longest_delay(lease_seconds)), 20))

    assert max(waited) * 5 <= lease_seconds


def test_delays_grow_up_to_the_longest() -> None:
    waited = list(islice(delays(longest_delay(3600.0)), 20))

    assert waited == sorted(waited)
    assert waited[0] < 1
    assert waited[-1] == LONGEST_DELAY_SECONDS
