"""What the tests with real processes share."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line past pytest's capture: the figures are part of the result."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(line)

    return say
