"""`webdataset`: tars in a folder, or in a storage. Each is a shard; an image is one range of bytes.

Samples that are videos come last in a tar's order, so that they can be left out, or join later.

A tar is indexed once, and its index kept in the run's folder, so that a run that goes on opens no
tar before it describes items of it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import msgspec
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
from caption_flow.orchestrator.sources.tar_columns import all_columns, columns_of, said
from caption_flow.orchestrator.sources.tar_files import Tar, TarFacts, facts_of, find_tars
from caption_flow.orchestrator.sources.tar_index import Index, Member, Sample, TarError
from caption_flow.orchestrator.sources.tar_shelf import Shelf
from caption_flow.orchestrator.sources.wanted import asked_for, suggested
from caption_flow.places.objects import ObjectError
from caption_flow.protocol.places import FilePlace, ObjectPlace
from caption_flow.storage.opening import KnownShard, look

log = structlog.get_logger()

_AHEAD: Final = 4
"""Tars that are indexed at the same time, ahead of what is listed."""
_READERS: Final = 16
_EXAMPLES: Final = 5
_TRIED: Final = 3
"""So many of the first tars may be unreadable before that counts as a mistake in the settings."""
_SAMPLES_FOR_COLUMNS: Final = 64
"""So many of the first samples may lack a column that prompts name before it counts as one."""
_ONLY_VIDEOS: Final = (
    ", only videos, which are left out (--video-frames N, dataset.video, captions them)"
)


class _Facts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is remembered of a listed tar."""

    size: int
    version: str
    count: int
    digest: str
    trouble: str = ""
    """What of it cannot be read."""
    prompted: tuple[str, ...] = ()
    """Columns that prompts named and that its samples were found to have."""
    etag: str | None = None
    videos: int = 0
    """Samples behind those listed: videos that nobody asked for."""

    @property
    def tar(self) -> TarFacts:
        return TarFacts(self.size, self.version, self.etag)


class TarSource(Source):
    """The samples of tars, in their order; one without an image is an item that fails."""

    @classmethod
    def check(cls, dataset: DatasetConfig) -> None:
        """See the port: there are tars, and one of the first is within reach."""
        troubles = []
        for tar in find_tars(dataset)[:_TRIED]:
            try:
                facts_of(tar)
            except (ObjectError, OSError) as error:
                troubles.append(said(error))
            else:
                return
        raise SourceError(f"the dataset's first tar cannot be read: {troubles[0]}")

    @classmethod
    def open(cls, dataset: DatasetConfig, folder: RunFolder) -> Self:
        """See the port: tars that were listed before are still the same ones."""
        shelf = Shelf(folder.data_dir, dataset.metadata_path)
        source = cls(find_tars(dataset), shelf, folder, videos=dataset.video is not None)
        try:
            source._check_known()
            if source._columns:
                source._check_columns()
        except BaseException:
            source.close()
            raise
        return source

    @classmethod
    def check_same(cls, dataset: DatasetConfig, remembered: str, data_dir: Path) -> None:
        """See the port; a dataset that has moved has the same tars, half of them at least."""
        if remembered == cls.name_of(dataset):
            return
        if remembered.startswith("webdataset:"):
            known = set(look(data_dir).snapshot.shards)
            if 2 * len(known & {tar.name for tar in find_tars(dataset)}) >= len(known):
                return
        super().check_same(dataset, remembered, data_dir)

    def __init__(
        self, tars: Sequence[Tar], shelf: Shelf, folder: RunFolder, *, videos: bool = False
    ) -> None:
        self._tars = {tar.name: tar for tar in tars}
        self._shelf = shelf
        self._videos = videos
        self._columns = frozenset(folder.columns)
        self._only_reads = folder.only_reads
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="tars")
        self._facts = {name: _remembered(shard) for name, shard in folder.shards.items()}
        self._gone: set[str] = set(self._facts) - set(self._tars)
        self._mended: dict[str, frozenset[int]] = {}
        """Tars that were cut short and are longer now, with the item they were cut in."""
        self._seen_in: dict[str, tuple[str, ...]] = {}
        """The tar in which all columns that prompts name were seen, and those columns."""
        self._out_of_reach: dict[str, str] = {}
        """Tars that were listed before and cannot be looked at now, with the reason."""

    # ------------------------------------------------------------------ listing

    async def listing(self) -> AsyncIterator[Finding]:
        """Tell of known tars first, then index the others, a few at a time."""
        for finding in self._known_tars():
            yield finding
        for name in sorted(self._gone):
            yield await asyncio.to_thread(self._vanished, name)
        fresh = [tar for tar in self._tars.values() if tar.name not in self._facts]
        unread = 0
        loop = asyncio.get_running_loop()
        ahead = [loop.run_in_executor(self._pool, self._index, tar) for tar in fresh[:_AHEAD]]
        waiting = iter(fresh[_AHEAD:])
        try:
            for tar in fresh:
                found = await ahead.pop(0)
                following = next(waiting, None)
                if following is not None:
                    ahead.append(loop.run_in_executor(self._pool, self._index, following))
                if isinstance(found, _Facts):
                    self._facts[tar.name] = found
                    for finding in self._found(tar.name, found.trouble):
                        yield finding
                else:
                    unread += 1
                    yield PassedOver(tar.name, found)
        finally:
            for future in ahead:
                future.cancel()
        if not any(facts.count for facts in self._facts.values()):
            raise SourceError(
                "there is no sample in the dataset's tars"
                + (f" ({unread} could not be read, see above)" if unread else "")
                + (_ONLY_VIDEOS if self.videos_left_out else "")
            )

    def _known_tars(self) -> Iterator[Finding]:
        for name, facts in self._facts.copy().items():
            trouble = "" if name in self._gone else facts.trouble
            yield from self._found(name, self._out_of_reach.get(name, trouble))
            if name in self._mended:
                yield Changed(name, self._mended[name])

    def _found(self, name: str, trouble: str) -> Iterator[Finding]:
        """Say how many samples a tar has; its videos join them once they are asked for."""
        facts = self._facts[name]
        if self._videos and facts.videos:
            count = facts.count + facts.videos
            facts = self._facts[name] = msgspec.structs.replace(facts, count=count, videos=0)
        self.videos_left_out += facts.videos
        yield Listed(name, facts.count, msgspec.json.encode(facts).decode())
        if trouble:
            yield PassedOver(name, trouble, partly=True)

    def _index(self, tar: Tar) -> _Facts | str:
        """Index a tar; say why where that is impossible. Blocking."""
        try:
            facts = facts_of(tar)
            index = self._shelf.index(tar, facts)
        except TarError as error:
            return f"it {error}"
        except (ObjectError, OSError) as error:
            return said(error)
        _tell_of(tar, index)
        return _Facts(
            facts.size,
            facts.version,
            len(index.samples) - index.videos,
            index.digest,
            index.trouble,
            self._seen_in.get(tar.name, ()),
            facts.etag,
            index.videos,
        )

    def _check_columns(self) -> None:
        """Refuse columns that no sample of the first readable tar has; blocking.

        Without one that can be read, `listing` says what is wrong with each.
        """
        if any(self._columns.issubset(facts.prompted) for facts in self._facts.values()):
            return
        for tar in list(self._tars.values())[:_TRIED]:
            try:
                samples, there = self._first_columns(tar)
            except (TarError, ShardError, ObjectError, OSError):
                continue
            if there >= self._columns:
                self._remember_columns(tar.name)
                return
            if samples:
                raise SourceError(self._about_missing(there, tar.name, samples))

    def _first_columns(self, tar: Tar) -> tuple[int, set[str]]:
        """Return how many of a tar's first samples were looked at, and the columns they have."""
        facts = facts_of(tar)
        samples = self._shelf.index(tar, facts).samples[:_SAMPLES_FOR_COLUMNS]
        there: set[str] = set()
        for found in self._pool.map(partial(all_columns, tar, facts), samples):
            there |= found
            if there >= self._columns:
                break
        return len(samples), there

    def _remember_columns(self, name: str) -> None:
        seen = self._seen_in[name] = tuple(sorted(self._columns))
        if name in self._facts:
            self._facts[name] = msgspec.structs.replace(self._facts[name], prompted=seen)

    def _about_missing(self, there: set[str], tar: str, looked_at: int) -> str:
        missing = self._columns - there
        return (
            f"prompts ask for {asked_for(missing)}, and none of the first {looked_at} samples of "
            f"{tar} has that: columns are the keys of a sample's .json, and txt and cls"
            f"{suggested(missing, there)}"
        )

    def _check_known(self) -> None:
        """Refuse tars that were written again; learn which are gone. Blocking."""
        known = [tar for tar in self._tars.values() if tar.name in self._facts]
        for tar, found in zip(known, self._pool.map(self._compared, known), strict=True):
            if found is None:
                self._gone.add(tar.name)
            else:
                self._facts[tar.name] = found

    def _compared(self, tar: Tar) -> _Facts | None:
        """Return a listed tar's facts as they are now, None if it is gone."""
        try:
            return self._now(tar)
        except SourceError:
            if self._only_reads:  # another version is not the one listed, and nothing of it is read
                return self._facts[tar.name]
            raise

    def _now(self, tar: Tar) -> _Facts | None:
        """Return the same; raises `SourceError` if it cannot be told or is another tar."""
        known = self._facts[tar.name]
        try:
            now = facts_of(tar)
            if now == known.tar:
                return msgspec.structs.replace(known, etag=now.etag)
            index = self._shelf.index(tar, now)
        except FileNotFoundError:
            return None
        except ObjectError as error:
            if error.kind == "missing":
                return None
            # Whoever reads an image of it may have more luck, and takes no other version for it.
            self._out_of_reach[tar.name] = said(error)
            return known
        except (TarError, OSError) as error:
            raise SourceError(f"the tar {tar.name} cannot be read: {said(error)}") from error
        if index.digest != known.digest and self._is_mended(tar.name, known, index):
            self._mended[tar.name] = frozenset(range(max(0, known.count - 1), known.count))
            return msgspec.structs.replace(
                known,
                size=now.size,
                version=now.version,
                count=len(index.samples) - index.videos,
                videos=index.videos,
                digest=index.digest,
                trouble=index.trouble,
            )
        if index.digest != known.digest:
            raise SourceError(
                f"the tar {tar.name} has changed since it was listed ({known.size} bytes then, "
                f"{now.size} now), so that its captions would go to other images: put the old one "
                "back, give the new one another name, or caption into a new folder "
                "(--data-dir DIR, storage.data_dir)"
            )
        return msgspec.structs.replace(
            known, size=now.size, version=now.version, trouble=index.trouble, etag=now.etag
        )

    def _is_mended(self, name: str, known: _Facts, index: Index) -> bool:
        """Say whether a tar that was cut short is the same, and longer now; blocking."""
        before = self._shelf.kept(name, known.tar)
        if not known.trouble or before is None:
            return False
        whole = before.samples[:-1]  # the last one may have lacked members
        return (
            len(index.samples) >= len(before.samples)
            and index.samples[: len(whole)] == whole
            and all(
                old.key == new.key for old, new in zip(before.samples, index.samples, strict=False)
            )
        )

    def _vanished(self, name: str) -> Vanished:
        facts = self._facts[name]
        index = self._shelf.kept(name, facts.tar)
        samples = () if index is None else index.samples[:_EXAMPLES]
        return Vanished(name, facts.count, tuple(f"{name}/{one.key}" for one in samples) or (name,))

    # ------------------------------------------------------------------ describing

    def describe(self, shard: str, items: Sequence[int]) -> tuple[Item, ...]:
        """See the port; columns are read where they lie if prompts name any."""
        return self._describe(shard, items, with_columns=bool(self._columns))

    def locate(self, shard: str, item: int) -> Item | None:
        """See the port; no column is read."""
        return next(iter(self._describe(shard, [item], with_columns=False)), None)

    def _describe(
        self, shard: str, items: Sequence[int], *, with_columns: bool
    ) -> tuple[Item, ...]:
        facts = self._facts[shard]
        tar = None if shard in self._gone else self._tars.get(shard)
        index = self._shelf.kept(shard, facts.tar)
        if index is None and tar is not None:
            index = self._index_again(tar, facts)
        if index is None:
            return tuple(Item(at, None, reason=f"the tar {shard} is gone") for at in items)
        samples = [(at, index.samples[at]) for at in items if at < len(index.samples)]
        columns: Sequence[Mapping[str, Any] | None] = [None] * len(samples)
        if with_columns and tar is not None:
            try:
                columns = list(
                    self._pool.map(
                        lambda one: columns_of(tar, facts.tar, one[1], self._columns), samples
                    )
                )
            except ShardError as error:
                error.items = [_unreadable(at, shard, one, error) for at, one in samples]
                raise
        return tuple(
            _item(at, shard, sample, tar, facts=facts, columns=values)
            for (at, sample), values in zip(samples, columns, strict=True)
        )

    def _index_again(self, tar: Tar, facts: _Facts) -> Index | None:
        """Index a tar whose index is no longer kept, if it is still the same."""
        try:
            if facts_of(tar) != facts.tar:
                return None
            return self._shelf.index(tar, facts.tar)
        except (TarError, ObjectError, OSError) as error:
            log.warning("a tar can no longer be read", tar=tar.name, reason=said(error))
            return None

    def close(self) -> None:
        """See the port."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _remembered(shard: KnownShard) -> _Facts:
    return msgspec.json.decode(shard.facts, type=_Facts)


def _tell_of(tar: Tar, index: Index) -> None:
    for remark in index.remarks:
        log.warning("a tar is not as it might seem", tar=tar.name, remark=remark)
    without = sum(sample.image is None for sample in index.samples)
    if without:
        log.warning("samples have no image and will fail", tar=tar.name, samples=without)


def _item(
    at: int,
    shard: str,
    sample: Sample,
    tar: Tar | None,
    *,
    facts: _Facts,
    columns: Mapping[str, Any] | None,
) -> Item:
    key = f"{shard}/{sample.key}"
    if sample.image is None:
        there = sorted({one.suffix for one in sample.texts} | set(sample.others))
        reason = f"the sample {key} has no image, only {', '.join(there) or 'nothing'}"
        return Item(at, None, key, columns=columns, reason=reason)
    path = f"{shard}/{sample.image.name.removeprefix('./')}".encode()
    if tar is None:
        return Item(at, None, key, path, reason=f"the tar {shard} is gone")
    if sample.image.offset + sample.image.length > facts.size:
        return Item(at, None, key, path, reason=f"the tar {shard} ends within {sample.image.name}")
    place = _place(tar, facts, sample.image)
    return Item(at, place, key, path, columns=columns, is_video=sample.is_video)


def _place(tar: Tar, facts: _Facts, image: Member) -> FilePlace | ObjectPlace:
    if tar.is_remote:
        return ObjectPlace(tar.location, image.offset, image.length, facts.size, facts.etag)
    path = os.fsencode(tar.location)
    return FilePlace(path, facts.size, int(facts.version), image.offset, image.length)


def _unreadable(at: int, shard: str, sample: Sample, error: ShardError) -> Item:
    reason = f"the tar {shard} cannot be read: {error}"
    return Item(at, None, f"{shard}/{sample.key}", reason=reason, kind=UNREADABLE)
