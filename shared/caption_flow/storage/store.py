"""A run's folder as its owner uses it: locked, cleaned, read once, then written by one thread."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Final, TypeVar

import pyarrow as pa
import structlog

from caption_flow.storage.database import (
    LEDGER_FILE,
    PARTS_FOLDER,
    damaged,
    open_for_reading,
    open_for_writing,
    read_meta,
    write_meta,
)
from caption_flow.storage.errors import StorageError, StorageFullError, is_disk_full
from caption_flow.storage.lock import FolderLock
from caption_flow.storage.opening import Found, KnownPart, look
from caption_flow.storage.partials import Partial, partials_of, read_partials
from caption_flow.storage.parts import Part, remove_discarded, write_part
from caption_flow.storage.reader import read_buffered
from caption_flow.storage.reopen import (
    Items,
    Opened,
    Select,
    TakenBack,
    failures,
    parts_with_contributor,
    parts_with_failures,
    parts_with_items,
    rewrite,
    rows_of,
    these_items,
)
from caption_flow.storage.schema import conform, ranges_by_shard, unify
from caption_flow.storage.writer import Write, Writer
from caption_flow.storage.writes import RecordPart

log = structlog.get_logger()

T = TypeVar("T")

_ROWS_PER_PART: Final = 50_000
"""A part is sorted in memory; at 1 kB a row this is 50 MB."""


class RunStore:
    """The writing side of a run's folder. Open in a thread, then use from one event loop.

    Raises:
        StorageBusyError: another orchestrator owns the folder.
        StorageError: the ledger is damaged, newer, or missing beside its parts.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(data_dir)
        except OSError as error:
            raise StorageError(
                f"cannot use the folder {data_dir} ({error.strerror}); "
                "choose another one (storage.data_dir, --data-dir)"
            ) from error
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        self.shelf: dict[int, KnownPart] = dict(self.snapshot.shelf)
        """The parts that are recorded, by number."""
        self._writer: Writer | None = None
        self._making_parts = asyncio.Lock()
        self._unfinished: set[asyncio.Task[Any]] = set()
        self._checkpoints = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def _open(self) -> None:
        found = look(self.data_dir)  # whatever is wrong is found before anything is written
        self.snapshot, self._last_part = found.snapshot, found.last_part
        try:
            self._connection = open_for_writing(self.data_dir)
        except StorageError as error:
            if error.__cause__ is not None and is_disk_full(error.__cause__):
                raise _no_room_to_open(self.data_dir) from error
            raise
        try:
            self.incarnation = _count_opening(self._connection)
            self._clean(found)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            if is_disk_full(error):
                raise _no_room_to_open(self.data_dir) from error
            raise damaged(self.data_dir / LEDGER_FILE, error) from error
        except BaseException:
            self._connection.close()
            raise

    def release(self) -> None:
        """Give up a folder that was opened and not started."""
        self._connection.close()
        self._checkpoints.shutdown()
        self._lock.release()

    def start(self, on_trouble: Callable[[StorageError | None], None]) -> None:
        """Start the writer's thread; see `Writer` for ``on_trouble``."""
        self._writer = Writer(self._connection, self.data_dir, on_trouble)

    def write(self, write: Write) -> asyncio.Future[None]:
        """Queue a write; the future is done when it is durable."""
        if self._writer is None:
            raise RuntimeError("the store has not been started")
        return self._writer.submit(write)

    async def checkpoint(self) -> int:
        """Move what is buffered into parts; return how many rows were moved.

        Costs what is new. Results may be committed meanwhile: they are in the next checkpoint.

        Raises:
            StorageFullError: there is no room for a part; the rows stay safe in the database.
            StorageError: the folder cannot be written.
        """
        return await self._to_its_end(self._checkpoint)

    async def reopen(self, items: Items) -> Opened:
        """Take rows back so that their items are done again; return what was taken back.

        Raises:
            StorageError: a part cannot be read or written; what was taken back so far stays so.
        """
        find = partial(parts_with_items, items=items)
        return await self._to_its_end(partial(self._take_back, find, these_items(items)))

    async def reopen_failures(self, kind: str | None) -> Opened:
        """Take failed rows back, of one kind or of any; see `reopen`."""
        find = partial(parts_with_failures, kind=kind)
        return await self._to_its_end(partial(self._take_back, find, failures(kind)))

    async def reopen_contributor(self, name: str) -> Opened:
        """Take back the rows that a contributor had any part in; see `reopen`."""
        find = partial(parts_with_contributor, name=name)
        return await self._to_its_end(partial(self._take_back, find, rows_of(name)))

    async def partials_of(self, name: str) -> dict[str, frozenset[int]]:
        """Return the items between stages, by shard, that a contributor had any part in."""
        return await asyncio.to_thread(self._read_partials_of, name)

    async def partials(self, shard: str, items: Collection[int]) -> dict[int, Partial]:
        """Return what the stages gave to items that are between two of them."""
        return await asyncio.to_thread(self._read_partials, shard, items)

    def stop_waiting(self) -> None:
        """From now on a full disk fails writes and checkpoints instead of holding them up."""
        if self._writer is not None:
            self._writer.stop_waiting()

    async def close(self) -> None:
        """Commit what is queued, stop the threads and give the folder up."""
        self.stop_waiting()
        await asyncio.gather(*self._unfinished, return_exceptions=True)
        try:
            if self._writer is not None:
                await self._writer.close()
            else:
                self._connection.close()
        finally:
            self._checkpoints.shutdown(wait=True)
            self._lock.release()

    # ------------------------------------------------------------------ inside

    async def _to_its_end(self, work: Callable[[], Coroutine[None, None, T]]) -> T:
        """Do what makes parts, one at a time; a caller that is cancelled does not stop it.

        Between a part's rename and its record its number is taken and the ledger does not know:
        whoever made a part at that moment would write over it.
        """

        async def alone() -> T:
            async with self._making_parts:
                return await work()

        task = asyncio.create_task(alone())
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return await asyncio.shield(task)

    async def _checkpoint(self) -> int:
        moved = 0
        while True:
            loop = asyncio.get_running_loop()
            built = await loop.run_in_executor(self._checkpoints, self._build_part)
            if built is None:
                return moved
            await self.write(built)
            self._put_on_shelf(built.part)
            moved += built.part.rows

    async def _take_back(
        self, find: Callable[[Connection], list[tuple[int, str]]], select: Select
    ) -> Opened:
        loop = asyncio.get_running_loop()
        opened = Opened()
        # What is buffered is in no part yet, and only parts are written anew.
        await self._checkpoint()
        for part in await loop.run_in_executor(self._checkpoints, self._read, find):
            taken = await loop.run_in_executor(self._checkpoints, self._rewrite, part, select)
            if taken is None:
                continue
            await self.write(taken.write)
            del self.shelf[taken.write.old]
            if taken.write.new is not None:
                self._put_on_shelf(taken.write.new)
            remove_discarded(self.data_dir / PARTS_FOLDER, [taken.write.old_file])
            opened.add(taken)
        return opened

    def _put_on_shelf(self, part: Part) -> None:
        self._last_part = part.number
        self.shelf[part.number] = KnownPart(part.rows, part.bytes, time.time())

    def _read(self, find: Callable[[Connection], list[tuple[int, str]]]) -> list[tuple[int, str]]:
        connection = open_for_reading(self.data_dir)
        if connection is None:
            return []
        with closing(connection):
            return find(connection)

    def _read_partials(self, shard: str, items: Collection[int]) -> dict[int, Partial]:
        connection = open_for_reading(self.data_dir)
        if connection is None:
            return {}
        with closing(connection):
            return read_partials(connection, shard, items)

    def _read_partials_of(self, name: str) -> dict[str, frozenset[int]]:
        connection = open_for_reading(self.data_dir)
        if connection is None:
            return {}
        with closing(connection):
            return partials_of(connection, name)

    def _rewrite(self, part: tuple[int, str], select: Select) -> TakenBack | None:
        try:
            return next(rewrite(self.data_dir, [part], select, self._last_part + 1), None)
        except OSError as error:
            raise _cannot_write(self.data_dir, error) from error

    def _clean(self, found: Found) -> None:
        """Remove what a crash left, and parts that others have replaced."""
        for part in found.strange:
            log.warning("a part that the ledger does not name is ignored", part=part.name)
        remove_discarded(self.data_dir / PARTS_FOLDER, found.discarded)
        self._connection.execute("DELETE FROM discarded")
        self._connection.executemany(
            "UPDATE parts SET contributors = ? WHERE file = ?",
            [(json.dumps(counts), file) for file, counts in found.counted.items()],
        )
        for part in found.debris:
            part.unlink(missing_ok=True)

    def _build_part(self) -> RecordPart | None:
        """Write the next part from the oldest buffered batches, in the checkpoint thread."""
        connection = open_for_reading(self.data_dir)
        if connection is None:
            return None
        with closing(connection):
            up_to = _last_batch_for(connection, _ROWS_PER_PART)
            if up_to is None:
                return None
            batches = list(read_buffered(connection, up_to))
        schema = unify(batch.schema for batch in batches)
        table = pa.Table.from_batches([conform(batch, schema) for batch in batches]).sort_by(
            [("shard", "ascending"), ("item_index", "ascending")]
        )
        try:
            part = write_part(self.data_dir / PARTS_FOLDER, self._last_part + 1, table)
        except OSError as error:
            raise _cannot_write(self.data_dir, error) from error
        return RecordPart(part, ranges_by_shard(table), up_to)


def _count_opening(connection: Connection) -> int:
    """Return how often the folder has been opened for writing, this time included; durable."""
    opened = int(read_meta(connection, "incarnation") or 0) + 1
    write_meta(connection, "incarnation", str(opened))
    return opened


def _no_room_to_open(data_dir: Path) -> StorageFullError:
    return StorageFullError(
        f"the disk of {data_dir} is full: free some room and start again; what was acknowledged is "
        "safe"
    )


def _cannot_write(data_dir: Path, error: OSError) -> StorageError:
    if is_disk_full(error):
        return StorageFullError(
            f"the disk of {data_dir} is full: no part could be written; what was acknowledged is "
            "safe in the ledger and goes into a part when there is room"
        )
    return StorageError(f"{data_dir} cannot be written: {error}")


def _last_batch_for(connection: Connection, rows: int) -> int | None:
    """Return the last of the oldest batches that together hold about ``rows`` rows."""
    total, last = 0, None
    with closing(connection.execute("SELECT batch, counts FROM batches ORDER BY batch")) as found:
        for batch, counts in found:
            last = int(batch)
            total += sum(json.loads(counts).values())
            if total >= rows:
                break
    return last
