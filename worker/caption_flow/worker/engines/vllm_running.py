"""A vLLM engine that runs: how a request becomes vLLM's and an output ours, and how it ends."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec
import structlog
from PIL import Image

from caption_flow.recipe.video import VIDEO
from caption_flow.worker.engines import guard
from caption_flow.worker.engines import vllm_fitting as fitting
from caption_flow.worker.engines import vllm_interface as interface
from caption_flow.worker.engines.base import (
    Completion,
    EngineDied,
    PreparedVideo,
    Request,
    RequestRefused,
)
from caption_flow.worker.engines.refusals import ENGINE_REJECTED, PROMPT_TOO_LONG
from caption_flow.worker.engines.vllm_checks import check_sampling
from caption_flow.worker.engines.vllm_environment import FailureLog
from caption_flow.worker.engines.vllm_failures import chain, explain_death, refusal

log = structlog.get_logger()

_RETRIES: Final = 2
"""How often a request is submitted again that ended in "error": vLLM's word for a failure of its
own that another try may mend."""
_TELLING_SECONDS: Final = 1.0
"""How long vLLM's own shutdown may take, before and again after its processes are killed."""


class Running:
    """One life of vLLM's engine: from a load that succeeded to its end."""

    def __init__(
        self,
        engine: Any,
        mark: str,
        watchman: guard.Watchman,
        failures: FailureLog,
    ) -> None:
        self._engine = engine
        self._mark = mark
        self._watchman = watchman
        self._failures = failures
        self._logged = failures.size()
        self._numbers = itertools.count()
        self._params: dict[bytes, Any] = {}
        self._warned_of_clipping = False
        self._chat_params = interface.chat_params()
        self.max_num_seqs: int = engine.vllm_config.scheduler_config.max_num_seqs
        self.beats = 0
        interface.call_at_tokens(engine, self._beat)
        self._max_model_len: int = engine.vllm_config.model_config.max_model_len

    def _beat(self) -> None:
        self.beats += 1

    async def answer(self, request: Request) -> Completion:
        """Answer one request.

        Raises:
            RequestRefused: this request cannot be answered.
            EngineDied: the engine is gone.

        """
        params = self._sampling_params(request.sampling)
        completion = await self._attempt(request, params, "")
        for _ in range(_RETRIES):
            if completion.finish_reason != "error":
                break
            # Under a new name, vLLM prepares the picture anew: its processes may disagree about
            # which of them has it, when a request was given up between preparing and submitting.
            completion = await self._attempt(request, params, f"#{next(self._numbers)}")
        match completion.finish_reason:
            case "abort":
                raise EngineDied("vLLM dropped the request")
            case "error":
                raise RequestRefused(ENGINE_REJECTED, "vLLM failed at this request, repeatedly")
        return completion

    async def _attempt(self, request: Request, params: Any, renamed: str) -> Completion:
        with request.rendering():
            prompt, scaled_to = await self._render_to_fit(request, renamed, params)
        self._check_length(prompt, params)
        output = await self._generate(request, prompt, params)
        return _completion(output, scaled_to)

    async def _render_to_fit(
        self, request: Request, renamed: str, params: Any
    ) -> tuple[Any, fitting.Size | None]:
        """Return the rendered request, and the pictures' size where they had to shrink for it."""
        limit = self._max_model_len
        budget = limit - fitting.room_wanted(params.max_tokens or 1, limit)
        whole = await self._render(request, renamed)
        found = _rendered(whole)
        if found.tokens <= budget or budget <= found.text_tokens <= found.tokens < limit:
            return whole, None  # in the second case no size of picture makes the room wanted
        prompt, size = await self._shrink_to_fit(request, renamed, found, budget)
        # Shrinking may not have helped. Any room is better than none.
        if _rendered(prompt).tokens > budget and found.tokens < limit:
            return whole, None
        return prompt, size

    async def _shrink_to_fit(
        self, request: Request, renamed: str, found: fitting.Rendered, budget: int
    ) -> tuple[Any, fitting.Size]:
        """Return the request with as small pictures as it takes, or as is allowed."""
        size, prompt = request.subject.pictures[0].pixels.size, None
        for _ in range(fitting.MAX_TRIES):
            target = fitting.smaller(size, found, budget)
            if target is None:
                break
            size = target
            smaller = await asyncio.to_thread(_resized, request, size)
            # Under a name of its own: vLLM keeps pictures by name, and this is another.
            prompt = await self._render(smaller, f"{renamed}@{size[0]}x{size[1]}")
            found = _rendered(prompt)
            if found.tokens <= budget:
                break
        if prompt is None:  # it was that small already
            prompt = await self._render(request, renamed)
        return prompt, size

    async def _render(self, request: Request, renamed: str) -> Any:
        """Return vLLM's own form of the request: the chat template's tokens, the pictures' pixels.

        The pictures come first and are named by their content, with ``renamed`` behind it, so that
        vLLM encodes each once for all prompts and stages about it, and finds it in its prefix
        cache.
        """
        subject, text = request.subject, {"type": "text", "text": request.prompt}
        renderer = self._engine.renderer
        try:
            if isinstance(subject, PreparedVideo) and subject.passed_as == VIDEO:
                name = f"{subject.content_hash}:{len(subject.pictures)} frames{renamed}"
                return await interface.render_video(
                    renderer, self._chat_params, _as_vllm(subject), name, text
                )
            shown = [
                {
                    "type": "image_pil",
                    "image_pil": picture.pixels,
                    "uuid": f"{picture.content_hash}{renamed}",
                }
                for picture in subject.pictures
            ]
            _conversations, prompts = await renderer.render_chat_async(
                [[{"role": "user", "content": [*shown, text]}]], self._chat_params
            )
        except Exception as error:
            # Whatever vLLM and the model's processor raise here is about this one request.
            raise self._judged(error) from error
        return prompts[0]

    def _check_length(self, prompt: Any, params: Any) -> None:
        tokens = len(prompt.get("prompt_token_ids") or ())
        room = self._max_model_len - tokens
        if room < 1:
            raise RequestRefused(
                PROMPT_TOO_LONG,
                f"prompt and picture are {tokens} tokens long, the picture as small as it may get; "
                f"max_model_len is {self._max_model_len}",
            )
        if room < (params.max_tokens or 0) and not self._warned_of_clipping:
            # vLLM says nothing of it: the answer just ends with the reason "length".
            self._warned_of_clipping = True
            log.warning(
                "answers may be cut short: prompt and max_tokens exceed max_model_len",
                prompt_tokens=tokens,
                max_tokens=params.max_tokens,
                max_model_len=self._max_model_len,
            )

    async def _generate(self, request: Request, prompt: Any, params: Any) -> Any:
        # Items come back after a lost lease: the engine's name for a request is never used again.
        name = f"{request.id}#{next(self._numbers)}"
        output = None
        try:
            async for part in self._engine.generate(prompt, params, name):
                output = part
        except Exception as error:
            raise self._judged(error) from error
        if output is None:
            raise EngineDied("vLLM ended a request without an answer")
        return output

    def _judged(self, error: Exception) -> RequestRefused | EngineDied:
        """Return whose fault ``error`` is: the request's, unless the engine is gone."""
        if self._engine.errored or any(
            type(link).__name__ == "EngineDeadError" for link in chain(error)
        ):
            return EngineDied(explain_death(error, self._failures.since(self._logged)))
        # EngineGenerateError says nothing itself; what it was raised from does.
        cause = error.__cause__ if type(error).__name__ == "EngineGenerateError" else None
        kind, sentence = refusal(cause or error)
        return RequestRefused(kind, sentence)

    def _sampling_params(self, sampling: Mapping[str, Any]) -> Any:
        """Return vLLM's object for these parameters, made once: few stages, many requests."""
        key = msgspec.msgpack.encode(sampling)
        params = self._params.get(key)
        if params is None:
            checked = check_sampling(sampling)
            if checked.errors:
                raise RequestRefused(ENGINE_REJECTED, "; ".join(checked.errors))
            params = self._params[key] = interface.sampling_params(checked.options)
        return params

    async def end(self) -> None:
        """End everything of this engine, within some 15 seconds.

        Nothing in the engine is worth a goodbye: its processes hold no state that outlives them,
        and the driver frees a device's memory with the process. So they are killed, which takes a
        fifth of a second instead of vLLM's five.
        """
        listener = getattr(self._engine, "output_handler", None)
        if listener is not None:
            listener.cancel()  # or it would report its engine's end as a failure
        await asyncio.to_thread(self._end_processes)
        await asyncio.to_thread(self._close_messaging)

    def _end_processes(self) -> None:
        seen = guard.births(self._mark)
        # vLLM is told first, for the same reason.
        telling = threading.Thread(target=interface.shut_down, args=(self._engine,), daemon=True)
        telling.start()
        telling.join(_TELLING_SECONDS)
        gone = guard.end_marked(self._mark, seen=seen)
        telling.join(_TELLING_SECONDS)
        multiprocessing.active_children()  # buries the dead
        self._watchman.dismiss()
        if not gone:
            log.error("processes of vLLM cannot be ended", pids=guard.marked(self._mark))

    def _close_messaging(self) -> None:
        """Close what vLLM leaves to the garbage collector, and pyzmq then complains about.

        Its sockets were closed by the event loop meanwhile. Should one be open still, closing would
        wait for it, but nobody else does.
        """
        resources = getattr(getattr(self._engine, "engine_core", None), "resources", None)
        context = getattr(resources, "ctx", None)
        if context is not None:
            closing = threading.Thread(target=context.term, daemon=True)
            closing.start()
            closing.join(_TELLING_SECONDS)


def _rendered(prompt: Any) -> fitting.Rendered:
    kinds = (prompt.get("mm_placeholders") or {}).values()
    tokens = len(prompt.get("prompt_token_ids") or ())
    return fitting.Rendered(tokens, sum(int(place.length) for places in kinds for place in places))


def _resized(request: Request, size: fitting.Size) -> Request:
    """Return the request with its pictures in another size; blocking."""
    pictures = tuple(
        replace(
            picture,
            pixels=picture.pixels.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0),
        )
        for picture in request.subject.pictures
    )
    if isinstance(request.subject, PreparedVideo):
        return replace(request, subject=replace(request.subject, pictures=pictures))
    return replace(request, subject=pictures[0])


def _as_vllm(video: PreparedVideo) -> tuple[Any, dict[str, Any]]:
    """Return a video as vLLM's models take it: frames, and what their processors want to know.

    A frame's time is told by its number and the number of frames in a second. Where that changes,
    the number is the one that tells the right time.
    """
    import numpy as np  # noqa: PLC0415  -- comes with vLLM

    frames = np.stack([np.asarray(picture.pixels) for picture in video.pictures])
    rate = video.total / video.duration if video.duration > 0 else 1.0
    numbers = [round(seconds * rate) for seconds in video.seconds]
    return frames, {
        "total_num_frames": max(video.total, numbers[-1] + 1),
        "fps": rate,
        "duration": video.duration,
        "frames_indices": numbers,
        "video_backend": "opencv",
        "do_sample_frames": False,
    }


def _completion(output: Any, scaled_to: fitting.Size | None) -> Completion:
    answer = output.outputs[0]
    return Completion(
        text=answer.text,
        tokens_in=len(output.prompt_token_ids or ()),
        tokens_out=len(answer.token_ids),
        finish_reason=answer.finish_reason or "unknown",
        image_scaled_to=scaled_to,
    )
