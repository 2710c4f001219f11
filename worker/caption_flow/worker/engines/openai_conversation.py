"""One life of the engine: a server that was found in order, and how requests fare with it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Final, TypeVar

import msgspec
import structlog
from yarl import URL

from caption_flow.recipe.video import Video
from caption_flow.worker.engines.base import (
    Completion,
    EngineDied,
    EngineUnavailable,
    Request,
    RequestRefused,
)
from caption_flow.worker.engines.greeting import greetings
from caption_flow.worker.engines.openai_answers import (
    NotThereError,
    Peer,
    read_completion,
    read_models,
)
from caption_flow.worker.engines.openai_dialect import Dialect, refused_parameter
from caption_flow.worker.engines.openai_patience import Health, Patience, Trouble
from caption_flow.worker.engines.openai_pictures import ImageFormat, Pictures
from caption_flow.worker.engines.openai_server import Server

log = structlog.get_logger()

_SHOWN_MODELS: Final = 10
_GREETING_TOKENS: Final = 16
"""Enough for models that think first: some refuse to begin with less."""

T = TypeVar("T")


Seconds = Annotated[float, msgspec.Meta(gt=0)]


class Manners(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine deals with the server: the options of the worker's owner."""

    requests_in_flight: Annotated[int, msgspec.Meta(ge=1)] = 64
    """Requests the server has at once; more of them wait."""
    request_seconds: Seconds = 300.0
    """Longest time from a request to the end of its answer."""
    connect_seconds: Seconds = 10.0
    """Longest time until a connection is made."""
    start_seconds: Annotated[float, msgspec.Meta(ge=0)] = 20.0
    """How long a server that is not there yet is waited for at the start."""
    patience_seconds: Annotated[float, msgspec.Meta(ge=0)] = 300.0
    """How long a server that is away or busy, and answers nothing, is asked again."""
    retry_seconds: Seconds = 0.5
    """Wait before the second try; it doubles with each, up to 30 s."""
    image_format: ImageFormat = "jpeg"
    """``png`` loses nothing and takes five times the bytes."""
    jpeg_quality: Annotated[int, msgspec.Meta(ge=1, le=100)] = 95


class Conversation:
    """Talks with one server about one model. Made within the event loop it is used in.

    ``video`` says how videos come, if they do.
    """

    def __init__(
        self, peer: Peer, model: str, manners: Manners, video: Video | None = None
    ) -> None:
        self._model = model
        self._video = video
        self._manners = manners
        self._server = Server(
            peer,
            connect_seconds=manners.connect_seconds,
            request_seconds=manners.request_seconds,
        )
        self._pictures = Pictures(
            image_format=manners.image_format,
            jpeg_quality=manners.jpeg_quality,
            keep=manners.requests_in_flight * (1 if video is None else video.frames),
        )
        self._dialect = Dialect()
        self._health = Health()
        self._slots = asyncio.Semaphore(manners.requests_in_flight)
        self._in_trouble = False

    async def begin(self) -> None:
        """See that the server is there, has the model, and answers about a picture.

        Raises:
            EngineUnavailable: it does not.

        """
        patience = self._manners.start_seconds
        what = "a picture"
        models: tuple[str, ...] | None = None
        try:
            models = await self._patiently(self._list_models, patience)
            for what, grey in greetings(self._video):  # noqa: B007  -- named if refused
                question = "Describe the picture."
                sampling = {"max_tokens": _GREETING_TOKENS}
                await self._answer(Request("greeting", question, grey, sampling), patience)
        except RequestRefused as error:
            if models is not None and self._model not in models:
                raise EngineUnavailable(self._model_missing(models, str(error))) from error
            raise EngineUnavailable(
                f"model '{self._model}' cannot be asked about {what}: {error}"
            ) from error
        except EngineDied as error:
            raise EngineUnavailable(str(error)) from error

    async def answer(self, request: Request) -> Completion:
        """Answer one request.

        Raises:
            RequestRefused: this request cannot be answered.
            EngineDied: the server breaks, or hangs.
            EngineUnavailable: it is gone, or does not answer us: the key or the model is refused.

        """
        return await self._answer(request, self._manners.patience_seconds)

    async def end(self) -> None:
        """Close the connections; what is in flight fails."""
        self._pictures.close()
        await self._server.close()

    # ------------------------------------------------------------------ one request

    async def _answer(self, request: Request, patience_seconds: float) -> Completion:
        shown = request.subject.pictures
        pictures = await asyncio.gather(*map(self._pictures.data_url, shown))
        body = self._dialect.chat_request(self._model, request, pictures)
        while True:
            try:
                return await self._patiently(lambda: self._ask(body), patience_seconds)  # noqa: B023
            except RequestRefused as refusal:
                body = self._said_better(request, pictures, body, refusal)

    def _said_better(
        self,
        request: Request,
        pictures: Sequence[msgspec.Raw],
        said: bytes,
        refusal: RequestRefused,
    ) -> bytes:
        """Return the refused request in words the server takes, else raise the refusal."""
        if lesson := self._dialect.learn(str(refusal), request.sampling):
            log.warning(lesson, server=self._server.peer.address, model=self._model)
        better = self._dialect.chat_request(self._model, request, pictures)
        if better != said:  # also when another request has learnt it meanwhile
            return better
        if name := refused_parameter(str(refusal), request.sampling):
            raise RequestRefused(
                refusal.kind, f"{refusal} (take '{name}' out of the recipe's sampling)"
            ) from refusal
        raise refusal

    async def _ask(self, body: bytes) -> Completion:
        try:
            completion = read_completion(await self._server.chat(body), now=datetime.now(UTC))
        except NotThereError as error:
            raise EngineUnavailable(
                self._model_missing(await self._models_if_any(), str(error))
            ) from error
        self._health.answered_at = asyncio.get_running_loop().time()
        if self._in_trouble:
            self._in_trouble = False
            log.info("the server answers again", server=self._server.peer.address)
        return completion

    async def _patiently(self, attempt: Callable[[], Awaitable[T]], patience_seconds: float) -> T:
        """Return what an attempt gives, made again as long as there is patience.

        Raises:
            RequestRefused: see `answer`.
            EngineDied: see `answer`.
            EngineUnavailable: see `answer`.

        """
        loop = asyncio.get_running_loop()
        patience = Patience(
            self._health,
            patience_seconds=patience_seconds,
            first_delay_seconds=self._manners.retry_seconds,
        )
        while True:
            try:
                async with self._slots:
                    return await attempt()
            except Trouble as trouble:
                chance = random.random()  # noqa: S311 - spreads retries, guards nothing
                delay = patience.delay_after(trouble, now=loop.time(), chance=chance)
                self._tell_once(trouble, delay)
            await asyncio.sleep(delay)

    def _tell_once(self, trouble: Trouble, delay: float) -> None:
        """Log the first of the troubles: a server that is away is so for every request."""
        level = log.debug if self._in_trouble else log.warning
        level("asking again", reason=str(trouble), seconds=round(delay, 1))
        self._in_trouble = True

    # ------------------------------------------------------------------ models

    async def _list_models(self) -> tuple[str, ...] | None:
        return read_models(await self._server.models(), now=datetime.now(UTC))

    async def _models_if_any(self) -> tuple[str, ...] | None:
        try:
            return await self._list_models()
        except (Trouble, EngineUnavailable):
            return None

    def _model_missing(self, models: tuple[str, ...] | None, said: str) -> str:
        peer = self._server.peer
        if models:
            shown = ", ".join(models[:_SHOWN_MODELS])
            more = f" and {len(models) - _SHOWN_MODELS} more" if len(models) > _SHOWN_MODELS else ""
            return f"{peer} has no model '{self._model}' ({said}); it has {shown}{more}"
        hint = (
            "" if URL(peer.address).path.strip("/") else f": is it {peer.address.rstrip('/')}/v1?"
        )
        return f"{peer} has no model '{self._model}', or nothing there takes chats ({said}){hint}"
