"""Which caption belongs to which item, however many of both: kept on disk, in a file of its own.

The rules, for the names of a row in their order: an item whose path, key or address it is; one
whose path without suffix it is; at last one whose path ends in it, or in which it ends, by whole
folders. More than one such item is ambiguous, and no guess is made.
"""

from __future__ import annotations

import os
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from caption_flow.incoming.captions import Incoming, Name, PassedOver

Repeated = Literal["skip", "first", "last", "all"]
SHOWN: Final = 20
"""So many of those that bring nothing are named."""

_TABLES: Final = """
CREATE TABLE rows (
    id INTEGER PRIMARY KEY, origin TEXT, names BLOB, is_stem INTEGER, texts BLOB,
    item INTEGER, is_exact INTEGER, ending TEXT
);
CREATE TABLE items (
    id INTEGER PRIMARY KEY, shard TEXT, position INTEGER, path BLOB, key TEXT, url TEXT,
    stem BLOB, path_backwards BLOB, stem_backwards BLOB
);
"""
_INDEXES: Final = (
    "CREATE INDEX items_by_path ON items (path)",
    "CREATE INDEX items_by_stem ON items (stem)",
    "CREATE INDEX items_by_key ON items (key) WHERE key IS NOT NULL",
    "CREATE INDEX items_by_url ON items (url) WHERE url IS NOT NULL",
    "CREATE INDEX items_by_path_backwards ON items (path_backwards)",
    "CREATE INDEX items_by_stem_backwards ON items (stem_backwards)",
)
_PUT_ROW: Final = "INSERT INTO rows (origin, names, is_stem, texts) VALUES (?, ?, ?, ?)"
_PUT_ITEM: Final = """
INSERT INTO items (shard, position, path, key, url, stem, path_backwards, stem_backwards)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_MATCHED: Final = """
SELECT rows.id, rows.item, rows.origin, rows.texts, items.shard, items.position, items.path,
       items.key, items.url
FROM rows JOIN items ON items.id = rows.item WHERE rows.ending IS NULL
"""
_FETCHED: Final = 1000

Texts = dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Known:
    """An item as the matcher knows it; ``position`` is None until its index is known."""

    shard: str
    position: int | None
    path: bytes | None = None
    key: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """An item with the texts that are for it."""

    row: int
    origin: str
    item: Known
    texts: Texts


@dataclass(slots=True)
class Account:
    """How rows ended, by a word, and the first of those that brought nothing."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, ending: str, origin: str = "", reason: str = "") -> None:
        """Count a row that ended so."""
        self.counts[ending] += 1
        if not origin:
            return
        shown = self.examples.setdefault(ending, [])
        if len(shown) < SHOWN:
            example = f"{origin}: {reason}" if reason else origin
            shown.append(example.encode("utf-8", "backslashreplace").decode())


class Matcher:
    """Rows and items, and which belong together. Blocking; use from one thread at a time."""

    def __init__(
        self, folder: Path, roots: Sequence[Path] = (), *, counts_rows: bool = False
    ) -> None:
        """Keep them in a file in ``folder``, which is the caller's to remove.

        ``roots`` are folders, the dataset's own first; names that lie in it after the others are
        put before them are paths within it. A number is an item's own in the order in which they
        were put, if the dataset ``counts_rows``, else a name like others.
        """
        self._counts_rows = counts_rows
        self._connection = sqlite3.connect(
            folder / "matching.sqlite3", isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode = OFF")  # whatever happens, it is made anew
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.executescript(_TABLES)
        self._connection.execute("BEGIN")
        self._roots = [os.path.abspath(os.fsencode(root)) for root in roots]  # noqa: PTH100
        self.account = Account()
        self.rows = 0
        self.has_numbers = False
        """Whether any row names its item by number."""

    def close(self) -> None:
        """Close the file; idempotent."""
        self._connection.close()

    # ------------------------------------------------------------------ what there is

    def put_rows(self, rows: Iterable[Incoming | PassedOver]) -> None:
        """Take the rows of a table; those that bring nothing are counted."""
        self._connection.executemany(_PUT_ROW, self._kept(rows))

    def _kept(self, rows: Iterable[Incoming | PassedOver]) -> Iterator[tuple[Any, ...]]:
        for row in rows:
            self.rows += 1
            if isinstance(row, PassedOver):
                self.account.add(row.why, row.origin, row.reason)
                continue
            numbered = self._counts_rows and any(isinstance(name, int) for name in row.names)
            self.has_numbers = self.has_numbers or numbered
            names = msgspec.msgpack.encode(row.names)
            yield row.origin, names, row.is_stem, msgspec.msgpack.encode(row.texts)

    def put_items(self, items: Iterable[Known]) -> None:
        """Take the dataset's items, each once."""
        self._connection.executemany(_PUT_ITEM, map(_item_row, items))

    # ------------------------------------------------------------------ matching

    def match(self, repeated: Repeated = "skip") -> None:
        """Find the item of each row; ``repeated`` says what is done about several for one item."""
        for index in _INDEXES:
            self._connection.execute(index)
        with closing(self._connection.cursor()) as writing:
            for row, origin, names, is_stem in self._query(
                "SELECT id, origin, names, is_stem FROM rows"
            ):
                decoded: list[Name] = msgspec.msgpack.decode(names)
                items, is_exact = self._items_called(decoded, is_stem=bool(is_stem))
                if len(items) == 1:
                    writing.execute(
                        "UPDATE rows SET item = ?, is_exact = ? WHERE id = ?",
                        (items.pop(), is_exact, row),
                    )
                else:
                    ending = "ambiguous" if items else "unmatched"
                    reason = self._called(items) if items else ""
                    self._end(row, ending, origin, reason)
        self._connection.execute("CREATE INDEX rows_by_item ON rows (item)")
        self._settle_repeated(repeated)

    def _items_called(self, names: Sequence[Name], *, is_stem: bool) -> tuple[set[int], bool]:
        """Return the items of that name, or the first two of them, and whether it is all of it."""
        for name in names:
            found = self._exactly(name, is_stem=is_stem)
            if found:
                return found, True
        for name in names:
            found = self._by_ending(name) if isinstance(name, str | bytes) else set()
            if found:
                return found, False
        return set(), False

    def _exactly(self, name: Name, *, is_stem: bool) -> set[int]:
        if isinstance(name, int):
            if self._counts_rows:
                return self._find("id = ?", name + 1)
            name = str(name)
        for path in self._paths(name):
            found = self._find("path = ?", path)
            if is_stem:
                found |= self._find("stem = ?", path)  # two images may want one file
            if found:
                return found
        if isinstance(name, str):
            found = self._find("key = ?", name) or self._find("url = ?", name)
            if found:
                return found
        for path in () if is_stem else self._paths(name):
            if found := self._find("stem = ?", path):
                return found
        return set()

    def _by_ending(self, name: str | bytes) -> set[int]:
        """Return the items whose path ends in the name, or the name in it; then, without suffix."""
        for column in ("path", "stem"):
            for path in self._paths(name):
                parts = path.strip(b"/").split(b"/")
                found = set[int]()
                for start in range(len(parts)):
                    found |= self._find(f"{column} = ?", b"/".join(parts[start:]))
                start_of = b"/".join(reversed(parts)) + b"/"
                condition = f"{column}_backwards >= ? AND {column}_backwards < ?"
                found |= self._find(condition, start_of, start_of[:-1] + b"0")  # after "/"
                if found:
                    return found
        return set()

    def _paths(self, name: str | bytes) -> Iterator[bytes]:
        """Yield what a name may be within the dataset, the likeliest first."""
        if isinstance(name, bytes):
            yield from self._within(name)
            return
        forms = dict.fromkeys((name, *(unicodedata.normalize(f, name) for f in ("NFC", "NFD"))))
        for form in forms:
            try:
                yield from self._within(os.fsencode(form))
            except UnicodeEncodeError:
                return

    def _within(self, path: bytes) -> Iterator[bytes]:
        if b"\0" in path:
            return  # no file is called so, and some Pythons cut it off there
        if not path.startswith(b"/"):
            yield os.path.normpath(path)
        if self._roots:
            own = self._roots[0] + b"/"
            for root in self._roots[1:]:
                absolute = os.path.normpath(os.path.join(root, path))  # noqa: PTH118  -- bytes
                if absolute.startswith(own):
                    yield absolute.removeprefix(own)
        if path.startswith(b"/"):
            yield path

    def _find(self, condition: str, *values: Any) -> set[int]:
        query = f"SELECT id FROM items WHERE {condition} LIMIT 2"  # noqa: S608 - our own words
        return {found for (found,) in self._query(query, values)}

    def _called(self, items: Iterable[int]) -> str:
        found = (
            self._query("SELECT path, key FROM items WHERE id = ?", (one,)) for one in sorted(items)
        )
        names = [
            key or (path or b"").decode("utf-8", "backslashreplace") for ((path, key),) in found
        ]
        return f"it may be {' or '.join(names)}"

    def _settle_repeated(self, repeated: Repeated) -> None:
        query = (
            "SELECT item FROM rows WHERE item IS NOT NULL AND ending IS NULL "
            "GROUP BY item HAVING COUNT(*) > 1"
        )
        for (item,) in self._query(query):
            rows = list(
                self._query(
                    "SELECT id, origin, texts, is_exact FROM rows WHERE item = ? ORDER BY id",
                    (item,),
                )
            )
            exact = [row for row in rows if row[3]]
            for row in rows if exact else ():
                if not row[3]:
                    self._end(row[0], "ambiguous", row[1], f"{exact[0][1]} names that image, too")
            self._settle(exact or rows, repeated)

    def _settle(self, rows: Sequence[tuple[Any, ...]], repeated: Repeated) -> None:
        """Leave one of several rows for an item, if they agree or it is said which."""
        if len({texts for _, _, texts, _ in rows}) == 1:
            left = rows[0]
        elif repeated == "all":
            left = rows[0]
            together = msgspec.msgpack.encode(_together(texts for _, _, texts, _ in rows))
            self._connection.execute("UPDATE rows SET texts = ? WHERE id = ?", (together, left[0]))
        elif repeated == "skip":
            for row, origin, _, _ in rows:
                others = rows[0][1] if row != rows[0][0] else rows[1][1]
                self._end(row, "ambiguous", origin, f"{others} says something else of that image")
            return
        else:
            left = rows[0] if repeated == "first" else rows[-1]
        for row, origin, _, _ in rows:
            if row != left[0]:
                self._end(row, "repeated", origin)

    def _end(self, row: int, ending: str, origin: str, reason: str = "") -> None:
        self.account.add(ending, origin, reason)
        self._connection.execute("UPDATE rows SET ending = ? WHERE id = ?", (ending, row))

    # ------------------------------------------------------------------ what was found

    def has(self, path: bytes) -> bool:
        """Tell whether there are texts for the item with that path."""
        query = (
            "SELECT 1 FROM rows JOIN items ON items.id = rows.item "
            "WHERE items.path = ? AND rows.ending IS NULL LIMIT 1"
        )
        return next(self._query(query, (path,)), None) is not None

    def has_matches(self) -> bool:
        """Tell whether there is anything to bring in."""
        query = "SELECT 1 FROM rows WHERE item IS NOT NULL AND ending IS NULL LIMIT 1"
        return next(self._query(query), None) is not None

    def amend(self, match: Match, texts: Mapping[str, Sequence[str]]) -> None:
        """Put other texts in place of a match's own."""
        self._connection.execute(
            "UPDATE rows SET texts = ? WHERE id = ?", (msgspec.msgpack.encode(texts), match.row)
        )

    def locate(self, shard: str, positions: Iterable[tuple[bytes, int]]) -> None:
        """Learn at which positions of a shard items are, by path."""
        self._connection.executemany(
            "UPDATE items SET position = ? WHERE shard = ? AND path = ?",
            ((position, shard, path) for path, position in positions),
        )

    def unlocated(self) -> Iterator[list[bytes]]:
        """Yield the paths of matched items whose position is not known, some at a time."""
        query = (
            "SELECT DISTINCT items.id, items.path FROM rows JOIN items ON items.id = rows.item "
            "WHERE rows.ending IS NULL AND items.position IS NULL AND items.id > ? "
            "ORDER BY items.id LIMIT ?"
        )
        last = 0
        while batch := list(self._query(query, (last, _FETCHED))):
            last = batch[-1][0]
            yield [path for _, path in batch]

    def matches(self) -> Iterator[Match]:
        """Yield items with their texts, by shard and position; those without a position last."""
        order = "ORDER BY items.position IS NULL, items.shard, items.position"
        for row in self._query(f"{_MATCHED} {order}"):
            yield _match(row)

    def match_of(self, shard: str, position: int) -> Match | None:
        """Return the texts for one item, if there are any."""
        condition = "AND items.shard = ? AND items.position = ?"
        found = next(self._query(f"{_MATCHED} {condition}", (shard, position)), None)
        return None if found is None else _match(found)

    def index_positions(self) -> None:
        """Make `match_of` fast; positions are known."""
        self._connection.execute("CREATE INDEX items_by_position ON items (shard, position)")

    def _query(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        with closing(self._connection.cursor()) as cursor:
            yield from cursor.execute(sql, values)


def _match(row: tuple[Any, ...]) -> Match:
    number, _, origin, texts, shard, position, path, key, url = row
    decoded = msgspec.msgpack.decode(texts, type=Texts)
    return Match(number, origin, Known(shard, position, path, key, url), decoded)


def _together(rows: Iterable[bytes]) -> Texts:
    together: Texts = {}
    for row in rows:
        for name, texts in msgspec.msgpack.decode(row, type=Texts).items():
            of_field = together.setdefault(name, [])
            of_field += [text for text in texts if text not in of_field]
    return together


def _item_row(item: Known) -> tuple[Any, ...]:
    path = item.path
    stem = None if path is None else os.path.splitext(path)[0]  # noqa: PTH122  -- bytes
    return (
        item.shard,
        item.position,
        path,
        item.key,
        item.url,
        stem,
        _backwards(path),
        _backwards(stem),
    )


def _backwards(path: bytes | None) -> bytes | None:
    """Return a path from its name up, so that what ends alike begins alike."""
    return None if path is None else b"/".join(reversed(path.split(b"/"))) + b"/"
