"""Run folders for tests: opened, listed, filled and read back, without an orchestrator."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from caption_flow.protocol.rows import CAPTIONED, FAILED, Row, StageStats, encode_rows
from caption_flow.storage.database import LEDGER_FILE, PARTS_FOLDER
from caption_flow.storage.errors import StorageError
from caption_flow.storage.reader import StorageReader
from caption_flow.storage.store import RunStore
from caption_flow.storage.writes import AppendItems, CatalogEntry, CommitRows

FIELDS = ("captions",)
SHARD = "default"
PATIENCE_SECONDS = 20.0
"""No test waits longer for anything; one that gets here has failed."""


@contextlib.asynccontextmanager
async def opened(
    data_dir: Path, troubles: list[StorageError | None] | None = None
) -> AsyncIterator[RunStore]:
    """A store whose writer runs; ``troubles`` collects what it says about a full disk."""
    store = RunStore(data_dir)
    store.start((troubles if troubles is not None else []).append)
    try:
        yield store
    finally:
        await store.close()


def as_a_kill_leaves_it(data_dir: Path) -> Path:
    """A copy of the folder as it is on disk at this moment: what a process would find after us."""
    copy = data_dir.with_name(f"{data_dir.name} after a kill")
    if copy.exists():
        shutil.rmtree(copy)
    return Path(shutil.copytree(data_dir, copy))


def listed(count: int, first: int = 0) -> AppendItems:
    """So many items, as a source would list them."""
    return AppendItems(
        SHARD,
        [
            CatalogEntry(index, f"folder/{index}.png".encode(), 100, 1_000_000_000 + index)
            for index in range(first, first + count)
        ],
    )


def captioned(*items: int, text: str = "caption of") -> CommitRows:
    """A worker's batch with these items captioned."""
    stats = [StageStats("default", 5, 7, ("stop",), 12)]
    return batch(
        [
            Row(
                item,
                CAPTIONED,
                {"captions": [f"{text} {item}"]},
                content_hash=f"hash {item}",
                stage_stats=stats,
            )
            for item in items
        ]
    )


def failed(*items: int, kind: str = "image_damaged") -> CommitRows:
    """A worker's batch with these items failed."""
    return batch([Row(item, FAILED, error_kind=kind, error="a reason") for item in items])


def batch(rows: Sequence[Row], items: Sequence[int] | None = None) -> CommitRows:
    """A worker's batch; ``items`` is what it says its rows are, the truth unless given."""
    named = tuple(row.item_index for row in rows) if items is None else tuple(items)
    return CommitRows(
        shard=SHARD,
        chunk_first=0,
        items=named,
        accepted=tuple(range(len(named))),
        payload=encode_rows(rows, FIELDS),
        output_fields=FIELDS,
        contributor="somebody",
        worker="worker 1",
    )


def rows_in(data_dir: Path) -> dict[int, dict[str, Any]]:
    """Every row as a reader sees it, by item; fails if an item has two."""
    with closing(StorageReader(data_dir)) as reader:
        rows = [row for found in reader.batches() for row in found.to_pylist()]
    assert once(row["item_index"] for row in rows)
    return {row["item_index"]: row for row in rows}


def items_in(data_dir: Path) -> set[int]:
    """The items that have a row."""
    return set(rows_in(data_dir))


def rows_in_parts(data_dir: Path) -> dict[int, dict[str, Any]]:
    """Every row in ``captions/`` alone, as any program without us sees it."""
    folder = data_dir / PARTS_FOLDER
    if not any(folder.glob("*.parquet")):
        return {}
    rows = ds.dataset(folder, format="parquet").to_table().to_pylist()
    assert once(row["item_index"] for row in rows)
    return {row["item_index"]: row for row in rows}


def once(items: Iterable[int]) -> bool:
    """Whether no item comes twice."""
    return all(count == 1 for count in Counter(items).values())


def parts(data_dir: Path) -> list[str]:
    """Names of the files in ``captions/``, hidden ones too."""
    folder = data_dir / PARTS_FOLDER
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def query(data_dir: Path, sql: str) -> list[tuple[Any, ...]]:
    """Ask the ledger's database through a connection of its own."""
    with closing(sqlite3.connect(data_dir / LEDGER_FILE)) as connection:
        return connection.execute(sql).fetchall()


class FakeConnection:
    """A writing connection whose commits the test holds up or lets fail.

    ``fault`` is asked before each commit for what to raise instead, or None.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.go = threading.Event()
        self.go.set()
        self.at_commit = threading.Event()
        self.fault: Callable[[], Exception | None] = lambda: None
        self.statements: list[str] = []

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        self.statements.append(sql)
        if sql == "COMMIT":
            self.at_commit.set()
            assert self.go.wait(PATIENCE_SECONDS), "the test never let the commit go"
            fault = self.fault()
            if fault is not None:
                raise fault
        return self._connection.execute(sql, *values)

    def executemany(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return self._connection.executemany(sql, *values)

    def close(self) -> None:
        self._connection.close()


def disk_full() -> Exception:
    """What SQLite raises when there is no room."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error
