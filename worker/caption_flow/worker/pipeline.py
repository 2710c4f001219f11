"""Items flow: loaded ahead of the engine, through the stages one by one, out as rows.

There is no barrier anywhere. Each item is a task of its own; what bounds them is a look-ahead
(items and bytes that are loaded but not yet in an engine) and, per engine, a gate with as many
slots as the engine wants requests. Who holds which lease, and what becomes of a row, is the desk's
business.

Where models do not fit on the device together, an item is a task only while it visits the engines
that are loaded. In between it waits without a task and without its picture, which is decoded again.
The engines are swapped when no item has anything left to do in those that are loaded, so items pass
in slabs; how large a slab is, the garage says.

When an engine dies, the items in it keep their finished stages and are tried again; one that was in
it twice is tried alone, and one that kills it alone, too, is put aside with the evidence.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Final, NoReturn, Protocol

import structlog

from caption_flow.protocol.rows import FAILED, Row
from caption_flow.recipe.serving import Leg, leg, served
from caption_flow.recipe.stages import Recipe, Stage
from caption_flow.worker.asking import Asking
from caption_flow.worker.core.judgement import Judge
from caption_flow.worker.core.leases import Job, Key, Rate
from caption_flow.worker.core.placement import Course, Done
from caption_flow.worker.core.starvation import Supply
from caption_flow.worker.draft import Answer, Draft, ItemError
from caption_flow.worker.engines.base import (
    EngineDied,
    EngineError,
    EngineUnavailable,
    PreparedImage,
    RequestRefused,
)
from caption_flow.worker.garage import Garage, Visits
from caption_flow.worker.gate import Seat
from caption_flow.worker.gauge import Gauge, Place
from caption_flow.worker.images.load import ImageError
from caption_flow.worker.loading import Activity, Loader
from caption_flow.worker.supervision import SupervisedEngine

log = structlog.get_logger()

QUARANTINED: Final = "quarantined"
"""The orchestrator's word, too, for an item that it found by halving: one kind for one thing."""
INTERNAL_ERROR: Final = "internal_error"

LOOK_AHEAD_BYTES: Final = 2**30
MAX_ATTEMPTS: Final = 3
FIRST_GUESS_BYTES: Final = 4 * 2**20


class Desk(Protocol):
    """Where jobs come from and rows go."""

    def next_job(self) -> Job | None:
        """Begin the next item, or return None: `Pipeline.nudge` tells when to ask again."""
        ...

    @property
    def is_held_back(self) -> bool:
        """Whether there are items which `next_job` does not give, for want of room for rows."""
        ...

    @property
    def all_handed_out(self) -> bool:
        """Whether `next_job` gives none because nobody has any more."""
        ...

    def deliver(self, job: Job, row: Row) -> None:
        """Take the row of an item begun."""
        ...


class EngineGoneError(EngineError):
    """An engine cannot be brought back; ``suspects`` were in it when it last died."""

    def __init__(self, sentence: str, suspects: tuple[Key, ...]) -> None:
        super().__init__(sentence)
        self.suspects = suspects


Refit = Callable[[Garage], Awaitable[None]]
"""Puts other engines into the garage, in which nobody is; see `Garage.refit`."""


@dataclass(slots=True)
class Tally:
    """Numbers for people: what this pipeline has done so far, items passed on included."""

    captioned: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    flags: Counter[str] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        """Items that have their row."""
        return self.captioned + self.failed

    def count(self, row: Row) -> None:
        """Count one row."""
        if row.status == FAILED:
            self.failed += 1
        else:
            self.captioned += 1
        self.flags.update(row.flags)
        self.tokens_in += sum(stats.tokens_in for stats in row.stage_stats)
        self.tokens_out += sum(stats.tokens_out for stats in row.stage_stats)


class LookAhead:
    """How much is being loaded, or loaded and not in an engine. Bounded in items and bytes.

    An item that waits between two stages is in here again: with two engines of different speed, the
    faster one would else run ahead of the slower with ever more pictures in memory.

    What a picture will take is known only when it is decoded; until then it counts as much as
    the pictures before it did on average.
    """

    def __init__(self, *, max_items: int, max_bytes: int) -> None:
        self.max_items = max_items
        self._max_bytes = max_bytes
        self._taken: dict[int, int] = {}
        self._bytes = 0
        self._guess = FIRST_GUESS_BYTES

    def has_room(self) -> bool:
        """Whether one more item may be loaded; an empty look-ahead takes one of any size."""
        if not self._taken:
            return True
        return len(self._taken) < self.max_items and self._bytes + self._guess <= self._max_bytes

    def enter(self, age: int, size_bytes: int | None = None) -> None:
        """Note that the item of this age is loaded, or waits; idempotent."""
        if age not in self._taken:
            self._taken[age] = self._guess if size_bytes is None else size_bytes
            self._bytes += self._taken[age]

    def measure(self, age: int, size_bytes: int) -> None:
        """Note how much memory the item's picture takes."""
        if age in self._taken:
            self._bytes += size_bytes - self._taken[age]
            self._taken[age] = size_bytes
            self._guess += (size_bytes - self._guess) // 8

    def leave(self, age: int) -> None:
        """Note that the item is in an engine, or gone; idempotent."""
        self._bytes -= self._taken.pop(age, 0)


@dataclass(slots=True, eq=False)
class _Carried:
    """One item on its way through the pipeline; ``age`` is its place in line everywhere."""

    job: Job
    age: int
    recipe: Recipe
    stages: tuple[Stage, ...]
    """Those that this worker runs."""
    course: Course
    way: Leg
    draft: Draft
    seat: Seat
    size_bytes: int | None = None
    done: Done = frozenset()
    """Those it is through with, or does not go through this time."""
    task: asyncio.Task[None] | None = None
    """Its visit to the engines that are loaded; None while it waits for others."""
    has_entered: bool = False
    """Whether it is, or has been, in an engine."""
    is_withdrawn: bool = False
    is_finished: bool = False
    """Whether it has its row."""
    deaths: list[str] = field(default_factory=list)

    def engine_died(self, evidence: str) -> None:
        self.deaths.append(evidence)


class Pipeline:
    """See the module's docstring. The garage has a group loaded already.

    ``serves`` names the stages that this worker runs, none for all.
    """

    def __init__(
        self,
        desk: Desk,
        loader: Loader,
        garage: Garage,
        *,
        serves: Collection[str] = (),
        look_ahead_items: int | None = None,
        look_ahead_bytes: int = LOOK_AHEAD_BYTES,
        max_attempts: int = MAX_ATTEMPTS,
        activity: Activity | None = None,
    ) -> None:
        self._max_attempts = max_attempts
        self._serves = serves
        self._desk = desk
        self._loader = loader
        self._garage = garage
        self._engines = garage.engines
        self._look_ahead_items = look_ahead_items
        self._look_ahead = LookAhead(max_items=self._items_ahead, max_bytes=look_ahead_bytes)
        self._recipes: dict[str, tuple[Recipe, tuple[Stage, ...], Course]] = {}
        """With the stages that this worker runs, and their course."""
        self._newest: Course | None = None
        self._carried: dict[Key, _Carried] = {}
        self._ready: deque[_Carried] = deque()
        """Those that waited for the engines that are loaded now, and have not begun their visit."""
        self._visits = Visits(garage)
        self._renewal: tuple[Recipe, Refit] | None = None
        """The recipe to go on with, and what makes its engines, once nobody is in those of now."""
        self.may_swap = True
        """Whether other engines may be loaded for items that wait for them."""
        self._wake = asyncio.Event()
        self._ages = count()
        self._request_ids = count()
        self._tokens = Rate()
        self.gauge = Gauge(garage.up, activity or Activity())
        self._judge = Judge()
        self.tally = Tally()

    @property
    def in_flight(self) -> int:
        """Items begun whose row is not finished."""
        return len(self._carried)

    def tokens_per_second(self, *, now: float) -> float:
        """Tokens generated per second, of late."""
        return self._tokens.per_second(now=now)

    @property
    def width(self) -> int:
        """How many requests the engines that are loaded take at once."""
        return self._garage.width

    @property
    def slab_items(self) -> int:
        """How many items it would have begun before it swaps engines; 0 if it never does."""
        return self._garage.slab_items

    @property
    def _items_ahead(self) -> int:
        # Loading comes in bursts (a slow disk, a busy processor): two batches wide bridge most.
        asked = self._look_ahead_items
        return min(max(2 * self.width, 16), 256) if asked is None else asked

    def use(self, recipe: Recipe) -> None:
        """Get ready for jobs under this recipe; its engines are all there.

        See `renew` for another case.
        """
        ours = served(recipe, self._serves)
        self._newest = self._garage.use(ours)
        self._recipes[recipe.fingerprint] = recipe, ours.stages, self._newest

    def renew(self, recipe: Recipe, refit: Refit) -> None:
        """Go on with a recipe that takes other engines, when nobody is left in those of now.

        Until then no job is begun. There will be no further job under an earlier recipe.
        """
        self._renewal = recipe, refit
        self._wake.set()

    @property
    def is_renewing(self) -> bool:
        """Whether other engines are to be loaded, or being loaded, for another recipe."""
        return self._renewal is not None

    def nudge(self) -> None:
        """Say that the desk may have another job."""
        self._wake.set()

    def abandon(self, items: Iterable[Key]) -> None:
        """Stop working on these items; they get no row."""
        for key in items:
            carried = self._carried.get(key)
            if carried is not None:
                self._let_go(carried)

    def withdraw(self, count: int) -> tuple[Key, ...]:
        """Stop working on up to ``count`` items that have been in no engine, the youngest first.

        They get no row. Returns which they are.
        """
        withdrawn: list[Key] = []
        for carried in reversed(list(self._carried.values())):
            if len(withdrawn) == count:
                break
            if not (carried.has_entered or carried.is_withdrawn):
                carried.is_withdrawn = self._let_go(carried)
                if carried.is_withdrawn:
                    withdrawn.append(carried.job.key)
        return tuple(withdrawn)

    def withdraw_waiting(self) -> tuple[Key, ...]:
        """Stop working on the items that are on no visit: they wait for other engines to be loaded.

        They get no row. Returns which they are.
        """
        waiting = [one for one in self._carried.values() if one.task is None]
        return tuple(one.job.key for one in waiting if self._let_go(one))

    def _let_go(self, carried: _Carried) -> bool:
        """Stop working on an item; return whether that was possible."""
        if carried.task is not None:
            return carried.task.cancel()
        del self._carried[carried.job.key]
        self._wake.set()
        return True

    async def run(self) -> NoReturn:
        """Carry items until cancelled.

        Raises:
            EngineGoneError: an engine cannot be brought back; no item is being worked on any more.

        """
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._feed(tasks)
        except BaseExceptionGroup as group:
            gone, others = group.split(EngineUnavailable)
            if gone is None or others is not None:
                raise
            raise EngineGoneError(_sentence(gone), self._suspects()) from None
        raise AssertionError("feeding never ends")

    async def _feed(self, tasks: asyncio.TaskGroup) -> NoReturn:
        while True:
            while (supply := self._begin_next(tasks)) is None:
                pass
            self.gauge.supply(supply)
            self._wake.clear()
            if self._renewal is not None and not self._carried and self.may_swap:
                await self._renew(*self._renewal)
            elif not self._is_swap_due():
                await self._wake.wait()
            elif not await self._wakes_within(self._patience()):
                await self._swap()

    def _begin_next(self, tasks: asyncio.TaskGroup) -> Supply | None:
        """Begin an item, or return why none can be begun."""
        if not self._look_ahead.has_room():
            return Supply.PLENTY
        carried = self._next()
        if carried is None:
            return self._why_nothing()
        self._visit(carried, tasks)
        return None

    def _why_nothing(self) -> Supply:
        if self._desk.is_held_back:
            return Supply.HELD_BACK
        return Supply.ALL_HANDED_OUT if self._desk.all_handed_out else Supply.NO_LEASE

    def _next(self) -> _Carried | None:
        """Return the next item to visit the engines that are loaded."""
        while self._ready:
            carried = self._ready.popleft()
            if self._carried.get(carried.job.key) is carried:
                return carried
        while self._takes_new_items() and (job := self._desk.next_job()) is not None:
            carried = self._begin(job)
            if carried.course.visit(carried.done, self._garage.loaded):
                return carried
        return None

    def _takes_new_items(self) -> bool:
        """Whether to begin new items: always, unless engines have to be swapped for them.

        One is begun when there is nothing else: it is for that one that other engines are loaded.
        """
        if self._renewal is not None:
            return False
        if not self._garage.swaps or not self._carried:
            return True
        if self._newest is None or len(self._carried) >= self._garage.slab_items:
            return False
        return bool(self._newest.visit(frozenset(), self._garage.loaded))

    def _begin(self, job: Job) -> _Carried:
        recipe, stages, course = self._recipes[job.recipe]
        age = next(self._ages)
        way = leg(recipe, job.stage, self._serves)
        draft = Draft(job.item.index, recipe, job.item.earlier or {})
        carried = _Carried(job, age, recipe, stages, course, way, draft, Seat(age))
        # A stage of ours that is not on its way has been run, or comes after one of another worker.
        on_its_way = {stage.name for stage in way.stages}
        carried.done = frozenset(
            at for at, stage in enumerate(stages) if stage.name not in on_its_way
        )
        self._carried[job.key] = carried
        return carried

    def _visit(self, carried: _Carried, tasks: asyncio.TaskGroup) -> None:
        self._look_ahead.enter(carried.age)
        self._visits.begin()
        first, *_ = carried.course.visit(carried.done, self._garage.loaded)
        self.gauge.put(carried.age, Place.LOADING, len(carried.stages[first].prompts))
        carried.task = tasks.create_task(self._carry(carried))
        # Not in a `finally` of the task: one that is cancelled before its first step has none.
        carried.task.add_done_callback(lambda task: self._end(carried, task))

    def _end(self, carried: _Carried, task: asyncio.Task[None]) -> None:
        carried.seat.leave()
        self._look_ahead.leave(carried.age)
        self.gauge.remove(carried.age)
        self._visits.end()
        if self._carried.get(carried.job.key) is carried:
            carried.task = None
            if task.cancelled() or task.exception() or carried.is_finished:
                del self._carried[carried.job.key]
        self._wake.set()

    # ------------------------------------------------------------------ swapping engines

    def _is_swap_due(self) -> bool:
        """Whether every item at hand waits for engines that are not loaded."""
        is_idle = bool(self._carried) and not self._visits.running
        return is_idle and self.may_swap and self._garage.swaps and self._renewal is None

    def _patience(self) -> float:
        """Return how many seconds to wait, once nobody works, for what could still be begun."""
        if not self._takes_new_items():
            return 0.0
        return self._garage.patience_seconds - self._visits.idle_seconds

    async def _wakes_within(self, seconds: float) -> bool:
        if seconds <= 0:
            return False
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    async def _swap(self) -> None:
        """Load the engines that items wait for.

        Raises:
            EngineUnavailable: they cannot be loaded.

        """
        standings = {(one.course, one.done) for one in self._carried.values()}
        group = self._garage.next_group(standings)
        await self._garage.load(group)
        self._look_ahead.max_items = self._items_ahead
        self._ready.extend(
            one for one in self._carried.values() if one.course.visit(one.done, group)
        )

    async def _renew(self, recipe: Recipe, refit: Refit) -> None:
        """Load the engines of another recipe, and go on with that.

        Raises:
            EngineUnavailable: they cannot be loaded.

        """
        await refit(self._garage)
        self._engines = self._garage.engines
        self._recipes.clear()
        self.use(recipe)
        course = self._garage.use(served(recipe, self._serves))
        await self._garage.load(self._garage.next_group([(course, frozenset())]))
        self._look_ahead.max_items = self._items_ahead
        if self._renewal == (recipe, refit):
            self._renewal = None

    def _suspects(self) -> tuple[Key, ...]:
        riders = {rider for engine in self._engines.values() for rider in engine.suspects}
        return tuple(rider.job.key for rider in riders if isinstance(rider, _Carried))

    # ------------------------------------------------------------------ one item

    async def _carry(self, carried: _Carried) -> None:
        """Give one item its row, whatever happens to it: this is the task's boundary."""
        job = carried.job
        try:
            row = await self._caption(carried)
            if row is None:
                return
        except EngineUnavailable:
            raise
        except Exception as error:
            log.exception("item failed unexpectedly", lease=job.lease, item=job.item.index)
            sentence = f"{type(error).__name__}: {error}"
            row = carried.draft.failed(INTERNAL_ERROR, sentence)
        carried.is_finished = True
        self.tally.count(row)
        self._desk.deliver(job, row)

    async def _caption(self, carried: _Carried) -> Row | None:
        """Take an item through all stages that the loaded engines run; None if some are left."""
        draft = carried.draft
        try:
            loaded = await self._loader.load(carried.job)
            draft.note_image(loaded)
            pixels = loaded.image.pixels
            carried.size_bytes = pixels.width * pixels.height * 3
            self._look_ahead.measure(carried.age, carried.size_bytes)
            for position in carried.course.visit(carried.done, self._garage.loaded):
                await self._run_stage(carried, carried.stages[position], loaded.image)
                carried.done |= {position}
        except (ImageError, ItemError) as error:
            return draft.failed(error.kind, str(error))
        if not carried.course.is_over(carried.done):
            return None
        return draft.captioned() if carried.way.is_last else draft.partial()

    async def _run_stage(self, carried: _Carried, stage: Stage, image: PreparedImage) -> None:
        draft, engine = carried.draft, self._engines[stage.model]
        prompts = carried.recipe.render(stage.name, draft.outputs, carried.job.item.columns or {})
        loop = asyncio.get_running_loop()
        answers: dict[int, Answer] = {}
        began = loop.time()
        while len(answers) < len(prompts):
            deaths = len(carried.deaths)
            slots = engine.slots_for(len(prompts) - len(answers), deaths)
            await self._enter_engine(carried, engine, slots)
            began = loop.time()
            try:
                await self._ask(carried, stage, image, prompts, answers)
            except RequestRefused as error:
                raise ItemError(error.kind, f"stage '{stage.name}': {error}") from error
            except EngineDied:
                if deaths >= 2:  # it was alone in there
                    await engine.prove()
                    if len(carried.deaths) >= self._max_attempts:
                        raise ItemError(QUARANTINED, _evidence(stage, carried.deaths)) from None
        ordered = [answers[number] for number in range(len(prompts))]
        draft.add(stage, ordered, model=engine.model, seconds=loop.time() - began)

    async def _enter_engine(self, carried: _Carried, engine: SupervisedEngine, slots: int) -> None:
        self._look_ahead.enter(carried.age, carried.size_bytes)
        self.gauge.put(carried.age, Place.READY, slots)
        await carried.seat.move(engine.gate, slots)
        carried.has_entered = True
        self._look_ahead.leave(carried.age)
        self.gauge.remove(carried.age)
        self._wake.set()

    async def _ask(
        self,
        carried: _Carried,
        stage: Stage,
        image: PreparedImage,
        prompts: tuple[str, ...],
        answers: dict[int, Answer],
    ) -> None:
        """Ask every prompt without an answer, all at once; answers that come are kept.

        Raises:
            RequestRefused: one of them cannot be answered.
            EngineDied: the engine died meanwhile.
            EngineUnavailable: it is gone for good.

        """
        in_company = not carried.deaths
        engine = self._engines[stage.model]
        rendering = partial(self.gauge.rendering, engine)
        names = self._names(carried)
        asking = Asking(engine, stage, image, self._judge, names, rendering)

        async def ask(number: int) -> None:
            answer = answers[number] = await asking.answer(prompts[number], carried)
            self._tokens.note(answer.tokens_out, now=time.monotonic())
            if in_company:
                carried.seat.shrink()
                self.gauge.look()

        missing = [number for number in range(len(prompts)) if number not in answers]
        if len(missing) == 1:
            await ask(missing[0])
            return
        tasks = [asyncio.create_task(ask(number)) for number in missing]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _names(self, carried: _Carried) -> Iterator[str]:
        """Yield names for requests about an item, never the same again."""
        job = carried.job
        return (f"{job.lease}.{job.item.index}.{number}" for number in self._request_ids)


def _evidence(stage: Stage, deaths: list[str]) -> str:
    return (
        f"stage '{stage.name}': given up after {len(deaths)} attempts that ended with the engine; "
        f"the last one, with nothing else in it: {deaths[-1]}"
    )


def _sentence(group: BaseExceptionGroup[BaseException]) -> str:
    """Return what the first of the group's errors says."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)
