"""Every change the orchestrator makes to the ledger's database, as data (see `writer`)."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from sqlite3 import Connection
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from caption_flow.protocol.codec import ProtocolError
from caption_flow.protocol.rows import (
    CAPTIONED,
    FAILED,
    PARTIAL,
    Row,
    check_bounds,
    decode_rows,
    encode_batch,
    encode_rows,
)
from caption_flow.recipe.quality import FLAGS
from caption_flow.recipe.serving import Leg
from caption_flow.storage.database import pack_ranges, write_meta
from caption_flow.storage.partials import Credit, complete_rows, read_partials, store_partials
from caption_flow.storage.parts import Part, count_flags, count_rows, count_tokens
from caption_flow.storage.ranges import ranges_of
from caption_flow.storage.reopen import record_part

Answer = str | None
"""What a row says of its item: its texts in one, or None if it failed."""
_COMPARED_CHARACTERS: Final = 4000
MOST_KINDS: Final = 64
"""Of rows of one contributor, by failure: they are counted for ever, and shown."""

_INSERT_BATCH = """
INSERT INTO batches (shard, chunk_first, ranges, counts, contributor, worker, committed_at, rows)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""


@dataclass(slots=True)
class CommitRows:
    """Store the accepted rows of a worker's batch.

    ``items`` is what the message said the rows are; ``accepted`` are the positions that count.
    In ``optional_fields`` a captioned row may have no text. ``leg`` are the stages that the worker
    ran, None for all: what those before them gave is added from our disk. After `prepare`,
    ``counts`` says how many are captioned or failed, by kind, and ``flags`` how many have each
    flag; those of earlier stages are in it after `apply`.
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
    leg: Leg | None = None
    compared: Collection[int] = ()
    """Items whose answers are wanted in ``answers``."""
    known_kinds: Collection[str] = ()
    """The kinds of rows that the contributor has brought before."""
    counts: dict[str, int] = field(default_factory=dict)
    flags: Counter[str] = field(default_factory=Counter)
    answers: dict[int, Answer] = field(default_factory=dict)
    tokens: tuple[int, int] = (0, 0)
    """After `prepare`, those of the accepted rows: in and out."""

    def prepare(self) -> None:
        """Validate the rows and drop those that are not accepted; raises `ProtocolError`."""
        if not self.accepted:
            return
        rows = _accepted_rows(self.payload, self.output_fields, self.items, self.accepted)
        self.tokens = count_tokens(rows)
        if len(self.accepted) != len(self.items):
            self.payload = encode_batch(rows)
        self.counts = count_rows(rows)
        self.flags = count_flags(rows)
        fields = self.output_fields if self.leg is None else self.leg.output_fields
        _check_states(rows, fields, self.optional_fields)
        if self.leg is not None and not self.leg.is_last and self.counts.get(CAPTIONED):
            raise ProtocolError("a captioned result row comes from a worker without the last stage")
        if len({*self.counts, *self.known_kinds}) > MOST_KINDS:
            raise ProtocolError(f"the rows of one contributor have more than {MOST_KINDS} kinds")
        if self.leg is not None:
            fingerprint = self.leg.recipe.fingerprint
            self.answers = _answers(rows, self.output_fields, self.compared, fingerprint)

    def apply(self, connection: Connection) -> None:
        """Insert the batch; nothing when no row is accepted."""
        if not self.accepted:
            return
        payload = self.payload
        if self.leg is not None and self.leg.first:
            rows = decode_rows(payload, self.output_fields)
            first, own = self.leg.first, self.leg.output_fields
            credit = Credit(self.worker, self.contributor)
            rows = complete_rows(connection, self.shard, first, rows, own, credit=credit)
            self.flags = count_flags(rows)
            payload = encode_batch(rows)
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
                payload,
            ),
        )


@dataclass(slots=True)
class CompareRows:
    """Look at rows that a worker made of items which have rows already; nothing is stored.

    It goes through the queue of all writes, since an acknowledgement covers those before it.
    """

    items: tuple[int, ...]
    payload: bytes
    output_fields: tuple[str, ...]
    optional_fields: frozenset[str] = frozenset()
    recipe: str = ""
    answers: dict[int, Answer] = field(default_factory=dict)

    def prepare(self) -> None:
        """Validate the rows; raises `ProtocolError`."""
        if not self.items:
            return
        rows = _accepted_rows(self.payload, self.output_fields, self.items, self.items)
        _check_states(rows, self.output_fields, self.optional_fields)
        self.answers = _answers(rows, self.output_fields, self.items, self.recipe)

    def apply(self, connection: Connection) -> None:
        """Nothing to store."""


@dataclass(slots=True)
class CommitPartials:
    """Store what items have that have reached a stage which their worker does not run.

    ``items`` and ``accepted`` as for `CommitRows`; ``leg`` are the stages behind which they are.
    What was made by one of the ``earlier_recipes`` is not stored: the items begin again. After
    `prepare`, ``is_outdated`` says that it is so.
    """

    shard: str
    items: tuple[int, ...]
    accepted: tuple[int, ...]
    payload: bytes
    leg: Leg
    contributor: str
    worker: str
    earlier_recipes: frozenset[str] = frozenset()
    is_outdated: bool = field(default=False, init=False)
    tokens: tuple[int, int] = field(default=(0, 0), init=False)
    counts: Mapping[str, int] = field(default_factory=dict, init=False)
    """None of them is a row of the run yet."""
    flags: Counter[str] = field(default_factory=Counter, init=False)
    _rows: list[dict[str, Any]] = field(default_factory=list, init=False)

    def prepare(self) -> None:
        """Validate the rows and drop those that are not accepted; raises `ProtocolError`."""
        if not self.accepted:
            return
        columns = [column.name for column in self.leg.columns]
        rows = _accepted_rows(self.payload, columns, self.items, self.accepted)
        if not pc.all(pc.equal(rows.column("status"), PARTIAL)).as_py():
            raise ProtocolError("a row of an item between stages says that it is something else")
        recipes = set(rows.column("recipe").to_pylist())
        if len(recipes) == 1 and recipes <= self.earlier_recipes:
            self.is_outdated = True
            return
        if recipes != {self.leg.recipe.fingerprint}:
            raise ProtocolError("a row of an item between stages is of another recipe")
        _check_flags(rows)
        _check_texts(rows, columns, {column.name for column in self.leg.columns if column.is_part})
        self._rows = rows.to_pylist()
        self.tokens = count_tokens(rows)

    def apply(self, connection: Connection) -> None:
        """Insert the partials, or put them in place of earlier ones."""
        credit = Credit(self.worker, self.contributor)
        store_partials(
            connection, self.shard, self.leg.stop, self.leg.first, self._rows, credit=credit
        )


def _accepted_rows(
    payload: bytes, fields: Sequence[str], items: tuple[int, ...], accepted: tuple[int, ...]
) -> pa.RecordBatch:
    rows = decode_rows(payload, fields)
    if tuple(rows.column("item_index").to_pylist()) != items:
        raise ProtocolError("the rows of a result batch are not the items it names")
    check_bounds(rows)
    return rows if len(accepted) == len(items) else rows.take(pa.array(accepted))


def _answers(
    rows: pa.RecordBatch, fields: Sequence[str], wanted: Collection[int], recipe: str
) -> dict[int, Answer]:
    """Return what rows of a recipe say of some items: all their texts in one, or None."""
    if not wanted:
        return {}
    columns = [rows.column(name).to_pylist() for name in fields]
    status = rows.column("status").to_pylist()
    recipes = rows.column("recipe").to_pylist()
    answers: dict[int, Answer] = {}
    for at, item in enumerate(rows.column("item_index").to_pylist()):
        if item in wanted and recipes[at] == recipe:
            texts = " ".join(text for column in columns for text in column[at] or ())
            answers[item] = texts[:_COMPARED_CHARACTERS] if status[at] == CAPTIONED else None
    return answers


def _check_states(
    rows: pa.RecordBatch, output_fields: Sequence[str], optional: Container[str]
) -> None:
    """Raise `ProtocolError` unless each row is captioned with texts, or failed with a reason."""
    status = rows.column("status").to_pylist()
    kinds = rows.column("error_kind")
    if not {CAPTIONED, FAILED}.issuperset(status):
        raise ProtocolError("a result row's status is neither captioned nor failed")
    _check_flags(rows)
    if FAILED in status or kinds.null_count < len(kinds):
        failed = pa.array([one == FAILED for one in status])
        if not pc.all(pc.equal(pc.is_valid(kinds), failed)).as_py():
            raise ProtocolError(
                "a result row has a reason to fail and has not failed, or none and has"
            )
        rows = rows.filter(pc.invert(failed))
    _check_texts(rows, output_fields, optional)


def _check_flags(rows: pa.RecordBatch) -> None:
    flags = rows.column("flags")
    if not len(flags.values):
        return
    known = pc.is_in(pc.list_flatten(flags), value_set=pa.array(FLAGS))
    if not pc.all(known, min_count=0).as_py():
        raise ProtocolError(f"a result row has a flag that is none of {', '.join(FLAGS)}")


def _check_texts(rows: pa.RecordBatch, fields: Sequence[str], optional: Container[str]) -> None:
    """Raise `ProtocolError` unless each row has texts in each field, or none where it may."""
    for name in fields:
        texts = rows.column(name)
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
        """Insert a batch of one row, with whatever earlier stages gave."""
        item = self.row.item_index
        payload = encode_rows([self.row], self.output_fields)
        if read_partials(connection, self.shard, [item]):
            rows = decode_rows(payload, self.output_fields)
            payload = encode_batch(
                complete_rows(connection, self.shard, 1, rows, (), credit=Credit(self.worker, ""))
            )
        connection.execute(
            _INSERT_BATCH,
            (
                self.shard,
                self.chunk_first,
                pack_ranges([(item, item + 1)]),
                json.dumps({self.row.error_kind or "unknown": 1}),
                "",
                self.worker,
                time.time(),
                payload,
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
    stage: int = 0

    def prepare(self) -> None:
        """Nothing to validate."""

    def apply(self, connection: Connection) -> None:
        """Insert the lease."""
        connection.execute(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.lease,
                self.session,
                self.worker,
                self.shard,
                self.chunk_first,
                self.chunk_count,
                pack_ranges(ranges_of(self.items)),
                self.live,
                self.stage,
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
        _insert_items(connection, "INSERT", self.shard, self.entries)
        count = max((entry.index + 1 for entry in self.entries), default=0)
        connection.execute(
            "INSERT INTO shards (shard, count) VALUES (?, ?) "
            "ON CONFLICT (shard) DO UPDATE SET count = MAX(count, excluded.count)",
            (self.shard, count),
        )


def _insert_items(
    connection: Connection, verb: str, shard: str, entries: Iterable[CatalogEntry]
) -> None:
    connection.executemany(
        f"{verb} INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                shard,
                entry.index,
                entry.key,
                entry.path,
                entry.url,
                entry.size,
                entry.mtime_ns,
                None if entry.columns is None else msgspec.msgpack.encode(entry.columns),
            )
            for entry in entries
        ],
    )


@dataclass(frozen=True, slots=True)
class ListShard:
    """Remember a shard whose source keeps no catalog; see `RememberItems`."""

    shard: str
    count: int
    facts: str

    def prepare(self) -> None:
        """Nothing to validate."""

    def apply(self, connection: Connection) -> None:
        """Insert the shard, or update what is known of it; its count never falls."""
        connection.execute(
            "INSERT INTO shards VALUES (?, ?, 0, ?) ON CONFLICT (shard) DO UPDATE SET "
            "count = MAX(count, excluded.count), facts = excluded.facts",
            (self.shard, self.count, self.facts),
        )


@dataclass(frozen=True, slots=True)
class RememberItems:
    """Keep what is known of leased items of a shard whose source keeps no catalog.

    They are forgotten when their rows are in a part (see `RecordPart`).
    """

    shard: str
    entries: Sequence[CatalogEntry]

    def prepare(self) -> None:
        """Nothing to validate."""

    def apply(self, connection: Connection) -> None:
        """Insert the items; one that was leased before is replaced."""
        _insert_items(connection, "INSERT OR REPLACE", self.shard, self.entries)


@dataclass(frozen=True, slots=True)
class RememberColumns:
    """Keep the dataset's own columns of items that are in the catalog."""

    shard: str
    entries: Sequence[CatalogEntry]

    def prepare(self) -> None:
        """Nothing to validate."""

    def apply(self, connection: Connection) -> None:
        """Update the items' columns."""
        connection.executemany(
            "UPDATE items SET columns = ? WHERE shard = ? AND item_index = ?",
            [
                (msgspec.msgpack.encode(entry.columns), self.shard, entry.index)
                for entry in self.entries
                if entry.columns is not None
            ],
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
        connection.executemany(
            "DELETE FROM items WHERE shard = ? AND item_index >= ? AND item_index < ? AND NOT "
            "(SELECT catalogued FROM shards WHERE shards.shard = items.shard)",
            [(shard, *span) for shard, ranges in self.ranges.items() for span in ranges],
        )


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
