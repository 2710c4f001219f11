"""Serves a tiny model with real vLLM, for the evaluation and the tests.

Owns one `AsyncLLM` and how a picture and a prompt become a request. Deliberately apart from the
product's own vLLM adapter, so that a fault there cannot make the model look wrong, or right.
"""
# ruff: noqa: PLC0415 - vLLM reads the environment while it is imported, and that takes seconds

from __future__ import annotations

import asyncio
import gc
import hashlib
import importlib
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tests.tiny_vlm import scenes

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

MODEL_FOLDER = Path(__file__).with_name("model")
# The longest right answer has 39 tokens, the end of turn included.
MAX_ANSWER_TOKENS = 64

_LAST_TASKS_SECONDS = 5.0

# Read by vLLM and huggingface_hub as they are imported.
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}


@dataclass(frozen=True, slots=True)
class ChainedCaption:
    """What the two stages said."""

    detailed: str
    condensed: str


@dataclass
class TinyCaptioner:
    """Asks a running engine, at temperature 0."""

    engine: AsyncLLM
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def ask(self, picture: Image.Image, prompt: str) -> str:
        """The model's answer to `prompt` about `picture`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=MAX_ANSWER_TOKENS,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        rendered = await self._render(picture, prompt)
        text = ""
        async for output in self.engine.generate(rendered, sampling, f"tiny-{next(self._numbers)}"):
            text = output.outputs[0].text
        return text

    async def detail_and_condense(self, picture: Image.Image) -> ChainedCaption:
        """The two-stage chain: describe in detail, then condense what was said."""
        detailed = await self.ask(picture, scenes.DETAILED_PROMPTS[0])
        prompt = scenes.CONDENSE_PROMPTS[0].replace("{caption}", detailed)
        return ChainedCaption(detailed, await self.ask(picture, prompt))

    async def _render(self, picture: Image.Image, prompt: str) -> Any:
        from vllm.renderers import ChatParams

        content = [
            {"type": "image_pil", "image_pil": picture, "uuid": _content_id(picture)},
            {"type": "text", "text": prompt},
        ]
        _, (rendered,) = await self.engine.renderer.render_chat_async(
            [[{"role": "user", "content": content}]],
            ChatParams(chat_template_kwargs={"add_generation_prompt": True}),
        )
        return rendered


@asynccontextmanager
async def tiny_captioner(
    folder: Path = MODEL_FOLDER, *, max_model_len: int = 1024
) -> AsyncIterator[TinyCaptioner]:
    """Load the model (about 20 s on two cores), hand it out, and shut the engine down."""
    os.environ.update(_ENVIRONMENT)
    # Apart from the start: where an optional import fails, vLLM keeps the error and so the frames
    # that led there. One of them must not be the frame that makes the engine, or the engine is
    # never collected and complains when the interpreter exits.
    await asyncio.to_thread(importlib.import_module, "vllm.v1.engine.async_llm")
    ours = asyncio.all_tasks()
    captioner = TinyCaptioner(await asyncio.to_thread(_start_engine, folder, max_model_len))
    try:
        yield captioner
    finally:
        await asyncio.to_thread(captioner.engine.shutdown)
        del captioner.engine
        await _bury_what_vllm_leaves(ours)


def _start_engine(folder: Path, max_model_len: int) -> AsyncLLM:
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(
        model=str(folder),
        max_model_len=max_model_len,
        max_num_seqs=32,
        limit_mm_per_prompt={"image": 1, "video": 0},
        mm_processor_cache_gb=0.25,
        # Compiling takes longer than everything this model will ever be asked.
        enforce_eager=True,
    )
    return AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)


async def _bury_what_vllm_leaves(ours: set[asyncio.Task[Any]]) -> None:
    """Have the engine collected now: what it complains about is no fault of whatever runs next.

    Its shutdown only asks its tasks to end, and they hold on to its ZeroMQ context, which nobody
    closes.
    """
    theirs = asyncio.all_tasks() - ours - {asyncio.current_task()}
    if theirs:
        await asyncio.wait(theirs, timeout=_LAST_TASKS_SECONDS)
    del theirs
    gc.collect()


def _content_id(picture: Image.Image) -> str:
    digest = hashlib.sha256(picture.tobytes())
    return f"{picture.width}x{picture.height}-{digest.hexdigest()[:32]}"
