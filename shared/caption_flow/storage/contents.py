"""What a store holds, as Python rows: all at once, or read anew for each pass over it.

Owns the shape that Python users see (`StorageContents`) and the true names of files whose names
are not valid UTF-8. Never opens a store itself: it is handed something that does.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import pyarrow as pa

from caption_flow.protocol.rows import TEXTS
from caption_flow.storage.choice import Choice
from caption_flow.storage.schema import native_path

Row = dict[str, Any]
"""One item. An output field's value is a list of texts, or None where nothing was produced."""

ROWS_AT_ONCE: Final = 1024
"""Rows turned into Python objects together: a row takes kilobytes, a part's batch has thousands."""

MAX_NAMES_LISTED: Final = 40


class RowReader(Protocol):
    """The port: what a store answers to whoever reads it."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column there is; () when nothing has been written."""
        ...

    @property
    def output_fields(self) -> tuple[str, ...]:
        """Those of the columns that hold captions."""
        ...

    @property
    def shards(self) -> tuple[str, ...]:
        """The dataset's shards that have rows."""
        ...

    def count_rows(self, shards: Collection[str] | None = None, /) -> int:
        """Count the rows of these shards, or of all."""
        ...

    def batches(
        self, shards: Collection[str] | None = None, columns: Sequence[str] | None = None, /
    ) -> Iterator[pa.RecordBatch]:
        """Yield each item once, with these columns, or with all."""
        ...

    def close(self) -> None:
        """Let go of every handle."""


class Watcher(Protocol):
    """Whoever wants to know how far a pass over a store is."""

    def begin_pass(self) -> None:
        """Hear that the rows are read from the first one on."""

    def advance(self, rows: int, /) -> None:
        """Hear that so many more rows have been read and dealt with."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Some of a store's rows. Each pass opens the store, and closes it when the pass ends."""

    open_reader: Callable[[], RowReader]
    shards: frozenset[str] | None = None
    limit: int | None = None
    choice: Choice | None = None
    watcher: Watcher | None = None

    def batches(self, columns: Sequence[str]) -> Generator[pa.RecordBatch]:
        """Yield the selected rows with those of ``columns`` that the store has."""
        reader = self.open_reader()
        try:
            present = [name for name in columns if name in reader.columns]
            if self.choice is None:
                # Handed over without a name of its own, so that the reader's generator ends with
                # this one and not after the reader is closed.
                yield from _first(self._read(reader, present), self.limit)
            else:
                yield from _first(self._chosen(reader, present, self.choice), self.limit)
        finally:
            reader.close()

    def _chosen(
        self, reader: RowReader, present: Sequence[str], choice: Choice
    ) -> Generator[pa.RecordBatch]:
        """Yield the rows that are chosen, wherever they are; a choice may read more columns."""
        choice.left_out = 0
        read = tuple(dict.fromkeys((*present, *choice.reads(reader.columns))))
        for batch in self._read(reader, read):
            chosen = choice.of(batch)
            if chosen.num_rows:
                yield chosen.select(list(present))

    def _read(self, reader: RowReader, columns: Sequence[str]) -> Generator[pa.RecordBatch]:
        if self.watcher is None:
            yield from reader.batches(self.shards, columns)
            return
        self.watcher.begin_pass()
        for batch in reader.batches(self.shards, columns):
            yield batch
            self.watcher.advance(batch.num_rows)


class StorageContents:
    """Rows and what is known about them.

    Made from a list of rows, or by `StorageContents.reading` from a `Selection`. The latter reads
    only when asked: `iter_rows` and `iter_batches` stream, `rows` keeps everything in memory, and
    from then on those rows, changed or not by their user, are what is exported.

    ``total_rows`` counts what the store has, also where a limit hands out fewer. ``metadata`` has
    ``error``, a sentence, when what was asked for cannot be given (exporters refuse then), and
    ``message`` when there is nothing yet.
    """

    def __init__(
        self,
        rows: Iterable[Row] = (),
        columns: Sequence[str] | None = None,
        output_fields: Sequence[str] = (),
        total_rows: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._rows: list[Row] | None = list(rows)
        self._selection: Selection | None = None
        self._schema: pa.Schema | None = None
        self.columns = list(_columns_of(self._rows) if columns is None else columns)
        self.output_fields = list(output_fields)
        self.total_rows = len(self._rows) if total_rows is None else total_rows
        self.metadata: dict[str, Any] = dict(metadata or {})

    @classmethod
    def reading(
        cls,
        selection: Selection,
        *,
        columns: Sequence[str],
        output_fields: Sequence[str],
        total_rows: int,
        metadata: Mapping[str, Any] | None = None,
    ) -> StorageContents:
        """Return contents that read the selection each time they are passed over."""
        contents = cls((), columns, output_fields, total_rows, metadata)
        contents._rows = None
        contents._selection = selection
        return contents

    @property
    def rows(self) -> list[Row]:
        """Every row, in memory from the first time this is asked for."""
        if self._rows is None:
            self._rows = list(self.iter_rows())
        return self._rows

    @rows.setter
    def rows(self, rows: Iterable[Row]) -> None:
        self._rows = list(rows)

    def iter_rows(self, columns: Sequence[str] | None = None) -> Generator[Row]:
        """Yield the rows one by one, with true file names, or only these columns of them.

        Columns that are not among ``self.columns`` may be asked for: where the rows come from a
        store they are read from it, otherwise a row that has none gives None.
        """
        wanted = self.columns if columns is None else columns
        if self._selection is None or self._rows is not None:
            yield from (_only(row, wanted, columns) for row in self._rows or ())
            return
        read = [*wanted, "filename_raw"] if "filename" in wanted else wanted
        for batch in self._selection.batches(tuple(dict.fromkeys(read))):
            self._schema = batch.schema
            for row in rows_of(batch):
                yield {name: row.get(name) for name in wanted}

    def iter_batches(self) -> Generator[pa.RecordBatch]:
        """Yield the rows as Arrow record batches of one schema, as the store has them."""
        if self._selection is not None and self._rows is None:
            yield from self._selection.batches(self.columns)
        elif self._rows:
            yield from _as_table(self._rows, self.columns, self._schema).to_batches()

    def empty_schema(self) -> pa.Schema:
        """Return the columns with what little is known of their types when there is no row."""
        fields = (
            (name, TEXTS if name in self.output_fields else pa.null()) for name in self.columns
        )
        return pa.schema(list(fields))

    def __repr__(self) -> str:
        return f"<StorageContents of {self.total_rows} rows, columns {self.columns}>"


def no_such(kind: str, name: str, known: Collection[str]) -> str:
    """Say that nothing of this kind has that name, what comes close, and what there is."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    listed = ", ".join(list(known)[:MAX_NAMES_LISTED])
    more = ", …" if len(known) > MAX_NAMES_LISTED else ""
    return f"there is no {kind} named {name!r}{hint} The {kind}s are: {listed}{more}"


def displayed(text: str) -> str:
    r"""Return ``text`` as valid UTF-8: the bytes a file name's encoding lacks become ``\xff``."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode()
    return raw.decode("utf-8", "backslashreplace")


def displayable(value: Any) -> Any:
    """Return ``value`` with `displayed` applied to every text in it."""
    if isinstance(value, str):
        return displayed(value)
    if isinstance(value, dict):
        return {displayable(key): displayable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [displayable(each) for each in value]
    return value


def _first(batches: Iterator[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    if limit is None:
        yield from batches
        return
    left = limit
    while left > 0 and (batch := next(batches, None)) is not None:
        yield batch.slice(0, left)
        left -= batch.num_rows


def _only(row: Row, wanted: Sequence[str], asked: Sequence[str] | None) -> Row:
    return row if asked is None else {name: row.get(name) for name in wanted}


def rows_of(batch: pa.RecordBatch) -> Iterator[Row]:
    """Yield a batch's rows as Python objects, with the true names of files."""
    batch = _in_microseconds(batch)
    for start in range(0, batch.num_rows, ROWS_AT_ONCE):
        for row in batch.slice(start, ROWS_AT_ONCE).to_pylist():
            raw = row.get("filename_raw")
            if raw is not None:
                row["filename"] = native_path(row["filename"], raw)
            yield row


def _in_microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    # A dataset's own columns may count nanoseconds, which Python's datetime cannot hold.
    for index, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            type_ = pa.timestamp("us", field.type.tz)
            column = batch.column(index).cast(type_, safe=False)
            batch = batch.set_column(index, pa.field(field.name, type_), column)
    return batch


def _columns_of(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _as_table(rows: Sequence[Row], columns: Sequence[str], schema: pa.Schema | None) -> pa.Table:
    stored = [_as_stored(row, columns) for row in rows]
    if schema is not None and set(columns) <= set(schema.names):
        try:
            return pa.Table.from_pylist(stored, pa.schema([schema.field(name) for name in columns]))
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            pass  # Their user gave the rows values of other types: take the types from the values.
    arrays = {name: pa.array([row[name] for row in stored]) for name in columns}
    return pa.table(arrays)


def _as_stored(row: Row, columns: Sequence[str]) -> Row:
    stored: Row = displayable({name: row.get(name) for name in columns})
    name = row.get("filename")
    if "filename_raw" in stored and name != stored.get("filename"):
        stored["filename_raw"] = os.fsencode(str(name))
    return stored
