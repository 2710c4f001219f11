"""From an item to its decoded picture: bytes by the shortest way, decoding off the event loop.

A file is read here only if it is the one the orchestrator listed (path given, size and time of
change agree); everything else is asked of the orchestrator, which also knows what to say when the
file is gone.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

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


class ImageLoader:
    """Reads or fetches, then decodes, in ``threads`` threads of its own."""

    def __init__(self, fetch: FetchBytes, *, threads: int) -> None:
        self._fetch = fetch
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def load(self, job: Job) -> LoadedImage:
        """Return the item's picture. Raises `ImageError`."""
        loop = asyncio.get_running_loop()
        loaded = await loop.run_in_executor(self._pool, _load_if_same, job.item)
        if loaded is None:
            payload = await self._fetch(job)
            loaded = await loop.run_in_executor(self._pool, prepare, payload)
        return loaded

    def close(self) -> None:
        """Stop the threads; what they are at is finished, nothing more is begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


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


def _load_if_same(item: ItemDescription) -> LoadedImage | None:
    data = read_if_same(item)
    return None if data is None else prepare(data)
