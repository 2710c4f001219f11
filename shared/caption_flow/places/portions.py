"""Bytes of places for sending: no more of them in memory than there is room for.

What is small is found and read in one go. A large file is read in portions, as they are sent. What
else is large (an object, a cell, a link) is read as a whole, once there is room for it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Final, Protocol

from caption_flow.places.files import OpenedFile
from caption_flow.places.reader import PlaceReader
from caption_flow.protocol.places import FilePlace, ObjectPlace, Place

PORTION_BYTES: Final = 2 * 2**20
"""Most images are smaller."""
_UNKNOWN_BYTES: Final = 16 * 2**20
"""What is kept free for an image whose size nobody can tell beforehand."""


class Hold(Protocol):
    """Room in memory, in bytes."""

    def shrink(self, size: int) -> None:
        """Say how much of it is really used."""
        ...


Room = Callable[[int], AbstractAsyncContextManager[Hold]]
"""Waits until there is room for so many bytes, and keeps it meanwhile."""


async def in_portions(
    reader: PlaceReader, where: Callable[[], Place], room: Room
) -> AsyncGenerator[tuple[bytes, bool]]:
    """Yield the bytes of the place that ``where`` tells, and whether there are more of them.

    ``where`` may block. What is yielded has its room until the next is asked for.

    Raises:
        NotHereError, PlaceError: it cannot be read; perhaps after some portions.
    """
    async with room(PORTION_BYTES) as hold:
        found = await reader.run(partial(_begin, reader, where))
        if isinstance(found, bytes):
            hold.shrink(len(found))
            yield found, False
            return
    if isinstance(found, OpenedFile):
        async with aclosing(_portions_of(reader, found, room)) as portions:
            async for portion in portions:
                yield portion
        return
    async with room(_size_of(found)) as hold:
        data = await reader.read(found)
        hold.shrink(len(data))
        yield data, False


def _begin(reader: PlaceReader, where: Callable[[], Place]) -> bytes | OpenedFile | Place:
    """Read the place if it is small, or else open it if it is a file; blocking."""
    place = where()
    if isinstance(place, FilePlace):
        file = reader.open_file(place)
        if file.length > PORTION_BYTES:
            return file
        with file:
            return file.read(file.length)
    if isinstance(place, ObjectPlace) and _size_of(place) <= PORTION_BYTES:
        return reader.read_object(place)
    return place


async def _portions_of(
    reader: PlaceReader, file: OpenedFile, room: Room
) -> AsyncGenerator[tuple[bytes, bool]]:
    left = file.length
    try:
        while left:
            async with room(min(left, PORTION_BYTES)):
                data = await reader.run(partial(file.read, min(left, PORTION_BYTES)))
                left -= len(data)
                yield data, bool(left)
    finally:
        file.close()


def _size_of(place: Place) -> int:
    if isinstance(place, ObjectPlace):
        if place.length is not None:
            return place.length
        if place.size is not None:
            return place.size - place.offset
    return _UNKNOWN_BYTES
