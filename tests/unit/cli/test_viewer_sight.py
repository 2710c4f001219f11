"""Pictures are found where the run found them, and no file harms whoever looks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from caption_flow.cli.viewer.sight import NoPictureError, Sight
from tests.support import bombs
from tests.support.stored import Item, stored


@pytest.fixture
def sight(tmp_path: Path) -> Iterator[Sight]:
    with closing(Sight(tmp_path / "run", str(tmp_path))) as made:
        yield made


def row(name: str, raw: bytes | None = None) -> Item:
    return stored(0, filename=name, filename_raw=raw)


def test_a_file_is_found_below_the_dataset(sight: Sight, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a" / "x.png")
    Image.new("RGB", (3, 2), "blue").save(os.fsencode(tmp_path) + b"/\xff.png", "PNG")
    red = sight.picture(row("a/x.png"))
    assert (red.size, red.getpixel((0, 0))) == ((3, 2), (255, 0, 0))
    assert sight.picture(row(r"\xff.png", b"\xff.png")).getpixel((0, 0)) == (0, 0, 255)


def test_a_large_picture_is_made_small_before_it_is_kept(sight: Sight, tmp_path: Path) -> None:
    Image.new("L", (9000, 6000)).save(tmp_path / "large.png")
    width, height = sight.picture(row("large.png")).size
    assert width * height < 2_000_000


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.png", "No such file"),
        ("bomb.png", "too large to decode"),
        ("text.png", "not a picture"),
        ("empty.png", "empty"),
        ("pipe.png", "is not a file"),
        ("folder.png", "is not a file"),
        ("sparse.png", "a lot for a screen"),
        ("nul\0.png", "null"),
    ],
)
def test_what_is_no_picture_is_said(sight: Sight, tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "bomb.png").write_bytes(bombs.png(4, 4, claimed=60_000))
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(NoPictureError, match=reason):
        sight.picture(row(name))


def test_a_dataset_that_nobody_remembers_is_asked_for(tmp_path: Path) -> None:
    with closing(Sight(tmp_path, None)) as made, pytest.raises(NoPictureError, match="--config"):
        made.picture(stored(0, shard="other"))
    with closing(Sight(tmp_path, "webdataset:nowhere")) as made, pytest.raises(NoPictureError):
        made.picture(stored(0, shard="0.tar"))
