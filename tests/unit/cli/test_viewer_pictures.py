"""Pictures for terminals: read back as terminals read them."""

from __future__ import annotations

import base64
import io
import re
import zlib
from itertools import product

import pytest
from PIL import Image

from caption_flow.cli.viewer.pictures import (
    Colours,
    Way,
    colours_by_environment,
    draw,
    fit,
    nearest_index,
    way_by_environment,
)

QUARTERS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (250, 250, 250))


def picture(columns: int = 4, rows: int = 4) -> Image.Image:
    """Four quarters, each of one colour."""
    image = Image.new("RGB", (columns, rows))
    for x, y in product(range(columns), range(rows)):
        image.putpixel((x, y), QUARTERS[2 * (2 * y // rows) + 2 * x // columns])
    return image


def cells(line: str) -> list[tuple[str, str]]:
    """What a line of half blocks shows: the upper and the lower colour of each cell."""
    front = back = ""
    found = []
    for codes, text in re.findall(r"(?:\x1b\[([0-9;]*)m)?(▀?)", line):
        for code in re.findall(r"38;[25];[0-9;]+?(?=;[34]8;|;49|$)", codes):
            front = code
        for code in re.findall(r"48;[25];[0-9;]+$|49$", codes):
            back = code
        if text:
            found.append((front, back))
    return found


def test_half_blocks_have_the_picture_s_own_colours() -> None:
    drawn = draw(picture(), (10, 10), Way.BLOCKS, Colours.TRUE)
    assert drawn is not None
    assert (drawn.columns, drawn.rows) == (4, 2)
    red, green, blue, white = (f"2;{r};{g};{b}" for r, g, b in QUARTERS)
    assert [cells(line) for line in drawn.lines] == [
        [(f"38;{one}", f"48;{one}") for one in (red, red, green, green)],
        [(f"38;{one}", f"48;{one}") for one in (blue, blue, white, white)],
    ]
    assert all(line.endswith("\x1b[0m") for line in drawn.lines)


def test_below_an_odd_last_row_is_nothing() -> None:
    drawn = draw(Image.new("RGB", (1, 3), "red"), (10, 10), Way.BLOCKS, Colours.TRUE)
    assert drawn is not None
    assert [cells(line) for line in drawn.lines] == [
        [("38;2;255;0;0", "48;2;255;0;0")],
        [("38;2;255;0;0", "49")],
    ]


def test_with_256_colours_each_is_the_nearest() -> None:
    drawn = draw(picture(), (10, 10), Way.BLOCKS, Colours.INDEXED)
    assert drawn is not None
    assert cells(drawn.lines[0])[0] == ("38;5;196", "48;5;196")
    assert nearest_index(255, 255, 255) == 231
    assert nearest_index(0, 0, 0) == 16
    assert nearest_index(8, 8, 8) == 232
    assert nearest_index(95, 135, 175) == 16 + 36 + 12 + 3


@pytest.mark.parametrize(
    ("size", "box", "fitted"),
    [
        ((100, 50), (10, 10), (10, 5)),
        ((50, 100), (10, 10), (5, 10)),
        ((3, 2), (10, 10), (3, 2)),
        ((10_000, 1), (10, 10), (10, 1)),
        ((1, 10_000), (10, 10), (1, 10)),
        ((6000, 6000), (1, 1), (1, 1)),
    ],
)
def test_pictures_keep_their_shape_and_are_never_enlarged(
    size: tuple[int, int], box: tuple[int, int], fitted: tuple[int, int]
) -> None:
    assert fit(size, box) == fitted


def test_kitty_gets_every_pixel_in_pieces_of_bounded_length() -> None:
    image = Image.effect_noise((90, 60), 99).convert("RGB")
    drawn = draw(image, (20, 10), Way.KITTY, Colours.NONE, (10, 20))
    assert drawn is not None
    assert (drawn.columns, drawn.rows) == (9, 3)
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", drawn.sequence)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in pieces) == drawn.sequence
    assert len(pieces) > 1
    assert all(len(data) <= 4096 and len(data) % 4 == 0 for _, data in pieces)
    assert [keys.rpartition("m=")[2] for keys, _ in pieces] == ["1"] * (len(pieces) - 1) + ["0"]
    keys = dict(one.split("=") for one in pieces[0][0].split(","))
    assert keys == {
        "a": "T", "f": "24", "o": "z", "s": "90", "v": "60", "C": "1", "q": "2", "m": "1"
    }  # fmt: skip
    data = base64.standard_b64decode("".join(data for _, data in pieces))
    assert zlib.decompress(data) == image.tobytes()


def test_iterm_gets_a_picture_of_the_same_pixels() -> None:
    drawn = draw(picture(64, 64), (20, 10), Way.ITERM, Colours.NONE, (8, 16))
    assert drawn is not None
    assert (drawn.columns, drawn.rows) == (8, 4)
    found = re.fullmatch(r"\x1b\]1337;File=([^:]*):([A-Za-z0-9+/=]*)\x07", drawn.sequence)
    assert found is not None
    data = base64.standard_b64decode(found[2])
    keys = dict(one.split("=") for one in found[1].split(";"))
    assert keys["inline"] == keys["doNotMoveCursor"] == "1"
    assert (keys["width"], keys["height"], keys["size"]) == ("64px", "64px", str(len(data)))
    with Image.open(io.BytesIO(data)) as read:
        assert read.convert("RGB").tobytes() == picture(64, 64).tobytes()


def read_sixel(sequence: str) -> dict[tuple[int, int], tuple[int, ...]]:
    """Draw a sixel as VT340 says; colours in percent, by column and row."""
    found = re.fullmatch(r'\x1bP[0-9;]*q"1;1;(\d+);(\d+)(.*)\x1b\\', sequence, re.DOTALL)
    assert found is not None
    registers: dict[int, tuple[int, ...]] = {}
    pixels: dict[tuple[int, int], tuple[int, ...]] = {}
    colour = x = top = 0
    repeat = 1
    for define, use, count, char in re.findall(
        r"#(\d+;2;\d+;\d+;\d+)|#(\d+)|!(\d+)|([?-~$\-])", found[3]
    ):
        if define:
            number, _, *rgb = map(int, define.split(";"))
            registers[number] = tuple(rgb)
        elif use:
            colour = int(use)
        elif count:
            repeat = int(count)
            continue
        elif char == "$":
            x = 0
        elif char == "-":
            x, top = 0, top + 6
        else:
            for column, bit in product(range(x, x + repeat), range(6)):
                if (ord(char) - 63) >> bit & 1:
                    assert (column, top + bit) not in pixels, "a pixel has two colours"
                    pixels[column, top + bit] = registers[colour]
            x += repeat
        repeat = 1
    return pixels


@pytest.mark.parametrize("size", [(16, 14), (7, 6), (1, 1), (300, 5)])
def test_sixel_gives_each_pixel_its_colour_once(size: tuple[int, int]) -> None:
    drawn = draw(picture(*size), (80, 40), Way.SIXEL, Colours.NONE, (10, 20))
    assert drawn is not None
    pixels = read_sixel(drawn.sequence)
    assert pixels.keys() == set(product(range(size[0]), range(size[1])))
    for (x, y), seen in pixels.items():
        meant = picture(*size).getpixel((x, y))
        assert isinstance(meant, tuple)
        assert all(abs(a - b / 2.55) <= 1 for a, b in zip(seen, meant, strict=True))


def test_there_may_be_no_way_and_no_room() -> None:
    assert draw(picture(), (10, 10), Way.NONE, Colours.TRUE) is None
    assert draw(picture(), (0, 10), Way.KITTY, Colours.TRUE) is None
    assert draw(picture(), (10, 10), Way.BLOCKS, Colours.NONE) is None


@pytest.mark.parametrize(
    ("env", "way"),
    [
        ({"TERM": "xterm-kitty"}, Way.KITTY),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, Way.KITTY),
        ({"TERM": "xterm-ghostty"}, Way.KITTY),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, Way.ITERM),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, Way.ITERM),
        ({"TERM": "foot"}, Way.SIXEL),
        ({"TERM": "xterm-256color"}, Way.BLOCKS),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, Way.BLOCKS),
        ({"TERM": "screen-256color", "TERM_PROGRAM": "iTerm.app"}, Way.BLOCKS),
        ({"TERM": "xterm-kitty", "TMUX": "1"}, Way.BLOCKS),
        ({"TERM": "linux"}, Way.NONE),
        ({"TERM": "dumb", "KITTY_WINDOW_ID": "1"}, Way.NONE),
        ({}, Way.NONE),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, Way.NONE),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, Way.KITTY),
    ],
)
def test_what_the_environment_says(env: dict[str, str], way: Way) -> None:
    assert way_by_environment(env) is way


@pytest.mark.parametrize(
    ("env", "colours"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, Colours.TRUE),
        ({"TERM": "xterm-256color"}, Colours.INDEXED),
        ({"TERM": "xterm-kitty"}, Colours.TRUE),
        ({"TERM": "linux", "COLORTERM": "truecolor"}, Colours.NONE),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": "1"}, Colours.NONE),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": ""}, Colours.TRUE),
        ({}, Colours.NONE),
    ],
)
def test_which_colours_there_are(env: dict[str, str], colours: Colours) -> None:
    assert colours_by_environment(env) is colours
