"""Looking at a run's folder before anything in it is changed.

Reads only: whoever finds that ledger and parts do not belong together leaves them as they are.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import msgspec

from caption_flow.storage.database import (
    LEDGER_FILE,
    PARTS_FOLDER,
    columns_of,
    damaged,
    open_for_reading,
    read_meta,
    unpack_ranges,
)
from caption_flow.storage.errors import StorageError
from caption_flow.storage.partials import between_stages
from caption_flow.storage.parts import (
    CREDITED_COLUMNS,
    Credits,
    add_credits,
    check_is_debris,
    check_parts,
    count_credits,
    look_for_debris,
    read_table,
)
from caption_flow.storage.ranges import ranges_of


@dataclass(frozen=True, slots=True)
class RememberedLease:
    """A lease, live or over, of a chunk that was not done; ``ranges`` are item indices."""

    lease: int
    session: str
    worker: str
    shard: str
    chunk_first: int
    chunk_count: int
    ranges: list[tuple[int, int]]
    live: bool
    stage: int


@dataclass(frozen=True, slots=True)
class KnownShard:
    """A shard that was listed: how many items it has, and what its source wanted remembered."""

    count: int
    facts: str = ""


@dataclass(frozen=True, slots=True)
class KnownPart:
    """A part on disk; ``recorded_at`` is in seconds since 1970."""

    rows: int
    bytes: int
    recorded_at: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a run's folder holds when it is opened.

    ``shards`` are those listed, ``terminal`` the ranges of items with a durable row,
    ``totals`` those rows as ``captioned`` or by failure kind, ``buffered`` the rows in no part yet,
    ``between`` the ranges of items that have stages behind them, by their next stage and shard,
    ``credits`` the durable rows by contributor and kind, and ``shelf`` the parts.
    """

    shards: dict[str, KnownShard]
    terminal: dict[str, list[tuple[int, int]]]
    leases: list[RememberedLease]
    totals: dict[str, int]
    buffered: int
    meta: dict[str, str]
    between: dict[int, dict[str, list[tuple[int, int]]]] = field(default_factory=dict)
    credits: Credits = field(default_factory=dict)
    shelf: dict[int, KnownPart] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Items listed per shard."""
        return {shard: known.count for shard, known in self.shards.items()}


@dataclass(frozen=True, slots=True)
class Found:
    """A run's folder as it lies there.

    ``last_part`` is the highest number of a part; ``debris`` is what a crash left and is to be
    removed, with the parts in ``discarded``, which others have replaced; ``strange`` parts are
    neither named nor explained.
    """

    snapshot: Snapshot = field(default_factory=lambda: Snapshot({}, {}, [], {}, 0, {}))
    last_part: int = 0
    debris: list[Path] = field(default_factory=list)
    strange: list[Path] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)


def look(data_dir: Path) -> Found:
    """Read what a run's folder holds; blocking.

    Raises:
        StorageError: the ledger is damaged or newer, or does not belong to the parts beside it.
    """
    connection = open_for_reading(data_dir)
    if connection is None:
        return _look_without_ledger(data_dir)
    with closing(connection):
        try:
            snapshot = _read_snapshot(connection)
            parts = _query(connection, "SELECT part, file, bytes FROM parts")
            discarded = _query(connection, "SELECT file FROM discarded")
            uncredited = _read_credits(connection, snapshot.credits)
        except (sqlite3.DatabaseError, msgspec.MsgspecError, ValueError) as error:
            raise damaged(data_dir / LEDGER_FILE, error) from error
    folder = data_dir / PARTS_FOLDER
    check_parts(folder, {file: size for _, file, size in parts})
    for file in uncredited:
        add_credits(snapshot.credits, count_credits(read_table(folder / file, CREDITED_COLUMNS)))
    last_part = max((part for part, _, _ in parts), default=0)
    named = {file for _, file, _ in parts} | {file for (file,) in discarded}
    debris, strange = look_for_debris(folder, named, last_part)
    for part in debris:
        check_is_debris(part, snapshot.terminal)
    return Found(snapshot, last_part, debris, strange, [file for (file,) in discarded])


def _look_without_ledger(data_dir: Path) -> Found:
    """A new run; an empty ledger beside parts is none."""
    ledger = data_dir / LEDGER_FILE
    part = next((data_dir / PARTS_FOLDER).glob("part-*.parquet"), None)
    if ledger.exists() and part is not None:
        raise StorageError(
            f"{ledger} is empty, and {part} and perhaps others hold captions; nothing was changed: "
            "restore the ledger from a backup, or choose another storage.data_dir and keep this "
            "folder as it is"
        )
    return Found()


def _read_snapshot(connection: Connection) -> Snapshot:
    terminal: dict[str, list[tuple[int, int]]] = {}
    for shard, packed in _query(connection, "SELECT shard, ranges FROM part_ranges ORDER BY part"):
        terminal.setdefault(shard, []).extend(unpack_ranges(packed))
    totals: Counter[str] = Counter()
    buffered = 0
    for (counts,) in _query(connection, "SELECT counts FROM parts"):
        totals.update(json.loads(counts))
    for shard, packed, counts in _query(connection, "SELECT shard, ranges, counts FROM batches"):
        terminal.setdefault(shard, []).extend(unpack_ranges(packed))
        totals.update(json.loads(counts))
        buffered += sum(json.loads(counts).values())
    leases = [
        RememberedLease(
            lease, session, worker, shard, first, count, unpack_ranges(packed), bool(live), stage
        )
        for lease, session, worker, shard, first, count, packed, live, stage in _query(
            connection,
            "SELECT lease, session, worker, shard, chunk_first, chunk_count, ranges, live, stage "
            "FROM leases",
        )
    ]
    keys = [key for (key,) in _query(connection, "SELECT key FROM meta")]
    return Snapshot(
        shards=known_shards(connection),
        terminal=terminal,
        leases=leases,
        totals=dict(totals),
        buffered=buffered,
        meta={key: read_meta(connection, key) or "" for key in keys},
        between={
            stage: {shard: ranges_of(items) for shard, items in shards.items()}
            for stage, shards in between_stages(connection).items()
        },
        shelf={
            part: KnownPart(rows, size, recorded_at)
            for part, rows, size, recorded_at in _query(
                connection, "SELECT part, rows, bytes, recorded_at FROM parts"
            )
        },
    )


def _read_credits(connection: Connection, credited: Credits) -> list[str]:
    """Add the credits of parts and batches; return the parts of which no credits are recorded."""
    credits_column = "credits" if "credits" in columns_of(connection, "parts") else "NULL"
    uncredited = []
    for file, recorded in _query(connection, f"SELECT file, {credits_column} FROM parts"):  # noqa: S608 - a constant
        if recorded is None:
            uncredited.append(file)
        else:
            add_credits(credited, json.loads(recorded))
    for contributor, counts in _query(connection, "SELECT contributor, counts FROM batches"):
        if contributor:
            add_credits(credited, {contributor: json.loads(counts)})
    return uncredited


def known_shards(connection: Connection) -> dict[str, KnownShard]:
    """Return the shards listed so far; a ledger of an older release knows no facts of them."""
    facts = "facts" if "facts" in columns_of(connection, "shards") else "''"
    rows = _query(connection, f"SELECT shard, count, {facts} FROM shards")  # noqa: S608 - a constant
    return {shard: KnownShard(count, known) for shard, count, known in rows}


def _query(connection: Connection, sql: str) -> list[tuple[Any, ...]]:
    with closing(connection.execute(sql)) as rows:
        return rows.fetchall()
