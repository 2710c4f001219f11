"""`huggingface_datasets`: Parquet files on the hub, or in a folder of the hub's layout.

A shard is one of them, an item is one of its rows. Only footers are read to list them, by ranges of
bytes, and to describe items the columns that prompts name and addresses of images. The images
themselves are for the workers.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, Self

import msgspec
import pyarrow as pa
import structlog

from caption_flow.config.dataset import DatasetConfig
from caption_flow.orchestrator.sources.base import (
    Changed,
    Finding,
    Item,
    Listed,
    RunFolder,
    Source,
    SourceError,
    Vanished,
)
from caption_flow.orchestrator.sources.hub_repository import Shards, find_shards
from caption_flow.places.base import NotHereError, PlaceError
from caption_flow.places.parquet import ParquetColumns, ParquetPlace
from caption_flow.protocol.places import CellPlace, FilePlace, LinkPlace, Place
from caption_flow.storage.opening import KnownShard

log = structlog.get_logger()

_FOOTERS_AHEAD: Final = 8
_KEPT_BYTES: Final = 32 * 2**20


class _Facts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is remembered of a shard, so that its footer is read once.

    ``mtime_ns`` and ``commit`` say which version of the file it was; ``column`` is where images
    are, or with ``is_links`` their addresses.
    """

    groups: tuple[int, ...]
    size: int | None
    column: str
    is_links: bool = False
    mtime_ns: int | None = None
    commit: str | None = None

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
        if not self._facts:
            self._look(next(iter(self._files.places)))

    @classmethod
    def check(cls, dataset: DatasetConfig) -> None:
        """See the port; columns are looked at when it is opened, and not again in later runs."""
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
        return f"{dataset.dataset_path} ({dataset.split}{config}){revision}"

    async def listing(self) -> AsyncIterator[Finding]:
        """See the port; a few footers are read ahead."""
        loop = asyncio.get_running_loop()
        ahead: deque[tuple[str, asyncio.Future[_Facts]]] = deque()
        names = iter(self._files.places)
        while True:
            while len(ahead) < _FOOTERS_AHEAD and (name := next(names, None)) is not None:
                ahead.append((name, loop.run_in_executor(self._pool, self._look, name)))
            if not ahead:
                break
            name, looking = ahead.popleft()
            async for finding in self._found(name, await looking):
                yield finding
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

    def _look(self, name: str) -> _Facts:
        """Find out what is in a shard, by its footer unless that is known. Raises `SourceError`."""
        place = self._files.places[name]
        mtime_ns = place.mtime_ns if isinstance(place, FilePlace) else None
        facts = self._facts.get(name)
        is_same = facts is not None and (facts.size, facts.mtime_ns, facts.commit) == (
            place.size,
            mtime_ns,
            self._files.commit,
        )
        if facts is None or not is_same:
            try:
                footer = _clearly(name, lambda: self._columns.footer(place))
            except PlaceError as error:
                raise SourceError(f"shard {name}: {error}") from error
            column, is_links = _images_in(footer.schema.to_arrow_schema(), self._dataset, name)
            groups = (footer.row_group(number).num_rows for number in range(footer.num_row_groups))
            facts = _Facts(
                tuple(groups), place.size, column, is_links, mtime_ns, self._files.commit
            )
        self._shards[name] = _Shard(place, facts, tuple(accumulate(facts.groups)))
        return facts

    def describe(self, shard: str, items: Sequence[int]) -> Sequence[Item]:
        """See the port."""
        if shard not in self._files.places:
            return [Item(item, None, key=f"{shard}#{item}") for item in items]
        if shard not in self._shards:
            self._look(shard)
        found = self._shards[shard]
        return [self._describe(shard, found, item) for item in items]

    def _describe(self, name: str, shard: _Shard, item: int) -> Item:
        key = f"{name}#{item}"
        if item >= shard.facts.count:  # an earlier version of the shard had more rows
            return Item(item, None, key=key)
        group, row = shard.find(item)
        columns = {
            column: self._value(name, shard, group, column, row) for column in self._prompted
        }
        place: Place | None = CellPlace(shard.place, group, row, shard.facts.column)
        url: str | None = None
        if shard.facts.is_links:
            address = self._value(name, shard, group, shard.facts.column, row)
            url = address if isinstance(address, str) else None
            place = LinkPlace(url) if url else None
        return Item(item, place, key=key, url=url, columns=columns or None)

    def _value(self, name: str, shard: _Shard, group: int, column: str, row: int) -> Any:
        try:
            values = _clearly(name, lambda: self._columns.column(shard.place, group, column))
        except PlaceError:
            return None  # a column that this file does not have
        return values[row].as_py()

    def close(self) -> None:
        """See the port."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _remembered(known: KnownShard) -> _Facts | None:
    try:
        return msgspec.json.decode(known.facts, type=_Facts)
    except msgspec.DecodeError:
        return None


def _clearly(name: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except NotHereError as error:
        raise SourceError(f"shard {name} cannot be read: {error}") from error


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
                f"column {image!r} of {name} holds no images but {kind}; "
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
