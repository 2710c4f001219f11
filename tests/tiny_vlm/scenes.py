"""The little world the tiny model knows: one or two coloured shapes on a coloured background.

Owns what a scene is, how it looks, what may be asked about it and the one right answer to each.
Every text is a function of the scene, so a caption is right or wrong, never "about right". Pure:
randomness comes in as a `random.Random`, nothing is read or written.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

PALETTE: Mapping[str, RGB] = MappingProxyType(
    {
        "red": (220, 30, 30),
        "green": (30, 160, 50),
        "blue": (35, 60, 215),
        "yellow": (240, 220, 40),
        "purple": (140, 40, 170),
        "orange": (245, 140, 25),
        "white": (245, 245, 245),
        "black": (18, 18, 18),
    }
)
COLORS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "cross")
COUNT_WORDS = ("zero", "one", "two")

# The prompts the model was taught. Within a tuple all spellings mean the same.
SHORT_PROMPTS = (
    "describe this image",
    "Describe this image.",
    "describe this image briefly",
    "Write a short caption for this image.",
    "caption this image",
)
DETAILED_PROMPTS = (
    "describe this image in detail",
    "Describe this image in detail.",
    "provide a comprehensive description of the visual content",
)
CONDENSE_PROMPTS = (
    "Please condense this elaborate caption to only the important details: {caption}",
    "Please condense this elaborate caption to ONLY the important details: {caption}",
)
TAG_PROMPTS = ("Please convert this caption to booru tag format instead: {caption}",)
KEY_ELEMENTS_PROMPTS = ("what are the key elements in this image?",)
BACKGROUND_PROMPTS = ("what is the background color?",)
COUNT_PROMPTS = ("how many shapes are there?",)

# Masks are drawn this much larger and averaged down, for smooth edges.
_SUPERSAMPLING = 3


@dataclass(frozen=True, slots=True)
class Figure:
    """One shape: its centre as fractions of width and height, its radius of the shorter side."""

    shape: str
    color: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Scene:
    """A background and one or two figures, left to right."""

    background: str
    figures: tuple[Figure, ...]


# --- Making scenes --------------------------------------------------------------------------------


def random_scene(rng: random.Random) -> Scene:
    """A scene of one or two figures that touch neither each other nor the edge."""
    figures = (_lone_figure(rng),) if rng.random() < 0.5 else _pair(rng)
    return recolored(Scene(COLORS[0], figures), rng)


def recolored(scene: Scene, rng: random.Random) -> Scene:
    """The same geometry in new colours, no two of them alike."""
    background, *colors = rng.sample(COLORS, len(scene.figures) + 1)
    figures = zip(scene.figures, colors, strict=True)
    return Scene(background, tuple(replace(figure, color=color) for figure, color in figures))


def _lone_figure(rng: random.Random) -> Figure:
    radius = rng.uniform(0.24, 0.40)
    x, y = (rng.uniform(radius + 0.04, 0.96 - radius) for _ in range(2))
    return Figure(rng.choice(SHAPES), COLORS[0], x, y, radius)


def _pair(rng: random.Random) -> tuple[Figure, ...]:
    return tuple(_half_figure(rng, left_edge) for left_edge in (0.0, 0.5))


def _half_figure(rng: random.Random, left_edge: float) -> Figure:
    """A figure inside the half of the picture that begins at `left_edge`."""
    radius = rng.uniform(0.17, 0.215)
    x = rng.uniform(left_edge + radius + 0.015, left_edge + 0.485 - radius)
    return Figure(rng.choice(SHAPES), COLORS[0], x, rng.uniform(0.38, 0.62), radius)


# --- Drawing --------------------------------------------------------------------------------------


def jittered_palette(rng: random.Random, levels: int) -> Mapping[str, RGB]:
    """The palette with every channel moved by up to `levels` of 255."""
    return {name: _jittered(color, rng, levels) for name, color in PALETTE.items()}


def render(
    scene: Scene, width: int, height: int, *, palette: Mapping[str, RGB] = PALETTE
) -> Image.Image:
    """An RGB picture of `width` x `height` pixels."""
    picture = Image.new("RGB", (width, height), palette[scene.background])
    for figure in scene.figures:
        mask = figure_mask(figure, width, height)
        picture.paste(palette[figure.color], (0, 0, width, height), mask)
    return picture


def figure_mask(figure: Figure, width: int, height: int) -> Image.Image:
    """How much of each pixel the figure covers: a greyscale picture, 255 inside, 0 outside."""
    large = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING), 0)
    center = (figure.x * large.width, figure.y * large.height)
    _draw_shape(ImageDraw.Draw(large), figure.shape, center, figure.radius * min(large.size))
    return large.resize((width, height), Image.Resampling.BOX)


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, center: tuple[float, float], radius: float
) -> None:
    match shape:
        case "circle":
            draw.ellipse(_box(center, radius, radius), fill=255)
        case "square":
            draw.rectangle(_box(center, 0.88 * radius, 0.88 * radius), fill=255)
        case "triangle":
            draw.polygon(_triangle(center, radius), fill=255)
        case "cross":
            draw.rectangle(_box(center, radius, 0.34 * radius), fill=255)
            draw.rectangle(_box(center, 0.34 * radius, radius), fill=255)
        case _:
            raise ValueError(f"no shape named {shape!r}; known: {', '.join(SHAPES)}")


def _box(
    center: tuple[float, float], half_width: float, half_height: float
) -> tuple[float, float, float, float]:
    x, y = center
    return (x - half_width, y - half_height, x + half_width, y + half_height)


def _triangle(center: tuple[float, float], radius: float) -> list[tuple[float, float]]:
    x, y = center
    base = y + 0.8 * radius
    return [(x, y - radius), (x - 0.95 * radius, base), (x + 0.95 * radius, base)]


def _jittered(color: RGB, rng: random.Random, levels: int) -> RGB:
    red, green, blue = (
        min(255, max(0, channel + rng.randint(-levels, levels))) for channel in color
    )
    return red, green, blue


# --- The right answers ----------------------------------------------------------------------------


def short_caption(scene: Scene) -> str:
    """The answer to `SHORT_PROMPTS`."""
    figures = " and ".join(f"{_with_article(f.color)} {f.shape}" for f in scene.figures)
    return f"{figures} on {_with_article(scene.background)} background"


def detailed_caption(scene: Scene) -> str:
    """The answer to `DETAILED_PROMPTS`."""
    match scene.figures:
        case (only,):
            return (
                f"The image shows a single {only.color} {only.shape}. "
                f"The {only.shape} is solid {only.color} with crisp edges, "
                f"and it stands out clearly against a plain {scene.background} background."
            )
        case (left, right):
            return (
                "The image shows two shapes side by side. "
                f"On the left there is {_with_article(left.color)} {left.shape}, "
                f"and on the right there is {_with_article(right.color)} {right.shape}. "
                f"Both stand out clearly against a plain {scene.background} background."
            )
        case _:
            raise ValueError(f"a scene has one or two figures, not {len(scene.figures)}")


def condensed_caption(scene: Scene) -> str:
    """The answer to `CONDENSE_PROMPTS` (given any caption of it) and `KEY_ELEMENTS_PROMPTS`."""
    figures = (f"{f.color} {f.shape}" for f in scene.figures)
    return ", ".join((*figures, f"{scene.background} background"))


def tags(scene: Scene) -> str:
    """The answer to `TAG_PROMPTS`, given any caption of the scene."""
    figures = (f"{f.color}_{f.shape}" for f in scene.figures)
    return ", ".join((*figures, f"{scene.background}_background"))


def background_answer(scene: Scene) -> str:
    """The answer to `BACKGROUND_PROMPTS`."""
    return scene.background


def count_answer(scene: Scene) -> str:
    """The answer to `COUNT_PROMPTS`."""
    return COUNT_WORDS[len(scene.figures)]


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
