"""How far a run is: counts, rate and time left. Pure; times in seconds of a monotonic clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from caption_flow.protocol.rows import CAPTIONED

_WINDOW_SECONDS: Final = 60.0
_BUCKET_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """A run at one moment. ``total`` is final once ``listed``; rates are items a second."""

    total: int
    listed: bool
    captioned: int
    failures: Mapping[str, int]
    pending: int
    leased: int
    workers: int
    rate: float
    eta_seconds: float | None
    before: int
    """Items that were terminal before this orchestrator started."""
    unserved: Mapping[str, int] = field(default_factory=dict)
    """Items that wait for a stage which no connected worker runs, by the stage's name."""
    passed_over: Mapping[str, str] = field(default_factory=dict)
    """Shards of which not all could be read, with the reason; their items are not in ``total``, or
    have failed."""

    @property
    def failed(self) -> int:
        """Items that ended in a failure."""
        return sum(self.failures.values())

    @property
    def done(self) -> int:
        """Items that are captioned or failed, durably."""
        return self.captioned + self.failed


class Tally:
    """Counts durable rows and how fast they come."""

    def __init__(self, totals: Mapping[str, int], *, now: float) -> None:
        self.counts = dict(totals)
        self.before = sum(self.counts.values())
        self._started = now
        self._recent: deque[tuple[float, int]] = deque()

    def add(self, counts: Mapping[str, int], *, now: float) -> None:
        """Count rows that have become durable: ``captioned``, or a failure's kind."""
        for kind, rows in counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + rows
        added = sum(counts.values())
        if added and self._recent and now - self._recent[-1][0] < _BUCKET_SECONDS:
            since, rows = self._recent[-1]
            self._recent[-1] = (since, rows + added)
        elif added:
            self._recent.append((now, added))
        self._forget(now)

    def begin(self, *, now: float) -> None:
        """Note that work is handed out: the time before, of loading models, is not its pace."""
        if not self._recent:
            self._started = now

    def take_back(self, counts: Mapping[str, int]) -> None:
        """Uncount rows whose items are to be done again."""
        for kind, rows in counts.items():
            self.counts[kind] = self.counts.get(kind, 0) - rows
        self.before -= sum(counts.values())

    def rate(self, *, now: float) -> float:
        """Return items a second over the last minute, or since the start if that is shorter."""
        self._forget(now)
        seconds = min(_WINDOW_SECONDS, now - self._started)
        return sum(added for _, added in self._recent) / seconds if seconds > 0 else 0.0

    def progress(
        self, *, total: int, listed: bool, pending: int, leased: int, workers: int, now: float
    ) -> Progress:
        """Put counts, rate and time left together."""
        rate = self.rate(now=now)
        left = total - sum(self.counts.values())
        return Progress(
            total=total,
            listed=listed,
            captioned=self.counts.get(CAPTIONED, 0),
            failures={k: rows for k, rows in self.counts.items() if k != CAPTIONED},
            pending=pending,
            leased=leased,
            workers=workers,
            rate=rate,
            eta_seconds=left / rate if rate > 0 and listed else None,
            before=self.before,
        )

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - _WINDOW_SECONDS:
            self._recent.popleft()
