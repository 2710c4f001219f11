"""Bringing in captions that were made elsewhere: they become rows of a run that nobody is leading.

A row is written as one from a worker is: the source says which item it is, the ledger's database
has it before a part has, and whoever is killed leaves rows that are there or not. An item that has
a row is done, so that a run captions what is left.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Final, Literal

from caption_flow.config.dataset import LOCAL
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.incoming.captions import IMPORT_WORKER
from caption_flow.incoming.matching import Known, Match, Matcher, Repeated
from caption_flow.orchestrator.core.ranges import RangeSet
from caption_flow.orchestrator.sources.base import (
    Changed,
    Item,
    Listed,
    PassedOver,
    RunFolder,
    ShardError,
    Source,
    SourceError,
)
from caption_flow.orchestrator.sources.local import SHARD, first_files, scan_options
from caption_flow.orchestrator.sources.registry import refuse_other_dataset, source_for
from caption_flow.protocol.identity import content_hash_of
from caption_flow.protocol.rows import CAPTIONED, Row, encode_rows
from caption_flow.storage.catalog import Catalog
from caption_flow.storage.database import LEDGER_FILE
from caption_flow.storage.opening import Snapshot, look
from caption_flow.storage.partials import ForgetPartials
from caption_flow.storage.reader import StorageReader
from caption_flow.storage.schema import is_utf8, readable_path
from caption_flow.storage.store import RunStore
from caption_flow.storage.writer import Write
from caption_flow.storage.writes import (
    CatalogEntry,
    CommitRows,
    ListShard,
    RememberItems,
    SetMeta,
)

_ROWS: Final = 500
_TEXT_BYTES: Final = 4 * 2**20
"""Of the rows that are written together."""
_CHECKPOINT_ROWS: Final = 20_000
_CHECKPOINT_BYTES: Final = 64 * 2**20
_READERS: Final = 4
_DESCRIBED: Final = 1000

Existing = Literal["keep", "overwrite"]
Measure = Callable[[BinaryIO], tuple[int, int, str] | None]


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """What is brought in where, and how.

    ``output_fields`` are those that the rows have; ``models`` is what they say of their origin.
    ``existing`` is about items that are captioned already. With ``measure``, which tells width,
    height and format of a picture, files of a folder are read, also for their content's hash, by
    which a later run tells whether one has changed.
    """

    config: OrchestratorConfig
    output_fields: tuple[str, ...]
    existing: Existing = "keep"
    repeated: Repeated = "skip"
    models: tuple[str, ...] = ()
    measure: Measure | None = None
    dry_run: bool = False


@dataclass(slots=True)
class _Shards:
    """The shards that a listing told of: counts, what to remember of them, what cannot be read."""

    counts: dict[str, int] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)


class Import:
    """One import. Its rows are in ``matcher``, which counts what becomes of them.

    ``advance`` is told how many items have been dealt with.
    """

    def __init__(
        self,
        plan: ImportPlan,
        matcher: Matcher,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._plan = plan
        self._matcher = matcher
        self._advance = advance
        self._dataset = plan.config.dataset
        self._data_dir = plan.config.storage.data_dir
        self._kind = source_for(self._dataset.processor_type)
        self._shards = _Shards()
        self._is_local = self._dataset.processor_type == LOCAL
        self._buffered = self._buffered_bytes = 0

    @property
    def passed_over(self) -> Mapping[str, str]:
        """Shards of the dataset that could not be read, with the reason."""
        return self._shards.passed_over

    def check(self) -> None:
        """Find out whether there is such a dataset; blocking.

        Raises:
            SourceError: there is none, or the run's folder is about another.
        """
        if self._kind.catalogued and not self._is_local:
            raise SourceError(
                f"captions cannot be brought into a dataset of the kind "
                f"{self._dataset.processor_type}: its source keeps its own catalog"
            )
        self._kind.check(self._dataset)
        refuse_other_dataset(self._dataset, self._data_dir)

    async def carry_out(self) -> None:
        """Match rows and items, and write what belongs together.

        Raises:
            SourceError: the dataset cannot be read.
            StorageError: the run's folder cannot be used, or an orchestrator owns it.
        """
        if self._is_local:
            # All that is needed for matching is known before anything is written.
            await asyncio.to_thread(self._match, self._files())
            if not self._matcher.has_matches():
                return
        if self._plan.dry_run:
            await self._look()
        else:
            store = await asyncio.to_thread(RunStore, self._data_dir)
            store.start(lambda _trouble: None)
            try:
                await self._write(store)
            finally:
                await store.close()

    # ------------------------------------------------------------------ which belong together

    def _match(self, items: Iterable[Known]) -> None:
        self._matcher.put_items(items)
        self._matcher.match(self._plan.repeated)

    def _files(self) -> Iterator[Known]:
        """Yield the files of a folder that are its items, as its source would list them."""
        options = scan_options(self._dataset)
        for file in first_files(Path(self._dataset.dataset_path), options):
            if self._dataset.video is not None or not file.is_video:
                key = None if is_utf8(file.path) else readable_path(file.path)
                yield Known(SHARD, None, file.path, key)

    async def _list(self, source: Source, store: RunStore | None) -> None:
        """Have the source list the dataset to its end; what has changed is done again."""
        async for finding in source.listing():
            match finding:
                case Listed(shard, count, facts):
                    self._shards.counts[shard] = count
                    self._shards.facts[shard] = facts
                case Changed(shard, items) if store is not None:
                    # In the order of a run, whose next listing will not tell of it again.
                    await store.write(ForgetPartials({shard: items}))
                    await store.reopen({shard: items})
                case PassedOver(shard, reason):
                    self._shards.passed_over[shard] = reason
                case _:
                    pass

    async def _find_items(self, source: Source) -> None:
        """Learn what each item of the dataset is called, or where those of a folder are."""
        if self._is_local:
            await asyncio.to_thread(self._locate)
        else:
            self._refuse_numbers()
            await asyncio.to_thread(self._match, self._described(source))
        await asyncio.to_thread(self._matcher.index_positions)

    def _refuse_numbers(self) -> None:
        """Numbers name rows only while each row is there to be counted."""
        if self._matcher.has_numbers and self._shards.passed_over:
            shard, reason = next(iter(self._shards.passed_over.items()))
            raise SourceError(
                f"images are named by number, and not all can be counted: {shard}: {reason}"
            )

    def _locate(self) -> None:
        if not (self._data_dir / LEDGER_FILE).exists():
            return
        with closing(Catalog(self._data_dir)) as catalog:
            for paths in self._matcher.unlocated():
                known = catalog.find(SHARD, paths)
                self._matcher.locate(SHARD, ((path, one[0]) for path, one in known.items()))

    def _described(self, source: Source) -> Iterator[Known]:
        for shard, count in self._shards.counts.items():
            for first in range(0, count, _DESCRIBED):
                items = range(first, min(count, first + _DESCRIBED))
                try:
                    found = source.describe(shard, items)
                except ShardError as error:
                    self._shards.passed_over.setdefault(shard, str(error))
                    found = error.items
                by_index = {item.index: item for item in found}
                for index in items:  # all of them: rows are counted
                    item = by_index.get(index) or Item(index, None)
                    yield Known(shard, index, item.path, item.key, item.url)

    # ------------------------------------------------------------------ looking

    async def _look(self) -> None:
        """Count what would be written."""
        snapshot = (await asyncio.to_thread(look, self._data_dir)).snapshot
        with TemporaryDirectory(prefix="caption-flow-") as nowhere:
            if self._is_local:
                await asyncio.to_thread(self._locate)
                await asyncio.to_thread(self._matcher.index_positions)
            else:
                async with self._source(Path(nowhere), _forget, snapshot) as source:
                    await self._list(source, None)
                    await self._find_items(source)
            decided = await asyncio.to_thread(_Decided.of, self._plan, self._matcher, snapshot)
            for match in self._matcher.matches():
                ending = decided.ending_of(match)
                self._matcher.account.add("imported" if ending == "unmatched" else ending)

    @asynccontextmanager
    async def _source(
        self, data_dir: Path, write: Callable[[Write], Awaitable[None]], snapshot: Snapshot
    ) -> AsyncIterator[Source]:
        folder = RunFolder(
            data_dir,
            write,
            shards=snapshot.shards,
            skip=(lambda path: not self._matcher.has(path)) if self._is_local else None,
        )
        source = await asyncio.to_thread(self._kind.open, self._dataset, folder)
        with closing(source):
            yield source

    # ------------------------------------------------------------------ writing

    async def _write(self, store: RunStore) -> None:
        async with self._source(self._data_dir, store.write, store.snapshot) as source:
            await self._list(source, store)
            await self._find_items(source)
        # Read anew: what has changed has no row any more.
        snapshot = (await asyncio.to_thread(look, self._data_dir)).snapshot
        decided = await asyncio.to_thread(_Decided.of, self._plan, self._matcher, snapshot)
        if not self._matcher.has_matches():
            return
        await store.write(self._facts(snapshot))
        with ThreadPoolExecutor(_READERS, thread_name_prefix="hashes") as readers:
            for batch in _batches(self._fresh(decided)):
                await self._commit(store, snapshot, batch, readers)
            if decided.replaced:
                items = {shard: frozenset(of) for shard, of in decided.replaced.items()}
                await store.reopen(items)
                for batch in _batches(self._of(decided)):
                    await self._commit(store, snapshot, batch, readers)
        await store.checkpoint()

    def _facts(self, snapshot: Snapshot) -> SetMeta:
        """Return what the run's folder remembers: no recipe, since none made these rows."""
        facts = {"dataset": self._kind.name_of(self._dataset)}
        if "output_fields" not in snapshot.meta:
            facts["output_fields"] = "\n".join(self._plan.output_fields)
        return SetMeta(facts)

    def _fresh(self, decided: _Decided) -> Iterator[Match]:
        """Yield what is for items without a row, and count all."""
        for match in self._matcher.matches():
            ending = decided.ending_of(match)
            self._matcher.account.add(
                ending, match.origin if ending == "unmatched" else "", "no image of the run"
            )
            if ending == "imported":
                yield match
            elif ending == "kept":
                self._advance(1)

    def _of(self, decided: _Decided) -> Iterator[Match]:
        return (
            match for match in self._matcher.matches() if decided.ending_of(match) == "replaced"
        )

    async def _commit(
        self,
        store: RunStore,
        snapshot: Snapshot,
        batch: Sequence[Match],
        readers: ThreadPoolExecutor,
    ) -> None:
        shard = batch[0].item.shard
        items = tuple(_position(match) for match in batch)
        if any(shard in of_stage for of_stage in snapshot.between.values()):
            await store.write(ForgetPartials({shard: items}))
        if not self._is_local:
            count = max(items[-1] + 1, snapshot.counts.get(shard, 0))
            await store.write(ListShard(shard, count, self._shards.facts[shard]))
            await store.write(RememberItems(shard, [_entry(match) for match in batch]))
        contents = await self._contents(batch, readers)
        rows = [
            Row(
                item,
                CAPTIONED,
                {name: match.texts.get(name, ()) for name in self._plan.output_fields},
                image_width=content.picture[0],
                image_height=content.picture[1],
                image_format=content.picture[2],
                file_size=content.size,
                content_hash=content.digest,
                models=self._plan.models,
            )
            for item, match, content in zip(items, batch, contents, strict=True)
        ]
        payload = encode_rows(rows, self._plan.output_fields)
        await store.write(
            CommitRows(
                shard,
                items[0],
                items,
                tuple(range(len(items))),
                payload,
                self._plan.output_fields,
                contributor="",
                worker=IMPORT_WORKER,
                # Which fields have texts is whoever's who brings them.
                optional_fields=frozenset(self._plan.output_fields),
            )
        )
        self._advance(len(batch))
        await self._checkpoint_if_due(store, len(batch), len(payload))

    async def _contents(
        self, batch: Sequence[Match], readers: ThreadPoolExecutor
    ) -> Sequence[_Content]:
        """Return what is in each item's file; of a folder's alone, since only these can change."""
        if not self._is_local or self._plan.measure is None:
            return [_Content()] * len(batch)
        root = os.fsencode(self._dataset.dataset_path)
        paths = [os.path.join(root, match.item.path or b"") for match in batch]  # noqa: PTH118
        loop = asyncio.get_running_loop()
        return await asyncio.gather(
            *(loop.run_in_executor(readers, _look_into, path, self._plan.measure) for path in paths)
        )

    async def _checkpoint_if_due(self, store: RunStore, rows: int, size: int) -> None:
        self._buffered += rows
        self._buffered_bytes += size
        if self._buffered >= _CHECKPOINT_ROWS or self._buffered_bytes >= _CHECKPOINT_BYTES:
            await store.checkpoint()
            self._buffered = self._buffered_bytes = 0


@dataclass(slots=True)
class _Decided:
    """What becomes of items that there are texts for: whether they have a row, and if it stays."""

    done: Mapping[str, RangeSet]
    replaced: dict[str, set[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: ImportPlan, matcher: Matcher, snapshot: Snapshot) -> _Decided:
        """Look at the rows there are, where any of them may not stay; blocking.

        A failure is no caption: it gives way to one. What a row that gives way has in other fields
        goes into the new one.
        """
        decided = cls({shard: RangeSet(ranges) for shard, ranges in snapshot.terminal.items()})
        overwrites = plan.existing == "overwrite"
        if not overwrites and all(kind == CAPTIONED for kind in snapshot.totals):
            return decided
        with closing(StorageReader(plan.config.storage.data_dir)) as reader:
            fields = reader.output_fields
            wanted = ["shard", "item_index", "status", *fields]
            for batch in reader.batches(None, wanted) if reader.columns else ():
                for row in batch.to_pylist():
                    if overwrites or row["status"] != CAPTIONED:
                        decided._look_at(row, fields, matcher)
        return decided

    def _look_at(self, row: Mapping[str, Any], fields: Sequence[str], matcher: Matcher) -> None:
        shard, position = row["shard"], row["item_index"]
        match = matcher.match_of(shard, position)
        if match is None:
            return
        stored = {name: row[name] for name in fields if row[name]}
        is_same = all(stored.get(name) == texts for name, texts in match.texts.items())
        if row["status"] != CAPTIONED or not is_same:
            self.replaced.setdefault(shard, set()).add(position)
            matcher.amend(match, {**stored, **match.texts})

    def ending_of(self, match: Match) -> str:
        """Return how a row ends, in the words of `Account`."""
        shard, position = match.item.shard, match.item.position
        if position is None:
            return "unmatched"
        if position in self.replaced.get(shard, ()):
            return "replaced"
        return "kept" if shard in self.done and position in self.done[shard] else "imported"


def _batches(matches: Iterable[Match]) -> Iterator[list[Match]]:
    """Yield matches of one shard together, in bounded numbers and bytes."""
    batch: list[Match] = []
    size = 0
    for match in matches:
        is_full = len(batch) >= _ROWS or size >= _TEXT_BYTES
        if batch and (is_full or match.item.shard != batch[0].item.shard):
            yield batch
            batch, size = [], 0
        batch.append(match)
        size += sum(len(text) for texts in match.texts.values() for text in texts)
    if batch:
        yield batch


def _position(match: Match) -> int:
    if match.item.position is None:
        raise ValueError(f"{match.origin} is for an item whose position is not known")
    return match.item.position


def _entry(match: Match) -> CatalogEntry:
    item = match.item
    return CatalogEntry(_position(match), item.path, key=item.key, url=item.url)


@dataclass(frozen=True, slots=True)
class _Content:
    """What a row tells of an item's file; nothing of one that is not looked at."""

    size: int | None = None
    digest: str | None = None
    picture: tuple[int | None, int | None, str | None] = (None, None, None)


def _look_into(path: bytes, measure: Measure) -> _Content:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  -- bytes
            digest, size = content_hash_of(file)
            file.seek(0)
            return _Content(size, digest, measure(file) or (None, None, None))
    except OSError:
        return _Content()  # as with a row that failed for it: whatever comes next is a change


async def _forget(_: Write) -> None:
    """Take what a run would keep."""
