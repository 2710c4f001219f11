"""How fast one peer may speak: a bucket of tokens, one a message."""

from __future__ import annotations

import asyncio
from typing import Final

WORKER_MESSAGES_PER_SECOND: Final = 1000.0
OBSERVER_REQUESTS_PER_SECOND: Final = 10.0
_BURST_SECONDS: Final = 2.0
"""What was not said in so many seconds may be said at once."""


class Pace:
    """Slows the reading from one connection; the socket slows its sender then."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._most = per_second * _BURST_SECONDS
        self._tokens = self._most
        self._at: float | None = None

    def delay(self, now: float) -> float:
        """Take one token; return the seconds until it is there."""
        since = 0.0 if self._at is None else now - self._at
        self._at = now
        self._tokens = min(self._most, self._tokens + since * self._per_second) - 1.0
        return max(0.0, -self._tokens / self._per_second)

    async def keep(self) -> None:
        """Wait until one more message may be heard."""
        delay = self.delay(asyncio.get_running_loop().time())
        if delay:
            await asyncio.sleep(delay)
