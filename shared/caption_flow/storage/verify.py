"""Checking every promise on what lies on disk; reads only.

Each item in exactly one terminal state, each part named, readable and as recorded, no row of an
item nobody listed. What is not there yet (items still to be done) is counted, not a breach.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from caption_flow.protocol.codec import ProtocolError
from caption_flow.protocol.rows import CAPTIONED, FAILED, decode_rows
from caption_flow.storage.database import (
    LEDGER_FILE,
    PARTS_FOLDER,
    open_for_reading,
    unpack_ranges,
)
from caption_flow.storage.errors import StorageError
from caption_flow.storage.parts import checksum_of, count_rows, read_table
from caption_flow.storage.reader import read_buffered
from caption_flow.storage.schema import ranges_by_shard, readable_path

MAX_BREACHES: Final = 50
"""Sentences kept; `Findings.breached` counts all."""


@dataclass(slots=True)
class Findings:
    """What was found: counts, and a sentence for each breach of a promise."""

    listed: int = 0
    captioned: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    parts: int = 0
    part_bytes: int = 0
    buffered_rows: int = 0
    leases: int = 0
    between: int = 0
    """Items with stages behind them and others to come."""
    debris: list[str] = field(default_factory=list)
    breached: int = 0
    breaches: list[str] = field(default_factory=list)

    @property
    def terminal(self) -> int:
        """Items with a row."""
        return self.captioned + sum(self.failed.values())

    @property
    def pending(self) -> int:
        """Listed items without a row."""
        return self.listed - self.terminal

    def breach(self, sentence: str) -> None:
        """Note that a promise is broken."""
        self.breached += 1
        if len(self.breaches) < MAX_BREACHES:
            self.breaches.append(sentence)

    def count(self, counts: Mapping[str, int]) -> None:
        """Count rows by ``captioned`` or failure kind."""
        for kind, rows in counts.items():
            if kind == CAPTIONED:
                self.captioned += rows
            else:
                self.failed[kind] += rows


def verify(data_dir: Path) -> Findings:
    """Check a run's folder, also beside a running orchestrator; blocking, reads every part.

    Raises:
        StorageError: there is no ledger, or it cannot be read at all.
    """
    connection = open_for_reading(data_dir)
    if connection is None:
        raise StorageError(f"{data_dir / LEDGER_FILE} does not exist: no run was led from there")
    with closing(connection):
        try:
            connection.execute("BEGIN")
            return _Inspection(data_dir, connection).findings()
        except sqlite3.DatabaseError as error:
            raise StorageError(f"{data_dir / LEDGER_FILE} cannot be read: {error}") from error


class _Inspection:
    def __init__(self, data_dir: Path, connection: sqlite3.Connection) -> None:
        self._folder = data_dir / PARTS_FOLDER
        self._connection = connection
        self._found = Findings()
        self._sources = [LEDGER_FILE]
        self._where: dict[str, array[int]] = {}
        """By shard and item: the source of its row, as one more than its place in `_sources`."""

    def findings(self) -> Findings:
        for (sentence,) in self._query("PRAGMA quick_check"):
            if sentence != "ok":
                self._found.breach(f"{LEDGER_FILE}: {sentence}")
        counts: dict[str, int] = dict(self._query("SELECT shard, count FROM shards"))
        self._found.listed = sum(counts.values())
        for record in self._query("SELECT part, file, rows, bytes, checksum, counts FROM parts"):
            self._inspect_part(counts, *record)
        self._inspect_buffer(counts)
        self._found.leases = sum(1 for _ in self._query("SELECT lease FROM leases WHERE live"))
        self._inspect_partials(counts)
        self._look_for_debris()
        return self._found

    def _query(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        with closing(self._connection.execute(sql, values)) as rows:
            yield from rows

    def _inspect_part(  # noqa: PLR0917  -- the columns of one table
        self,
        listed: Mapping[str, int],
        number: int,
        file: str,
        rows: int,
        size: int,
        checksum: str,
        counts: str,
    ) -> None:
        self._found.parts += 1
        self._found.part_bytes += size
        path = self._folder / file
        try:
            if path.stat().st_size != size or checksum_of(path) != checksum:
                self._found.breach(f"{path} is not the file that was recorded (checksum)")
            table = read_table(path)
        except (StorageError, OSError) as error:
            self._found.breach(str(error))
            return
        if table.num_rows != rows or count_rows(table) != json.loads(counts):
            self._found.breach(f"{path} has other rows than were recorded")
        recorded = {
            shard: unpack_ranges(packed)
            for shard, packed in self._query(
                "SELECT shard, ranges FROM part_ranges WHERE part = ?", (number,)
            )
        }
        if recorded != ranges_by_shard(table):
            self._found.breach(f"{path} has rows of other items than were recorded")
        self._inspect_rows(table, str(path), listed)

    def _inspect_buffer(self, listed: Mapping[str, int]) -> None:
        for batch, payload in self._query("SELECT batch, rows FROM batches ORDER BY batch"):
            try:
                decode_rows(payload, stored=True)
            except ProtocolError as error:
                self._found.breach(f"{LEDGER_FILE}: batch {batch}: {error}")
                return
        for rows in read_buffered(self._connection):
            self._found.buffered_rows += rows.num_rows
            self._inspect_rows(rows, LEDGER_FILE, listed)

    def _inspect_partials(self, listed: Mapping[str, int]) -> None:
        """Only what is listed and has no row yet can be between stages."""
        for shard, item in self._query("SELECT shard, item_index FROM partials"):
            self._found.between += 1
            if not 0 <= item < listed.get(shard, 0):
                self._found.breach(f"{shard}:{item} is between stages and was never listed")
            elif shard in self._where and self._where[shard][item]:
                self._found.breach(f"{shard}:{item} is between stages and has a row")

    def _inspect_rows(
        self, rows: pa.Table | pa.RecordBatch, source: str, listed: Mapping[str, int]
    ) -> None:
        self._found.count(count_rows(rows))
        names = ("shard", "item_index", "item_key", "status", "error_kind")
        columns = [rows.column(name).to_pylist() for name in names]
        keys = self._keys(columns[0], columns[1])
        for shard, index, key, status, kind in zip(*columns, strict=True):
            if not 0 <= index < listed.get(shard, 0):
                self._found.breach(f"{source} has a row of {shard}:{index}, which was never listed")
                continue
            self._note_source(shard, index, key, source, listed[shard])
            if keys.get((shard, index), key) != key:
                self._found.breach(
                    f"{source}: the row of {shard}:{index} names {key}, "
                    f"the catalog {keys[shard, index]}"
                )
            if status not in {CAPTIONED, FAILED} or (status == FAILED) != (kind is not None):
                self._found.breach(f"{source}: {key} is {status!r} with reason {kind!r}")

    def _note_source(self, shard: str, index: int, key: str, source: str, count: int) -> None:
        seen = self._where.get(shard)
        if seen is None:
            seen = self._where[shard] = array("i", bytes(4 * count))
        if seen[index]:
            earlier = self._sources[seen[index] - 1]
            self._found.breach(f"{key} has two rows, in {earlier} and in {source}")
        if self._sources[-1] != source:
            self._sources.append(source)
        seen[index] = len(self._sources)

    def _keys(self, shards: Sequence[str], indices: Sequence[int]) -> dict[tuple[str, int], str]:
        """Return what the catalog calls these items."""
        if not indices:
            return {}
        low, high = min(indices), max(indices)
        return {
            (shard, index): key if key is not None else readable_path(path or b"")
            for shard in set(shards)
            for index, key, path in self._query(
                "SELECT item_index, key, path FROM items "
                "WHERE shard = ? AND item_index BETWEEN ? AND ?",
                (shard, low, high),
            )
        }

    def _look_for_debris(self) -> None:
        named = {file for (file,) in self._query("SELECT file FROM parts")}
        if self._folder.is_dir():
            self._found.debris = sorted(
                path.name for path in self._folder.iterdir() if path.name not in named
            )
