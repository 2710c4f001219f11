"""`StorageManager`: how other Python programs read what a run has written.

The name and the calls are what such programs rely on. Read-only: it opens the store anew for each
call, in a thread, and holds nothing between calls, so that it may be made every second, in any
event loop, beside a running orchestrator or after a finished one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final

from caption_flow.protocol.rows import CAPTIONED, FAILED
from caption_flow.storage.contents import RowReader, Selection, StorageContents, no_such
from caption_flow.storage.errors import StorageError
from caption_flow.storage.parts import count_flags
from caption_flow.storage.reader import StorageReader

ALL_SHARDS: Final = "default"
"""Local datasets have this one shard; asked for by name it means every shard of any dataset."""


class StorageManager:
    """Reads a run's results.

    What cannot be given (a damaged store, a shard or column that is not there) is a sentence in
    the contents' ``metadata["error"]``, and nothing written yet one in ``metadata["message"]``.
    """

    def __init__(
        self,
        storage_dir: str | PathLike[str],
        *,
        open_reader: Callable[[Path], RowReader] = StorageReader,
    ) -> None:
        self.storage_dir = Path(storage_dir)
        self._open_reader = open_reader

    async def initialize(self) -> None:
        """Do nothing: each call opens the store for itself."""

    async def get_shard_contents(
        self,
        shard_name: str,
        limit: int | None = None,
        columns: Sequence[str] | None = None,
        include_metadata: bool = True,
    ) -> StorageContents:
        """Return the rows of one shard of the dataset, or of all for the name ``default``.

        The rows are read when the contents are used, at most ``limit`` of them, with ``columns``
        or all there are. ``include_metadata`` adds ``data_dir`` and ``shards``.
        """
        shard = None if shard_name == ALL_SHARDS else shard_name
        return await asyncio.to_thread(self._contents, shard, limit, columns, include_metadata)

    async def get_storage_contents(
        self,
        limit: int | None = None,
        columns: Sequence[str] | None = None,
        include_metadata: bool = True,
    ) -> StorageContents:
        """Return the rows of all shards; otherwise as `get_shard_contents`."""
        return await asyncio.to_thread(self._contents, None, limit, columns, include_metadata)

    async def get_caption_stats(self) -> dict[str, Any]:
        """Return what there is in numbers.

        ``total_rows``, ``captioned``, ``failed``, ``total_captions`` (texts over all fields),
        ``captions_by_field``, ``failures_by_kind``, ``flags`` (rows by flag), ``shards`` (names).

        Raises:
            StorageError: the store is damaged.
        """
        return await asyncio.to_thread(self._stats)

    async def checkpoint(self) -> None:
        """Do nothing: the orchestrator moves results into parts, and reads see those that wait."""

    async def close(self) -> None:
        """Do nothing: no handle outlives the call that needed it."""

    def _open(self) -> RowReader:
        return self._open_reader(self.storage_dir)

    def _contents(
        self,
        shard: str | None,
        limit: int | None,
        columns: Sequence[str] | None,
        include_metadata: bool,
    ) -> StorageContents:
        if limit is not None and limit < 0:
            raise ValueError(f"limit={limit}: give a number of rows, or None for all")
        try:
            reader = self._open()
        except StorageError as error:
            return StorageContents(metadata={"error": str(error)})
        try:
            return self._described(reader, shard, limit, columns, include_metadata)
        except StorageError as error:
            return StorageContents(metadata={"error": str(error)})
        finally:
            reader.close()

    def _described(
        self,
        reader: RowReader,
        shard: str | None,
        limit: int | None,
        columns: Sequence[str] | None,
        include_metadata: bool,
    ) -> StorageContents:
        metadata: dict[str, Any] = {}
        if include_metadata:
            metadata = {"data_dir": str(self.storage_dir), "shards": list(reader.shards)}
        if not reader.columns:
            metadata["message"] = f"nothing has been written to {self.storage_dir} yet"
            return StorageContents(metadata=metadata)
        problem = _unknown(reader, shard, columns)
        if problem is not None:
            metadata["error"] = problem
            return StorageContents((), reader.columns, reader.output_fields, metadata=metadata)
        shards = None if shard is None else frozenset({shard})
        wanted = reader.columns if columns is None else tuple(dict.fromkeys(columns))
        return StorageContents.reading(
            Selection(self._open, shards, limit),
            columns=wanted,
            output_fields=[name for name in reader.output_fields if name in wanted],
            total_rows=reader.count_rows(shards),
            metadata=metadata,
        )

    def _stats(self) -> dict[str, Any]:
        reader = self._open()
        try:
            return _stats_of(reader)
        finally:
            reader.close()


def _unknown(reader: RowReader, shard: str | None, columns: Sequence[str] | None) -> str | None:
    if shard is not None and shard not in reader.shards:
        return no_such("shard", shard, reader.shards)
    for name in columns or ():
        if name not in reader.columns:
            return no_such("column", name, reader.columns)
    return None


def _stats_of(reader: RowReader) -> dict[str, Any]:
    statuses: Counter[str | None] = Counter()
    kinds: Counter[str | None] = Counter()
    captions = dict.fromkeys(reader.output_fields, 0)
    flags: Counter[str] = Counter()
    wanted = ("status", "error_kind", "flags", *reader.output_fields)
    for batch in reader.batches(None, wanted) if reader.columns else ():
        statuses.update(batch.column("status").to_pylist())
        kinds.update(batch.column("error_kind").drop_null().to_pylist())
        flags.update(count_flags(batch))
        for name in captions:
            captions[name] += len(batch.column(name).flatten())
    return {
        "total_rows": statuses.total(),
        "captioned": statuses[CAPTIONED],
        "failed": statuses[FAILED],
        "total_captions": sum(captions.values()),
        "captions_by_field": captions,
        "failures_by_kind": dict(kinds),
        "flags": dict(flags),
        "shards": list(reader.shards),
    }
