"""Every line of the screen fits, and nothing of a dataset or a model reaches the terminal raw."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.cells import cell_len

from caption_flow.cli.viewer.entry import paragraphs
from caption_flow.cli.viewer.pictures import Colours, Way, draw
from caption_flow.cli.viewer.screen import Frame, compose, layout
from caption_flow.cli.viewer.state import Counted, Found, Loaded, Look, Pressed, Viewer
from tests.support.stored import failed, stored

HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\x00\r\u202eevil\u2028\x1b_Ga=d\x1b\\\x7f\x85"
MIXED = "漢字かな交じり文 שלום עולם مرحبا 👨‍👩‍👧 e\u0301 🇩🇪 zalgo\u0300\u0301\u0302"
_OURS = re.compile(r"\x1b\[[0-9;]*[mG]")
_ACTED_UPON = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def looking_at(row: dict[str, Any], **settings: Any) -> Viewer:
    viewer = Viewer(**settings)
    viewer.handle(Counted(3, ("captions",)))
    viewer.handle(Found(1, 0))
    viewer.handle(Loaded(0, row))
    return viewer


def texts(frame: Frame) -> list[str]:
    return [_OURS.sub("", line) for line in frame.lines]


def screen(row: dict[str, Any], size: tuple[int, int] = (80, 24), **settings: Any) -> list[str]:
    return texts(compose(looking_at(row, **settings), size, Colours.TRUE, "a run"))


def everywhere(text: str) -> Iterator[dict[str, Any]]:
    """Rows with a text in each place that others than us fill."""
    yield stored(0, captions=[text, f"{text}\n{text}"])
    yield stored(0, filename=text, item_key=text)
    yield stored(0, filename=text, filename_raw=b"\xff", item_key=text)
    yield failed(0, error=text, error_kind=text)
    yield stored(0, title=text, url=text, worker=text, contributor=text, models=[text])
    yield stored(0, flags=[text], image_format=text, image_height=4, image_scaled_to=text)
    yield {**stored(0), text: text, "tags": [text]}


@pytest.mark.parametrize("number", range(7))
def test_no_text_of_others_reaches_the_terminal_as_it_is(number: int) -> None:
    row = [*everywhere(HOSTILE)][number]
    assert not any(_ACTED_UPON.search(line) for line in screen(row, (60, 40)))
    shown = paragraphs(row, ("captions",), whole=True)
    assert not any(_ACTED_UPON.search(one.text) for one in shown)
    assert any(r"\x1b" in one.text for one in shown)


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8")), st.integers(1, 130), st.integers(1, 40))
def test_any_text_fits_on_any_screen(text: str, columns: int, rows: int) -> None:
    row = stored(0, captions=[text], filename=text, item_key=text or "0", title=text)
    for search in ("", "a"):
        lines = screen(row, (columns, rows), search=search)
        assert len(lines) == rows
        assert all(cell_len(line) <= columns for line in lines)
        assert not any(_ACTED_UPON.search(line) for line in lines)


@pytest.mark.parametrize("size", [(80, 24), (120, 30), (24, 14), (10, 5), (1, 1), (200, 2)])
def test_pictures_and_wide_scripts_fit_beside_and_above_each_other(size: tuple[int, int]) -> None:
    image = Image.new("RGB", (640, 480), "red")
    for way in (Way.BLOCKS, Way.KITTY):
        box = layout(size, pictures=True).box
        drawn = None if box is None else draw(image, box, way, Colours.TRUE)
        viewer = looking_at(stored(0, captions=[MIXED * 20], filename=MIXED, item_key=MIXED))
        frame = compose(viewer, size, Colours.TRUE, "a run", drawn)
        assert len(frame.lines) == size[1]
        if drawn is None:
            continue
        assert drawn.columns <= size[0]
        assert frame.at == (2, 1)
        assert drawn.rows <= size[1] - 2
        beside = [line for line in frame.lines if "G" in line and "\x1b[" in line]
        for line in beside:
            for column, text in re.findall(r"\x1b\[(\d+)G([^\n]*)", line):
                # Whatever is beside it: a text begins right of the picture, and ends on the screen.
                assert int(column) > drawn.columns
                assert int(column) - 1 + cell_len(_OURS.sub("", text)) <= size[0]


def test_what_is_said_of_a_row() -> None:
    row = stored(0, flags=["length"], image_height=480, image_format="PNG", file_size=12_345)
    row |= {"worker": "w1", "contributor": "alice", "title": "A day", "item_index": 0}
    text = "\n".join(screen(row, (100, 24)))
    for said in (
        "1 of 3", "a run", "a/0.jpg", "flagged: length", "640 x 480 PNG", "12,345 bytes",
        "captions 1 of 2", "one", "captions 2 of 2", "two", "m · worker w1 · contributor alice",
        "2025-03-01 12:30:00 UTC", "title: A day", "q quit",
    ):  # fmt: skip
        assert said in text, said
    broken = "\n".join(screen(failed(0)))
    assert "corrupt_image: truncated at byte 7" in broken
    assert "captions: none" in broken


def test_a_picture_that_cannot_be_shown_says_why() -> None:
    viewer = looking_at(stored(0))
    frame = compose(viewer, (80, 24), Colours.TRUE, "a run", f"the file is gone{HOSTILE}")
    assert any("no picture: the file is" in line for line in texts(frame))
    assert not any(_ACTED_UPON.search(line) for line in texts(frame))
    viewer.handle(Pressed("i"))
    hidden = compose(viewer, (80, 24), Colours.TRUE, "a run", "the file is gone")
    assert not any("no picture" in line for line in texts(hidden))


def test_a_text_of_a_megabyte_is_cut_and_that_is_said() -> None:
    viewer = looking_at(stored(0, captions=["word " * 200_000]))
    compose(viewer, (80, 24), Colours.TRUE, "a run")
    for _ in range(100):
        viewer.handle(Pressed("page-down"))
    end = texts(compose(viewer, (80, 24), Colours.TRUE, "a run"))
    assert any("980,000 more characters" in line for line in end)
    whole = paragraphs(stored(0, captions=["word " * 200_000]), ("captions",), whole=True)
    assert max(len(one.text) for one in whole) == 1_000_000


def test_colours_are_left_out_where_nobody_wants_them_and_hits_are_seen() -> None:
    viewer = looking_at(stored(0, captions=["a Dog"]), search="dog")
    plain = "".join(compose(viewer, (80, 24), Colours.NONE, "a run").lines)
    assert set(re.findall(r"\x1b\[([0-9;]+)m", plain)) <= {"0", "1", "2", "7"}
    assert "\x1b[7mDog\x1b[0m" in plain


def test_the_bars_say_what_is_going_on() -> None:
    viewer = Viewer(ending="failed", search="dog")
    (look,) = viewer.handle(Counted(3_000_000, ("captions",)))
    assert isinstance(look, Look)
    lines = texts(compose(viewer, (80, 24), Colours.TRUE, "a run"))
    assert "- of 3,000,000 · only failed · /dog · a run" in lines[0]
    assert "looking for dog: 0 of 3,000,000 rows; Esc stops" in lines[-1]
    viewer = looking_at(stored(0))
    for key in "/cat":
        viewer.handle(Pressed(key))
    assert "/cat" in texts(compose(viewer, (80, 24), Colours.TRUE, "a run"))[-1]
    waiting = texts(compose(Viewer(), (80, 24), Colours.TRUE, "a run"))
    assert "no rows yet" in waiting[1]
    viewer = looking_at(stored(0))
    viewer.handle(Pressed("?"))
    assert any(
        "previous hit" in line for line in texts(compose(viewer, (80, 24), Colours.TRUE, ""))
    )
