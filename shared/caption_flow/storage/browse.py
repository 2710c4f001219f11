"""Looking through a run's rows by number, while it goes on or later, however many there are.

Read-only. What is known at once is how many rows each part and each waiting batch has, which the
ledger says; rows are read when somebody looks at them, the part they are in up to them. Nothing is
held between calls, so that a running orchestrator's journal does not grow for it.

Rows keep their order, but two things move some of them: a checkpoint sorts those that waited, and a
retry takes rows out. `RowIndex.position_of` finds an item again.
"""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
import threading
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa

from caption_flow.protocol.codec import ProtocolError
from caption_flow.protocol.rows import CAPTIONED, decode_rows
from caption_flow.storage.choice import Choice
from caption_flow.storage.contents import Row, rows_of
from caption_flow.storage.database import (
    LEDGER_FILE,
    PARTS_FOLDER,
    damaged,
    open_for_reading,
    read_catalog,
    read_meta,
    unpack_ranges,
)
from caption_flow.storage.errors import StorageError
from caption_flow.storage.parts import read_batches, read_schema
from caption_flow.storage.schema import StoredBatch, complete, conform, output_fields_of, unify
from caption_flow.storage.search import Search, numbered

T = TypeVar("T")

_ROWS_AT_ONCE: Final = 1024
_POSITION: Final = "caption_flow.position"
_WHEN: Final = "committed_at"
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_BATCH: Final = """
SELECT batch, shard, chunk_first, contributor, worker, committed_at, rows FROM batches
WHERE batch = ?
"""


# One statement, since each sees the ledger at a moment of its own: a checkpoint moves rows.
_STRETCHES: Final = """
SELECT file, NULL, rows, counts, 0 AS waits, part AS number FROM parts
UNION ALL SELECT NULL, batch, NULL, counts, 1, batch FROM batches ORDER BY waits, number
"""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive rows that are stored together: a part, or a batch that is in none yet.

    ``first`` is the number of the first one, from 0; ``kinds`` counts them as ``captioned`` or by
    kind of failure.
    """

    first: int
    rows: int
    kinds: Mapping[str, int]
    file: str | None = None
    batch: int | None = None

    @property
    def end(self) -> int:
        """The number after that of the last row."""
        return self.first + self.rows

    def may_hold(self, choice: Choice) -> bool:
        """Tell whether any row may have ended as is asked for."""
        captioned = self.kinds.get(CAPTIONED, 0)
        wants_captioned = bool(choice.endings & {"ok", "flagged"})
        wants_failed = "failed" in choice.endings
        return (
            not choice.endings
            or (wants_captioned and captioned > 0)
            or (wants_failed and captioned < self.rows)
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows somebody wants to see: those that are chosen, and that a search finds."""

    choice: Choice = field(default_factory=Choice)
    search: Search | None = None

    @property
    def is_everything(self) -> bool:
        """Whether no row is left out."""
        return self.search is None and not (self.choice.endings or self.choice.condition)


@dataclass(frozen=True, slots=True)
class Looked:
    """How far a search is: so many rows more were looked at; the number of the one found."""

    rows: int
    found: int | None = None


class _GoneError(Exception):
    """A stretch is no longer where it was: it has been checkpointed, or written anew."""


class RowIndex:
    """The rows of one run's folder, by number; blocking, callable from any thread.

    With ``as_of_now`` it stays as the run was when it was opened, as exports do.

    Raises:
        StorageError: from any method, when the ledger or a part is damaged or newer.
    """

    def __init__(self, data_dir: Path, *, as_of_now: bool = False) -> None:
        self._data_dir = data_dir
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._as_of_now = as_of_now
        self._version: int | None = None
        self._stretches: tuple[Stretch, ...] = ()
        self._meta: dict[str, str] = {}
        self._schema: pa.Schema | None = None
        self._page: tuple[Stretch, int, pa.RecordBatch] | None = None
        self.refresh()

    @property
    def total(self) -> int:
        """How many rows there are."""
        stretches = self._stretches
        return stretches[-1].end if stretches else 0

    @property
    def output_fields(self) -> tuple[str, ...]:
        """The columns that hold captions."""
        named = tuple(name for name in self._meta.get("output_fields", "").split("\n") if name)
        return named or (() if self._schema is None else output_fields_of(self._schema))

    @property
    def dataset(self) -> str | None:
        """What the run remembers of its dataset: for a folder of files, where it is."""
        return self._meta.get("dataset")

    @property
    def schema(self) -> pa.Schema | None:
        """The columns that conditions may name, those of the first and the last part; or None."""
        return self._schema

    def refresh(self) -> bool:
        """Look for news; tell whether there are any."""
        with self._reading() as connection:
            if connection is None:
                return False
            version = int(_only_value(connection, "PRAGMA data_version"))
            if version == self._version:
                return False
            before = self._stretches
            self._stretches = tuple(_stretches(connection))
            for key in ("output_fields", "dataset"):
                self._meta[key] = read_meta(connection, key) or ""
            self._version = version
            changed = before != self._stretches
        if changed:
            self._schema = self._some_schema()
        return changed

    def row(self, position: int) -> Row | None:
        """Return one row, as `StorageContents` has rows; None if there are not so many."""
        return self._again(lambda: self._row(position))

    def position_of(self, shard: str, item_index: int, near: int) -> int | None:
        """Return an item's number, looking at ``near`` first; None if it has no row now."""
        row = self.row(near)
        if row is not None and (row["shard"], row["item_index"]) == (shard, item_index):
            return near
        return self._again(lambda: self._find(shard, item_index))

    def look(self, wanted: Wanted, start: int, *, backward: bool = False) -> Generator[Looked]:
        """Look for the next wanted row from number ``start`` on, or from there back.

        Ends with the one that was found, or without.

        Raises:
            ChoiceError: the condition cannot be evaluated.
        """
        at = min(start, self.total - 1)
        while 0 <= at < self.total:
            known = self._stretches
            try:
                stretch = self._stretch(at)
                for looked in self._look_in(stretch, wanted, at, backward=backward):
                    yield looked
                    if looked.found is not None:
                        return
            except _GoneError as error:
                if not self.refresh() and self._stretches is known:
                    raise StorageError(str(error)) from error
            else:
                at = stretch.first - 1 if backward else stretch.end

    def rows(self, wanted: Wanted) -> Generator[Row]:
        """Yield the wanted rows in their order."""
        for stretch in self._stretches:
            if not stretch.may_hold(wanted.choice):
                continue
            try:
                for start, batch in self._batches(stretch, None):
                    chosen = self._chosen(wanted, start, batch)
                    yield from _in_python(chosen.drop_columns([_POSITION]))
            except _GoneError as error:
                raise StorageError(
                    f"{error} (it was replaced meanwhile: look once more)"
                ) from error

    def close(self) -> None:
        """Close the database; idempotent."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # ------------------------------------------------------------------ inside

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """Lend the connection; None as long as there is no ledger."""
        with self._lock:
            try:
                yield self._open()
            except (sqlite3.DatabaseError, ProtocolError) as error:
                raise damaged(self._data_dir / LEDGER_FILE, error) from error

    def _open(self) -> sqlite3.Connection | None:
        if self._connection is None:
            self._connection = open_for_reading(self._data_dir)
            if self._connection is not None and self._as_of_now:
                self._connection.execute("BEGIN")
        return self._connection

    def _again(self, work: Callable[[], T]) -> T:
        """Do something; once more if what it reads was moved meanwhile."""
        try:
            return work()
        except _GoneError:
            self.refresh()
        try:
            return work()
        except _GoneError as error:
            raise StorageError(str(error)) from error

    def _stretch(self, position: int) -> Stretch:
        stretches = self._stretches
        return stretches[bisect_right(stretches, position, key=attrgetter("first")) - 1]

    def _row(self, position: int) -> Row | None:
        if not 0 <= position < self.total:
            return None
        stretch = self._stretch(position)
        page = self._page
        if page is None or page[0] != stretch or not 0 <= position - page[1] < page[2].num_rows:
            page = self._read_page(stretch, position)
            self._page = page
        return next(_in_python(page[2].slice(position - page[1], 1)))

    def _read_page(self, stretch: Stretch, position: int) -> tuple[Stretch, int, pa.RecordBatch]:
        for start, batch in self._batches(stretch, None):
            if position < start + batch.num_rows:
                return stretch, start, batch
        raise _GoneError(f"{stretch.file or 'a batch'} has fewer rows than the ledger says")

    def _batches(
        self, stretch: Stretch, columns: Sequence[str] | None
    ) -> Generator[tuple[int, pa.RecordBatch]]:
        """Yield a stretch's record batches, each with the number of its first row."""
        start = stretch.first
        if stretch.file is None:
            batch = self._waiting(stretch)
            yield start, batch if columns is None else batch.select(_of(columns, batch.schema))
            return
        path = self._data_dir / PARTS_FOLDER / stretch.file
        try:
            present = None if columns is None else _of(columns, read_schema(path))
            for batch in read_batches(path, present, rows_at_once=_ROWS_AT_ONCE):
                yield start, batch
                start += batch.num_rows
        except StorageError as error:
            if path.exists():
                raise
            raise _GoneError(str(error)) from error

    def _waiting(self, stretch: Stretch) -> pa.RecordBatch:
        with self._reading() as connection:
            if connection is None:
                raise _GoneError("the ledger is gone")
            with closing(connection.execute(_BATCH, (stretch.batch,))) as rows:
                values = rows.fetchone()
            if values is None:
                raise _GoneError("a batch was moved to a part")
            stored = StoredBatch(*values)
            batch = decode_rows(stored.rows, stored=True)
            indices = batch.column("item_index").to_pylist()
            return complete(stored, batch, read_catalog(connection, stored.shard, indices))

    def _look_in(
        self, stretch: Stretch, wanted: Wanted, at: int, *, backward: bool
    ) -> Generator[Looked]:
        if not stretch.may_hold(wanted.choice):
            yield Looked(at + 1 - stretch.first if backward else stretch.end - at)
        elif backward:
            yield from self._look_back(stretch, wanted, at)
        else:
            yield from self._look_on(stretch, wanted, at)

    def _look_on(self, stretch: Stretch, wanted: Wanted, at: int) -> Generator[Looked]:
        for start, batch in self._batches(stretch, self._needed(wanted)):
            end = start + batch.num_rows
            if end > at:
                found = next((hit for hit in self._hits(wanted, start, batch) if hit >= at), None)
                yield Looked(end - max(start, at), found)
                if found is not None:
                    return

    def _look_back(self, stretch: Stretch, wanted: Wanted, at: int) -> Generator[Looked]:
        last: int | None = None
        for start, batch in self._batches(stretch, self._needed(wanted)):
            if start > at:
                break
            last = max((hit for hit in self._hits(wanted, start, batch) if hit <= at), default=last)
            yield Looked(min(batch.num_rows, at + 1 - start))
        if last is not None:
            yield Looked(0, last)

    def _needed(self, wanted: Wanted) -> list[str] | None:
        """Return the columns it takes to tell whether rows are wanted; None for all."""
        if wanted.choice.condition is not None:
            return None
        present = () if self._schema is None else tuple(self._schema.names)
        fields = self.output_fields
        searched = () if wanted.search is None else wanted.search.reads(present, fields)
        return list(dict.fromkeys(("status", *wanted.choice.reads(present), *searched)))

    def _hits(self, wanted: Wanted, start: int, batch: pa.RecordBatch) -> list[int]:
        """Return the numbers of a batch's wanted rows, the first of which has number ``start``."""
        hits: list[int] = self._chosen(wanted, start, batch).column(_POSITION).to_pylist()
        return hits

    def _chosen(self, wanted: Wanted, start: int, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return a batch's wanted rows with a column of their numbers."""
        if wanted.choice.condition is not None and self._schema is not None:
            batch = conform(batch, self._schema)
        numbers = numbered(start, batch.num_rows)
        chosen = wanted.choice.of(batch.append_column(_POSITION, numbers))
        if wanted.search is None:
            return chosen
        names = wanted.search.reads(chosen.schema.names, self.output_fields)
        return chosen.filter(wanted.search.holds(chosen.select(names)))

    def _find(self, shard: str, item_index: int) -> int | None:
        for stretch in self._stretches_with(shard, item_index):
            for start, batch in self._batches(stretch, ("shard", "item_index")):
                pairs = zip(
                    batch.column("shard").to_pylist(),
                    batch.column("item_index").to_pylist(),
                    strict=True,
                )
                for offset, pair in enumerate(pairs):
                    if pair == (shard, item_index):
                        return start + offset
        return None

    def _stretches_with(self, shard: str, item_index: int) -> list[Stretch]:
        """Return the stretches that hold an item, by what the ledger says of them."""
        parts = "SELECT file, ranges FROM part_ranges JOIN parts USING (part) WHERE shard = ?"
        batches = "SELECT batch, ranges FROM batches WHERE shard = ?"
        with self._reading() as connection:
            if connection is None:
                return []
            named = {
                name
                for query in (parts, batches)
                for name, packed in connection.execute(query, (shard,)).fetchall()
                if any(first <= item_index < stop for first, stop in unpack_ranges(packed))
            }
        return [one for one in self._stretches if (one.file or one.batch) in named]

    def _some_schema(self) -> pa.Schema | None:
        """Return the schema of the first and the last part, or of a batch where there is none."""
        files = [one.file for one in self._stretches if one.file is not None]
        try:
            schemas = [
                read_schema(self._data_dir / PARTS_FOLDER / file)
                for file in dict.fromkeys((*files[:1], *files[-1:]))
            ]
            waiting = [one for one in self._stretches[-1:] if one.file is None]
            schemas += [self._waiting(one).schema for one in waiting]
        except (_GoneError, StorageError):
            return self._schema  # who looks at the rows is told
        return unify(schemas) if schemas else None


def _stretches(connection: sqlite3.Connection) -> Generator[Stretch]:
    """Yield what the ledger knows of at one moment, parts first."""
    first = 0
    with closing(connection.execute(_STRETCHES)) as found:
        for file, batch, rows, counts, _, _ in found:
            kinds: dict[str, int] = json.loads(counts)
            count = sum(kinds.values()) if rows is None else rows
            if count:
                yield Stretch(first, count, kinds, file=file, batch=batch)
                first += count


def _in_python(batch: pa.RecordBatch) -> Generator[Row]:
    """Yield rows as `rows_of` does, without Arrow's way to times: it imports pandas, a second."""
    since = batch.column(_WHEN).cast(pa.int64()).to_pylist()
    rows = rows_of(batch.drop_columns([_WHEN]))
    for row, microseconds in zip(rows, since, strict=True):
        row[_WHEN] = _EPOCH + dt.timedelta(microseconds=microseconds)
        yield row


def _of(columns: Sequence[str], schema: pa.Schema) -> list[str]:
    return [name for name in columns if name in schema.names]


def _only_value(connection: sqlite3.Connection, query: str) -> Any:
    with closing(connection.execute(query)) as rows:
        return rows.fetchone()[0]
