"""What the tiny model learns: prompts with their one right answer, in a fixed mix of tasks.

Pure: randomness comes in as a `random.Random`. Knows nothing of pixels or tensors.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.tiny_vlm import scenes
from tests.tiny_vlm.scenes import Scene


@dataclass(frozen=True, slots=True)
class Lesson:
    """A prompt and the answer to learn."""

    prompt: str
    answer: str


Answer = Callable[[Scene], str]

# Tasks about the picture: share, prompts, answer.
_LOOKING: tuple[tuple[float, Sequence[str], Answer], ...] = (
    (0.36, scenes.SHORT_PROMPTS, scenes.short_caption),
    (0.32, scenes.DETAILED_PROMPTS, scenes.detailed_caption),
    (0.05, scenes.KEY_ELEMENTS_PROMPTS, scenes.condensed_caption),
    (0.04, scenes.BACKGROUND_PROMPTS, scenes.background_answer),
    (0.05, scenes.COUNT_PROMPTS, scenes.count_answer),
)
_READING_SHARE = 1.0 - sum(share for share, _, _ in _LOOKING)


def picture_lesson(rng: random.Random, scene: Scene, other: Scene) -> Lesson:
    """Something about the picture of `scene`, or about a caption quoted beside it.

    Half of the quoted captions tell of `other`: a caption is to be read, not guessed from the
    picture.
    """
    if rng.random() < _READING_SHARE:
        return reading_lesson(rng, scene if rng.random() < 0.5 else other)
    _, prompts, answer = rng.choices(_LOOKING, [share for share, _, _ in _LOOKING])[0]
    return Lesson(rng.choice(prompts), answer(scene))


def reading_lesson(rng: random.Random, scene: Scene, *, joined_share: float = 0.0) -> Lesson:
    """Rewrite a quoted caption of `scene`; `joined_share` of them are two, joined by ", "."""
    if rng.random() < 0.3:
        quoted = _quote(rng, scene, (0.35, 0.35, 0.3))
        return Lesson(_ask(rng, scenes.TAG_PROMPTS, quoted), scenes.tags(scene))
    quoted = _quote(rng, scene, (0.2, 0.8, 0.0))
    if rng.random() < joined_share:
        quoted = f"{quoted}, {_quote(rng, scene, (0.5, 0.5, 0.0))}"
    return Lesson(_ask(rng, scenes.CONDENSE_PROMPTS, quoted), scenes.condensed_caption(scene))


def _quote(rng: random.Random, scene: Scene, shares: tuple[float, float, float]) -> str:
    captioners = (scenes.short_caption, scenes.detailed_caption, scenes.condensed_caption)
    return rng.choices(captioners, shares)[0](scene)


def _ask(rng: random.Random, prompts: Sequence[str], quoted: str) -> str:
    return rng.choice(prompts).replace("{caption}", quoted)
