"""What the engine's emptiness is charged to: seconds in which it had room and nothing to do.

Pure: the shell owns the clock. The rule:

- An engine is full with as many requests as its batch is wide. The gate before it lets in a tenth
  more, so that the next is there when one ends; those are no loss while they are missing.
- A second with a quarter of the batch empty is a quarter of a second starved. Of several engines,
  which share a device, the fullest counts. While one is being started again nothing is counted: it
  has no room then.
- Requests that are being rendered for the engine could fill so much of the room: that much is
  charged to ``render``. Next come items that wait at the gate until it has enough room for all
  their prompts: there is something to do, so that much is charged to nothing. Then come items that
  are being loaded. Their part is split by what the loading threads are at, ``fetch`` or ``decode``.
- What room is left when all of them are in is charged to ``back_pressure`` if there are items that
  may not be begun, because finished rows cannot leave, and to ``no_lease`` if there are none. If
  there are items and it is the look-ahead that is full, loading is what is too slow, and gets it.
- Once all items of the run are handed out, nobody could fill that room: it is no starvation. It is
  counted apart, as idle at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Cause(StrEnum):
    """What an engine waits for."""

    NO_LEASE = "no_lease"
    FETCH = "fetch"
    DECODE = "decode"
    RENDER = "render"
    BACK_PRESSURE = "back_pressure"


class Supply(StrEnum):
    """Whether more items could be begun, if only they could be loaded."""

    PLENTY = "plenty"
    NO_LEASE = "no_lease"
    HELD_BACK = "held_back"
    ALL_HANDED_OUT = "all_handed_out"
    """None is left of the run but those that workers are at."""


RESERVE: Final = 1.1
"""How many requests the gate lets in for each that the engine's batch holds."""


def batch_width(slots: int) -> int:
    """Return how many requests fill an engine whose gate has so many slots."""
    return max(1, int(slots / RESERVE + 1e-9))


@dataclass(frozen=True, slots=True)
class Scene:
    """Where requests are at one moment; an item not in the engine yet counts as its prompts.

    ``width`` is how many fill the engine, ``room`` how many of those are not in it. ``fetching``
    and ``decoding`` are how many loading threads (or connections) are at what; ``loading`` is
    all that is on its way to the gate, also what waits for a thread.
    """

    width: int
    room: int = 0
    rendering: int = 0
    ready: int = 0
    loading: int = 0
    fetching: int = 0
    decoding: int = 0
    supply: Supply = Supply.NO_LEASE


def charges(scene: Scene) -> Iterator[tuple[Cause, float]]:
    """Yield what the room is charged to, in requests. See the module's docstring for the rule."""
    room = scene.room
    if room <= 0:
        return
    rendering = min(room, scene.rendering)
    if rendering:
        yield Cause.RENDER, rendering
    room -= rendering
    room -= min(room, scene.ready)
    slow = scene.supply is Supply.PLENTY and scene.loading > 0
    loading = room if slow else min(room, scene.loading)
    if loading:
        at_work = scene.fetching + scene.decoding
        fetch = loading * scene.fetching / at_work if at_work else 0.0
        if fetch:
            yield Cause.FETCH, fetch
        if fetch < loading:
            yield Cause.DECODE, loading - fetch
    room -= loading
    cause = _WITHOUT_ITEMS.get(scene.supply)
    if room and cause is not None:
        yield cause, room


_WITHOUT_ITEMS: Final = {
    Supply.NO_LEASE: Cause.NO_LEASE,
    Supply.HELD_BACK: Cause.BACK_PRESSURE,
}


def empty_at_end(scene: Scene) -> int:
    """Return how much of the room nothing is left for, in requests."""
    if scene.supply is not Supply.ALL_HANDED_OUT:
        return 0
    return max(0, scene.room - scene.rendering - scene.ready - scene.loading)


class Starvation:
    """Adds up what was charged. Tell it each `Scene` when it begins."""

    def __init__(self, *, now: float) -> None:
        self._began = self._at = now
        self._seconds = dict.fromkeys(Cause, 0.0)
        self._idle_at_end = 0.0
        self._scene: Scene | None = None

    @property
    def is_starved(self) -> bool:
        """Whether anything is charged at present."""
        return self._scene is not None and any(charges(self._scene))

    def see(self, scene: Scene | None, *, now: float) -> None:
        """Note that from ``now`` on this is the scene; None while nothing is to be counted."""
        self._charge(now)
        self._scene = scene

    def seconds(self, *, now: float) -> Mapping[Cause, float]:
        """Return the seconds charged to each cause so far."""
        self._charge(now)
        return dict(self._seconds)

    def idle_at_end(self, *, now: float) -> float:
        """Return the seconds so far in which nothing was left to fill the room with."""
        self._charge(now)
        return self._idle_at_end

    def sentence(self, *, now: float) -> str:
        """Return one line for people: how long, what share of the time, and why."""
        seconds = self.seconds(now=now)
        total, watched = sum(seconds.values()), self._at - self._began
        share = total / watched if watched > 0 else 0.0
        line = f"the engine was starved for {total:.1f} s of {watched:.1f} s ({share:.1%})"
        parts = [
            f"{cause.replace('_', ' ')} {spent:.1f} s"
            for cause, spent in sorted(seconds.items(), key=lambda one: -one[1])
            if spent >= 0.05
        ]
        if parts:
            line = f"{line}: {', '.join(parts)}"
        if self._idle_at_end >= 0.05:
            line = f"{line}; besides, {self._idle_at_end:.1f} s with every item handed out"
        return line

    def _charge(self, now: float) -> None:
        # Threads may bring times slightly out of order; time that ran backwards is no time.
        elapsed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        if self._scene is None or not elapsed:
            return
        for cause, requests in charges(self._scene):
            self._seconds[cause] += elapsed * requests / self._scene.width
        self._idle_at_end += elapsed * empty_at_end(self._scene) / self._scene.width
