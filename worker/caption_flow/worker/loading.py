"""From an item to its decoded picture: bytes by the shortest way, decoding off the event loop.

A file is read here only if it is the one the orchestrator listed (path given, size and time of
change agree); everything else is asked of the orchestrator, which also knows what to say when the
file is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal, Protocol

from caption_flow.protocol.messages import ItemDescription
from caption_flow.worker.core.leases import Job
from caption_flow.worker.images.load import LoadedImage, prepare

MISSING: Final = "image_missing"
"""The ``error_kind`` of items whose bytes nobody has."""

FetchBytes = Callable[[Job], Awaitable[bytes]]
"""Asks the orchestrator; raises `ImageError` with what it answers when it has none either."""


class Loader(Protocol):
    """Where the pipeline gets pictures from."""

    async def load(self, job: Job) -> LoadedImage:
        """Return the item's picture. Raises `ImageError`."""
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
        self, fetch: FetchBytes, *, threads: int, activity: Activity | None = None
    ) -> None:
        self._fetch = fetch
        self._activity = activity or Activity()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def load(self, job: Job) -> LoadedImage:
        """Return the item's picture. Raises `ImageError`."""
        loop = asyncio.get_running_loop()
        loaded = await loop.run_in_executor(self._pool, self._load_if_same, job.item)
        if loaded is None:
            with self._activity.at("fetch"):
                payload = await self._fetch(job)
            loaded = await loop.run_in_executor(self._pool, self._decode, payload)
        return loaded

    def close(self) -> None:
        """Stop the threads; what they are at is finished, nothing more is begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _load_if_same(self, item: ItemDescription) -> LoadedImage | None:
        with self._activity.at("fetch"):
            data = read_if_same(item)
        return None if data is None else self._decode(data)

    def _decode(self, data: bytes) -> LoadedImage:
        with self._activity.at("decode"):
            return prepare(data)


def read_if_same(item: ItemDescription) -> bytes | None:
    """Return the bytes of the item's file if this machine has the very file that was listed."""
    if item.path is None or item.size is None or item.mtime_ns is None:
        return None
    try:
        path = Path(os.fsdecode(item.path))
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return None
        if (found.st_size, found.st_mtime_ns) != (item.size, item.mtime_ns):
            return None
        data = path.read_bytes()
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return None
    return data if len(data) == item.size else None
