"""Parts: immutable Parquet files of finished rows, written so that a crash leaves only debris.

The order at a checkpoint: write under a temporary name, fsync, rename, fsync the folder;
only then does a transaction record the part. A file the ledger does not name is debris.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from caption_flow.protocol.rows import CAPTIONED, CREDITED_STATS
from caption_flow.storage.atomic import fsync_folder
from caption_flow.storage.errors import StorageError
from caption_flow.storage.schema import COLUMNS_OF_EVERY_PART, ranges_by_shard

_HASH_BLOCK: Final = 2**20
_ROWS_AT_ONCE: Final = 8192
"""Of a part, in memory; Arrow's own 65,536 are a hundred megabytes where captions are long."""
_PATTERN: Final = "part-*.parquet"
_TEMPORARY: Final = ".part-*.tmp"


@dataclass(frozen=True, slots=True)
class Part:
    """A part as the ledger records it. ``counts`` maps ``captioned`` and failure kinds to rows.

    ``contributors`` has such counts for each of them; none for who did only earlier stages.
    """

    number: int
    file: str
    rows: int
    bytes: int
    checksum: str
    counts: dict[str, int]
    contributors: dict[str, dict[str, int]] = field(default_factory=dict)


def part_file(number: int) -> str:
    """Return a part's file name."""
    return f"part-{number:08d}.parquet"


def write_part(folder: Path, number: int, table: pa.Table) -> Part:
    """Write a table as part ``number`` of ``folder``; durable when this returns.

    Raises:
        OSError: the disk is full or not writable; nothing is left of the part.
    """
    folder.mkdir(exist_ok=True)
    final = folder / part_file(number)
    temporary = folder / f".{final.stem}.tmp"
    try:
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        # On a full disk the ledger needs this room more than half a part does.
        temporary.unlink(missing_ok=True)
        raise
    checksum = checksum_of(temporary)
    size = temporary.stat().st_size
    temporary.rename(final)
    fsync_folder(folder)
    return Part(
        number,
        final.name,
        table.num_rows,
        size,
        checksum,
        count_rows(table),
        count_contributors(table),
    )


def count_rows(rows: pa.Table | pa.RecordBatch) -> dict[str, int]:
    """Count rows as ``captioned`` or by failure kind."""
    kinds = zip(
        rows.column("status").to_pylist(), rows.column("error_kind").to_pylist(), strict=True
    )
    return dict(Counter(CAPTIONED if s == CAPTIONED else (k or "unknown") for s, k in kinds))


def count_contributors(rows: pa.Table) -> dict[str, dict[str, int]]:
    """Count stored rows by contributor, as ``captioned`` or by failure kind.

    Whoever did only earlier stages of rows is named, with no rows.
    """
    found: dict[str, dict[str, int]] = {name: {} for name in _of_stages(rows)}
    columns = (rows.column(name).to_pylist() for name in ("contributor", "status", "error_kind"))
    for name, status, kind in zip(*columns, strict=True):
        if name:
            counted = CAPTIONED if status == CAPTIONED else (kind or "unknown")
            counts = found.setdefault(name, {})
            counts[counted] = counts.get(counted, 0) + 1
    return found


def _of_stages(rows: pa.Table) -> list[str]:
    stats = rows.column("stage_stats")
    if stats.type != CREDITED_STATS:
        return []  # a part of an earlier release
    names = pc.unique(pc.struct_field(pc.list_flatten(stats), "contributor"))
    return [name for name in names.to_pylist() if name]


def count_tokens(rows: pa.Table | pa.RecordBatch) -> tuple[int, int]:
    """Count the tokens of rows: those of their prompts, and those generated."""
    stats = pc.list_flatten(rows.column("stage_stats"))
    names = ("tokens_in", "tokens_out")
    tokens_in, tokens_out = (pc.sum(pc.struct_field(stats, name)).as_py() or 0 for name in names)
    return max(0, tokens_in), max(0, tokens_out)


def count_flags(rows: pa.Table | pa.RecordBatch) -> Counter[str]:
    """Count the rows that have each flag; a row may have several."""
    return Counter(rows.column("flags").flatten().to_pylist())


def read_batches(
    path: Path, columns: Sequence[str] | None = None, *, rows_at_once: int = _ROWS_AT_ONCE
) -> Iterator[pa.RecordBatch]:
    """Yield a part's record batches, with all columns or some.

    Raises:
        StorageError: the part is missing or is not readable Parquet; nothing is changed.
    """
    try:
        with _as_arrow_opens(path) as source, pq.ParquetFile(source) as file:
            wanted = None if columns is None else list(columns)
            yield from file.iter_batches(rows_at_once, columns=wanted)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


@contextmanager
def _as_arrow_opens(path: Path) -> Iterator[Path | BinaryIO]:
    """Yield a path that Arrow can open, or an open file where it cannot: it takes UTF-8 only."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield file
    else:
        yield path


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a part, or some of its columns; raises `StorageError` as `read_batches` does."""
    schema = read_schema(path)
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    return pa.Table.from_batches(read_batches(path, columns), schema)


def read_schema(path: Path) -> pa.Schema:
    """Return a part's schema; raises `StorageError` as `read_batches` does, or if it is none."""
    try:
        with _as_arrow_opens(path) as source:
            schema = pq.read_schema(source)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    missing = [name for name in COLUMNS_OF_EVERY_PART if name not in schema.names]
    if missing:
        raise StorageError(
            f"{path} is named by the ledger but is not one of its parts (it has no "
            f"{', '.join(missing)}); nothing was changed: restore that file from a backup"
        )
    return schema


def unreadable(path: Path, reason: object) -> StorageError:
    """Return the sentence for a part that the ledger names and nobody can read."""
    return StorageError(
        f"{path} is named by the ledger but cannot be read ({reason}); nothing was changed: "
        "restore that file from a backup, or run `caption-flow verify` to see what it held"
    )


def remove_discarded(folder: Path, files: Iterable[str]) -> None:
    """Remove parts that others have replaced; those already gone are no error."""
    for file in files:
        (folder / file).unlink(missing_ok=True)


def check_parts(folder: Path, sizes: Mapping[str, int]) -> None:
    """Raise `StorageError` unless each part that the ledger names is there, in its recorded size.

    Costs a look at each name, not at contents: those are for `verify`.
    """
    found = {}
    if sizes and folder.is_dir():
        with os.scandir(folder) as entries:
            found = {entry.name: entry.stat().st_size for entry in entries if entry.name in sizes}
    for file, size in sizes.items():
        if file not in found:
            raise unreadable(folder / file, "it is missing")
        if found[file] != size:
            raise unreadable(folder / file, f"it has {found[file]} bytes and had {size}")


def look_for_debris(
    folder: Path, named: Collection[str], highest: int
) -> tuple[list[Path], list[Path]]:
    """Return what a crash left (temporary files, parts newer than any recorded one), and the rest.

    The rest are older parts that the ledger does not name: nothing a crash explains.
    """
    debris = sorted(folder.glob(_TEMPORARY))
    strange: list[Path] = []
    for path in sorted(folder.glob(_PATTERN)):
        if path.name in named:
            continue
        number = path.stem.removeprefix("part-")
        newer = number.isdecimal() and int(number) > highest
        (debris if newer else strange).append(path)
    return debris, strange


def check_is_debris(part: Path, terminal: Mapping[str, Sequence[tuple[int, int]]]) -> None:
    """Raise `StorageError` if a part that the ledger does not name holds rows that it lacks.

    A crash leaves only parts whose rows the ledger still has elsewhere. One with others belongs to
    a later ledger than this one, which is an old copy. ``terminal`` are the items the ledger has
    rows of, as half-open ranges by shard.
    """
    try:
        rows = read_table(part, ("shard", "item_index"))
    except StorageError:
        return  # half written, or never a part
    for shard, spans in ranges_by_shard(rows).items():
        known = sorted(terminal.get(shard, ()))
        if not all(_within(item, known) for start, stop in spans for item in range(start, stop)):
            raise StorageError(
                f"{part} holds captions that the ledger knows nothing of: the ledger is older than "
                "its parts, as one restored from a backup is. Nothing was changed: put the newer "
                "ledger back, or move that part and those after it elsewhere to have their items "
                "captioned again"
            )


def _within(item: int, ranges: Sequence[tuple[int, int]]) -> bool:
    at = bisect_right(ranges, item, key=itemgetter(0)) - 1
    return at >= 0 and item < ranges[at][1]


def checksum_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
