"""The worker at run time: the session's effects carried out, everybody's events brought to it.

Session, pipeline, engines and connection do not know each other; this does. All of it runs on one
event loop, and every change of state goes through `Session.handle`, one event after the other.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import structlog

from caption_flow.dialing.dial import ConnectionRefusedForGoodError
from caption_flow.places.base import MISSING
from caption_flow.protocol.messages import (
    Drain,
    Finished,
    Heartbeat,
    Hello,
    Image,
    LeaseId,
    OrchestratorMessage,
    Problem,
    RecipeSpec,
    Results,
    Wait,
    Welcome,
)
from caption_flow.protocol.rows import PARTIAL, Row, encode_rows
from caption_flow.recipe.serving import leg, served, unknown_stage
from caption_flow.recipe.stages import Recipe, RecipeError
from caption_flow.recipe.wire import from_spec
from caption_flow.worker.client import Address, Client
from caption_flow.worker.core.events import (
    Abandon,
    Adopt,
    BytesWanted,
    Closed,
    Deliver,
    Effect,
    EngineLost,
    EngineReady,
    Event,
    Heard,
    Leave,
    Opened,
    Outcome,
    RecipeUnusable,
    Redial,
    RowFinished,
    Send,
    SendBatch,
    SendHeartbeat,
    StopAsked,
    Ticked,
    Withdraw,
    Withdrawn,
)
from caption_flow.worker.core.leases import Job, Key
from caption_flow.worker.core.outbox import Batch
from caption_flow.worker.core.placement import Placement, describe, place
from caption_flow.worker.core.session import Session
from caption_flow.worker.core.slabs import SPOKEN, Slab
from caption_flow.worker.draft import size_of
from caption_flow.worker.engines.base import Engine, EngineError
from caption_flow.worker.garage import Garage
from caption_flow.worker.images.library import MISSING_LIBRARY, can_decode_videos
from caption_flow.worker.images.load import ImageError
from caption_flow.worker.loading import Activity, ImageLoader, ways_taken
from caption_flow.worker.pipeline import (
    LOOK_AHEAD_BYTES,
    MAX_ATTEMPTS,
    EngineGoneError,
    Pipeline,
)
from caption_flow.worker.supervision import MAX_RESTARTS, STALL_SECONDS, SupervisedEngine

log = structlog.get_logger()

TICK_SECONDS: Final = 0.1
GOODBYE_SECONDS: Final = 0.5
PROGRESS_SECONDS: Final = 5.0
QUIET_PROGRESS_SECONDS: Final = 60.0

BuildEngine = Callable[[str, Mapping[str, Any], bool], Engine]
"""From a model, its engine options and the recipe's ``mock_results`` to an engine not started.

Raises `EngineUnavailable`.
"""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much of this machine the worker may take, and how much trouble; None means what suits.

    Engines that are ``on_device`` have to fit there together or are loaded in turn; for that,
    ``owner_options`` are the engine options of the worker's owner, laid over the recipe's.
    """

    max_requests: int | None = None
    look_ahead_items: int | None = None
    look_ahead_bytes: int = LOOK_AHEAD_BYTES
    decode_threads: int | None = None
    restart_backoff_seconds: float = 1.0
    engine_stall_seconds: float = STALL_SECONDS
    max_engine_restarts: int = MAX_RESTARTS
    on_device: bool = True
    owner_options: Mapping[str, Any] = field(default_factory=dict)
    slab: Slab | None = None


class Runtime:
    """One worker, from its first connection to the moment it may leave."""

    def __init__(
        self,
        address: Address,
        hello: Hello,
        build: BuildEngine,
        *,
        leaves_when_finished: bool,
        capacity: Capacity | None = None,
    ) -> None:
        self._build = build
        self._stages = hello.stages
        self._capacity = capacity or Capacity()
        self._session: Session[Row] = Session(hello, leaves_when_finished=leaves_when_finished)
        self._client = Client(address, self)
        threads = self._capacity.decode_threads or min(8, os.cpu_count() or 1)
        self._activity = Activity()
        self._loader = ImageLoader(self._fetch, threads=threads, activity=self._activity)
        self._options: dict[str, dict[str, Any]] = {}
        """The engine options of each model that has, or is to have, an engine."""
        self._mock_results = False
        self._garage: Garage | None = None
        self._made: dict[str, Mapping[str, Any]] = {}
        """The engine options with which the engines in the garage were made."""
        self._recipes: dict[str, Recipe] = {}
        self._recipe_of: dict[str, Recipe] = {}
        """By the fingerprints in rows: those of videos have one of their own."""
        self._newest: Recipe | None = None
        self._pipeline: Pipeline | None = None
        self._loading: asyncio.Task[None] | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._awaited: dict[Key, asyncio.Future[Image]] = {}
        self._events: deque[Event[Row]] = deque()
        self._is_handling = False
        self._left: asyncio.Future[Leave] = asyncio.get_running_loop().create_future()
        self._aborted = False
        self._max_attempts = MAX_ATTEMPTS
        self._room: EngineReady | None = None
        self._waits_because = ""
        """What the orchestrator said last of why there is nothing to do."""
        self.finished: Finished | None = None

    # ------------------------------------------------------------------ from the outside

    async def run(self) -> Leave:
        """Work until the session is over, and return how it ended.

        The engines are still up: whoever called knows how much time there is to stop them.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            background = [
                tasks.create_task(self._keep_connected()),
                tasks.create_task(self._tick()),
                tasks.create_task(self._tell_progress()),
            ]
            leave = await self._left
            await self._client.leave(within_seconds=0.1 if self._aborted else GOODBYE_SECONDS)
            if self._loading is not None:
                background.append(self._loading)
            for task in background:
                task.cancel()
        await self._loader.close()
        return leave

    def stop(self) -> None:
        """Ask for a drain."""
        self._post(StopAsked())

    def abort(self, sentence: str) -> None:
        """End at once, whatever is unfinished."""
        self._aborted = True
        self._end(Leave(Outcome.FAILED, sentence))

    async def stop_engines(self) -> None:
        """Stop every engine; may take as long as they take."""
        if self._garage is not None:
            await self._garage.stop()

    def starvation(self) -> str:
        """Return one line for people about the engine's emptiness; empty before it was loaded."""
        return "" if self._pipeline is None else self._pipeline.gauge.sentence()

    def ways(self) -> str:
        """Return one line for people about which way images came; empty where none did."""
        return ways_taken(self._loader.ways)

    def progress(self) -> str:
        """Return the line that people and programs look for: ``step done/total``."""
        done = self._pipeline.tally.done if self._pipeline is not None else 0
        return f"step {done}/{max(done, self._session.total)}"

    # ------------------------------------------------------------------ the connection's party

    def hello(self) -> Hello:
        """Return the first message of a new connection."""
        return self._session.hello()

    def opened(self, welcome: Welcome) -> None:
        """Note that the orchestrator answered."""
        log.info("connected", worker=welcome.worker, total=welcome.total)
        self._max_attempts = welcome.limits.max_attempts
        self._post(Opened(welcome))

    def heard(self, message: OrchestratorMessage) -> None:
        """Take a message."""
        match message:
            case Problem(sentence):
                log.warning("the orchestrator has a problem with us", problem=sentence)
            case Wait(reason=reason) if reason not in {"", self._waits_because}:
                log.warning("nothing to do", reason=reason)
                self._waits_because = reason
            case Drain(reason):
                log.info("the orchestrator is draining", reason=reason)
            case Finished(captioned, failed) if message != self.finished:
                log.info("the run is finished", captioned=captioned, failed=failed)
                self.finished = message
            case _:
                pass
        self._post(Heard(message))

    def closed(self) -> None:
        """Note that the connection is gone."""
        self._post(Closed())

    # ------------------------------------------------------------------ the pipeline's desk

    def next_job(self) -> Job | None:
        """Begin the next item."""
        return self._session.begin()

    @property
    def is_held_back(self) -> bool:
        """Whether items wait for room for their rows."""
        return self._session.is_held_back

    @property
    def all_handed_out(self) -> bool:
        """Whether nobody has any more items."""
        return self._session.all_handed_out

    def deliver(self, job: Job, row: Row) -> None:
        """Take the row of an item begun."""
        way = leg(self._recipes[job.recipe], job.stage, self._stages)
        reached = way.stop if row.status == PARTIAL else None
        self._post(RowFinished(job.lease, job.item.index, row, size_of(row), reached))

    async def _fetch(self, job: Job) -> bytes:
        """Ask the orchestrator for an item's bytes. Raises `ImageError` if it has none."""
        answer: asyncio.Future[Image] = asyncio.get_running_loop().create_future()
        self._awaited[job.key] = answer
        try:
            self._post(BytesWanted(*job.key))
            image = await answer
        finally:
            del self._awaited[job.key]
        if image.error:
            raise ImageError(image.kind or MISSING, image.error)
        return image.payload

    # ------------------------------------------------------------------ events and effects

    def _post(self, event: Event[Row]) -> None:
        """Apply an event; one that comes up meanwhile waits its turn."""
        self._events.append(event)
        if self._is_handling:
            return
        self._is_handling = True
        try:
            while self._events:
                effects = self._session.handle(self._events.popleft(), now=time.monotonic())
                for effect in effects:
                    self._carry_out(effect)
        finally:
            self._is_handling = False
        if self._pipeline is not None:
            self._tell_pipeline(self._pipeline)

    def _tell_pipeline(self, pipeline: Pipeline) -> None:
        """Let the pipeline know what the session has come to."""
        pipeline.may_swap = not self._session.is_ending
        is_over = self._session.is_ending or pipeline.is_renewing
        if is_over and (waiting := pipeline.withdraw_waiting()):
            # Nothing is loaded any more for items half done: somebody else does them anew.
            self._post(Withdrawn(waiting))
        pipeline.nudge()

    def _carry_out(  # noqa: C901 - one match over all effects is the point
        self, effect: Effect[Row]
    ) -> None:
        match effect:
            case Send(message):
                self._client.send(message)
            case SendBatch(batch):
                self._client.send(self._encode(batch))
            case SendHeartbeat():
                self._client.send(Heartbeat(self._stats()))
            case Abandon(items):
                if self._pipeline is not None:
                    self._pipeline.abandon(items)
            case Withdraw(count):
                pipeline = self._pipeline
                self._post(Withdrawn(() if pipeline is None else pipeline.withdraw(count)))
            case Deliver(image):
                waiting = self._awaited.get((LeaseId(image.lease), image.item))
                if waiting is not None and not waiting.done():
                    waiting.set_result(image)
            case Adopt(spec):
                self._adopt(spec)
            case Redial(reason):
                self._client.redial(reason)
            case Leave():
                self._end(effect)

    def _encode(self, batch: Batch[Row]) -> Results:
        # The rows of one lease are all of one recipe: the one it was granted under. Those that
        # are not final have come the same way.
        recipe = self._recipe_of[batch.rows[0].recipe or ""]
        columns = recipe.output_fields if batch.reached is None else tuple(batch.rows[0].outputs)
        rows = encode_rows(batch.rows, columns)
        return Results(batch.seq, batch.lease, batch.items, rows, batch.reached)

    def _stats(self) -> dict[str, float]:
        stats = {
            "rate": self._session.rate(now=time.monotonic()),
            "in_flight": self._session.begun,
            "backlog": self._session.waiting,
            "unacknowledged": self._session.unacknowledged,
        }
        if self._pipeline is not None:
            tally, now = self._pipeline.tally, time.monotonic()
            starved = self._pipeline.gauge.seconds()
            stats |= {
                "width": self._pipeline.width,
                "done": tally.done,
                "failed": tally.failed,
                "tokens_in": tally.tokens_in,
                "tokens_out": tally.tokens_out,
                "tokens_per_second": self._pipeline.tokens_per_second(now=now),
                "starved": sum(starved.values()),
                **{f"starved_{cause}": seconds for cause, seconds in starved.items()},
                **{f"read_{way}": count for way, count in self._loader.ways.items()},
                "idle_at_end": self._pipeline.gauge.idle_at_end(),
            }
            stats |= {f"flagged_{flag}": number for flag, number in tally.flags.items()}
        return stats

    def _end(self, leave: Leave) -> None:
        if not self._left.done():
            self._left.set_result(leave)

    # ------------------------------------------------------------------ recipes and engines

    def _adopt(self, spec: RecipeSpec) -> None:
        try:
            recipe = from_spec(spec)
        except RecipeError as error:
            self._post(RecipeUnusable(f"the orchestrator's recipe cannot be run: {error}"))
            return
        if recipe.video is not None and not can_decode_videos():
            self._post(RecipeUnusable(f"the run captions videos, too, and {MISSING_LIBRARY}"))
            return
        problem = unknown_stage(recipe, self._stages)
        if problem is not None:
            self._post(RecipeUnusable(f"--stages (worker.stages): {problem}"))
            return
        options = engine_options(served(recipe, self._stages))
        self._recipes[recipe.fingerprint] = recipe
        self._recipe_of |= {recipe.fingerprint: recipe, recipe.video_fingerprint: recipe}
        if self._loading is None:
            if self._tasks is None:
                raise RuntimeError("a recipe came before `run`")
            self._options, self._mock_results = options, spec.mock_results
            self._loading = self._tasks.create_task(self._work(recipe))
        elif spec.mock_results != self._mock_results:
            is_made_up = "is" if spec.mock_results else "is no longer"
            self._post(
                RecipeUnusable(f"what is asked for {is_made_up} made up: restart this worker")
            )
        else:
            log.info("the recipe changed", recipe=recipe.fingerprint)
            self._go_on_with(recipe, options)

    def _go_on_with(self, recipe: Recipe, options: dict[str, dict[str, Any]]) -> None:
        """Have the pipeline follow a changed recipe; one that is loading does so afterwards."""
        pipeline, before, self._options = self._pipeline, self._options, options
        self._newest = recipe
        if pipeline is None:
            return
        if options == before and not pipeline.is_renewing:
            pipeline.use(recipe)
            return
        for model, wanted in options.items():
            if wanted != before.get(model):
                log.info("this takes a model to be loaded", model=model, anew=model in before)
        pipeline.renew(recipe, partial(self._refit, recipe, options))

    async def _work(self, recipe: Recipe) -> None:
        """Load the engines the recipe names, then carry items."""
        options = self._options
        self._newest = recipe
        try:
            pipeline = Pipeline(
                self,
                self._loader,
                await self._fill_garage(served(recipe, self._stages), options),
                look_ahead_items=self._capacity.look_ahead_items,
                look_ahead_bytes=self._capacity.look_ahead_bytes,
                max_attempts=self._max_attempts,
                serves=self._stages,
                activity=self._activity,
            )
            pipeline.use(recipe)
            self._pipeline = pipeline
            if self._newest is not recipe:
                newest, self._options = self._options, options
                self._go_on_with(self._newest, newest)
            self._tell_width(pipeline)
            await pipeline.run()
        except EngineGoneError as error:
            self._post(EngineLost(str(error), error.suspects))
        except EngineError as error:
            self._post(EngineLost(str(error)))

    async def _fill_garage(
        self, recipe: Recipe, options: Mapping[str, Mapping[str, Any]]
    ) -> Garage:
        """Make every engine the recipe names, and load those that items need first."""
        placement = self._place(recipe)
        engines = {model: self._make(model, options[model], recipe) for model in options}
        garage = self._garage = Garage(engines, placement, slab=self._capacity.slab)
        self._made = dict(options)
        await garage.load(garage.next_group([(garage.use(recipe), frozenset())]))
        return garage

    async def _refit(
        self, recipe: Recipe, options: Mapping[str, Mapping[str, Any]], garage: Garage
    ) -> None:
        """Put the engines that a changed recipe names into the garage; see `Garage.refit`."""
        recipe = served(recipe, self._stages)
        engines = {
            model: garage.engines[model]
            if self._made.get(model) == options[model]
            else self._make(model, options[model], recipe)
            for model in options
        }
        await garage.refit(engines, self._place(recipe))
        self._made = dict(options)

    def _place(self, recipe: Recipe) -> Placement:
        capacity = self._capacity
        placement = place(recipe, capacity.owner_options, on_device=capacity.on_device)
        if (sentence := describe(placement, recipe, SPOKEN)) is not None:
            log.info(sentence)
        return placement

    def _make(self, model: str, options: Mapping[str, Any], recipe: Recipe) -> SupervisedEngine:
        capacity = self._capacity
        engine = SupervisedEngine(
            self._build(model, options, self._mock_results),
            max_requests=capacity.max_requests,
            max_restarts=capacity.max_engine_restarts,
            backoff_seconds=capacity.restart_backoff_seconds,
            stall_seconds=capacity.engine_stall_seconds,
        )
        engine.expect(
            [s for stage in recipe.stages if stage.model == model for s in stage.samplings()],
            recipe.video,
        )
        return engine

    def _tell_width(self, pipeline: Pipeline) -> None:
        """Tell the session how much can be worked on, if that is news."""
        room = EngineReady(pipeline.width, pipeline.slab_items)
        if room != self._room and pipeline.width:
            self._room = room
            self._post(room)

    # ------------------------------------------------------------------ in the background

    async def _keep_connected(self) -> None:
        try:
            await self._client.run()
        except ConnectionRefusedForGoodError as error:
            self.abort(str(error))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._post(Ticked())
            if self._pipeline is not None:
                self._tell_width(self._pipeline)

    async def _tell_progress(self) -> None:
        said, said_at = "", time.monotonic()
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            line, now = self.progress(), time.monotonic()
            if self._pipeline is None or (line == said and now - said_at < QUIET_PROGRESS_SECONDS):
                continue
            said, said_at = line, now
            log.info(line, **{name: round(value, 2) for name, value in self._stats().items()})


def engine_options(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return each model's engine options; where its stages differ, the first one counts."""
    options: dict[str, dict[str, Any]] = {}
    for stage in recipe.stages:
        merged = options.setdefault(stage.model, {})
        for name, value in stage.engine.items():
            if merged.setdefault(name, value) != value:
                log.warning(
                    "stages of one model share its engine; the first one's option counts",
                    stage=stage.name,
                    option=name,
                    used=merged[name],
                )
    return options
