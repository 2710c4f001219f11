"""`huggingface_datasets`: Parquet files on the hub, or in a folder of the hub's layout.

A shard is one of them, an item is one of its rows. Only footers are read to list them, by ranges of
bytes, and to describe items the columns that prompts name and addresses of images. The images
themselves are for the workers.
"""

from __future__ import annotations

import asyncio
import os
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, Final, Self

import msgspec
import pyarrow as pa
import structlog

from caption_flow.config.dataset import DatasetConfig
from caption_flow.orchestrator.sources.base import (
    UNREADABLE,
    Changed,
    Finding,
    Item,
    Listed,
    PassedOver,
    RunFolder,
    ShardError,
    Source,
    SourceError,
    Vanished,
)
from caption_flow.orchestrator.sources.hub_repository import Shards, find_shards
from caption_flow.orchestrator.sources.wanted import asked_for, suggested
from caption_flow.places.base import MISSING, NotHereError, PlaceError, UnreachableError
from caption_flow.places.parquet import NoColumnError, ParquetColumns, ParquetPlace
from caption_flow.protocol.places import CellPlace, FilePlace, LinkPlace, Place
from caption_flow.storage.contents import displayed
from caption_flow.storage.opening import KnownShard

log = structlog.get_logger()

_FOOTERS_AHEAD: Final = 8
_KEPT_BYTES: Final = 32 * 2**20
_FOOTERS_FOR_COLUMNS: Final = 32
"""So many of the first files may lack a column that prompts name, before it counts as a mistake."""
_MOST_TROUBLES: Final = 3
"""So many of them are waited for in vain, or lack the column of images."""


class _Facts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is remembered of a shard, so that its footer is read once.

    ``mtime_ns`` and ``commit`` say which version of the file it was; ``column`` is where images
    are, or with ``is_links`` their addresses; ``prompted`` are those of the columns that prompts
    named which it has.
    """

    groups: tuple[int, ...]
    size: int | None
    column: str
    is_links: bool = False
    mtime_ns: int | None = None
    commit: str | None = None
    prompted: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return sum(self.groups)


@dataclass(frozen=True, slots=True)
class _Shard:
    place: ParquetPlace
    facts: _Facts
    ends: tuple[int, ...]
    """For each row group, the first row after it."""

    def find(self, row: int) -> tuple[int, int]:
        """Return the row's group, and its number in it."""
        group = bisect_right(self.ends, row)
        return group, row - (self.ends[group - 1] if group else 0)


class HubSource(Source):
    """Rows of one split, in the order of its files; each file keeps its name and its rows."""

    def __init__(self, dataset: DatasetConfig, folder: RunFolder) -> None:
        self._dataset = dataset
        self._prompted = folder.columns
        self._known = folder.shards
        self._columns = ParquetColumns(_KEPT_BYTES)
        self._pool = ThreadPoolExecutor(_FOOTERS_AHEAD, thread_name_prefix="footers")
        self._shards: dict[str, _Shard] = {}
        remembered = {name: _remembered(known) for name, known in folder.shards.items()}
        self._facts = {name: facts for name, facts in remembered.items() if facts is not None}
        commits = (facts.commit for facts in self._facts.values())
        self._files: Shards = find_shards(dataset, next(commits, None))
        self._check_columns()

    @classmethod
    def check(cls, dataset: DatasetConfig) -> None:
        """See the port; columns are looked at when it is opened, in later runs only new ones."""
        find_shards(dataset)

    @classmethod
    def open(cls, dataset: DatasetConfig, folder: RunFolder) -> Self:
        """See the port."""
        return cls(dataset, folder)

    @classmethod
    def name_of(cls, dataset: DatasetConfig) -> str:
        """See the port."""
        config = f", {dataset.dataset_config}" if dataset.dataset_config else ""
        revision = f" at {dataset.revision}" if dataset.revision else ""
        return f"{displayed(dataset.dataset_path)} ({dataset.split}{config}){revision}"

    async def listing(self) -> AsyncIterator[Finding]:
        """See the port; a few footers are read ahead."""
        loop = asyncio.get_running_loop()
        ahead: deque[tuple[str, asyncio.Future[_Facts | ShardError]]] = deque()
        read = 0
        names = iter(self._files.places)
        while True:
            while len(ahead) < _FOOTERS_AHEAD and (name := next(names, None)) is not None:
                ahead.append((name, loop.run_in_executor(self._pool, self._try, name)))
            if not ahead:
                break
            name, looking = ahead.popleft()
            found = await looking
            if isinstance(found, ShardError):
                if name in self._known:
                    yield Listed(name, self._known[name].count, self._known[name].facts)
                yield PassedOver(name, str(found))
                continue
            read += 1
            async for finding in self._found(name, found):
                yield finding
        if not read and not self._known:
            raise SourceError("not one of the dataset's files can be read, see above")
        for name, known in self._known.items():
            if name not in self._files.places:
                yield Vanished(name, known.count, (name,))

    async def _found(self, name: str, facts: _Facts) -> AsyncIterator[Finding]:
        known, before = self._known.get(name), self._facts.get(name)
        count = facts.count if known is None else max(facts.count, known.count)
        yield Listed(name, count, msgspec.json.encode(facts).decode())
        is_changed = before is not None and (before.groups, before.size) != (
            facts.groups,
            facts.size,
        )
        if known is not None and is_changed:
            log.warning("a shard has changed: its rows are captioned again", shard=name)
            yield Changed(name, frozenset(range(min(known.count, facts.count))))

    def _check_columns(self) -> None:
        """Look at the first files until all columns are found. Raises `SourceError`.

        A file may lack a column that others have: then it is empty there.
        """
        known = {name for facts in self._facts.values() for name in facts.prompted}
        if self._facts and known.issuperset(self._prompted):
            return
        there: set[str] = set()
        troubles: list[Exception] = []
        for name in islice(self._files.places, _FOOTERS_FOR_COLUMNS):
            try:
                there |= self._columns_of(name)
            except (ShardError, SourceError) as error:
                troubles.append(error)
                if sum(map(_is_slow_or_ours, troubles)) == _MOST_TROUBLES:
                    break  # `listing` says of each what becomes of it
            else:
                if there.issuperset(self._prompted):
                    return
        mistakes = [error for error in troubles if isinstance(error, SourceError)]
        if mistakes and not there:
            raise mistakes[0]
        if len(troubles) == len(self._files.places):
            first = next(iter(self._files.places))
            raise SourceError(f"not one of the dataset's files can be read: {first}: {troubles[0]}")
        missing = set(self._prompted) - there
        if there and missing:
            raise SourceError(
                f"prompts ask for {asked_for(missing)}, which the dataset does not have"
                f"{suggested(missing, there)}"
            )

    def _try(self, name: str) -> _Facts | ShardError:
        try:
            return self._look(name)
        except ShardError as error:
            return error
        except SourceError as error:
            return ShardError(f"it {str(error).removeprefix(f'{name} ')}")

    def _look(self, name: str) -> _Facts:
        """Find out what is in a shard, by its footer unless that is known.

        Raises:
            ShardError: it cannot be read.
            SourceError: it has no column of images.
        """
        place = self._files.places[name]
        mtime_ns = place.mtime_ns if isinstance(place, FilePlace) else None
        facts = self._facts.get(name)
        is_same = facts is not None and (facts.size, facts.mtime_ns, facts.commit) == (
            place.size,
            mtime_ns,
            self._files.commit,
        )
        if facts is None or not is_same:
            footer = _clearly(place, lambda: self._columns.footer(place))
            schema = footer.schema.to_arrow_schema()
            column, is_links = _images_in(schema, self._dataset, name)
            groups = (footer.row_group(number).num_rows for number in range(footer.num_row_groups))
            facts = _Facts(
                tuple(groups),
                place.size,
                column,
                is_links,
                mtime_ns,
                self._files.commit,
                tuple(one for one in self._prompted if one in schema.names),
            )
        self._shards[name] = _Shard(place, facts, tuple(accumulate(facts.groups)))
        return facts

    def _columns_of(self, name: str) -> set[str]:
        """Look at a file, and return its columns; raises as `_look` does."""
        self._look(name)
        place = self._files.places[name]
        footer = _clearly(place, lambda: self._columns.footer(place))
        columns = footer.schema.to_arrow_schema().names
        if name in self._facts:
            seen = tuple(one for one in self._prompted if one in columns)
            self._facts[name] = msgspec.structs.replace(self._facts[name], prompted=seen)
        return set(columns)

    def describe(self, shard: str, items: Sequence[int]) -> Sequence[Item]:
        """See the port."""
        if shard not in self._files.places:
            return _without_places(shard, items, "is not in the dataset any more", MISSING)
        try:
            if shard not in self._shards:
                self._look(shard)
            found = self._shards[shard]
            return [self._describe(shard, found, item) for item in items]
        except (ShardError, SourceError) as error:
            is_passing = isinstance(error, ShardError) and error.is_passing
            bare = _without_places(shard, items, f"cannot be read: {error}")
            raise ShardError(str(error), is_passing=is_passing, items=bare) from error

    def _describe(self, name: str, shard: _Shard, item: int) -> Item:
        key = f"{name}#{item}"
        if item >= shard.facts.count:  # an earlier version of the shard had more rows
            return Item(item, None, key=key)
        group, row = shard.find(item)
        columns = {column: self._value(shard, group, column, row) for column in self._prompted}
        place: Place | None = CellPlace(shard.place, group, row, shard.facts.column)
        url: str | None = None
        if shard.facts.is_links:
            address = self._value(shard, group, shard.facts.column, row)
            url = address if isinstance(address, str) else None
            place = LinkPlace(url) if url else None
        return Item(item, place, key=key, url=url, columns=columns or None)

    def _value(self, shard: _Shard, group: int, column: str, row: int) -> Any:
        try:
            values = _clearly(shard.place, lambda: self._columns.column(shard.place, group, column))
        except NoColumnError:
            return None  # others have it: see `_check_columns`
        return values[row].as_py()

    def close(self) -> None:
        """See the port."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _remembered(known: KnownShard) -> _Facts | None:
    try:
        return msgspec.json.decode(known.facts, type=_Facts)
    except msgspec.DecodeError:
        return None


def _is_slow_or_ours(error: Exception) -> bool:
    return not isinstance(error, ShardError) or error.is_passing


def _clearly(place: ParquetPlace, read: Callable[[], Any]) -> Any:
    """Read; what is wrong with the file is a `ShardError` that does not name it again."""
    try:
        return read()
    except NoColumnError:
        raise
    except (NotHereError, PlaceError) as error:
        name = os.fsdecode(place.path) if isinstance(place, FilePlace) else place.url
        reason = str(error)
        if reason.startswith(f"{name} "):
            reason = f"it {reason.removeprefix(f'{name} ')}"
        raise ShardError(reason, is_passing=isinstance(error, UnreachableError)) from error


def _without_places(
    shard: str, items: Sequence[int], why: str, kind: str = UNREADABLE
) -> list[Item]:
    reason = f"the file {shard} {why}"
    keys = ((item, f"{shard}#{item}") for item in items)
    return [Item(item, None, key=key, reason=reason, kind=kind) for item, key in keys]


def _images_in(schema: pa.Schema, dataset: DatasetConfig, name: str) -> tuple[str, bool]:
    """Return the column of images, and whether it holds addresses. Raises `SourceError`."""
    image, link = dataset.dataset_image_column, dataset.dataset_url_column
    kinds = {field.name: field.type for field in schema}
    if image in kinds:
        kind = kinds[image]
        if _holds_bytes(kind):
            return image, False
        if not _is_text(kind):
            raise SourceError(
                f"{name} has no images in column {image!r} but {kind}; "
                f"there are {_names(kinds)}: dataset.dataset_image_column"
            )
        if not link or link not in kinds:
            link = image
    if link and _is_text(kinds.get(link)):
        return link, True
    raise SourceError(
        f"{name} has no column {image!r}, but {_names(kinds)}: "
        "dataset.dataset_image_column, or dataset_url_column for addresses"
    )


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    return kind is not None and bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _names(kinds: dict[str, Any]) -> str:
    return ", ".join(repr(name) for name in kinds) or "none at all"
