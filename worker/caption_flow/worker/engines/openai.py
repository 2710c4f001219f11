"""The engine that asks a server with OpenAI's API: vLLM, SGLang, Ollama, llama.cpp, a hosted one.

This module is the port's side of it; its siblings know the rest: `openai_conversation` one life of
the engine, `openai_server` the wire, `openai_answers` what comes over it, `openai_patience` when to
ask again, `openai_dialect` what a request says, `openai_pictures` the pictures in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from caption_flow.config.secret import Secret, SecretError
from caption_flow.recipe.video import VIDEO, Video
from caption_flow.worker.engines.base import (
    Completion,
    EngineDied,
    EngineUnavailable,
    Request,
)
from caption_flow.worker.engines.in_flight import InFlight
from caption_flow.worker.engines.openai_answers import Peer
from caption_flow.worker.engines.openai_conversation import Conversation, Manners
from caption_flow.worker.engines.options import NO_WHOLE_VIDEOS, unknown_option


class OpenAIOptions(Manners, frozen=True, kw_only=True):
    """All that the engine may be told."""

    base_url: str
    """Address that ``/chat/completions`` is below; most end in ``/v1``."""
    api_key: Secret | None = None


class OpenAIEngine:
    """An `Engine` whose model runs on a server that others look after.

    Args:
        model: the name the server knows it by.
        options: what `OpenAIOptions` names.

    Raises:
        EngineUnavailable: an option is missing, unknown or impossible.

    """

    def __init__(self, model: str, options: Mapping[str, Any]) -> None:
        self._model = model
        self._options = _parse(options)
        self._conversation: Conversation | None = None
        self._video: Video | None = None
        self._in_flight = InFlight()
        self._changing = asyncio.Lock()

    @property
    def model(self) -> str:
        """The model as configured."""
        return self._model

    @property
    def requests_in_flight(self) -> int:
        """The option of that name."""
        return self._options.requests_in_flight

    @property
    def beats(self) -> int:
        """Nothing: a server answers as a whole, so answers are its only signs of life."""
        return 0

    def expect(self, samplings: Sequence[Mapping[str, Any]], video: Video | None = None) -> None:
        """Note how videos come: what else a server takes, only its answers tell."""
        del samplings
        self._video = video

    async def start(self) -> None:
        """See that the server answers a question about a grey picture; idempotent.

        Raises:
            EngineUnavailable: it cannot be reached, or has no such model, or refuses the key; or
                videos are to be passed as such, for which servers have no common way.

        """
        if self._video is not None and self._video.passed_as == VIDEO:
            raise EngineUnavailable(NO_WHOLE_VIDEOS)
        async with self._changing:
            if self._conversation is not None:
                return
            conversation = Conversation(
                _peer(self._options), self._model, self._options, self._video
            )
            try:
                await conversation.begin()
            except BaseException:
                await conversation.end()
                raise
            self._conversation = conversation

    async def generate(self, request: Request) -> Completion:
        """Answer one request; cancelling closes its connection, which tells the server.

        Raises:
            RequestRefused: kinds ``prompt_too_long``, ``image_rejected``, ``engine_rejected``,
                ``content_refused``, ``server_fault``.
            EngineDied: the server broke or hangs, or this is being stopped, or was never started.
            EngineUnavailable: the server refuses the key or the model, or has been away or busy for
                too long: to start again is no help.

        """
        conversation = self._conversation
        if conversation is None:
            raise EngineDied("the openai engine is not running")
        return await self._in_flight.answer(
            conversation.answer(request), when_stopped="the openai engine was stopped"
        )

    async def stop(self) -> None:
        """Give up what is in flight and close the connections; idempotent."""
        async with self._changing:
            conversation, self._conversation = self._conversation, None
            if conversation is None:
                return
            await self._in_flight.give_up()
            await conversation.end()


def _parse(options: Mapping[str, Any]) -> OpenAIOptions:
    known = OpenAIOptions.__struct_fields__
    for name in options:
        if name not in known:
            raise EngineUnavailable(unknown_option("openai engine", name, known))
    try:
        return msgspec.convert(dict(options), OpenAIOptions, strict=False)
    except msgspec.ValidationError as error:
        raise EngineUnavailable(f"openai engine: {error}") from error


def _peer(options: OpenAIOptions) -> Peer:
    """Return whom to talk to; the key is read anew each time, since files of keys change.

    Raises:
        EngineUnavailable: the key is not where it should be.

    """
    key = options.api_key
    if key is None:
        return Peer(options.base_url)
    try:
        secret = key.reveal()
    except SecretError as error:
        raise EngineUnavailable(f"the key of the openai engine: {error}") from error
    if not (secret.isascii() and secret.isprintable()):
        raise EngineUnavailable(f"the key {key} has characters that no key has: is it one line?")
    return Peer(options.base_url, str(key), secret)
