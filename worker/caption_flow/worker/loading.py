"""From an item to its picture or frames: bytes by the shortest way, decoded off the event loop.

A file is read here only if it is the one the orchestrator listed (size and time of change agree),
and what lies elsewhere where it lies; what this machine cannot read is asked of the orchestrator,
which also knows what to say when it is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, Literal, Protocol, TypeVar

import structlog

from caption_flow.places.base import NotHereError, PlaceError
from caption_flow.places.files import read_file
from caption_flow.places.reader import PlaceReader
from caption_flow.protocol.places import CellPlace, FilePlace, ObjectPlace, Place
from caption_flow.recipe.video import Video
from caption_flow.worker.core.leases import Job
from caption_flow.worker.images.load import ImageError, prepare
from caption_flow.worker.images.video import (
    NOT_ASKED_FOR,
    TOO_LARGE,
    Loaded,
    prepare_video,
)

log = structlog.get_logger()

T = TypeVar("T")
U = TypeVar("U")

Decode = Callable[[bytes], Loaded]

_VIDEOS_AT_ONCE: Final = 4
"""Video files that are in memory, or on their way here, at a time: each may be a large one."""

Way = Literal["here", "there", "served"]
"""How an item's bytes came: from this machine's files, from where the dataset lies, or sent."""
HERE: Final[Way] = "here"
THERE: Final[Way] = "there"
SERVED: Final[Way] = "served"

_SPOKEN: Final[Mapping[Way, str]] = {
    HERE: "read from files that this machine sees",
    THERE: "read where the dataset lies",
    SERVED: "sent by the orchestrator",
}

FetchBytes = Callable[[Job], Awaitable[bytes]]
"""Asks the orchestrator; raises `ImageError` with what it answers when it has none either."""


class Loader(Protocol):
    """Where the pipeline gets pictures from."""

    async def load(self, job: Job, video: Video | None) -> Loaded:
        """Return the item's picture or, shown as ``video`` says, frames. Raises `ImageError`."""
        ...


class Activity:
    """What loading is at right now: how many files are fetched or read, how many are decoded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @property
    def fetching(self) -> int:
        """Files that are being read, or sent by the orchestrator."""
        return self._counts["fetch"]

    @property
    def decoding(self) -> int:
        """Files that are being decoded."""
        return self._counts["decode"]

    @contextlib.contextmanager
    def at(self, what: Literal["fetch", "decode"]) -> Iterator[None]:
        """Count one more at this meanwhile; from any thread."""
        self._add(what, 1)
        try:
            yield
        finally:
            self._add(what, -1)

    def _add(self, what: str, change: int) -> None:
        with self._lock:
            self._counts[what] += change


class ImageLoader:
    """Reads or fetches, then decodes, in ``threads`` threads of its own; tells ``activity``."""

    def __init__(
        self,
        fetch: FetchBytes,
        *,
        threads: int,
        places: PlaceReader | None = None,
        activity: Activity | None = None,
    ) -> None:
        self._fetch = fetch
        self._places = places or PlaceReader()
        self._activity = activity or Activity()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._told: set[str] = set()
        self.ways: Counter[Way] = Counter()
        """How many items' bytes came which way."""
        self._videos = asyncio.Semaphore(min(threads, _VIDEOS_AT_ONCE))

    async def load(self, job: Job, video: Video | None) -> Loaded:
        """See `Loader.load`."""
        if not job.item.is_video:
            return await self._load(job, prepare)
        if video is None:
            raise ImageError(
                NOT_ASKED_FOR,
                "the file is a video: --video-frames N (dataset.video) captions videos",
            )
        _check_size(job.item.place, video)
        async with self._videos:
            return await self._load(job, partial(_prepare_video, video=video))

    async def _load(self, job: Job, decode: Decode) -> Loaded:
        place = job.item.place
        if isinstance(place, FilePlace):
            # Read and decoded in one go: most datasets lie on a disk that the worker sees.
            loaded = await self._run(self._load_here, place, decode)
            if loaded is not None:
                return loaded
        elif place is not None:
            data = await self._read_there(place)
            if data is not None:
                return await self._run(self._decode, data, decode)
        with self._activity.at("fetch"):
            payload = await self._fetch(job)
        self.ways[SERVED] += 1
        return await self._run(self._decode, payload, decode)

    async def close(self) -> None:
        """Stop the threads; what they are at is finished, nothing more is begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        await self._places.close()

    async def _run(self, work: Callable[[T, Decode], U], argument: T, decode: Decode) -> U:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, work, argument, decode)

    def _load_here(self, place: FilePlace, decode: Decode) -> Loaded | None:
        try:
            with self._activity.at("fetch"):
                data = read_file(place)
        except NotHereError as error:
            self._tell_once("the dataset's files are not on this machine", error)
            return None
        self.ways[HERE] += 1
        return self._decode(data, decode)

    async def _read_there(self, place: Place) -> bytes | None:
        try:
            with self._activity.at("fetch"):
                data = await self._places.read(place)
        except NotHereError as error:
            self._tell_once("the dataset cannot be read from this machine", error)
            return None
        except PlaceError as error:
            raise ImageError(error.kind, str(error)) from error
        self.ways[HERE if _is_file(place) else THERE] += 1
        return data

    def _tell_once(self, what: str, error: NotHereError) -> None:
        """Say why the orchestrator is asked for bytes, the first time for each reason."""
        if what not in self._told:
            self._told.add(what)
            log.info(f"{what}: the orchestrator is asked for its bytes", reason=str(error))  # noqa: G004

    def _decode(self, data: bytes, decode: Decode) -> Loaded:
        with self._activity.at("decode"):
            return decode(data)


def _prepare_video(data: bytes, *, video: Video) -> Loaded:
    _check_bytes(len(data), video)
    return prepare_video(data, video)


def _check_size(place: Place | None, video: Video) -> None:
    """Refuse a file that is known to be too large before any of it is read or sent."""
    if isinstance(place, FilePlace | ObjectPlace):
        size = place.size if place.length is None else place.length
        _check_bytes(0 if size is None else size, video)


def _check_bytes(size: int, video: Video) -> None:
    if size > video.max_bytes:
        raise ImageError(
            TOO_LARGE,
            f"the video has {size:,} bytes; the limit is {video.max_bytes:,} "
            "(dataset.video.max_mib)",
        )


def ways_taken(ways: Mapping[Way, int]) -> str:
    """Return one line for people about how images came; empty where none did."""
    counted = [f"{ways[way]:,} {how}" for way, how in _SPOKEN.items() if ways.get(way)]
    return f"images: {', '.join(counted)}" if counted else ""


def _is_file(place: Place) -> bool:
    return isinstance(place, CellPlace) and isinstance(place.file, FilePlace)
