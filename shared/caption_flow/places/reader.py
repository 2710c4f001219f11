"""Bytes of places of every kind; one reader for each process that reads any."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING, Final, TypeVar, assert_never

from caption_flow.places.cells import CellReader
from caption_flow.places.files import OpenedFile, open_own_file, read_file, read_own_file
from caption_flow.places.objects import read_object, read_own_object
from caption_flow.protocol.places import CellPlace, FilePlace, LinkPlace, ObjectPlace, Place

if TYPE_CHECKING:
    from caption_flow.places.links import LinkReader

T = TypeVar("T")

_THREADS: Final = 16


class PlaceReader:
    """Reads off the event loop, in ``threads`` threads of its own.

    ``is_lister`` says that this is the machine that listed the dataset (see `read_own_file`).
    """

    def __init__(self, *, threads: int = _THREADS, is_lister: bool = False) -> None:
        self._read_file = read_own_file if is_lister else read_file
        self.read_object = read_own_object if is_lister else read_object
        self._cells = CellReader()
        self._links: LinkReader | None = None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")

    async def read(self, place: Place) -> bytes:
        """Return the bytes at a place.

        Raises:
            NotHereError: this machine cannot read it.
            PlaceError: there is nothing to be read.
        """
        loop = asyncio.get_running_loop()
        match place:
            case FilePlace():
                return await loop.run_in_executor(self._pool, self._read_file, place)
            case ObjectPlace():
                return await loop.run_in_executor(self._pool, self.read_object, place)
            case CellPlace():
                return await loop.run_in_executor(self._pool, self._cells.read, place)
            case LinkPlace():
                return await (await self._link_reader()).read(place.url)
            case _:
                assert_never(place)

    async def _link_reader(self) -> LinkReader:
        # An HTTP client takes a fifth of a second to import, and few datasets have addresses.
        module = await self.run(lambda: import_module("caption_flow.places.links"))
        reader: LinkReader = self._links or module.LinkReader()
        self._links = reader
        return reader

    async def run(self, work: Callable[[], T]) -> T:
        """Have something done in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    @staticmethod
    def open_file(place: FilePlace) -> OpenedFile:
        """Open a file on the machine that listed it; blocking. See `open_own_file`."""
        return open_own_file(place)

    async def close(self) -> None:
        """Stop the threads; what they are at is finished, nothing more is begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._links is not None:
            await self._links.close()
