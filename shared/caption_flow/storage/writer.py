"""The one thread that writes the ledger's database, many writes to a transaction (group commit).

The event loop hands over writes without waiting; the thread takes whatever has gathered, commits it
in one transaction and reports back. Writes are applied in the order they were submitted. When the
disk is full the thread keeps the writes, says so, and tries again until there is room or it is
told to stop: nothing that was not committed is ever reported as done.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from caption_flow.storage.database import LEDGER_FILE, damaged
from caption_flow.storage.errors import StorageError, StorageFullError, is_disk_full

_GROUP: Final = 512
_RETRY_SECONDS: Final = 1.0


class Write(Protocol):
    """One change of the database."""

    def prepare(self) -> None:
        """Validate, outside of any transaction; an exception drops this write alone."""
        ...

    def apply(self, connection: sqlite3.Connection) -> None:
        """Change the database; the caller commits."""
        ...


_Pending = tuple[Write, "asyncio.Future[None]"]


class Writer:
    """Owns the writing connection and its thread. Use from one event loop."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        data_dir: Path,
        on_trouble: Callable[[StorageError | None], None],
    ) -> None:
        """Start the thread.

        ``on_trouble`` is called on the loop when writes stall, and with None when they flow again.
        """
        self._connection = connection
        self._data_dir = data_dir
        self._on_trouble = on_trouble
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()

    def submit(self, write: Write) -> asyncio.Future[None]:
        """Queue a write; the future is done when it is durable, or fails with what it raised."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._queue.put((write, future))
        return future

    def stop_waiting(self) -> None:
        """Fail writes that a full disk holds up, from now on, instead of waiting for room."""
        self._stopping.set()

    async def close(self) -> None:
        """Commit what is queued, end the thread and close the connection; idempotent.

        A full disk does not hold this up: writes that cannot be committed fail with
        `StorageFullError`.
        """
        if self._thread.is_alive():
            self._stopping.set()
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
        self._connection.close()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        running = True
        while running:
            group, running = self._gather()
            if group:
                self._commit(group)

    def _gather(self) -> tuple[list[_Pending], bool]:
        group: list[_Pending] = []
        entry = self._queue.get()
        while True:
            if entry is None:
                return group, False
            group.append(entry)
            if len(group) >= _GROUP:
                return group, True
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                return group, True

    def _commit(self, group: list[_Pending]) -> None:
        good: list[Write] = []
        rejected: dict[asyncio.Future[None], Exception] = {}
        for write, future in group:
            try:
                write.prepare()
            except Exception as error:  # noqa: BLE001  -- handed to whoever submitted the write
                rejected[future] = error
            else:
                good.append(write)
        trouble = self._apply(good)
        self._report([(future, rejected.get(future, trouble)) for _, future in group])

    def _apply(self, group: Sequence[Write]) -> StorageError | None:
        """Commit in one transaction; return what made it impossible, or None."""
        stalled = False
        while True:
            try:
                self._transaction(group)
            except Exception as error:  # noqa: BLE001  -- told to all who wait: the thread goes on
                waiting = self._worth_waiting(error)
                if waiting is None:
                    return self._why(error)
                if not stalled:
                    self._tell(partial(self._on_trouble, waiting))
                    stalled = True
                if self._stopping.wait(_RETRY_SECONDS):
                    return waiting
            else:
                if stalled:
                    self._tell(partial(self._on_trouble, None))
                return None

    def _worth_waiting(self, error: Exception) -> StorageError | None:
        """Return what to say while the writes wait, or None if waiting would not help."""
        if is_disk_full(error):
            return StorageFullError(
                f"the disk of {self._data_dir} is full; results wait until there is room"
            )
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            return StorageError(
                f"another program holds {self._data_dir / LEDGER_FILE} locked; results wait until "
                "it lets go"
            )
        return None

    def _why(self, error: Exception) -> StorageError:
        path = self._data_dir / LEDGER_FILE
        if isinstance(error, sqlite3.DatabaseError):
            return damaged(path, error)
        return StorageError(f"{path} cannot be written: {error}")

    def _transaction(self, group: Sequence[Write]) -> None:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            for write in group:
                write.apply(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _report(self, outcomes: Sequence[tuple[asyncio.Future[None], Exception | None]]) -> None:
        """Tell the loop, in the order of the writes: an acknowledgement covers those before."""

        def settle() -> None:
            for future, error in outcomes:
                if future.done():
                    continue
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)

        self._tell(settle)

    def _tell(self, callback: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)
