"""Pictures that say which one they are, in pixels, and an eye that reads it.

A picture is a grid of four by five cells. Sixteen of them, black or white, are a code word that
names it; the last row has four patches whose colours are known. Code words differ in four cells at
least from one another, so a picture that is another's, turned, mirrored, inverted, cut off or laid
on the wrong ground is not read as one that it is not, but as unreadable.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import Final, Literal

from PIL import Image

Ink = Literal["colour", "grey", "bits"]
"""What the patches are made of: colours, four greys, or black and white alone."""

COLUMNS: Final = 4
ROWS: Final = 5
COUNT: Final = 300
_BITS: Final = COLUMNS * (ROWS - 1)
_DISTANCE: Final = 4
_SAMPLES: Final = 8
"""Points a cell is looked at in, each way; the outer ones are its neighbours' business, too."""

_COLOURS: Final = {
    "black": (0, 0, 0),
    "dark": (85, 85, 85),
    "light": (170, 170, 170),
    "white": (255, 255, 255),
    "red": (220, 20, 20),
    "green": (20, 180, 20),
    "blue": (20, 20, 220),
    "yellow": (230, 230, 20),
}
_PATCHES: Final[dict[Ink, tuple[str, ...]]] = {
    "colour": ("red", "green", "blue", "yellow"),
    "grey": ("black", "dark", "light", "white"),
    "bits": ("black", "white", "white", "black"),
}
_NEAR: Final = 60
"""How far a channel may be from what it should be: lossy formats, and colours of print."""


def caption(number: int, ink: Ink = "colour") -> str:
    """Return what the eye says of a picture, if it sees it as it is."""
    return f"Picture {number}: {', '.join(_PATCHES[ink])}."


def drawn(number: int, ink: Ink = "colour", size: tuple[int, int] = (96, 120)) -> Image.Image:
    """Draw a picture that is to be seen upright; `L` unless it has colours."""
    cells = Image.new("RGB", (COLUMNS, ROWS))
    for place, bit in enumerate(_bits(_words()[number])):
        cells.putpixel((place % COLUMNS, place // COLUMNS), (255, 255, 255) if bit else (0, 0, 0))
    for column, name in enumerate(_PATCHES[ink]):
        cells.putpixel((column, ROWS - 1), _COLOURS[name])
    picture = cells if ink == "colour" else cells.convert("L")
    return picture.resize(size, Image.Resampling.NEAREST)


def seen(picture: Image.Image) -> str:
    """Return the caption of a picture as it is, or what is the matter with it."""
    samples = (COLUMNS * _SAMPLES, ROWS * _SAMPLES)
    small = picture.convert("RGB").resize(samples, Image.Resampling.BOX)
    cells = [_middle(small, column, row) for row in range(ROWS) for column in range(COLUMNS)]
    bits = [_nearest(cell) for cell in cells[:_BITS]]
    patches = [_nearest(cell) for cell in cells[_BITS:]]
    if not set(bits) <= {"black", "white"}:
        return f"Unreadable: {bits}"
    number = _numbers().get(tuple(bit == "white" for bit in bits))
    if number is None:
        return f"Unreadable: no picture has the word {bits}"
    return f"Picture {number}: {', '.join(patches)}."


def _middle(small: Image.Image, column: int, row: int) -> tuple[int, int, int]:
    left, top, margin = column * _SAMPLES, row * _SAMPLES, _SAMPLES // 4
    box = (left + margin, top + margin, left + _SAMPLES - margin, top + _SAMPLES - margin)
    colour = small.crop(box).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    assert isinstance(colour, tuple)
    red, green, blue = colour
    return int(red), int(green), int(blue)


def _nearest(cell: tuple[int, int, int]) -> str:
    """Return the colour that a cell has, or its numbers if it is none of those known."""

    def distance(name: str) -> int:
        return max(abs(is_ - should) for is_, should in zip(cell, _COLOURS[name], strict=True))

    name = min(_COLOURS, key=distance)
    return name if distance(name) < _NEAR else str(cell)


def _bits(word: int) -> Iterator[bool]:
    return (bool(word >> place & 1) for place in range(_BITS))


@functools.cache
def _words() -> tuple[int, ...]:
    """Return code words that are far from one another; the same on every machine."""
    chance, words = random.Random(7), list[int]()
    while len(words) < COUNT:
        word = chance.getrandbits(_BITS)
        if all((word ^ other).bit_count() >= _DISTANCE for other in words):
            words.append(word)
    return tuple(words)


@functools.cache
def _numbers() -> dict[tuple[bool, ...], int]:
    return {tuple(_bits(word)): number for number, word in enumerate(_words())}
