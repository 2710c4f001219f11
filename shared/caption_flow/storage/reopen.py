"""Taking terminal items back, so that they are done again: failed ones, and changed files.

Parts are immutable, so a part that holds such items is written anew without them. One transaction
records the new part in place of the old one; the old file goes afterwards. A crash at any moment
leaves each item either as it was or open, never both.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import Connection

import pyarrow as pa
import pyarrow.compute as pc

from caption_flow.protocol.rows import CAPTIONED, FAILED
from caption_flow.storage.database import PARTS_FOLDER, pack_ranges, unpack_ranges
from caption_flow.storage.parts import (
    Part,
    count_contributors,
    count_rows,
    read_table,
    write_part,
)
from caption_flow.storage.schema import ranges_by_shard

Items = Mapping[str, frozenset[int]]
"""Item indices by shard."""
Select = Callable[[pa.Table], pa.Array]
"""Returns a mask over a part's rows: those to take back."""


@dataclass(frozen=True, slots=True)
class ReplacePart:
    """Put a part without the rows taken back in place of the old one; ``new`` None: none left."""

    old: int
    old_file: str
    new: Part | None
    ranges: Mapping[str, list[tuple[int, int]]]

    def prepare(self) -> None:
        """Nothing to validate."""

    def apply(self, connection: Connection) -> None:
        """Swap the records; the old file is remembered until it is gone."""
        connection.execute("DELETE FROM part_ranges WHERE part = ?", (self.old,))
        connection.execute("DELETE FROM parts WHERE part = ?", (self.old,))
        connection.execute("INSERT OR IGNORE INTO discarded VALUES (?)", (self.old_file,))
        if self.new is not None:
            record_part(connection, self.new, self.ranges)


@dataclass(frozen=True, slots=True)
class TakenBack:
    """One part's share of what is taken back: the write to make, the items, their rows by kind."""

    write: ReplacePart
    items: Items
    counts: Mapping[str, int]
    contributors: Mapping[str, Mapping[str, int]]


@dataclass(slots=True)
class Opened:
    """Items that were terminal and no longer are, and what their rows had been, by kind."""

    items: dict[str, frozenset[int]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    contributors: dict[str, Counter[str]] = field(default_factory=dict)
    """The same counts by contributor."""

    def add(self, taken: TakenBack) -> None:
        """Add one part's share."""
        for shard, items in taken.items.items():
            self.items[shard] = self.items.get(shard, frozenset()) | items
        self.counts.update(taken.counts)
        for name, counts in taken.contributors.items():
            self.contributors.setdefault(name, Counter()).update(counts)


def record_part(
    connection: Connection, part: Part, ranges: Mapping[str, list[tuple[int, int]]]
) -> None:
    """Name a part that is on disk, with the items it holds."""
    connection.execute(
        "INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            part.number,
            part.file,
            part.rows,
            part.bytes,
            part.checksum,
            json.dumps(part.counts),
            time.time(),
            json.dumps(part.contributors),
        ),
    )
    connection.executemany(
        "INSERT INTO part_ranges VALUES (?, ?, ?)",
        [(part.number, shard, pack_ranges(spans)) for shard, spans in ranges.items()],
    )


def parts_with_items(connection: Connection, items: Items) -> list[tuple[int, str]]:
    """Return number and file of the parts that hold any of the items."""
    found: dict[int, None] = {}
    with closing(connection.execute("SELECT part, shard, ranges FROM part_ranges")) as rows:
        for part, shard, packed in rows:
            wanted = items.get(shard)
            if wanted and any(
                not wanted.isdisjoint(range(start, stop)) for start, stop in unpack_ranges(packed)
            ):
                found[int(part)] = None
    return _files(connection, found)


def parts_with_failures(connection: Connection, kind: str | None) -> list[tuple[int, str]]:
    """Return number and file of the parts that hold failures, of one kind or of any."""
    with closing(connection.execute("SELECT part, counts FROM parts")) as rows:
        found = {
            int(part): None
            for part, counts in rows
            if any(name != CAPTIONED and kind in {None, name} for name in json.loads(counts))
        }
    return _files(connection, found)


def parts_with_contributor(connection: Connection, name: str) -> list[tuple[int, str]]:
    """Return number and file of the parts with rows, or stages of rows, of one contributor."""
    with closing(connection.execute("SELECT part, contributors FROM parts")) as rows:
        found = {
            int(part): None
            for part, contributors in rows
            if contributors is None or name in json.loads(contributors)
        }
    return _files(connection, found)


def rows_of(contributor: str) -> Select:
    """Select the rows that a contributor had any part in."""

    def select(table: pa.Table) -> pa.Array:
        columns = (table.column(one).to_pylist() for one in ("contributor", "stage_stats"))
        return pa.array(
            [
                contributor in {name, *(one.get("contributor") for one in stats or ())}
                for name, stats in zip(*columns, strict=True)
            ],
            pa.bool_(),
        )

    return select


def these_items(items: Items) -> Select:
    """Select rows by item."""

    def select(table: pa.Table) -> pa.Array:
        pairs = zip(
            table.column("shard").to_pylist(), table.column("item_index").to_pylist(), strict=True
        )
        return pa.array([index in items.get(shard, frozenset()) for shard, index in pairs])

    return select


def failures(kind: str | None) -> Select:
    """Select failed rows, of one kind or of any."""

    def select(table: pa.Table) -> pa.Array:
        failed = pc.equal(table.column("status"), FAILED)
        if kind is not None:
            same = pc.fill_null(pc.equal(table.column("error_kind"), kind), False)
            failed = pc.and_(failed, same)
        return failed.combine_chunks() if isinstance(failed, pa.ChunkedArray) else failed

    return select


def rewrite(
    data_dir: Path, parts: list[tuple[int, str]], select: Select, next_number: int
) -> Iterator[TakenBack]:
    """Write each part anew without the selected rows; blocking, one part in memory at a time.

    Raises:
        StorageError: a part cannot be read.
        OSError: a part cannot be written.
    """
    folder = data_dir / PARTS_FOLDER
    for number, file in parts:
        table = read_table(folder / file)
        taken = select(table)
        gone = table.filter(taken)
        if not gone.num_rows:
            continue
        kept = table.filter(pc.invert(taken))
        new = write_part(folder, next_number, kept) if kept.num_rows else None
        if new is not None:
            next_number += 1
        items = {
            shard: frozenset(i for start, stop in spans for i in range(start, stop))
            for shard, spans in ranges_by_shard(gone).items()
        }
        yield TakenBack(
            ReplacePart(number, file, new, ranges_by_shard(kept)),
            items,
            count_rows(gone),
            count_contributors(gone),
        )


def _files(connection: Connection, numbers: Mapping[int, None]) -> list[tuple[int, str]]:
    with closing(connection.execute("SELECT part, file FROM parts ORDER BY part")) as rows:
        return [(int(part), str(file)) for part, file in rows if int(part) in numbers]
