"""Every change the orchestrator makes to the ledger's database, as data (see `writer`)."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from sqlite3 import Connection
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from caption_flow.protocol.codec import ProtocolError
from caption_flow.protocol.rows import (
    CAPTIONED,
    FAILED,
    Row,
    decode_rows,
    encode_batch,
    encode_rows,
)
from caption_flow.recipe.quality import FLAGS
from caption_flow.storage.database import pack_ranges, write_meta
from caption_flow.storage.parts import Part, count_flags, count_rows
from caption_flow.storage.ranges import ranges_of
from caption_flow.storage.reopen import record_part

_INSERT_BATCH = """
INSERT INTO batches (shard, chunk_first, ranges, counts, contributor, worker, committed_at, rows)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""


@dataclass(slots=True)
class CommitRows:
    """Store the accepted rows of a worker's batch.

    ``items`` is what the message said the rows are; ``accepted`` are the positions that count.
    In ``optional_fields`` a captioned row may have no text. After `prepare`, ``counts`` says how
    many are captioned or failed, by kind, and ``flags`` how many have each flag.
    """

    shard: str
    chunk_first: int
    items: tuple[int, ...]
    accepted: tuple[int, ...]
    payload: bytes
    output_fields: tuple[str, ...]
    contributor: str
    worker: str
    optional_fields: frozenset[str] = frozenset()
    counts: dict[str, int] = field(default_factory=dict)
    flags: Counter[str] = field(default_factory=Counter)

    def prepare(self) -> None:
        """Validate the rows and drop those that are not accepted; raises `ProtocolError`."""
        if not self.accepted:
            return
        rows = decode_rows(self.payload, self.output_fields)
        if tuple(rows.column("item_index").to_pylist()) != self.items:
            raise ProtocolError("the rows of a result batch are not the items it names")
        if len(self.accepted) != len(self.items):
            rows = rows.take(pa.array(self.accepted))
            self.payload = encode_batch(rows)
        self.counts = count_rows(rows)
        self.flags = count_flags(rows)
        _check_states(rows, self.output_fields, self.optional_fields)

    def apply(self, connection: Connection) -> None:
        """Insert the batch; nothing when no row is accepted."""
        if not self.accepted:
            return
        ranges = ranges_of(self.items[at] for at in self.accepted)
        connection.execute(
            _INSERT_BATCH,
            (
                self.shard,
                self.chunk_first,
                pack_ranges(ranges),
                json.dumps(self.counts),
                self.contributor,
                self.worker,
                time.time(),
                self.payload,
            ),
        )


def _check_states(
    rows: pa.RecordBatch, output_fields: Sequence[str], optional: Container[str]
) -> None:
    """Raise `ProtocolError` unless each row is captioned with texts, or failed with a reason."""
    status = rows.column("status")
    captioned = pc.equal(status, CAPTIONED)
    failed = pc.equal(status, FAILED)
    if not pc.all(pc.or_(captioned, failed)).as_py():
        raise ProtocolError("a result row's status is neither captioned nor failed")
    if not pc.all(pc.equal(pc.is_valid(rows.column("error_kind")), failed)).as_py():
        raise ProtocolError("a result row has a reason to fail and has not failed, or none and has")
    known = pc.is_in(pc.list_flatten(rows.column("flags")), value_set=pa.array(FLAGS))
    if not pc.all(known, min_count=0).as_py():
        raise ProtocolError(f"a result row has a flag that is none of {', '.join(FLAGS)}")
    for name in output_fields:
        texts = rows.column(name).filter(captioned)
        fewest = 0 if name in optional else 1
        empty = pc.less(pc.fill_null(pc.list_value_length(texts), -1), fewest)
        if pc.any(empty).as_py() or pc.list_flatten(texts).null_count:
            raise ProtocolError(f"a captioned result row has no text in {name}")


@dataclass(slots=True)
class CommitFailure:
    """Store a failure that the orchestrator itself found, such as a quarantined item."""

    shard: str
    chunk_first: int
    row: Row
    output_fields: tuple[str, ...]
    worker: str

    def prepare(self) -> None:
        """Nothing to validate: the row is ours."""

    def apply(self, connection: Connection) -> None:
        """Insert a batch of one row."""
        connection.execute(
            _INSERT_BATCH,
            (
                self.shard,
                self.chunk_first,
                pack_ranges([(self.row.item_index, self.row.item_index + 1)]),
                json.dumps({self.row.error_kind or "unknown": 1}),
                "",
                self.worker,
                time.time(),
                encode_rows([self.row], self.output_fields),
            ),
        )


@dataclass(frozen=True, slots=True)
class RememberLease:
    """Store a lease so that it survives a restart of the orchestrator."""

    lease: int
    session: str
    worker: str
    shard: str
    chunk_first: int
    chunk_count: int
    items: tuple[int, ...]
    live: bool = True

    def prepare(self) -> None:
        """Nothing to validate."""

    def apply(self, connection: Connection) -> None:
        """Insert the lease."""
        connection.execute(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.lease,
                self.session,
                self.worker,
                self.shard,
                self.chunk_first,
                self.chunk_count,
                pack_ranges(ranges_of(self.items)),
                self.live,
            ),
        )


@dataclass(frozen=True, slots=True)
class EndLease:
    """Note that a lease is over; what it still brings counts."""

    lease: int

    def prepare(self) -> None:
        """Nothing to validate."""

    def apply(self, connection: Connection) -> None:
        """Mark the lease; one that is not there is no error."""
        connection.execute("UPDATE leases SET live = 0 WHERE lease = ?", (self.lease,))


@dataclass(frozen=True, slots=True)
class ForgetLease:
    """Delete a lease whose chunk is done."""

    lease: int

    def prepare(self) -> None:
        """Nothing to validate."""

    def apply(self, connection: Connection) -> None:
        """Delete the lease; one that is not there is no error."""
        connection.execute("DELETE FROM leases WHERE lease = ?", (self.lease,))


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A listed item; ``path`` is relative to the dataset's root, ``mtime_ns`` in nanoseconds."""

    index: int
    path: bytes | None = None
    size: int | None = None
    mtime_ns: int | None = None
    key: str | None = None
    url: str | None = None
    columns: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class AppendItems:
    """Add listed items to the catalog; their indices follow those the shard already has."""

    shard: str
    entries: Sequence[CatalogEntry]

    def prepare(self) -> None:
        """Nothing to validate."""

    def apply(self, connection: Connection) -> None:
        """Insert the items and raise the shard's count."""
        connection.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    self.shard,
                    entry.index,
                    entry.key,
                    entry.path,
                    entry.url,
                    entry.size,
                    entry.mtime_ns,
                    None if entry.columns is None else msgspec.msgpack.encode(entry.columns),
                )
                for entry in self.entries
            ],
        )
        count = max((entry.index + 1 for entry in self.entries), default=0)
        connection.execute(
            "INSERT INTO shards VALUES (?, ?) "
            "ON CONFLICT (shard) DO UPDATE SET count = MAX(count, excluded.count)",
            (self.shard, count),
        )


@dataclass(frozen=True, slots=True)
class UpdateItems:
    """Remember size and time of items whose file was written again."""

    shard: str
    entries: Sequence[CatalogEntry]

    def prepare(self) -> None:
        """Nothing to validate."""

    def apply(self, connection: Connection) -> None:
        """Update the items' facts."""
        connection.executemany(
            "UPDATE items SET size = ?, mtime_ns = ? WHERE shard = ? AND item_index = ?",
            [(entry.size, entry.mtime_ns, self.shard, entry.index) for entry in self.entries],
        )


@dataclass(frozen=True, slots=True)
class RecordPart:
    """Record a part that is on disk and delete the batches it holds, in one transaction."""

    part: Part
    ranges: Mapping[str, list[tuple[int, int]]]
    up_to: int

    def prepare(self) -> None:
        """Nothing to validate."""

    def apply(self, connection: Connection) -> None:
        """Insert the part with its ranges by shard; delete batches up to ``up_to``."""
        record_part(connection, self.part, self.ranges)
        connection.execute("DELETE FROM batches WHERE batch <= ?", (self.up_to,))


@dataclass(frozen=True, slots=True)
class SetMeta:
    """Remember facts about the run."""

    facts: Mapping[str, str]

    def prepare(self) -> None:
        """Nothing to validate."""

    def apply(self, connection: Connection) -> None:
        """Insert or replace each fact."""
        for key, value in self.facts.items():
            write_meta(connection, key, value)
