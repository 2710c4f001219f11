"""One engine, kept alive: requests go in, deaths are counted, and it is started again.

The engine says that it died, or falls silent with requests in it, which counts as the same. This
says who was in it, restarts it with backoff, and gives up after too many deaths without a single
answer in between. It never decides what becomes of an item.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import structlog
from PIL import Image

from caption_flow.recipe.video import Video
from caption_flow.worker.core.silence import Silence
from caption_flow.worker.engines.base import (
    Completion,
    Engine,
    EngineDied,
    EngineError,
    EngineUnavailable,
    PreparedImage,
    Request,
    RequestRefused,
)
from caption_flow.worker.gate import Gate

log = structlog.get_logger()

MAX_RESTARTS: Final = 3
"""Restarts within one run of trouble: until the engine answers something."""
STALL_SECONDS: Final = 600.0
"""An engine that is busy and gives no token for longer is taken for dead: some die without saying
so. Kernels compiled for the first request of a kind take a minute or two. The longest step likely,
4,096 tokens of pictures through 3 billion parameters on two cores, should take some 400 s."""
RESTART_SECONDS: Final = 1800.0
"""A device on which an engine hung may hang the next one while it loads. The first start is not
limited: it may download a model; the next ones find it on disk."""
STOP_SECONDS: Final = 30.0
_LOOKS_PER_STALL: Final = 20


class Rider(Protocol):
    """Whoever has a request in the engine and wants to know when that dies."""

    def engine_died(self, evidence: str) -> None:
        """Note one death of an engine with a request of this rider in it."""
        ...


class SupervisedEngine:
    """An `Engine` whose deaths are survived.

    ``gate`` has as many slots as the engine wants requests; whoever asks holds a seat there.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_requests: int | None = None,
        max_restarts: int = MAX_RESTARTS,
        backoff_seconds: float = 1.0,
        stall_seconds: float = STALL_SECONDS,
        restart_seconds: float = RESTART_SECONDS,
    ) -> None:
        self._engine = engine
        self._max_requests = max_requests
        self._max_restarts = max_restarts
        self._backoff_seconds = backoff_seconds
        self._stall_seconds = stall_seconds
        self._restart_seconds = restart_seconds
        self._gate: Gate | None = None
        self._in_flight: dict[asyncio.Task[Completion], Rider | None] = {}
        self._up = asyncio.Event()
        self._gone: EngineUnavailable | None = None
        self._life = 0
        self._death: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._troubles = 0
        self._outcomes = 0
        self._revival: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self.suspects: tuple[Rider, ...] = ()
        """Who was in the engine when it last died with somebody in it."""

    @property
    def model(self) -> str:
        """The model's name."""
        return self._engine.model

    @property
    def gate(self) -> Gate:
        """The gate before the engine; there is one only after `start`."""
        if self._gate is None:
            raise RuntimeError("the engine has not been started")
        return self._gate

    @property
    def is_up(self) -> bool:
        """Whether requests are answered now: it is neither being started nor gone."""
        return self._up.is_set() and self._gone is None

    def expect(self, samplings: Sequence[Mapping[str, Any]], video: Video | None = None) -> None:
        """See `Engine.expect`."""
        self._engine.expect(samplings, video)

    async def start(self) -> None:
        """Load the model, for the first time or again after `stop`. Raises `EngineUnavailable`.

        What cannot be loaded at first is wrong and told at once. What could be loaded once is
        tried again: the device may not have been free yet.
        """
        try:
            await self._engine.start()
        except EngineError as error:
            if self._gate is None:
                raise
            log.warning("engine does not start", model=self.model, reason=str(error))
            await self._revive(str(error))
            if self._gone is not None:
                self._gone = EngineUnavailable(f"{self.model} cannot be loaded again: {error}")
                raise self._gone from error
        wanted = self._engine.requests_in_flight
        self._gate = Gate(min(wanted, self._max_requests or wanted))
        if self._death.done():
            self._death = asyncio.get_running_loop().create_future()
        self._up.set()
        self._watch = asyncio.create_task(self._watch_for_stalls())

    async def stop(self) -> None:
        """Stop watching and reviving, and stop the engine; `start` may load it again."""
        self._up.clear()
        for task in (self._watch, self._revival):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._watch = self._revival = None
        self._troubles, self.suspects = 0, ()
        await self._stop_engine()

    def slots_for(self, requests: int, deaths: int) -> int:
        """Return how many slots so many requests of an item with so many deaths take.

        What was in a dying engine is first tried again in groups of the square root of the width,
        so that a second death leaves few suspects; those are tried one at a time.
        """
        capacity = self.gate.capacity
        match deaths:
            case 0:
                return min(capacity, requests)
            case 1:
                return min(capacity, max(requests, capacity // math.isqrt(capacity)))
            case _:
                return capacity

    async def ask(self, request: Request, rider: Rider | None) -> Completion:
        """Answer one request, once the engine is up.

        Raises:
            RequestRefused: this request cannot be answered.
            EngineDied: the engine died; it is being started again, ask again.
            EngineUnavailable: the engine is gone for good.

        """
        await self._up.wait()
        if self._gone is not None:
            raise self._gone
        life, death = self._life, self._death
        task = asyncio.create_task(self._engine.generate(request))
        self._in_flight[task] = rider
        try:
            # A hung engine may not even let go of what is cancelled: its death is waited for, too.
            either: tuple[asyncio.Future[Any], ...] = (task, death)
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise EngineDied(death.result())
            return self._outcome(task, life)
        finally:
            del self._in_flight[task]
            if not task.done():
                task.cancel()
                task.add_done_callback(_forget_outcome)

    async def prove(self) -> None:
        """Return once the engine answers an innocent request.

        Raises:
            EngineUnavailable: it dies of that too, and is gone for good.

        """
        grey = PreparedImage(Image.new("RGB", (64, 64), "grey"), content_hash="0" * 32)
        request = Request("proof", "Describe the image.", grey, {"max_tokens": 8})
        while True:
            try:
                await self.ask(request, None)
            except RequestRefused:
                return
            except EngineDied:
                continue
            return

    def _outcome(self, task: asyncio.Task[Completion], life: int) -> Completion:
        if task.cancelled():
            raise self._died("the engine aborted the request", life)
        try:
            completion = task.result()
        except EngineDied as error:
            raise self._died(str(error), life) from error
        except RequestRefused:
            self._outcomes += 1
            raise
        self._outcomes += 1
        self._troubles = 0
        return completion

    async def _watch_for_stalls(self) -> None:
        """Take an engine for dead that has requests in it and gives no sign of life for too long.

        Loading, being idle and being stopped are no stalls: there is nothing in flight then.
        """
        loop = asyncio.get_running_loop()
        pause = self._stall_seconds / _LOOKS_PER_STALL
        silence = Silence(longest_gap_seconds=2 * pause)
        while True:
            await asyncio.sleep(pause)
            beats = self._engine.beats + self._outcomes + self._life
            seconds = silence.look(beats, busy=bool(self._in_flight), now=loop.time())
            if seconds >= self._stall_seconds:
                self._died(f"no token for {self._stall_seconds:g} s: it hangs", self._life)

    def _died(self, evidence: str, life: int) -> EngineDied:
        """Note the death, once for all that notice it, and begin the revival."""
        if life == self._life:
            self._life += 1
            self._up.clear()
            self._death.set_result(evidence)
            riders = {rider for task, rider in self._in_flight.items() if _is_lost(task)}
            suspects = tuple(rider for rider in riders if rider is not None)
            log.warning("engine died", model=self.model, reason=evidence, in_flight=len(suspects))
            for rider in suspects:
                rider.engine_died(evidence)
            self.suspects = suspects or self.suspects
            for task in self._in_flight:
                task.cancel()
            self._revival = asyncio.create_task(self._revive(evidence))
        return EngineDied(evidence)

    async def _revive(self, evidence: str) -> None:
        while self._troubles < self._max_restarts:
            self._troubles += 1
            try:
                await self._restart()
            except EngineError as error:
                evidence = str(error)
                log.warning("engine does not start", model=self.model, reason=evidence)
            except Exception as error:
                # A task of its own: whatever went wrong ends here, and the engine with it.
                log.exception("engine restart failed", model=self.model)
                evidence = f"{type(error).__name__}: {error}"
            else:
                log.info("engine is up again", model=self.model)
                self._death = asyncio.get_running_loop().create_future()
                self._up.set()
                return
        self._gone = EngineUnavailable(
            f"the engine of {self.model} died and {_restarts(self._max_restarts)}: {evidence}"
        )
        self._up.set()

    async def _restart(self) -> None:
        await self._stop_engine()
        await asyncio.sleep(self._backoff_seconds * 2 ** (self._troubles - 1))
        try:
            async with asyncio.timeout(self._restart_seconds):
                await self._engine.start()
        except TimeoutError as error:
            raise EngineUnavailable(
                f"it did not start again within {self._restart_seconds:g} s: is its device broken?"
            ) from error

    async def _stop_engine(self) -> None:
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._engine.stop()
        except TimeoutError:
            log.warning("engine does not stop", model=self.model, seconds=STOP_SECONDS)


def _restarts(most: int) -> str:
    match most:
        case 0:
            return "is not to be restarted (max_engine_restarts is 0)"
        case 1:
            return "a restart did not help"
        case _:
            return f"{most} restarts did not help"


def _is_lost(task: asyncio.Task[Completion]) -> bool:
    """Whether the request has no answer of its own."""
    if not task.done() or task.cancelled():
        return True
    return isinstance(task.exception(), EngineDied)


def _forget_outcome(task: asyncio.Task[Completion]) -> None:
    if not task.cancelled():
        task.exception()  # retrieved: asyncio would report it as lost
