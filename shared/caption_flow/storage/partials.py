"""Items between stages: what their stages gave so far, until they have a row.

A partial is an item's row as far as it is known, as a msgpack map: the columns of the wire, and
for each stage behind it a column of its texts (`recipe.serving.StageColumn`), in the stages' order.
Its stage stats say who ran each stage (`Credit`). It is replaced by a later one and deleted by the
item's row, in the transaction that stores that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from sqlite3 import Connection
from typing import Any

import msgspec
import pyarrow as pa

from caption_flow.protocol.rows import WIRE_FIELDS, credited_schema, wire_output_fields
from caption_flow.recipe.serving import by_field
from caption_flow.storage.errors import StorageError

Partial = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Credit:
    """Whose stages are stored: the worker's name, and whose token it came with."""

    worker: str
    contributor: str

    def to(self, row: Partial) -> Partial:
        """Return a row of the wire, its stages being theirs."""
        names = {"worker": self.worker, "contributor": self.contributor}
        stats = row["stage_stats"]
        return {**row, "stage_stats": stats and [{**one, **names} for one in stats]}


_WIRE_COLUMNS = tuple(column.name for column in WIRE_FIELDS)


def read_partials(connection: Connection, shard: str, items: Collection[int]) -> dict[int, Partial]:
    """Return the partials of those of the items that have one."""
    if not items:
        return {}
    query = "SELECT item_index, row FROM partials WHERE shard = ? AND item_index BETWEEN ? AND ?"
    wanted = frozenset(items)
    with closing(connection.execute(query, (shard, min(wanted), max(wanted)))) as rows:
        return {item: msgspec.msgpack.decode(row) for item, row in rows if item in wanted}


def between_stages(connection: Connection) -> dict[int, dict[str, list[int]]]:
    """Return the items that have a partial, by their next stage and shard, ascending."""
    found: dict[int, dict[str, list[int]]] = {}
    query = "SELECT stage, shard, item_index FROM partials ORDER BY shard, item_index"
    with closing(connection.execute(query)) as rows:
        for stage, shard, item in rows:
            found.setdefault(stage, {}).setdefault(shard, []).append(item)
    return found


def partials_of(connection: Connection, contributor: str) -> dict[str, frozenset[int]]:
    """Return the items that have a partial with a stage of the contributor's, by shard."""
    found: dict[str, set[int]] = {}
    with closing(connection.execute("SELECT shard, item_index, row FROM partials")) as rows:
        for shard, item, row in rows:
            stats = msgspec.msgpack.decode(row)["stage_stats"] or ()
            if any(one.get("contributor") == contributor for one in stats):
                found.setdefault(shard, set()).add(item)
    return {shard: frozenset(items) for shard, items in found.items()}


def store_partials(
    connection: Connection,
    shard: str,
    stage: int,
    first: int,
    rows: Iterable[Partial],
    *,
    credit: Credit,
) -> None:
    """Store what items have that have reached ``stage``, after what they had at ``first``."""
    new = {int(row["item_index"]): credit.to(row) for row in rows}
    earlier = _earlier(connection, shard, first, new)
    connection.executemany(
        "INSERT OR REPLACE INTO partials VALUES (?, ?, ?, ?)",
        [
            (shard, item, stage, msgspec.msgpack.encode(_merged(earlier.get(item, {}), row)))
            for item, row in new.items()
        ],
    )


def complete_rows(
    connection: Connection,
    shard: str,
    first: int,
    rows: pa.RecordBatch,
    own_fields: Sequence[str],
    *,
    credit: Credit,
) -> pa.RecordBatch:
    """Return final rows with what the stages before ``first`` gave; their partials are deleted.

    They have `credited_schema`: the rows' own stages are ``credit``'s. Of their texts only those of
    ``own_fields`` count: no worker says what another said.
    """
    output_fields = wire_output_fields(rows.schema)
    new = {int(row["item_index"]): credit.to(row) for row in rows.to_pylist()}
    earlier = _earlier(connection, shard, first, new)
    completed = []
    for item, row in new.items():
        before = earlier.get(item, {})
        wire = {name: row[name] for name in _WIRE_COLUMNS}
        fields = by_field(before)
        for name in own_fields:
            if row[name] is not None:
                fields.setdefault(name, []).extend(row[name])
        texts = {name: fields.get(name) for name in output_fields}
        completed.append({**_merged(before, wire), **texts})
    delete_partials(connection, {shard: new})
    known = [{name: row[name] for name in rows.schema.names} for row in completed]
    return pa.RecordBatch.from_pylist(known, credited_schema(output_fields))


def delete_partials(connection: Connection, items: Mapping[str, Collection[int]]) -> None:
    """Delete the partials of items, by shard; those that have none are left."""
    for shard, of_shard in items.items():
        connection.executemany(
            "DELETE FROM partials WHERE shard = ? AND item_index = ?",
            [(shard, item) for item in of_shard],
        )


@dataclass(frozen=True, slots=True)
class ForgetPartials:
    """Forget what the stages gave to items, by shard: they begin again; or to all items."""

    items: Mapping[str, Collection[int]] | None = field(default=None)

    def prepare(self) -> None:
        """Nothing to validate."""

    def apply(self, connection: Connection) -> None:
        """Delete the partials."""
        if self.items is None:
            connection.execute("DELETE FROM partials")
        else:
            delete_partials(connection, self.items)


def _earlier(
    connection: Connection, shard: str, first: int, items: Collection[int]
) -> dict[int, Partial]:
    if not first:
        return {}
    found = read_partials(connection, shard, items)
    missing = [item for item in items if item not in found]
    if missing:
        raise StorageError(
            f"what earlier stages gave to {len(missing)} items, such as {shard}:{missing[0]}, is "
            "not in the ledger any more: somebody has changed it; restore it from a backup"
        )
    return found


def _merged(earlier: Partial, row: Partial) -> dict[str, Any]:
    """Return a row so far and what came to it: lists grow, of everything else the later counts.

    The content hash is the first stage's, so that a file that has changed since is found out.
    """
    merged = dict(earlier)
    for name, value in row.items():
        before = merged.get(name)
        if name == "content_hash" and before is not None:
            continue
        if isinstance(value, list) and isinstance(before, list):
            merged[name] = [*before, *(one for one in value if one not in before)]
        elif value is not None or name not in merged:
            merged[name] = value
    return merged
