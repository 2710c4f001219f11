"""Sees where items and requests are, and tells `core.starvation` whenever that changes.

What it takes for a look is a few counters, kept as items move: it never goes through the items.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from enum import Enum
from typing import Final

from caption_flow.worker.core.starvation import Cause, Scene, Starvation, Supply, batch_width
from caption_flow.worker.loading import Activity
from caption_flow.worker.supervision import SupervisedEngine

_FULL: Final = Scene(width=1, room=0)


class Place(Enum):
    """Where an item is that is not in an engine."""

    LOADING = "loading"
    READY = "ready"
    """It waits at the gate."""


class Gauge:
    """Watches the engines and the way to them; its `Starvation` begins with it."""

    def __init__(
        self,
        engines: Callable[[], Collection[SupervisedEngine]],
        activity: Activity,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engines = engines
        self._activity = activity
        self._clock = clock
        self._rendering: Counter[str] = Counter()
        self._places: dict[int, tuple[Place, int]] = {}
        self._requests: Counter[Place] = Counter()
        self._supply = Supply.NO_LEASE
        self._starvation = Starvation(now=clock())
        self.look()

    def put(self, age: int, place: Place, requests: int) -> None:
        """Note that the item of this age is here now; it brings so many requests."""
        self._take_away(age)
        self._places[age] = (place, requests)
        self._requests[place] += requests
        self.look()

    def remove(self, age: int) -> None:
        """Note that the item is in an engine, or gone; idempotent."""
        self._take_away(age)
        self.look()

    def supply(self, supply: Supply) -> None:
        """Note whether more items could be begun."""
        self._supply = supply
        self.look()

    @contextlib.contextmanager
    def rendering(self, engine: SupervisedEngine) -> Iterator[None]:
        """Note that one request is rendered for this engine meanwhile."""
        self._rendering[engine.model] += 1
        self.look()
        try:
            yield
        finally:
            self._rendering[engine.model] -= 1
            self.look()

    def look(self) -> None:
        """Note what is so now: something has changed."""
        self._starvation.see(self._scene(), now=self._clock())

    @property
    def is_starved(self) -> bool:
        """Whether an engine has room now, and nothing to do."""
        return self._starvation.is_starved

    def seconds(self) -> Mapping[Cause, float]:
        """Return the starved seconds so far, by cause."""
        return self._starvation.seconds(now=self._clock())

    def idle_at_end(self) -> float:
        """Return the seconds so far in which nothing was left of the run to fill the room with."""
        return self._starvation.idle_at_end(now=self._clock())

    def sentence(self) -> str:
        """Return the line for people."""
        return self._starvation.sentence(now=self._clock())

    def _take_away(self, age: int) -> None:
        place, requests = self._places.pop(age, (None, 0))
        if place is not None:
            self._requests[place] -= requests

    def _scene(self) -> Scene | None:
        # Called several times an item: the usual answer, a full engine, costs next to nothing.
        fullest, least = None, 2.0
        for engine in self._engines():
            if not engine.is_up:
                return None
            slots, taken = engine.gate.capacity, engine.gate.in_use
            empty = 1 - (taken - self._rendering[engine.model]) / batch_width(slots)
            if empty <= 0:
                fullest, least = None, 0.0
            elif empty < least:
                fullest, least = engine, empty
        return _FULL if fullest is None else self._starved_scene(fullest)

    def _starved_scene(self, engine: SupervisedEngine) -> Scene:
        width, rendering = batch_width(engine.gate.capacity), self._rendering[engine.model]
        return Scene(
            width,
            width - (engine.gate.in_use - rendering),
            rendering,
            ready=self._requests[Place.READY],
            loading=self._requests[Place.LOADING],
            fetching=self._activity.fetching,
            decoding=self._activity.decoding,
            supply=self._supply,
        )
