"""Small files that would cost gigabytes or minutes are refused before they are decoded."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from caption_flow.worker.images import load
from caption_flow.worker.images.cost import DecodingMemory
from caption_flow.worker.images.load import TOO_LARGE, ImageError, LoadedImage, prepare
from tests.support import bombs

MOST_SECONDS = 5.0
"""For a refusal; on a loaded machine. Decoding any of these would take ten times as long."""

REFUSED: dict[str, Callable[[], bytes]] = {
    "PNG that unpacks to a gigabyte": lambda: bombs.png(16, 16, claimed=15_000),
    "GIF of one pixel on a huge screen": lambda: bombs.gif_screen(65_535),
    "GIF on a screen that is just within the pixels": lambda: bombs.gif_screen(15_800),
    "TIFF of 16 pixels in a huge tile": lambda: bombs.tiled_tiff(16, 46_000),
    "icon with a huge PNG inside": lambda: bombs.icon(bombs.png(16, 16, claimed=15_000)),
    "icon with a huge bitmap inside": lambda: bombs.icon(bombs.bitmap_header(30_000, 60_000)),
    "JPEG in a thousand scans": lambda: bombs.many_scans(5000, 1000),
    "DDS that is decoded in Python": lambda: bombs.of_one_colour(4000, 4000, "DDS"),
    "JPEG 2000 of a hundred megapixels": lambda: bombs.claiming(
        bombs.claiming(
            bombs.of_one_colour(100, 100, "JPEG2000"),
            struct.pack(">II", 100, 100),
            struct.pack(">II", 10_000, 10_000),
        ),
        struct.pack(">II", 100, 100),
        struct.pack(">II", 10_000, 10_000),
    ),
}


def kind_of(data: bytes) -> str | None:
    """Why there is no picture; None if there is one."""
    try:
        prepare(data)
    except ImageError as error:
        return error.kind
    return None


@pytest.mark.parametrize("name", REFUSED)
def test_a_bomb_is_refused_unopened(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = REFUSED[name]()
    assert len(data) < 70_000_000

    def decode(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(load, "_decode", decode)
    with pytest.raises(ImageError) as caught:
        prepare(data)
    assert caught.value.kind == TOO_LARGE
    assert re.search(r"[\d,]{5,}|GiB", str(caught.value)), "says how much it is"


def test_apple_icons_are_not_opened() -> None:
    with pytest.raises(ImageError, match="not a picture"):
        prepare(bombs.apple_icon(bombs.png(128, 128)))


@pytest.mark.parametrize("data", bombs.small_ones())
def test_the_same_made_small_do_no_harm(data: bytes) -> None:
    assert kind_of(data) in {None, *load.IMAGE_ERROR_KINDS}


@pytest.mark.parametrize(
    "data",
    [
        bombs.png(16, 16, text=500_000_000),
        bombs.png(16, 16, profile=500_000_000),
        bombs.many_directories(3000),
    ],
    ids=["text", "profile", "directories"],
)
def test_what_stands_beside_the_picture_is_not_unpacked(data: bytes) -> None:
    began = time.process_time()
    assert kind_of(data) in {None, *load.IMAGE_ERROR_KINDS}
    assert time.process_time() - began < MOST_SECONDS


def test_an_ordinary_progressive_photograph_is_opened() -> None:
    assert isinstance(prepare(bombs.many_scans(2000, 12)), LoadedImage)


# ---------------------------------------------------------------- memory

_MEASURE = """
import re, sys, threading
from pathlib import Path
from caption_flow.worker.images import load
from caption_flow.worker.images.cost import DecodingMemory
from caption_flow.worker.images.load import prepare
from tests.support import bombs
def kilobytes(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
prepare(bombs.png(8, 8))
load.MEMORY = DecodingMemory(300_000_000)
files = [Path(name).read_bytes() for name in sys.argv[1:]]
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
threads = [threading.Thread(target=prepare, args=(data,)) for data in files for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print((kilobytes("VmHWM") - before) * 1024)
"""


def test_threads_that_decode_at_once_stay_within_the_limit_together(tmp_path: Path) -> None:
    """Six transparent pictures of 9 megapixels, 120 and 140 MB each: two fit at a time."""
    names = []
    for name, data in (
        ("a.png", bombs.png(3000, 3000)),
        ("b.webp", bombs.of_one_colour(3000, 3000, "WEBP", "RGBA")),
    ):
        (tmp_path / name).write_bytes(data)
        names.append(str(tmp_path / name))
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *names],
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 300_000_000


def test_who_finds_no_memory_waits_until_there_is_some() -> None:
    memory = DecodingMemory(100)
    entered = threading.Event()

    def second() -> None:
        with memory.taken(60):
            entered.set()

    thread = threading.Thread(target=second)
    with memory.taken(60):
        thread.start()
        assert not entered.wait(0.1)
    assert entered.wait(10)
    thread.join()
    with memory.taken(100):
        pass


def test_memory_is_given_back_when_decoding_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bombs.of_one_colour(64, 64, "PNG")
    monkeypatch.setattr(load, "MEMORY", DecodingMemory(64 * 64 * 16))
    for _ in range(3):
        with pytest.raises(ImageError):
            prepare(data[:-40])
    assert isinstance(prepare(data), LoadedImage)


def test_pillow_itself_refuses_what_is_larger_than_the_limit() -> None:
    prepare(bombs.png(8, 8))
    assert Image.MAX_IMAGE_PIXELS is not None
    assert max(load.DEFAULT_MAX_PIXELS_IN, 2 * 89_478_485) >= 2 * Image.MAX_IMAGE_PIXELS
