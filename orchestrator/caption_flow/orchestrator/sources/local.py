"""`local_filesystem`: a folder of images, and of videos where they are asked for.

It has one shard, `default`, in which a file keeps its index.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar, Final, Self

import structlog

from caption_flow.config.dataset import DatasetConfig
from caption_flow.orchestrator.sources.base import (
    KEEP_APART,
    Changed,
    Finding,
    Item,
    Listed,
    RunFolder,
    Source,
    SourceError,
    Vanished,
)
from caption_flow.orchestrator.sources.local_columns import (
    check_columns,
    refuse_missing,
    sidecars_for,
    take,
)
from caption_flow.orchestrator.sources.metadata import was_made_for
from caption_flow.orchestrator.sources.scan import (
    FoundFile,
    ScanOptions,
    holds_item,
    is_video,
    scan,
)
from caption_flow.orchestrator.sources.sidecars import Sidecars
from caption_flow.protocol.identity import content_hash
from caption_flow.protocol.places import FilePlace
from caption_flow.storage.catalog import Catalog
from caption_flow.storage.exported import Exported, written_by
from caption_flow.storage.opening import look
from caption_flow.storage.schema import readable_path
from caption_flow.storage.writer import Write
from caption_flow.storage.writes import AppendItems, CatalogEntry, UpdateItems

log = structlog.get_logger()

SHARD: Final = "default"
_FIRST_BATCH: Final = 64
_BATCH: Final = 2000
_EXAMPLES: Final = 5
_SAMPLED: Final = 64


class LocalSource(Source):
    """Files below a folder, listed in order of their names; new ones are appended on each listing.

    ``skip`` names files that are left out although they are images, such as those that have a
    caption already; it is asked for each new file, with its path within the dataset.
    """

    catalogued: ClassVar[bool] = True

    @classmethod
    def check(cls, dataset: DatasetConfig) -> None:
        """See the port."""
        videos = dataset.video is not None
        check_folder(Path(dataset.dataset_path), scan_options(dataset), videos=videos)

    @classmethod
    def open(cls, dataset: DatasetConfig, folder: RunFolder) -> Self:
        """See the port."""
        known = folder.shards.get(SHARD)
        root, options = Path(dataset.dataset_path), scan_options(dataset)
        if known is not None and known.count and not was_made_for(folder.data_dir, folder.columns):
            # Prompts have changed. What is listed is handed out at once, so that it is looked at
            # now; a new run's `listing` does it on the way.
            check_columns(root, options, folder.columns, videos=dataset.video is not None)
        return cls(
            root,
            options,
            Catalog(folder.data_dir),
            folder.write,
            listed=0 if known is None else known.count,
            limit=folder.limit,
            skip=folder.skip,
            sidecars=sidecars_for(root, folder.columns, folder.data_dir),
            data_dir=folder.data_dir,
            videos=dataset.video is not None,
        )

    @classmethod
    def name_of(cls, dataset: DatasetConfig) -> str:
        """See the port."""
        return name_of_folder(Path(dataset.dataset_path))

    @classmethod
    def check_same(cls, dataset: DatasetConfig, remembered: str, data_dir: Path) -> None:
        """See the port."""
        if remembered != cls.name_of(dataset) and set(look(data_dir).snapshot.shards) - {SHARD}:
            super().check_same(dataset, remembered, data_dir)  # of another kind, with shards
        with closing(Catalog(data_dir)) as catalog:
            check_same_folder(Path(dataset.dataset_path), remembered, catalog, data_dir)

    def __init__(
        self,
        root: Path,
        options: ScanOptions,
        catalog: Catalog,
        write: Callable[[Write], Awaitable[None]],
        *,
        listed: int = 0,
        limit: int | None = None,
        skip: Callable[[bytes], bool] | None = None,
        sidecars: Sidecars | None = None,
        data_dir: Path | None = None,
        videos: bool = False,
    ) -> None:
        self._root = root.absolute()
        self._options = options
        self._catalog = catalog
        self._write = write
        self._listed = listed
        self._limit = limit
        self._skip = skip
        self._sidecars = sidecars
        self._data_dir = data_dir
        self._videos = videos
        self.left_out = 0
        self.videos_left_out = 0

    async def listing(self) -> AsyncIterator[Finding]:
        """Walk the folder: new files join the catalog, changed ones are told apart by content.

        Costs the walk and a look-up for each file; only files whose size or time differ from the
        catalog's are read.
        """
        files = scan(str(self._root), self._options)
        seen = bytearray(self._listed)
        size = _FIRST_BATCH
        is_new = not self._listed
        yield Listed(SHARD, self._listed)
        while self._limit is None or self._listed < self._limit:
            found = await asyncio.to_thread(take, files, size, self._sidecars)
            if is_new and size == _FIRST_BATCH and self._sidecars is not None:
                await asyncio.to_thread(
                    refuse_missing,
                    self._sidecars,
                    found,
                    files,
                    videos=self._videos,
                    skip=self._skip,
                )
            if not found:
                await asyncio.to_thread(self._look_for_metadata_without_image)
                yield await asyncio.to_thread(self._vanished, seen)
                return
            news = await asyncio.to_thread(self._compare, found, seen)
            if news.fresh:
                await self._write(AppendItems(SHARD, news.fresh))
                self._listed += len(news.fresh)
                yield Listed(SHARD, self._listed)
            if news.changed:
                yield Changed(SHARD, news.changed)
            if news.touched:
                # Last: until the rows are taken back, the old facts keep the change visible.
                await self._write(UpdateItems(SHARD, news.touched))
            size = _BATCH

    def describe(self, shard: str, items: Sequence[int]) -> tuple[Item, ...]:
        """See the port; paths are absolute, for workers that see the same files."""
        entries = self._catalog.entries(shard, items)
        if self._sidecars is not None and self._data_dir is not None:
            with written_by(self._data_dir) as earlier:
                entries = [self._with_columns(entry, self._sidecars, earlier) for entry in entries]
        return tuple(self._item(entry) for entry in entries)

    def locate(self, shard: str, item: int) -> Item | None:
        """See the port; nothing beside the image is read."""
        return next(map(self._item, self._catalog.entries(shard, [item])), None)

    def _item(self, entry: CatalogEntry) -> Item:
        return Item(
            entry.index,
            self._place_of(entry),
            path=entry.path,
            columns=entry.columns,
            is_video=is_video(entry.path or b""),
        )

    def _with_columns(
        self, entry: CatalogEntry, sidecars: Sidecars, earlier: Exported | None
    ) -> CatalogEntry:
        def is_ours(path: Path, content: bytes) -> bool:
            return earlier is not None and earlier.is_ours(path, content)

        if entry.path is None:
            return entry
        columns = sidecars.columns_of(entry.path, entry.columns, is_ours)
        return replace(entry, columns=columns)

    def _counts(self, file: FoundFile) -> bool:
        """Whether it is an image, or a video where they are asked for."""
        return self._videos or not file.is_video

    def _look_for_metadata_without_image(self) -> None:
        """Log how many of the images that metadata names are not in the run; blocking.

        Once for each version of a metadata file: a run that goes on need not look again.
        """
        if self._sidecars is None:
            return
        paths = self._sidecars.metadata.unchecked()
        gone, examples = 0, list[str]()
        while batch := list(islice(paths, _BATCH)):
            known = self._catalog.find(SHARD, batch)
            absent = [path for path in batch if path not in known]
            gone += len(absent)
            examples += [readable_path(path) for path in absent[: _EXAMPLES - len(examples)]]
        if gone:
            log.warning(
                "metadata names files that are not among the images", files=gone, such_as=examples
            )
        self._sidecars.metadata.checked()

    def _place_of(self, entry: CatalogEntry) -> FilePlace | None:
        if entry.path is None or entry.size is None or entry.mtime_ns is None:
            return None
        path = os.path.join(os.fsencode(self._root), entry.path)  # noqa: PTH118  -- bytes
        return FilePlace(path, entry.size, entry.mtime_ns)

    def close(self) -> None:
        """See the port."""
        self._catalog.close()
        if self._sidecars is not None:
            self._sidecars.close()

    def _compare(self, found: Sequence[FoundFile], seen: bytearray) -> _News:
        """Sort files into unknown, touched and changed ones; blocking. Marks known ones as seen."""
        known = self._catalog.find(SHARD, [file.path for file in found])
        news = _News()
        for file in found:
            entry = known.get(file.path)
            if entry is not None:
                index, size, mtime_ns = entry
                if index < len(seen):
                    seen[index] = 1
                is_touched = (size, mtime_ns) != (file.size, file.mtime_ns)
                if is_touched and self._counts(file):
                    news.touched.append(CatalogEntry(index, file.path, file.size, file.mtime_ns))
            elif not self._counts(file):
                self.videos_left_out += 1
            elif self._skip is not None and self._skip(file.path):
                self.left_out += 1
            elif self._limit is None or self._listed + len(news.fresh) < self._limit:
                index = self._listed + len(news.fresh)
                news.fresh.append(CatalogEntry(index, file.path, file.size, file.mtime_ns))
        if news.touched:
            news.changed = self._really_changed(news.touched)
        return news

    def _really_changed(self, touched: Sequence[CatalogEntry]) -> frozenset[int]:
        """Return those with a row, or on their way to one, that another content gave rise to."""
        hashes = self._catalog.content_hashes(SHARD, [entry.index for entry in touched])
        return frozenset(
            entry.index
            for entry in touched
            if entry.index in hashes and hashes[entry.index] != self._hash_of(entry)
        )

    def _hash_of(self, entry: CatalogEntry) -> str | None:
        try:
            return content_hash((self._root / os.fsdecode(entry.path or b"")).read_bytes())
        except OSError:
            return None  # then it differs, is tried again, and the row will say why it failed

    def _vanished(self, seen: bytearray) -> Vanished:
        gone = [index for index, there in enumerate(seen) if not there] if 0 in seen else []
        examples = self._catalog.entries(SHARD, gone[:_EXAMPLES])
        names = tuple(readable_path(entry.path or b"") for entry in examples)
        return Vanished(SHARD, len(gone), names)


@dataclass(slots=True)
class _News:
    """What a batch of files says beyond what the catalog knows."""

    fresh: list[CatalogEntry] = field(default_factory=list)
    touched: list[CatalogEntry] = field(default_factory=list)
    changed: frozenset[int] = frozenset()


def scan_options(dataset: DatasetConfig) -> ScanOptions:
    """Pick what concerns the walk through a folder."""
    return ScanOptions(
        recursive=dataset.recursive,
        follow_symlinks=dataset.follow_symlinks,
        include_hidden=dataset.include_hidden,
        include=tuple(dataset.include),
        exclude=tuple(dataset.exclude),
    )


def check_folder(root: Path, options: ScanOptions, *, videos: bool) -> None:
    """Raise `SourceError` unless there is an image, or a video if wanted, below ``root``."""
    if not root.exists():
        raise SourceError(f"there is no folder {root}{_nearest(root)}")
    if not root.is_dir():
        raise SourceError(f"{root} is a file, not a folder of images")
    if not os.access(root, os.R_OK | os.X_OK):
        raise SourceError(f"the folder {root} cannot be read: permission denied")
    if not holds_item(str(root), options, videos=videos):
        raise SourceError(_nothing_in(root, options))


def name_of_folder(root: Path) -> str:
    """Return what a run's folder remembers of the dataset it is about."""
    return readable_path(os.fsencode(root.absolute()))


def check_same_folder(root: Path, remembered: str | None, catalog: Catalog, data_dir: Path) -> None:
    """Raise `SourceError` if a run's folder is about other images than those below ``root``.

    A dataset that was moved is still the same: half of the files first listed are where they were
    within it. One at the remembered place is, whatever has become of its files.
    """
    if remembered in {None, name_of_folder(root)}:
        return
    listed = [entry for entry in catalog.entries(SHARD, range(_SAMPLED)) if entry.path is not None]
    there = sum(_size_of(root / os.fsdecode(entry.path or b"")) == entry.size for entry in listed)
    if 2 * there < len(listed):
        raise SourceError(
            f"{data_dir} holds the captions of {remembered}, and {root} is another dataset: "
            f"{KEEP_APART}"
        )


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None


def first_files(root: Path, options: ScanOptions) -> Iterator[FoundFile]:
    """Yield the images and videos of a folder in the order they would be captioned."""
    return scan(str(root.absolute()), options)


def _nearest(root: Path) -> str:
    parent = root.absolute()
    while not parent.exists():
        parent = parent.parent
    return f" ({parent} exists, what follows it does not)"


def _nothing_in(root: Path, options: ScanOptions) -> str:
    with os.scandir(root) as entries:
        if next(entries, None) is None:
            return f"the folder {root} is empty"
    hints = []
    if not options.recursive:
        hints.append("sub-folders are left out (recursive: false)")
    if not options.follow_symlinks and _has_links(root):
        hints.append("links are left out (follow_symlinks: false)")
    if options.include or options.exclude:
        hints.append("patterns leave files out (include, exclude)")
    if holds_item(str(root), options, videos=True):
        hints.append("videos are left out (--video-frames N, dataset.video, captions them)")
    hint = f"; {' and '.join(hints)}" if hints else ""
    return f"there is no image in {root} or below it{hint}"


def _has_links(root: Path) -> bool:
    return any(
        os.path.islink(os.path.join(folder, name))  # noqa: PTH114, PTH118  -- names of any bytes
        for folder, folders, files in os.walk(root)
        for name in (*folders, *files)
    )
