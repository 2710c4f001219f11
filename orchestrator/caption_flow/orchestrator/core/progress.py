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
    committing: int = 0
    """Items on their way to disk."""
    rate_average: float = 0.0
    """Since something was first handed out."""

    @property
    def failed(self) -> int:
        """Items that ended in a failure."""
        return sum(self.failures.values())

    @property
    def done(self) -> int:
        """Items that are captioned or failed, durably."""
        return self.captioned + self.failed


class Recently:
    """How fast something comes: over the last minute, or since the start if that is shorter."""

    def __init__(self, *, now: float) -> None:
        self._started = now
        self._recent: deque[tuple[float, int]] = deque()

    def __len__(self) -> int:
        return len(self._recent)

    def add(self, amount: int, *, now: float) -> None:
        """Count so much more."""
        if amount and self._recent and now - self._recent[-1][0] < _BUCKET_SECONDS:
            since, rows = self._recent[-1]
            self._recent[-1] = (since, rows + amount)
        elif amount:
            self._recent.append((now, amount))
        self._forget(now)

    def begin(self, *, now: float) -> None:
        """Note that something may come from now on, unless some has come of late."""
        if not self._recent:
            self._started = now

    def rate(self, *, now: float) -> float:
        """Return how much comes a second."""
        self._forget(now)
        seconds = min(_WINDOW_SECONDS, now - self._started)
        return sum(added for _, added in self._recent) / seconds if seconds > 0 else 0.0

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - _WINDOW_SECONDS:
            self._recent.popleft()


class TokenTally:
    """Counts the tokens of durable answers: of prompts (in) and generated (out)."""

    def __init__(self, *, now: float) -> None:
        self.total_in = self.total_out = 0
        self._in, self._out = Recently(now=now), Recently(now=now)

    def add(self, tokens_in: int, tokens_out: int, *, now: float) -> None:
        """Count so many more."""
        self.total_in += tokens_in
        self.total_out += tokens_out
        self._in.add(tokens_in, now=now)
        self._out.add(tokens_out, now=now)

    def begin(self, *, now: float) -> None:
        """Note that work is handed out."""
        self._in.begin(now=now)
        self._out.begin(now=now)

    def rates(self, *, now: float) -> tuple[float, float]:
        """Return tokens a second, in and out, of late."""
        return self._in.rate(now=now), self._out.rate(now=now)


class Tally:
    """Counts durable rows and how fast they come."""

    def __init__(self, totals: Mapping[str, int], *, now: float) -> None:
        self.counts = dict(totals)
        self.before = sum(self.counts.values())
        self._added = 0
        self._began: float | None = None
        self._last = now
        self._recent = Recently(now=now)

    def add(self, counts: Mapping[str, int], *, now: float) -> None:
        """Count rows that have become durable: ``captioned``, or a failure's kind."""
        for kind, rows in counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + rows
        added = sum(counts.values())
        self._added += added
        self._last = now if added else self._last
        self._recent.add(added, now=now)

    def begin(self, *, now: float) -> None:
        """Note that work is handed out: the time before, of loading models, is not its pace."""
        self._recent.begin(now=now)
        if self._began is None:
            self._began = now

    def take_back(self, counts: Mapping[str, int]) -> None:
        """Uncount rows whose items are to be done again."""
        for kind, rows in counts.items():
            self.counts[kind] = self.counts.get(kind, 0) - rows
        self.before -= sum(counts.values())

    def rate(self, *, now: float) -> float:
        """Return items a second over the last minute, or since the start if that is shorter."""
        return self._recent.rate(now=now)

    def average(self, *, until: float) -> float:
        """Return items a second since work was first handed out; 0 before that."""
        if self._began is None or until <= self._began:
            return 0.0
        return self._added / (until - self._began)

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
            failures={k: rows for k, rows in self.counts.items() if k != CAPTIONED and rows},
            pending=pending,
            leased=leased,
            workers=workers,
            rate=rate,
            eta_seconds=left / rate if rate > 0 and listed else None,
            before=self.before,
            # What is done takes no more time.
            rate_average=self.average(until=now if left or not listed else self._last),
        )
