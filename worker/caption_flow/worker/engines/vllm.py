"""The engine that runs vision-language models with vLLM, 0.17 and newer, with and without a GPU.

This module is the port's side of it; its siblings know the rest: `vllm_interface` every import from
vLLM, `vllm_loading` and `vllm_running` an engine's life, `vllm_options` and `vllm_checks` its
options, `vllm_failures` its sentences, `guard` the end of its processes. Importing any of them
imports neither vLLM nor torch.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from caption_flow.recipe.structure import STRUCTURED_OUTPUTS
from caption_flow.recipe.video import Video
from caption_flow.worker.core.starvation import RESERVE
from caption_flow.worker.engines import guard
from caption_flow.worker.engines.base import (
    Completion,
    EngineDied,
    EngineUnavailable,
    Request,
    RequestRefused,
)
from caption_flow.worker.engines.devices import too_few_gpus
from caption_flow.worker.engines.greeting import greetings
from caption_flow.worker.engines.in_flight import InFlight
from caption_flow.worker.engines.models import missing_model_folder
from caption_flow.worker.engines.vllm_checks import check_options
from caption_flow.worker.engines.vllm_interface import import_vllm
from caption_flow.worker.engines.vllm_loading import DEFAULT_ENGINE_OPTIONS, Wanted, load
from caption_flow.worker.engines.vllm_running import Running

__all__ = ["VllmEngine", "check_options"]

_GREETING_SECONDS: Final = 900.0
"""How long the first answer may take: kernels are compiled for it, on a busy CPU perhaps."""


class VllmEngine:
    """An `Engine` that runs a vision-language model with vLLM, in processes of its own.

    Args:
        model: a hub name or a folder.
        engine_options: fields of vLLM's ``AsyncEngineArgs``, as the orchestrator asks for them;
            checked when the engine starts.
        owner_options: more of them, from the worker's owner: laid over the others, and trusted.
        trust_remote_code: the worker's owner lets the model's and the orchestrator's code run here.

    """

    def __init__(
        self,
        model: str,
        engine_options: Mapping[str, Any],
        *,
        owner_options: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._wanted = Wanted(model, dict(engine_options), owner_options or {}, trust_remote_code)
        self._running: Running | None = None
        self._beats = 0
        self._in_flight = InFlight()
        self._changing = asyncio.Lock()

    @property
    def model(self) -> str:
        """The model as configured."""
        return self._wanted.model

    @property
    def requests_in_flight(self) -> int:
        """1.1 times ``max_num_seqs``: as vLLM settled it once started, as configured before."""
        if self._running is not None:
            return math.ceil(RESERVE * self._running.max_num_seqs)
        options = {**self._wanted.options, **self._wanted.owner_options}
        configured = options.get("max_num_seqs") or DEFAULT_ENGINE_OPTIONS["max_num_seqs"]
        return math.ceil(RESERVE * int(configured))

    def expect(self, samplings: Sequence[Mapping[str, Any]], video: Video | None = None) -> None:
        """Note how requests will come: `start` checks it, tries structured outputs and videos."""
        self._wanted = replace(self._wanted, samplings=tuple(samplings), video=video)

    @property
    def beats(self) -> int:
        """How often tokens came out of vLLM, in all its lives."""
        return self._beats + (0 if self._running is None else self._running.beats)

    async def start(self) -> None:
        """Load the model and ask it about what is grey; idempotent while it runs.

        Raises:
            EngineUnavailable: an option, the model, the device or vLLM itself does not do.

        """
        if missing := missing_model_folder(self._wanted.model):
            raise EngineUnavailable(missing)
        asked = {**self._wanted.options, **self._wanted.owner_options}
        if too_few := too_few_gpus(self._wanted.model, asked, os.environ):
            raise EngineUnavailable(too_few)
        async with self._changing:
            if self._running is None:
                running = await self._load()
                await self._greet(running)
                self._running = running

    async def generate(self, request: Request) -> Completion:
        """Answer one request; cancelling aborts it in the engine.

        Raises:
            RequestRefused: kinds ``prompt_too_long``, ``image_rejected``, ``engine_rejected``.
            EngineDied: the engine is gone, is being stopped, or was never started.

        """
        running = self._running
        if running is None:
            raise EngineDied("vLLM is not running")
        return await self._in_flight.answer(
            running.answer(request), when_stopped="vLLM was stopped"
        )

    async def stop(self) -> None:
        """End the engine and all its processes, within 15 seconds; idempotent."""
        async with self._changing:
            running, self._running = self._running, None
            if running is None:
                return
            self._beats += running.beats
            # vLLM forgets who waits when it shuts down: without this they would wait for ever.
            await self._in_flight.give_up(within_seconds=1)
            await asyncio.shield(running.end())

    async def _load(self) -> Running:
        """Load in a thread; when cancelled, end what was begun before passing that on.

        Raises:
            EngineUnavailable: see `start`.

        """
        # Apart from the rest: where an optional import fails, vLLM keeps the error for ever, and
        # with it the frames that led there. The engine must not be in one of them.
        await asyncio.to_thread(import_vllm)
        mark, abandoned = guard.new_mark(), threading.Event()
        thread = asyncio.ensure_future(asyncio.to_thread(load, self._wanted, mark, abandoned))
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            abandoned.set()
            while not thread.done():
                await asyncio.to_thread(guard.end_marked, mark)
                await asyncio.wait([thread], timeout=0.2)
            if not thread.cancelled() and thread.exception() is None:
                await thread.result().end()
            raise

    async def _greet(self, running: Running) -> None:
        """Ask once, also for each structure: what would fail for every item fails now.

        Raises:
            EngineUnavailable: the model does not answer.

        """
        structures = [
            {STRUCTURED_OUTPUTS: sampling[STRUCTURED_OUTPUTS]}
            for sampling in self._wanted.samplings
            if STRUCTURED_OUTPUTS in sampling
        ]
        for (what, grey), sampling in itertools.product(
            greetings(self._wanted.video), ({}, *structures)
        ):
            asked = {"max_tokens": 1, **sampling}
            request = Request("greeting", "Describe the picture.", grey, asked)
            try:
                async with asyncio.timeout(_GREETING_SECONDS):
                    await running.answer(request)
            except BaseException as error:
                await asyncio.shield(running.end())
                if isinstance(error, TimeoutError):
                    error = EngineDied(f"no answer within {_GREETING_SECONDS:.0f} s: vLLM hangs")
                if not isinstance(error, RequestRefused | EngineDied):
                    raise
                how = f" with {sampling}" if sampling else ""
                raise EngineUnavailable(
                    f"model '{self._wanted.model}' cannot be asked about {what}{how}: {error}"
                ) from error
