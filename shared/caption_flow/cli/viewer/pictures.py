"""Pictures as terminals show them: real ones where they can, else half blocks. Pure.

- kitty: https://sw.kovidgoyal.net/kitty/graphics-protocol/
- iTerm2: https://iterm2.com/documentation-images.html
- Sixel: https://vt100.net/docs/vt3xx-gp/chapter14.html
- half blocks: the upper half of a cell in one colour, the lower half in another.
"""

from __future__ import annotations

import base64
import io
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final

from PIL import Image

Size = tuple[int, int]
"""Width and height."""


class Way(StrEnum):
    """How pictures are shown."""

    KITTY = "kitty"
    ITERM = "iterm"
    SIXEL = "sixel"
    BLOCKS = "blocks"
    NONE = "none"


class Colours(StrEnum):
    """Which colours text may have."""

    TRUE = "true"
    INDEXED = "indexed"
    NONE = "none"


DEFAULT_CELL: Final[Size] = (10, 20)
"""Pixels of a cell, where the terminal does not say."""
KITTY_CLEAR: Final = "\x1b_Ga=d,d=A,q=2\x1b\\"

_RAW_TERMS: Final = ("linux", "dumb", "vt")
_TRUE_TERMS: Final = ("kitty", "ghostty", "wezterm", "foot", "alacritty", "contour", "direct")
_KITTY_CHUNK: Final = 4096
_SIXEL_COLOURS: Final = 255
_LEVELS: Final = (0, 95, 135, 175, 215, 255)
"""Of each colour in the cube of xterm's 256 (16 to 231); 232 to 255 are greys from 8 by 10."""


def way_by_environment(env: Mapping[str, str]) -> Way:
    """Return how the terminal shows pictures, as far as its environment tells.

    Multiplexers pass on text only, so that they get half blocks wherever they run.
    """
    term, program = env.get("TERM", ""), env.get("TERM_PROGRAM", "")
    if term in {"", "dumb"}:
        return Way.NONE
    if is_multiplexed(env):
        return Way.BLOCKS
    if env.get("KITTY_WINDOW_ID") or "kitty" in term or "ghostty" in (program + term):
        return Way.KITTY
    if program in {"iTerm.app", "WezTerm", "mintty"} or env.get("LC_TERMINAL") == "iTerm2":
        return Way.ITERM
    if term.startswith(("foot", "mlterm", "yaft")):
        return Way.SIXEL
    return Way.NONE if colours_by_environment(env) is Colours.NONE else Way.BLOCKS


def colours_by_environment(env: Mapping[str, str]) -> Colours:
    """Return which colours the terminal has, and its user wants (https://no-color.org)."""
    term = env.get("TERM", "")
    if env.get("NO_COLOR") or not term or term.startswith(_RAW_TERMS):
        return Colours.NONE
    if env.get("COLORTERM", "").lower() in {"truecolor", "24bit"}:
        return Colours.TRUE
    is_true = any(name in term for name in _TRUE_TERMS) and not is_multiplexed(env)
    return Colours.TRUE if is_true else Colours.INDEXED


def is_multiplexed(env: Mapping[str, str]) -> bool:
    """Tell whether tmux or screen stands between us and the terminal."""
    return bool(env.get("TMUX")) or env.get("TERM", "").startswith(("tmux", "screen"))


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture that takes so many columns and rows.

    Either it is ``lines``, a text for each row, or a ``sequence`` that draws it at the cursor.
    """

    columns: int
    rows: int
    lines: tuple[str, ...] = ()
    sequence: str = ""


def draw(
    image: Image.Image, box: Size, way: Way, colours: Colours, cell: Size = DEFAULT_CELL
) -> Drawn | None:
    """Return an RGB picture as large as fits into a box of cells; never enlarged. None: nowhere."""
    if min(box) < 1 or way is Way.NONE:
        return None
    if way is Way.BLOCKS:
        return None if colours is Colours.NONE else _blocks(image, box, colours)
    width, height = fit(image.size, (box[0] * cell[0], box[1] * cell[1]))
    columns, rows = _cells(width, cell[0]), _cells(height, cell[1])
    resized = _resized(image, (width, height))
    match way:
        case Way.KITTY:
            sequence = kitty(resized)
        case Way.ITERM:
            sequence = iterm(resized)
        case _:
            sequence = sixel(resized)
    return Drawn(columns, rows, sequence=sequence)


def fit(size: Size, box: Size) -> Size:
    """Return the largest size of the same shape that fits; never enlarges, no side vanishes."""
    scale = min(1.0, box[0] / size[0], box[1] / size[1])
    width, height = (max(1, round(side * scale)) for side in size)
    return min(width, box[0]), min(height, box[1])


def kitty(image: Image.Image) -> str:
    """Return what draws a picture at the cursor, which stays there; compressed raw pixels."""
    width, height = image.size
    data = base64.standard_b64encode(zlib.compress(image.convert("RGB").tobytes(), 6)).decode()
    # q=2: no answers, which would be taken for keys; C=1: the cursor does not move.
    head = f"a=T,f=24,o=z,s={width},v={height},C=1,q=2,"
    pieces = [data[at : at + _KITTY_CHUNK] for at in range(0, len(data), _KITTY_CHUNK)]
    last = len(pieces) - 1
    return "".join(
        f"\x1b_G{head if number == 0 else ''}m={int(number < last)};{piece}\x1b\\"
        for number, piece in enumerate(pieces)
    )


def iterm(image: Image.Image) -> str:
    """Return what draws a picture at the cursor, as a PNG."""
    width, height = image.size
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3)
    data = file.getvalue()
    return (
        f"\x1b]1337;File=inline=1;size={len(data)};width={width}px;height={height}px;"
        f"preserveAspectRatio=1;doNotMoveCursor=1:{base64.standard_b64encode(data).decode()}\x07"
    )


def sixel(image: Image.Image) -> str:
    """Return what draws a picture at the cursor, in at most 255 colours."""
    few = image.convert("RGB").quantize(_SIXEL_COLOURS, dither=Image.Dither.FLOYDSTEINBERG)
    width, height = few.size
    palette = few.getpalette() or []
    used = sorted(colour for _, colour in few.getcolors(256) or () if isinstance(colour, int))
    registers = "".join(
        f"#{colour};2;" + ";".join(str(round(palette[3 * colour + at] / 2.55)) for at in range(3))
        for colour in used
    )
    bands = "-".join(_bands(few.tobytes(), width, height))
    return f'\x1bP0;1;0q"1;1;{width};{height}{registers}{bands}\x1b\\'


def _bands(pixels: bytes, width: int, height: int) -> Iterator[str]:
    """Yield six rows of pixels at a time: for each colour, a character for each column.

    A character is 63 and a bit for each of the six pixels. All columns are dealt with at once: each
    row is translated to bytes that have its bit where it has the colour, and these are added up.
    """
    for top in range(0, height, 6):
        rows = [pixels[row * width : (row + 1) * width] for row in range(top, min(top + 6, height))]
        base = int.from_bytes(b"?" * width)
        lines = []
        for colour in sorted(set().union(*rows)):
            bits = sum(
                int.from_bytes(row.translate(_mask(colour, 1 << at))) for at, row in enumerate(rows)
            )
            line = (base + bits).to_bytes(width).decode("ascii")
            lines.append(f"#{colour}{_shortened(line)}")
        yield "$".join(lines)


def _mask(colour: int, bit: int) -> bytes:
    table = bytearray(256)
    table[colour] = bit
    return bytes(table)


def _shortened(line: str) -> str:
    """Return a line with repetitions counted, and without what is empty at its end."""
    return re.sub(r"(.)\1{3,}", lambda run: f"!{len(run.group())}{run.group(1)}", line.rstrip("?"))


def _blocks(image: Image.Image, box: Size, colours: Colours) -> Drawn:
    width, height = fit(image.size, (box[0], box[1] * 2))
    pixels = _resized(image, (width, height)).convert("RGB").tobytes()
    rows = [pixels[at : at + 3 * width] for at in range(0, len(pixels), 3 * width)]
    rows.append(b"")  # below the last one, if their number is odd
    lines = tuple(_line(upper, lower, colours) for upper, lower in list(pairwise(rows))[::2])
    return Drawn(width, len(lines), lines)


def _line(upper: bytes, lower: bytes, colours: Colours) -> str:
    """Return two rows of pixels as one of cells; what stays the same is not said again."""
    said = ("", "")
    line = []
    for at in range(0, len(upper), 3):
        front = _colour(38, upper[at : at + 3], colours)
        back = _colour(48, lower[at : at + 3], colours) if lower else "49"
        news = [new for new, old in zip((front, back), said, strict=True) if new != old]
        line.append(f"\x1b[{';'.join(news)}m▀" if news else "▀")
        said = (front, back)
    return "".join(line) + "\x1b[0m"


def _colour(ground: int, rgb: bytes, colours: Colours) -> str:
    if colours is Colours.TRUE:
        return f"{ground};2;{rgb[0]};{rgb[1]};{rgb[2]}"
    return f"{ground};5;{nearest_index(rgb[0], rgb[1], rgb[2])}"


def nearest_index(red: int, green: int, blue: int) -> int:
    """Return the nearest of xterm's 256 colours, of those that themes do not change."""
    at = [min(range(6), key=lambda i: abs(_LEVELS[i] - one)) for one in (red, green, blue)]
    grey = max(0, min(23, round(((red + green + blue) / 3 - 8) / 10)))
    in_cube = sum((_LEVELS[i] - one) ** 2 for i, one in zip(at, (red, green, blue), strict=True))
    in_grey = sum((8 + 10 * grey - one) ** 2 for one in (red, green, blue))
    return 232 + grey if in_grey < in_cube else 16 + 36 * at[0] + 6 * at[1] + at[2]


def _resized(image: Image.Image, size: Size) -> Image.Image:
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _cells(pixels: int, cell: int) -> int:
    return -(-pixels // cell)
