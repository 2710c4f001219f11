"""Looking at a run's folder before anything in it is changed.

Reads only: whoever finds that ledger and parts do not belong together leaves them as they are.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping
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
    check_is_debris,
    check_parts,
    count_contributors,
    look_for_debris,
    read_table,
)
from caption_flow.storage.people import KnownToken, Standing, known_standings, known_tokens
from caption_flow.storage.ranges import ranges_of

_CREDITS = ("contributor", "status", "error_kind", "stage_stats")


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
    ``between`` the ranges of items that have stages behind them, by their next stage and shard.
    """

    shards: dict[str, KnownShard]
    terminal: dict[str, list[tuple[int, int]]]
    leases: list[RememberedLease]
    totals: dict[str, int]
    buffered: int
    meta: dict[str, str]
    between: dict[int, dict[str, list[tuple[int, int]]]] = field(default_factory=dict)
    contributors: dict[str, Counter[str]] = field(default_factory=dict)
    """The same rows as in ``totals`` by contributor; those of nobody are not in it."""
    tokens: list[KnownToken] = field(default_factory=list)
    standings: dict[str, Standing] = field(default_factory=dict)
    shelf: dict[int, KnownPart] = field(default_factory=dict)
    """The parts, by number."""

    @property
    def counts(self) -> dict[str, int]:
        """Items listed per shard."""
        return {shard: known.count for shard, known in self.shards.items()}


@dataclass(frozen=True, slots=True)
class Found:
    """A run's folder as it lies there.

    ``last_part`` is the highest number of a part; ``debris`` is what a crash left and is to be
    removed, with the parts in ``discarded``, which others have replaced; ``strange`` parts are
    neither named nor explained. ``counted`` are the contributors of parts that an earlier release
    recorded without them, by file.
    """

    snapshot: Snapshot = field(default_factory=lambda: Snapshot({}, {}, [], {}, 0, {}))
    last_part: int = 0
    debris: list[Path] = field(default_factory=list)
    strange: list[Path] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    counted: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)


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
            uncounted = _parts_without_contributors(connection)
        except (sqlite3.DatabaseError, msgspec.MsgspecError, ValueError) as error:
            raise damaged(data_dir / LEDGER_FILE, error) from error
    folder = data_dir / PARTS_FOLDER
    check_parts(folder, {file: size for _, file, size in parts})
    counted = {file: count_contributors(read_table(folder / file, _CREDITS)) for file in uncounted}
    for contributors in counted.values():
        _credit(snapshot.contributors, contributors)
    last_part = max((part for part, _, _ in parts), default=0)
    named = {file for _, file, _ in parts} | {file for (file,) in discarded}
    debris, strange = look_for_debris(folder, named, last_part)
    for part in debris:
        check_is_debris(part, snapshot.terminal)
    files = [file for (file,) in discarded]
    return Found(snapshot, last_part, debris, strange, files, counted)


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
    contributors = _contributors(connection)
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
        contributors=contributors,
        tokens=known_tokens(connection),
        standings=known_standings(connection),
        shelf={
            part: KnownPart(rows, size, recorded_at)
            for part, rows, size, recorded_at in _query(
                connection, "SELECT part, rows, bytes, recorded_at FROM parts"
            )
        },
    )


def _contributors(connection: Connection) -> dict[str, Counter[str]]:
    """Return the rows of each contributor, but for parts that do not say whose theirs are."""
    found: dict[str, Counter[str]] = {}
    if "contributors" in columns_of(connection, "parts"):
        said = "SELECT contributors FROM parts WHERE contributors IS NOT NULL"
        for (contributors,) in _query(connection, said):
            _credit(found, json.loads(contributors))
    for name, counts in _query(connection, "SELECT contributor, counts FROM batches"):
        if name:
            _credit(found, {name: json.loads(counts)})
    return found


def _parts_without_contributors(connection: Connection) -> list[str]:
    """Return the files of parts that an earlier release recorded."""
    has_column = "contributors" in columns_of(connection, "parts")
    condition = "WHERE contributors IS NULL" if has_column else ""
    query = f"SELECT file FROM parts {condition}"  # noqa: S608 - a constant
    return [file for (file,) in _query(connection, query)]


def _credit(found: dict[str, Counter[str]], contributors: Mapping[str, Mapping[str, int]]) -> None:
    for name, counts in contributors.items():
        found.setdefault(name, Counter()).update(counts)


def known_shards(connection: Connection) -> dict[str, KnownShard]:
    """Return the shards listed so far; a ledger of an older release knows no facts of them."""
    facts = "facts" if "facts" in columns_of(connection, "shards") else "''"
    rows = _query(connection, f"SELECT shard, count, {facts} FROM shards")  # noqa: S608 - a constant
    return {shard: KnownShard(count, known) for shard, count, known in rows}


def _query(connection: Connection, sql: str) -> list[tuple[Any, ...]]:
    with closing(connection.execute(sql)) as rows:
        return rows.fetchall()
