"""Measure how often a tiny model, served by real vLLM at temperature 0, is exactly right.

    python -m tests.tiny_vlm.evaluate --pictures 300

Every picture is new (its seed is none of training's), goes through JPEG, and is asked about twice:
at 112 px in the palette's own colours, and at some size of 56 to 512 px in jittered ones.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from PIL import Image

from tests.tiny_vlm import scenes
from tests.tiny_vlm.scenes import Scene
from tests.tiny_vlm.serving import MODEL_FOLDER, TinyCaptioner, tiny_captioner

HELD_OUT_SEED = 20_000
MIN_SIDE = 56
LONGER_SIDES = (56, 84, 112, 168, 224, 336, 512)
COLOR_JITTER_LEVELS = 12
REQUESTS_IN_FLIGHT = 48


@dataclass(frozen=True, slots=True)
class Specimen:
    """A picture and the scene it shows."""

    scene: Scene
    picture: Image.Image


@dataclass(frozen=True, slots=True)
class Miss:
    """An answer that was not the right one."""

    task: str
    specimen: Specimen
    expected: str
    answer: str


@dataclass(frozen=True, slots=True)
class Task:
    """Something to ask about a picture, and the right answer."""

    name: str
    ask: Callable[[TinyCaptioner, Image.Image], Awaitable[str]]
    expected: Callable[[Scene], str]


def _asking(prompt: str) -> Callable[[TinyCaptioner, Image.Image], Awaitable[str]]:
    return lambda captioner, picture: captioner.ask(picture, prompt)


async def _chain(captioner: TinyCaptioner, picture: Image.Image) -> str:
    return (await captioner.detail_and_condense(picture)).condensed


TASKS = (
    Task("short caption", _asking(scenes.SHORT_PROMPTS[0]), scenes.short_caption),
    Task("detailed caption", _asking(scenes.DETAILED_PROMPTS[0]), scenes.detailed_caption),
    Task("detail -> condense", _chain, scenes.condensed_caption),
    Task("background", _asking(scenes.BACKGROUND_PROMPTS[0]), scenes.background_answer),
    Task("count", _asking(scenes.COUNT_PROMPTS[0]), scenes.count_answer),
)
CHAIN = TASKS[2]


def plain_specimens(count: int, seed: int = HELD_OUT_SEED) -> list[Specimen]:
    """Pictures of 112 x 112 px in the palette's own colours."""
    rng = random.Random(seed)
    drawn = (scenes.random_scene(rng) for _ in range(count))
    return [Specimen(scene, _through_jpeg(scenes.render(scene, 112, 112))) for scene in drawn]


def varied_specimens(count: int, seed: int = HELD_OUT_SEED + 1) -> list[Specimen]:
    """Pictures of 56 to 512 px, some wider or taller, in jittered colours."""
    rng = random.Random(seed)
    return [_varied_specimen(rng) for _ in range(count)]


def _varied_specimen(rng: random.Random) -> Specimen:
    scene = scenes.random_scene(rng)
    longer, shorter_share = rng.choice(LONGER_SIDES), rng.choice((1.0, 0.75))
    size = [longer, max(MIN_SIDE, round(longer * shorter_share))]
    rng.shuffle(size)
    palette = scenes.jittered_palette(rng, COLOR_JITTER_LEVELS)
    return Specimen(scene, _through_jpeg(scenes.render(scene, *size, palette=palette)))


def _through_jpeg(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return Image.open(buffer).convert("RGB")


async def misses(captioner: TinyCaptioner, task: Task, specimens: Sequence[Specimen]) -> list[Miss]:
    """Those specimens whose answer is not exactly the expected one."""
    slots = asyncio.Semaphore(REQUESTS_IN_FLIGHT)

    async def answer(specimen: Specimen) -> str:
        async with slots:
            return await task.ask(captioner, specimen.picture)

    answers = await asyncio.gather(*map(answer, specimens))
    return [
        Miss(task.name, specimen, expected, given)
        for specimen, given in zip(specimens, answers, strict=True)
        if given != (expected := task.expected(specimen.scene))
    ]


async def evaluate(folder: Path, count: int, *, show_misses: bool, max_model_len: int) -> None:
    groups = {"112 px": plain_specimens(count), "56..512 px": varied_specimens(count)}
    print(f"{'':20}" + "".join(f"{group:>14}" for group in groups))
    async with tiny_captioner(folder, max_model_len=max_model_len) as captioner:
        for task in TASKS:
            missed = [await misses(captioner, task, group) for group in groups.values()]
            rates = (100.0 * (1 - len(some) / count) for some in missed)
            print(f"{task.name:20}" + "".join(f"{rate:12.1f} %" for rate in rates), flush=True)
            if show_misses:
                print("".join(map(_story, chain.from_iterable(missed))), end="")


def _story(miss: Miss) -> str:
    width, height = miss.specimen.picture.size
    return f"  {width}x{height}\n    expected {miss.expected}\n    answered {miss.answer}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure how often the tiny model is exactly right.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="folder of the model")
    parser.add_argument("--pictures", type=int, default=300, help="pictures per column")
    parser.add_argument("--max-model-len", type=int, default=1024, help="vLLM's own limit")
    parser.add_argument("--show-misses", action="store_true", help="print every wrong answer")
    chosen = parser.parse_args()
    asyncio.run(
        evaluate(
            chosen.model,
            chosen.pictures,
            show_misses=chosen.show_misses,
            max_model_len=chosen.max_model_len,
        )
    )


if __name__ == "__main__":
    main()
