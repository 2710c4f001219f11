"""Images of a dataset, read again for an export: a few at a time, in order, bounded in bytes."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final

from caption_flow.orchestrator.sources.base import ShardError, Source, SourceError
from caption_flow.places.base import CHANGED, NotHereError, PlaceError
from caption_flow.places.reader import PlaceReader
from caption_flow.protocol.places import FilePlace, Place
from caption_flow.storage.exporter.webdataset import Unread, Wanted

AHEAD: Final = 32
"""Images that are read at the same time, or wait for those before them."""
AHEAD_BYTES: Final = 128 * 2**20
"""Of those, but for one that alone is larger."""
_UNKNOWN_BYTES: Final = 4 * 2**20
"""What is reckoned for an image of unknown size."""


class DatasetImages:
    """The images of an opened source; reads in threads of its own, and is told from one thread.

    ``shards`` are those the run has listed: no other is asked for.
    """

    def __init__(self, source: Source, shards: Collection[str]) -> None:
        self._source = source
        self._shards = shards
        self._reader = PlaceReader(is_lister=True)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="images", daemon=True)
        self._thread.start()

    def read(self, wanted: Sequence[Wanted]) -> Iterator[bytes | Unread]:
        """See the port `Images`."""
        ahead: deque[tuple[int, Future[bytes | Unread]]] = deque()
        held = 0
        waiting = deque(wanted)
        try:
            while ahead or waiting:
                while waiting and (
                    not ahead
                    or (len(ahead) < AHEAD and held + _bytes_of(waiting[0]) <= AHEAD_BYTES)
                ):
                    image = waiting.popleft()
                    reading = asyncio.run_coroutine_threadsafe(self._read(image), self._loop)
                    ahead.append((_bytes_of(image), reading))
                    held += _bytes_of(image)
                size, reading = ahead.popleft()
                yield reading.result()
                held -= size
        finally:
            for _, reading in ahead:
                reading.cancel()

    def close(self) -> None:
        """Stop reading; idempotent."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._reader.close(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _read(self, image: Wanted) -> bytes | Unread:
        try:
            found = await self._reader.run(partial(self._begin, image))
            return found if isinstance(found, bytes) else await self._reader.read(found)
        except ShardError as error:
            return Unread(str(error), error.is_passing)
        except PlaceError as error:
            return Unread(str(error), is_changed=error.kind == CHANGED)
        except (SourceError, _GoneError) as error:
            return Unread(str(error))
        except NotHereError as error:
            return Unread(str(error), is_passing=True)

    def _begin(self, image: Wanted) -> bytes | Place:
        """Read an image that is a file, or say where it is; blocking."""
        if image.shard not in self._shards:
            raise _GoneError(f"the run has listed no shard {image.shard}")
        item = self._source.locate(image.shard, image.item_index)
        if item is None or item.place is None:
            reason = "" if item is None else item.reason
            raise _GoneError(reason or "the item is not in the dataset")
        if not isinstance(item.place, FilePlace):
            return item.place
        try:
            with self._reader.open_file(item.place) as file:
                return file.read(file.length)
        except NotHereError as error:
            raise _GoneError(str(error)) from error


class _GoneError(Exception):
    """There is no such image on this machine, now or later."""


def _bytes_of(image: Wanted) -> int:
    return _UNKNOWN_BYTES if image.size is None else image.size
