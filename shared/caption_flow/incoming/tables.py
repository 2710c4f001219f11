"""Tables on disk as rows of plain values: JSON lines, CSV, Parquet and Lance. Streaming.

Nothing here knows what the columns mean.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from caption_flow.incoming.captions import IncomingError
from caption_flow.protocol.rows import MAX_TEXT_BYTES

FORMATS: Final = ("jsonl", "csv", "parquet", "lance")
_BY_SUFFIX: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".lance": "lance",
}
_OLDER_LAYOUT: Final = "captions.lance"
_ROWS_AT_ONCE: Final = 1024
_LINE_BYTES: Final = 64 * 2**20
_LINES_FOR_COLUMNS: Final = 1000
HOW_TO_READ_LANCE: Final = "pip install 'caption-flow[lance]'"

Record = Mapping[str, Any]
Rows = Iterator[tuple[str, Record]]
"""Each with where it stands, for people."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table. ``rows`` reads it from its beginning, only the columns that are asked for."""

    format: str
    columns: tuple[str, ...]
    rows: Callable[[Collection[str]], Rows]


def format_of(source: Path) -> str | None:
    """Return the format of a table by its name and what is in it; None for what is none."""
    if source.is_dir():
        if (source / "_versions").is_dir() or (source / _OLDER_LAYOUT).is_dir():
            return "lance"
        return "parquet" if next(source.glob("*.parquet"), None) is not None else None
    return _BY_SUFFIX.get(source.suffix.lower())


def open_table(source: Path, format_: str) -> Table:
    """Open a table; its rows are read later.

    Raises:
        IncomingError: it cannot be read as that, here or while its rows are read.
    """
    opener = {"jsonl": _json_lines, "csv": _csv, "parquet": _parquet, "lance": _lance}[format_]
    return opener(source)


# ------------------------------------------------------------------------------- JSON lines


def _json_lines(path: Path) -> Table:
    columns = dict.fromkeys(
        name for _, record in islice(_records(path), _LINES_FOR_COLUMNS) for name in record
    )
    return Table("jsonl", tuple(columns), lambda _: _records(path))


def _records(path: Path) -> Rows:
    with _opened(path) as file:
        number = 0
        while line := file.readline(_LINE_BYTES):
            number += 1
            where = f"{path.name}:{number}"
            if len(line) == _LINE_BYTES:
                raise IncomingError(f"{where} is longer than {_LINE_BYTES >> 20} MiB")
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise IncomingError(f"{where} is not JSON ({error})") from error
            if not isinstance(record, dict):
                raise IncomingError(f"{where} is no object with a key for each column: {line[:60]}")
            yield where, record


# ------------------------------------------------------------------------------- CSV


def _csv(path: Path) -> Table:
    with _opened(path) as file:
        header = next(csv.reader(file, delimiter=_delimiter(path)), [])
    if not any(name.strip() for name in header):
        raise IncomingError(f"{path} has no line with the names of columns")
    if len(set(header)) < len(header):
        raise IncomingError(f"{path} has two columns of one name: {', '.join(header)}")
    return Table("csv", tuple(header), lambda _: _csv_rows(path))


def _csv_rows(path: Path) -> Rows:
    csv.field_size_limit(MAX_TEXT_BYTES * 16)
    with _opened(path) as file:
        reader = csv.DictReader(file, delimiter=_delimiter(path))
        while True:
            try:
                record = next(reader, None)
            except csv.Error as error:
                raise IncomingError(
                    f"{path.name}:{reader.line_num} is not CSV ({error})"
                ) from error
            if record is None:
                return
            where = f"{path.name}:{reader.line_num}"
            if None in record:
                raise IncomingError(
                    f"{where} has more cells than the first line has names: a comma or a quotation "
                    "mark that is not quoted?"
                )
            yield where, record


def _delimiter(path: Path) -> str:
    """Return what is between cells: of those that are common, what the first line has most of."""
    with _opened(path) as file:
        header = file.readline(_LINE_BYTES)
    return max(",;\t", key=header.count)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise IncomingError(f"{path} is not UTF-8 ({error.reason}): save it as UTF-8") from error
    except OSError as error:
        raise IncomingError(f"{path} cannot be read: {error.strerror}") from error


# ------------------------------------------------------------------------------- Parquet, Lance


def _parquet(source: Path) -> Table:
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    columns = dict.fromkeys(name for file in files for name in _parquet_columns(file))

    def rows(wanted: Collection[str]) -> Rows:
        for file in files:
            there = [name for name in _parquet_columns(file) if name in wanted]
            yield from _numbered(file.name, _parquet_batches(file, there))

    return Table("parquet", tuple(columns), rows)


def _parquet_columns(file: Path) -> list[str]:
    try:
        return list(pq.read_schema(file).names)
    except (OSError, pa.ArrowException) as error:
        raise IncomingError(f"{file} cannot be read as Parquet: {error}") from error


def _parquet_batches(file: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(file) as parquet:
            yield from parquet.iter_batches(_ROWS_AT_ONCE, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise IncomingError(f"{file} cannot be read as Parquet: {error}") from error


def _lance(source: Path) -> Table:
    older = source / _OLDER_LAYOUT
    path = older if older.is_dir() else source
    try:
        import lance  # noqa: PLC0415  -- an extra, and a second to load
    except ImportError as error:
        raise IncomingError(
            f"{path} is a Lance dataset, and pylance is not installed: {HOW_TO_READ_LANCE}"
        ) from error
    try:
        dataset = lance.dataset(str(path))
    except (OSError, ValueError) as error:
        raise IncomingError(f"{path} cannot be read as a Lance dataset: {error}") from error

    def batches(wanted: Collection[str]) -> Iterator[pa.RecordBatch]:
        names = [name for name in dataset.schema.names if name in wanted]
        try:
            yield from dataset.to_batches(columns=names, batch_size=_ROWS_AT_ONCE)
        except (OSError, ValueError) as error:
            raise IncomingError(f"{path} cannot be read as a Lance dataset: {error}") from error

    return Table(
        "lance",
        tuple(dataset.schema.names),
        lambda wanted: _numbered(path.name, batches(wanted)),
    )


def _numbered(name: str, batches: Iterable[pa.RecordBatch]) -> Rows:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            for record in batch.slice(start, _ROWS_AT_ONCE).to_pylist():
                number += 1
                yield f"{name}, row {number:,}", record
