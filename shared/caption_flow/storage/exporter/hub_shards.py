"""A dataset's Parquet files for the hub: which rows go to which split, and into which file.

The same rows give the same files, byte by byte: that is what lets an upload go on where it ended.
Owns the names of files in the repository, and of splits. Never asks the hub anything.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from caption_flow.storage.exporter.errors import ExportError, naming
from caption_flow.storage.exporter.parquet import HARDER, ROW_GROUP_BYTES

FOLDER: Final = "captions"
"""In the repository. Not ``data``: that is where datasets have their own files."""
TRAIN: Final = "train"
SPLIT_COLUMN: Final = "split"
MAX_SPLITS: Final = 16
"""Each has a file that is open; more values are no splits."""
_SPLIT: Final = re.compile(r"\w+(\.\w+)*")
_KEYWORDS: Final = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF: Final = {word: split for split, words in _KEYWORDS.items() for word in words}
_PIECE: Final = 2**20


@dataclass(frozen=True, slots=True)
class Shard:
    """One finished file: where it lies, where it goes, and what the hub knows it by.

    ``git`` is the identity of a file that git keeps itself, ``sha256`` that of any other.
    """

    path: str
    file: Path
    split: str
    rows: int
    size: int
    sha256: str
    git: str


def is_split(name: str) -> bool:
    """Tell whether `datasets` takes this for a split's name."""
    return _SPLIT.fullmatch(name) is not None


def pattern(split: str) -> str:
    """Return what names all files of a split in a card."""
    return f"{FOLDER}/{split}-*.parquet"


def split_of_shard(shard: str) -> str | None:
    """Return the split that a file of the source says it is of, as the hub's conventions go."""
    for part in reversed(shard.split("/")):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLIT_OF:
                return _SPLIT_OF[word]
    return None


@dataclass(frozen=True, slots=True)
class Splitting:
    """Which split rows are of: the ``fixed`` one, or the one that they name themselves.

    They do in a column ``split``; else the ``source`` knows, or the name of their shard.
    """

    fixed: str | None = None
    source: str | None = None

    def of(self, batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Yield the rows of each split."""
        column = self._column(batch.schema)
        if column is None:
            yield self.fixed or self.source or TRAIN, batch
            return
        values = batch.column(column)
        named: dict[str, list[str | None]] = {}
        for value in pc.unique(values).to_pylist():
            named.setdefault(self._name(column, value), []).append(value)
        if len(named) == 1:
            yield next(iter(named)), batch
            return
        for split, of_split in named.items():
            yield split, batch.filter(pc.is_in(values, pa.array(of_split, values.type)))

    def _column(self, schema: pa.Schema) -> str | None:
        if self.fixed is not None:
            return None
        if SPLIT_COLUMN in schema.names and pa.types.is_string(schema.field(SPLIT_COLUMN).type):
            return SPLIT_COLUMN
        return "shard" if self.source is None and "shard" in schema.names else None

    def _name(self, column: str, value: str | None) -> str:
        if value is None:
            return self.source or TRAIN
        if column == SPLIT_COLUMN:
            name = re.sub(r"\W+", "_", value.strip())
            return name if is_split(name) else TRAIN
        return split_of_shard(value) or TRAIN


@dataclass(slots=True)
class _Open:
    """A split's rows that wait, and the file that they go to next."""

    waiting: list[pa.RecordBatch] = field(default_factory=list)
    waiting_bytes: int = 0
    shards: int = 0
    rows: int = 0
    file: Path | None = None
    sink: IO[bytes] | None = None
    writer: pq.ParquetWriter | None = None


class ShardWriter:
    """Writes rows into files of about ``shard_bytes`` each, below ``folder``."""

    def __init__(
        self, folder: Path, schema: pa.Schema, *, shard_bytes: int, optimize: bool = False
    ) -> None:
        self._folder = folder
        self._schema = schema
        self._shard_bytes = shard_bytes
        self._group_bytes = min(ROW_GROUP_BYTES, shard_bytes)
        self._splits: dict[str, _Open] = {}
        self._options: dict[str, Any] = {
            "compression": "zstd",
            "compression_level": HARDER if optimize else None,
        }
        # Where the hub stores by content, rows that moved need not be uploaded again. pyarrow >= 21
        if "use_content_defined_chunking" in inspect.signature(pq.ParquetWriter).parameters:
            self._options["use_content_defined_chunking"] = True

    def add(self, split: str, batch: pa.RecordBatch) -> Iterator[Shard]:
        """Take rows of a split; yield what is finished thereby.

        Raises:
            ExportError: there are too many splits, or the disk does not take the file.
        """
        if split not in self._splits and len(self._splits) == MAX_SPLITS:
            raise ExportError(
                f"rows name more than {MAX_SPLITS} splits: --split NAME puts all into one"
            )
        rows = self._splits.setdefault(split, _Open())
        for piece in _pieces(batch, self._group_bytes):
            rows.waiting.append(piece)
            rows.waiting_bytes += piece.nbytes
            while sum(one.waiting_bytes for one in self._splits.values()) >= self._group_bytes:
                yield from self._write(max(self._splits, key=self._waiting))

    def finish(self) -> Iterator[Shard]:
        """Yield the last file of each split."""
        for split, rows in self._splits.items():
            yield from self._write(split)
            if rows.writer is not None:
                yield self._close(split, rows)

    def abandon(self) -> None:
        """Close what is open, whatever it holds; idempotent."""
        for rows in self._splits.values():
            if rows.writer is not None:
                with suppress(OSError, ValueError, pa.ArrowException):
                    rows.writer.close()
                rows.writer.is_open = False  # else it tries once more when it is collected
            if rows.sink is not None:
                with suppress(OSError):
                    rows.sink.close()

    def _waiting(self, split: str) -> int:
        return self._splits[split].waiting_bytes

    def _write(self, split: str) -> Iterator[Shard]:
        rows = self._splits[split]
        if not rows.waiting:
            return
        table = pa.Table.from_batches(rows.waiting, self._schema)
        rows.waiting, rows.waiting_bytes = [], 0
        if rows.writer is None:
            self._open(split, rows)
        if rows.writer is None or rows.sink is None or rows.file is None:
            raise AssertionError("a file that was opened is open")
        with naming(rows.file):
            rows.writer.write_table(table)
        rows.rows += table.num_rows
        # Arrow keeps what it once had: at the next group that would be there twice.
        del table
        pa.default_memory_pool().release_unused()
        if rows.sink.tell() >= self._shard_bytes:
            yield self._close(split, rows)

    def _open(self, split: str, rows: _Open) -> None:
        rows.file = self._folder / f"{split}-{rows.shards:05d}.parquet"
        with naming(rows.file):
            rows.sink = rows.file.open("wb")
            rows.writer = pq.ParquetWriter(rows.sink, self._schema, **self._options)

    def _close(self, split: str, rows: _Open) -> Shard:
        file, count = cast("Path", rows.file), rows.rows
        with naming(file):
            cast("pq.ParquetWriter", rows.writer).close()
            cast("IO[bytes]", rows.sink).close()
            size, sha256, git = _identities(file)
        rows.writer, rows.sink, rows.file, rows.rows = None, None, None, 0
        rows.shards += 1
        return Shard(f"{FOLDER}/{file.name}", file, split, count, size, sha256, git)


def _pieces(batch: pa.RecordBatch, most_bytes: int) -> Iterator[pa.RecordBatch]:
    """Yield a batch in pieces of about so many bytes each."""
    rows = max(1, batch.num_rows * most_bytes // max(1, batch.nbytes))
    for first in range(0, batch.num_rows, rows):
        yield batch.slice(first, rows)


def _identities(file: Path) -> tuple[int, str, str]:
    """Return a file's size, its SHA-256, and what git would call its content."""
    size = file.stat().st_size
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file.open("rb") as opened:
        while piece := opened.read(_PIECE):
            sha256.update(piece)
            git.update(piece)
    return size, sha256.hexdigest(), git.hexdigest()
