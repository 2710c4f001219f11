"""An engine whose answers the test gives one by one, and loaders to go with it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from caption_flow.recipe.video import Video
from caption_flow.worker.core.leases import Job
from caption_flow.worker.engines.base import (
    Completion,
    EngineDied,
    EngineUnavailable,
    PreparedImage,
    Request,
    RequestRefused,
)
from caption_flow.worker.images.load import LoadedImage

PATIENCE_SECONDS = 10.0
"""No test waits longer for anything; one that gets here has failed."""


class ScriptedEngine:
    """Holds every request until the test answers it, unless ``reply`` answers by itself.

    ``reply`` maps a request to the answer's text, or to an exception to raise, or to None to hold
    the request after all. Whatever raises `EngineDied` takes everything in flight with it.
    """

    def __init__(
        self,
        *,
        model: str = "m",
        width: int = 4,
        reply: Callable[[Request], str | Exception | None] | None = None,
    ) -> None:
        self.model = model
        self.requests_in_flight = width
        self.reply = reply
        self.in_flight: dict[str, tuple[Request, asyncio.Future[str]]] = {}
        self.seen: list[Request] = []
        self.most_in_flight = 0
        self.beats = 0
        self.starts = 0
        self.stops = 0
        self.failing_starts: deque[str] = deque()
        self.start_gate: asyncio.Event | None = None
        self._moved = asyncio.Event()
        self._is_up = False
        self.expected: list[Mapping[str, Any]] = []
        self.finish_reasons: Sequence[str | None] = ()
        """Of the answers, by the place of their request; None, and those beyond, are "stop"."""
        self.scaled: Mapping[str, tuple[int, int]] = {}
        """By prompt: the size to which the engine says it shrank the picture."""

    def expect(self, samplings: Sequence[Mapping[str, Any]], video: Video | None = None) -> None:
        assert not self._is_up, "it is to know before it starts"
        self.video = video
        self.expected = list(samplings)

    async def start(self) -> None:
        self.starts += 1
        self._moved.set()
        if self.start_gate is not None:
            await self.start_gate.wait()
        if self.failing_starts:
            raise EngineUnavailable(self.failing_starts.popleft())
        self._is_up = True
        self._moved.set()

    async def stop(self) -> None:
        self.stops += 1
        self.die("stopped")

    async def generate(self, request: Request) -> Completion:
        if not self._is_up:
            raise EngineDied("not running")
        assert request.id not in self.in_flight, "a request's id is used twice"
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        number = len(self.seen)
        self.seen.append(request)
        self.in_flight[request.id] = (request, future)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        self._moved.set()
        try:
            text = await self._answer(request, future)
        finally:
            del self.in_flight[request.id]
            self._moved.set()
        return Completion(
            text,
            tokens_in=10,
            tokens_out=len(text.split()),
            finish_reason=next(iter(self.finish_reasons[number : number + 1]), None) or "stop",
            image_scaled_to=self.scaled.get(request.prompt),
        )

    async def _answer(self, request: Request, future: asyncio.Future[str]) -> str:
        if self.reply is None:
            return await future
        await asyncio.sleep(0)  # others get in beside it, as in any real engine
        if future.done():
            return await future
        match self.reply(request):
            case None:
                return await future
            case EngineDied() as death:
                self.die(str(death))
                raise death
            case Exception() as error:
                raise error
            case text:
                return text

    def die(self, reason: str = "killed") -> None:
        """Fail everything in flight; requests fail until `start`."""
        self._is_up = False
        for _, future in self.in_flight.values():
            if not future.done():
                future.set_exception(EngineDied(reason))
                future.exception()  # seen: not everybody waits for it any more

    def prompts(self) -> list[str]:
        """Return the prompts that wait for an answer, oldest first."""
        return [request.prompt for request, future in self.in_flight.values() if not future.done()]

    async def has(self, *prompts: str) -> None:
        """Wait until exactly these prompts are in flight, in any order."""
        await self.until(lambda: sorted(self.prompts()) == sorted(prompts))

    async def has_count(self, count: int) -> None:
        """Wait until so many requests wait for an answer."""
        await self.until(lambda: len(self.prompts()) == count)

    async def has_prompt(self, prompt: str) -> None:
        """Wait until this prompt is among those in flight."""
        await self.until(lambda: prompt in self.prompts())

    async def has_seen(self, count: int) -> None:
        """Wait until so many requests have come in all."""
        await self.until(lambda: len(self.seen) == count)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds; it is looked at whenever a request comes or goes."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not condition():
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            raise AssertionError(f"never came true; in flight: {self.prompts()}") from None

    def answer(self, prompt: str, text: str | None = None) -> None:
        """Answer the request with this prompt."""
        self._future(prompt).set_result(f"answer to {prompt}" if text is None else text)

    def refuse(self, prompt: str, kind: str, sentence: str) -> None:
        """Refuse the request with this prompt."""
        self._future(prompt).set_exception(RequestRefused(kind, sentence))

    def _future(self, prompt: str) -> asyncio.Future[str]:
        return next(
            future for request, future in self.in_flight.values() if request.prompt == prompt
        )


def loaded_image(index: int, *, size: tuple[int, int] = (8, 6)) -> LoadedImage:
    """Return a picture whose content hash is made of ``index``."""
    prepared = PreparedImage(Image.new("RGB", size), content_hash=f"{index:032d}")
    return LoadedImage(prepared, width=size[0], height=size[1], format="PNG", file_size=100)


class ScriptedLoader:
    """Gives every item a picture at once; ``faults`` has what to raise instead.

    Items in ``held`` are loaded only when the test calls `release`.
    """

    def __init__(
        self, faults: Mapping[int, Exception] | None = None, *, size: Any = (8, 6)
    ) -> None:
        self.faults = dict(faults or {})
        self.size = size
        self.asked: list[int] = []
        self.held: dict[int, asyncio.Event] = {}

    def hold(self, *items: int) -> None:
        self.held.update((item, asyncio.Event()) for item in items)

    def release(self, item: int) -> None:
        self.held.pop(item).set()

    async def load(self, job: Job, video: Video | None) -> LoadedImage:
        del video
        index = job.item.index
        self.asked.append(index)
        if index in self.held:
            await self.held[index].wait()
        await asyncio.sleep(0)
        if index in self.faults:
            raise self.faults[index]
        return loaded_image(index, size=self.size)
