"""Whether an image is encoded once: what vLLM's metrics say of 3 prompts x 2 stages on each image.

    python benchmarks/sharing.py                 a device made of sleep, see `simulated_device`
    python benchmarks/sharing.py --device cpu    the processor as it is

Needs vLLM. The whole worker, as in ``benchmarks/worker.py``, captions the same images three times:

- shared: as ever. The image comes first, and is named by its content.
- names apart: each request gives the image a name of its own, so vLLM can share nothing.
- text first: the image has its one name, but follows the text of the prompt.

Every count is vLLM's own: encoder runs (``SchedulerIterationDetails.num_encoder_inputs``), images
in the multimodal cache (``MultiModalCacheStats``) and prompt tokens in the prefix cache
(``PrefixCacheStats``). An image takes 391 tokens, and a block of the cache 32 (16 on a GPU): vLLM
shares whole blocks only.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import simulated_device
import uvloop

from caption_flow.worker.engines.base import Completion, Request
from caption_flow.worker.engines.vllm import VllmEngine
from worker import (
    DEVICES,
    MAX_NUM_SEQS,
    MODEL,
    Clock,
    DrawnLengths,
    Setting,
    answer_to,
    chosen,
    drawn_tokens,
    listen,
    make_images,
    work,
)

STAGES: Final = (
    ("Describe this image in detail.", "describe this image briefly", "caption this image"),
    (
        "Please condense this elaborate caption to only the important details: {caption}",
        "Please convert this caption to booru tag format instead: {caption}",
        "Shorten this: {caption}",
    ),
)
REQUESTS: Final = sum(map(len, STAGES))
OPTIONS: Final[dict[str, Any]] = {
    "max_model_len": 1024,
    "max_num_seqs": MAX_NUM_SEQS,
    "enforce_eager": True,
    "block_size": 32,
    "mm_processor_kwargs": {"size": {"shortest_edge": 7056, "longest_edge": 640 * 480}},
    "enable_logging_iteration_details": True,
}


class NamesApart(DrawnLengths):
    """Gives the image a name of its own in each request; answers are as long as they would be."""

    _numbers = itertools.count()

    async def generate(self, request: Request) -> Completion:
        """Pass the request on about a picture that vLLM has never heard of."""
        named = replace(request.subject, content_hash=f"image-{next(self._numbers)}")
        tokens = drawn_tokens(request.subject.content_hash, request.prompt)
        return await self.answer(replace(request, subject=named), tokens)


class TextFirst(DrawnLengths):
    """Puts the image after the text, with nothing of ours between here and vLLM."""

    llm: Any = None

    async def generate(self, request: Request) -> Completion:
        """Ask vLLM itself."""
        output = await answer_to(
            self.llm, request.subject.pictures[0], request.prompt, text_first=True
        )
        self._clock.tick()
        (answer,) = output.outputs
        tokens_in, tokens_out = len(output.prompt_token_ids), len(answer.token_ids)
        return Completion(answer.text, tokens_in, tokens_out, answer.finish_reason)


WAYS: Final = {"shared": DrawnLengths, "names apart": NamesApart, "text first": TextFirst}


async def count(
    setting: Setting, way: type[DrawnLengths], items: int
) -> tuple[float, Counter[str]]:
    """Return images per second, and what vLLM counted meanwhile."""
    clock = Clock()
    engine = way(setting.engine, clock)
    if isinstance(engine, TextFirst):
        engine.llm = setting.llm
    await setting.forget()
    before = simulated_device.counts.copy()
    with tempfile.TemporaryDirectory(dir=setting.folder) as scratch:
        await work(Path(scratch), chosen(setting, items), STAGES, engine)
    return clock.pace().rate / REQUESTS, simulated_device.counts - before


def told(name: str, rate: float, seen: Counter[str], items: int) -> str:
    """Return the line about one way."""
    asked, found = seen["prefix tokens asked"], seen["prefix tokens found"]
    found_images, encoded = seen["images found"], seen["images encoded"]
    processed = seen["images asked"] - found_images
    return (
        f"  {name}: {rate:.2f} images/s; an image was encoded {encoded / items:.2f} times, "
        f"processed {processed / items:.2f} times and found {found_images / items:.2f} times in "
        f"the multimodal cache; {found:,} of {asked:,} prompt tokens found in the prefix cache, "
        f"which leaves {(asked - found) / items:,.0f} an image to compute"
    )


async def measure(device: str, items: int) -> None:
    """Load the engine and print a line for each way."""
    said = listen()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulated_device.install_in(folder / "plugins")
        engine = VllmEngine(MODEL, OPTIONS)
        engine.expect([{} for _ in STAGES])
        await engine.start()
        try:
            setting = Setting(folder, make_images(folder / "images", items), engine, said)
            print(f"{device}: {items} images, {REQUESTS} requests about each", flush=True)
            for way, kind in WAYS.items():
                rate, seen = await count(setting, kind, items)
                print(told(way, rate, seen, items), flush=True)
        finally:
            await engine.stop()


def main() -> None:
    """Count on one device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=DEVICES, default="simulated")
    parser.add_argument("--items", type=int, default=128)
    asked = parser.parse_args()
    if asked.device == "simulated":
        os.environ[simulated_device.SWITCH] = "1"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(asked.device, asked.items))


if __name__ == "__main__":
    main()
