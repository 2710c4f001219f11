"""Says that something is tried again, in our words rather than in a library's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from stamina.instrumentation import RetryDetails

log = structlog.get_logger()


def tell_of_retries() -> None:
    """Have each retry of this process logged as one line that people can read."""
    from stamina.instrumentation import set_on_retry_hooks  # noqa: PLC0415  -- for few commands

    set_on_retry_hooks([_tell])


def _tell(details: RetryDetails) -> None:
    cause = details.caused_by
    lines = str(cause).splitlines()
    log.info(
        "that did not work, trying again",
        reason=lines[0] if lines else type(cause).__name__,
        in_seconds=f"{details.wait_for:.1f}",
    )
