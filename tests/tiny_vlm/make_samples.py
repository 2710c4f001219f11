"""Draw the sample pictures and write down what is right to say about each.

    python -m tests.tiny_vlm.make_samples

The pictures go to ``configs/sample/images``, the texts to ``sample_truth.json`` beside this file.
What is in each picture is listed here; only the exact geometry is drawn from a fixed seed, within
bounds in which the shipped model is sure of itself.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.tiny_vlm import scenes
from tests.tiny_vlm.scenes import Figure, Scene

HERE = Path(__file__).parent
IMAGES_FOLDER = HERE.parents[1] / "configs" / "sample" / "images"
TRUTH_FILE = HERE / "sample_truth.json"
SEED = 12
JPEG_QUALITY = 92

# Path -> side in pixels, background, (colour, shape) from left to right. Two folders hold files of
# one stem, so that nobody takes a stem for an item's identity.
SAMPLES: dict[str, tuple[int, str, tuple[tuple[str, str], ...]]] = {
    "alpha.jpg": (224, "white", (("red", "circle"),)),
    "bravo.jpg": (224, "black", (("yellow", "triangle"),)),
    "charlie.png": (224, "green", (("white", "cross"), ("purple", "square"))),
    "delta.jpg": (112, "yellow", (("blue", "square"), ("black", "circle"))),
    "one/first.jpg": (224, "blue", (("orange", "square"),)),
    "one/second.jpg": (112, "red", (("white", "cross"),)),
    "one/third.png": (224, "purple", (("green", "circle"),)),
    "one/fourth.jpg": (112, "orange", (("black", "triangle"),)),
    "two/first.jpg": (224, "white", (("green", "triangle"), ("red", "square"))),
    "two/second.jpg": (224, "black", (("blue", "circle"), ("orange", "cross"))),
    "two/third.png": (112, "red", (("yellow", "square"), ("white", "triangle"))),
    "two/fourth.jpg": (224, "yellow", (("purple", "cross"), ("blue", "circle"))),
}


def sample_scenes() -> dict[str, Scene]:
    """Path -> scene, the same at every call."""
    rng = random.Random(SEED)
    return {
        path: Scene(background, _figures(looks, rng))
        for path, (_, background, looks) in SAMPLES.items()
    }


def truths() -> dict[str, dict[str, str]]:
    """Path -> the right short, detailed and condensed caption."""
    return {
        path: {
            "short": scenes.short_caption(scene),
            "detailed": scenes.detailed_caption(scene),
            "condensed": scenes.condensed_caption(scene),
        }
        for path, scene in sample_scenes().items()
    }


def _figures(looks: tuple[tuple[str, str], ...], rng: random.Random) -> tuple[Figure, ...]:
    if len(looks) == 1:
        centers, radii = [0.5], (0.30, 0.36)
    else:
        centers, radii = [0.25, 0.75], (0.19, 0.21)
    return tuple(
        Figure(shape, color, center, rng.uniform(0.46, 0.54), rng.uniform(*radii))
        for (color, shape), center in zip(looks, centers, strict=True)
    )


def main() -> None:
    for path, scene in sample_scenes().items():
        target = IMAGES_FOLDER / path
        target.parent.mkdir(parents=True, exist_ok=True)
        side = SAMPLES[path][0]
        scenes.render(scene, side, side).save(target, quality=JPEG_QUALITY)
    text = json.dumps(truths(), indent=2) + "\n"
    TRUTH_FILE.write_text(text, encoding="utf-8")
    print(f"wrote {len(SAMPLES)} pictures to {IMAGES_FOLDER} and their texts to {TRUTH_FILE}")


if __name__ == "__main__":
    main()
