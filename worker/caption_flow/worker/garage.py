"""The engines of a worker, and which of them are loaded: all at once, or one group at a time.

It loads what it is told to, measures what that takes, and knows which group items need next. When
to swap is the pipeline's decision, since only that knows who is still in an engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping

import structlog

from caption_flow.recipe.stages import Recipe
from caption_flow.worker.core.placement import Course, Placement, Standing, route, swaps_a_slab
from caption_flow.worker.core.slabs import Slab
from caption_flow.worker.supervision import SupervisedEngine

log = structlog.get_logger()


class Garage:
    """``engines`` maps each model to its engine, none of them started; see `load`."""

    def __init__(
        self,
        engines: Mapping[str, SupervisedEngine],
        placement: Placement,
        *,
        slab: Slab | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engines = engines
        self._placement = placement
        self._slab = slab or Slab()
        self._clock = clock
        self._swaps_a_slab = 0
        self._started: set[str] = set()
        """The models whose engines are up."""
        self.loaded: int | None = None
        """The group whose engines are up; None before the first and while one is loading."""

    @property
    def swaps(self) -> bool:
        """Whether not everything is loaded at once."""
        return len(self._placement.groups) > 1

    @property
    def width(self) -> int:
        """How many requests the engines that are up take at once."""
        if self.loaded is None:
            return 0
        return sum(self.engines[model].gate.capacity for model in self._models(self.loaded))

    def up(self) -> Collection[SupervisedEngine]:
        """Return the engines that are up; none while a group is loading."""
        return () if self.loaded is None else [self.engines[m] for m in self._models(self.loaded)]

    @property
    def slab_items(self) -> int:
        """How many items are to be under way at once, so that swaps are worth it; 0 without."""
        return self._slab.items(self._swaps_a_slab) if self.swaps else 0

    @property
    def patience_seconds(self) -> float:
        """How long an idle engine is kept in the hope of more items."""
        return self._slab.patience_seconds

    def use(self, recipe: Recipe) -> Course:
        """Get ready for a recipe, and return the course its items take."""
        course = self._placement.course(recipe)
        self._swaps_a_slab = swaps_a_slab(course)
        return course

    def next_group(self, standings: Collection[Standing]) -> int:
        """Return the group to load next for items that can do nothing in the loaded one."""
        return route(standings, self.loaded)[0]

    def worked(self, seconds: float, items: int) -> None:
        """Note what visits to the loaded group took."""
        if self.loaded is not None:
            self._slab.worked(self.loaded, seconds, items)

    async def load(self, group: int) -> None:
        """Have a group loaded, and nothing else: whatever is in other engines' way ends first.

        Raises:
            EngineUnavailable: one of its engines cannot be started.

        """
        began, self.loaded = self._clock(), None
        models = self._models(group)
        in_the_way = self._started.difference(models)
        if in_the_way:
            log.info("unloading, to make room", models=", ".join(sorted(in_the_way)))
            await self._stop(in_the_way)
        for model in models:
            if model in self._started:
                continue
            log.info("loading the engine", model=model)
            loading = self._clock()
            await self.engines[model].start()
            self._started.add(model)
            seconds = round(self._clock() - loading, 1)
            log.info("the engine is ready", model=model, seconds=seconds)
        self.loaded = group
        self._slab.swapped(self._clock() - began)

    async def refit(self, engines: Mapping[str, SupervisedEngine], placement: Placement) -> None:
        """Have other engines; those that are among the present ones stay as they are, up or not.

        Nobody is in an engine. Nothing is loaded after this: see `load`.
        """
        self.loaded = None
        gone = {model for model in self._started if engines.get(model) is not self.engines[model]}
        if gone:
            log.info("unloading what the recipe no longer names so", models=", ".join(sorted(gone)))
            await self._stop(gone)
        self.engines, self._placement = engines, placement

    async def _stop(self, models: Collection[str]) -> None:
        async with asyncio.TaskGroup() as stopping:
            for model in models:
                stopping.create_task(self.engines[model].stop())
        self._started.difference_update(models)

    async def stop(self) -> None:
        """Stop every engine; may take as long as they take."""
        engines = self.engines.values()
        results = await asyncio.gather(*(e.stop() for e in engines), return_exceptions=True)
        for error in results:
            if isinstance(error, Exception):
                log.warning("engine did not stop well", reason=str(error))

    def _models(self, group: int) -> tuple[str, ...]:
        return self._placement.groups[group]


class Visits:
    """How many items are at the engines that are loaded, and what that tells about their pace."""

    def __init__(self, garage: Garage) -> None:
        self._garage = garage
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self.running = 0

    @property
    def idle_seconds(self) -> float:
        """How long there has been none."""
        return 0.0 if self.running else self._loop.time() - self._since

    def begin(self) -> None:
        """Note that an item comes."""
        if not self.running:
            self._since = self._loop.time()
        self.running += 1

    def end(self) -> None:
        """Note that an item goes."""
        now = self._loop.time()
        self._garage.worked(now - self._since, 1)
        self._since = now
        self.running -= 1
