"""Bytes for sending: small ones at once, large files in portions, all else when there is room."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from caption_flow.places.base import NotHereError, PlaceError
from caption_flow.places.portions import PORTION_BYTES, in_portions
from caption_flow.places.reader import PlaceReader
from caption_flow.protocol.places import FilePlace, ObjectPlace, Place
from tests.support.object_server import object_server

LARGE = random.Random(3).randbytes(2 * PORTION_BYTES + 1000)


class Rooms:
    """Room for everybody, remembering what was asked for and used."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.used: list[int] = []
        self.open = 0

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[Rooms]:
        self.asked.append(size)
        self.open += 1
        assert self.open == 1, "what is read next waits until what was read is sent"
        try:
            yield self
        finally:
            self.open -= 1

    def shrink(self, size: int) -> None:
        self.used.append(size)


async def portions(place: Place) -> tuple[list[tuple[bytes, bool]], Rooms]:
    reader, rooms = PlaceReader(is_lister=True), Rooms()
    try:
        found = [one async for one in in_portions(reader, lambda: place, rooms.room)]
    finally:
        await reader.close()
    assert rooms.open == 0
    return found, rooms


def place_of(path: Path, offset: int = 0, length: int | None = None) -> FilePlace:
    found = path.stat()
    return FilePlace(os.fsencode(path), found.st_size, found.st_mtime_ns, offset, length)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "large.jpg"
    path.write_bytes(LARGE)
    return path


async def test_what_is_small_comes_at_once(file: Path) -> None:
    found, rooms = await portions(place_of(file, 10, 1000))
    assert found == [(LARGE[10:1010], False)]
    assert (rooms.asked, rooms.used) == ([PORTION_BYTES], [1000])
    os.truncate(file, 0)
    assert (await portions(place_of(file)))[0] == [(b"", False)]


@pytest.mark.parametrize(("offset", "length"), [(0, None), (7, len(LARGE) - 7)])
async def test_a_large_file_comes_in_portions(file: Path, offset: int, length: int | None) -> None:
    found, rooms = await portions(place_of(file, offset, length))
    assert b"".join(data for data, _ in found) == LARGE[offset:]
    assert [more for _, more in found] == [True, True, False]
    assert max(rooms.asked) == PORTION_BYTES


async def test_a_large_file_that_changed_or_is_cut_short_is_said_to_be(file: Path) -> None:
    listed = place_of(file, 1)
    os.truncate(file, len(LARGE) + 1)
    with pytest.raises(PlaceError, match="changed since it was listed"):
        await portions(listed)
    reader, rooms = PlaceReader(is_lister=True), Rooms()
    reading = in_portions(reader, lambda: place_of(file, 1), rooms.room)
    assert await anext(reading) == (LARGE[1:][:PORTION_BYTES], True)
    os.truncate(file, PORTION_BYTES + 5)
    with pytest.raises(NotHereError, match="ends early"):
        await anext(reading)
    await reader.close()


async def test_a_large_object_waits_for_as_much_room_as_it_needs() -> None:
    async with object_server({"/a.bin": LARGE}) as server:
        for place in (
            ObjectPlace(f"{server.url}/a.bin", 0, len(LARGE)),
            ObjectPlace(f"{server.url}/a.bin", 0, None, len(LARGE)),
        ):
            found, rooms = await portions(place)
            assert found == [(LARGE, False)]
            assert rooms.asked[-1] == len(LARGE)
        found, rooms = await portions(ObjectPlace(f"{server.url}/a.bin", 5, 100))
        assert (found, rooms.asked) == ([(LARGE[5:105], False)], [PORTION_BYTES])
        found, rooms = await portions(ObjectPlace(f"{server.url}/a.bin"))
        assert (found, rooms.used) == ([(LARGE, False)], [len(LARGE)])
