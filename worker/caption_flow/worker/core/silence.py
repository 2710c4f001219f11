"""How long an engine with requests in it has given no sign of life. Pure: the shell owns the clock.

A hung engine answers every question about its health and no request. What tells it from a busy one
is a count that grows with every token; what tells it from an idle one is that requests are in it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Silence:
    """Adds up silence, from look to look.

    A gap between two looks counts for at most ``longest_gap_seconds``: after a longer one it was
    this process that stood still, and the engine's signs of life may be there, unread.
    """

    longest_gap_seconds: float
    _seconds: float = 0.0
    _beats: int | None = None
    _looked: float = 0.0

    def look(self, beats: int, *, busy: bool, now: float) -> float:
        """Return for how many seconds the engine has been busy without its ``beats`` growing."""
        if busy and beats == self._beats:
            self._seconds += min(now - self._looked, self.longest_gap_seconds)
        else:
            self._seconds = 0.0
        self._beats = beats if busy else None
        self._looked = now
        return self._seconds
