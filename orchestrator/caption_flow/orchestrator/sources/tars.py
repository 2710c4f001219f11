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
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import structlog

from caption_flow.config.dataset import DatasetConfig
from caption_flow.orchestrator.sources.base import (
    Finding,
    Item,
    Listed,
    RunFolder,
    Source,
    SourceError,
    Vanished,
)
from caption_flow.orchestrator.sources.tar_files import Tar, TarFacts, facts_of, find_tars
from caption_flow.orchestrator.sources.tar_index import Index, Member, Sample, TarError
from caption_flow.orchestrator.sources.tar_shelf import Shelf, read_member
from caption_flow.places.objects import ObjectError
from caption_flow.protocol.places import FilePlace, ObjectPlace
from caption_flow.storage.opening import KnownShard, look

log = structlog.get_logger()

_AHEAD: Final = 4
"""Tars that are indexed at the same time, ahead of what is listed."""
_READERS: Final = 16
_LARGEST_TEXT: Final = 2**20
_EXAMPLES: Final = 5
_ONLY_VIDEOS: Final = (
    ", only videos, which are left out (--video-frames N, dataset.video, captions them)"
)


class _Facts(msgspec.Struct, frozen=True):
    """What is remembered of a listed tar."""

    size: int
    version: str
    count: int
    digest: str
    videos: int = 0
    """Samples behind those listed: videos that nobody asked for."""

    @property
    def tar(self) -> TarFacts:
        return TarFacts(self.size, self.version)


class TarSource(Source):
    """The samples of tars, in their order; one without an image is an item that fails."""

    @classmethod
    def check(cls, dataset: DatasetConfig) -> None:
        """See the port: there are tars, and the first can be read."""
        tars = find_tars(dataset)
        try:
            facts_of(tars[0])
        except (ObjectError, OSError) as error:
            raise SourceError(f"the dataset's first tar cannot be read: {_said(error)}") from error

    @classmethod
    def open(cls, dataset: DatasetConfig, folder: RunFolder) -> Self:
        """See the port: tars that were listed before are still the same ones."""
        shelf = Shelf(folder.data_dir, dataset.metadata_path)
        source = cls(find_tars(dataset), shelf, folder, videos=dataset.video is not None)
        try:
            source._check_known()
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
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="tars")
        self._facts = {name: _remembered(shard) for name, shard in folder.shards.items()}
        self._gone: set[str] = set(self._facts) - set(self._tars)

    # ------------------------------------------------------------------ listing

    async def listing(self) -> AsyncIterator[Finding]:
        """Tell of known tars first, then index the others, a few at a time."""
        for name in list(self._facts):
            yield self._listed(name)
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
                    yield self._listed(tar.name)
                else:
                    unread += 1
                    log.error("a tar is passed over", tar=tar.name, reason=found)
        finally:
            for future in ahead:
                future.cancel()
        if not any(facts.count for facts in self._facts.values()):
            raise SourceError(
                "there is no sample in the dataset's tars"
                + (f" ({unread} could not be read, see above)" if unread else "")
                + (_ONLY_VIDEOS if self.videos_left_out else "")
            )

    def _listed(self, name: str) -> Listed:
        """Say how many samples a tar has; its videos join them once they are asked for."""
        facts = self._facts[name]
        if self._videos and facts.videos:
            count = facts.count + facts.videos
            facts = self._facts[name] = msgspec.structs.replace(facts, count=count, videos=0)
        self.videos_left_out += facts.videos
        return Listed(name, facts.count, msgspec.json.encode(facts).decode())

    def _index(self, tar: Tar) -> _Facts | str:
        """Index a tar; say why where that is impossible. Blocking."""
        try:
            facts = facts_of(tar)
            index = self._shelf.index(tar, facts)
        except TarError as error:
            return f"it {error}"
        except (ObjectError, OSError) as error:
            return _said(error)
        _tell_of(tar, index)
        videos = index.videos
        count = len(index.samples) - videos
        return _Facts(facts.size, facts.version, count, index.digest, videos)

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
        known = self._facts[tar.name]
        try:
            now = facts_of(tar)
            if now == known.tar:
                return known
            index = self._shelf.index(tar, now)
        except FileNotFoundError:
            return None
        except ObjectError as error:
            if error.kind == "missing":
                return None
            raise SourceError(f"the tar {tar.name} cannot be read: {error}") from error
        except (TarError, OSError) as error:
            raise SourceError(f"the tar {tar.name} cannot be read: {_said(error)}") from error
        if index.digest != known.digest:
            raise SourceError(
                f"the tar {tar.name} has changed since it was listed ({known.size} bytes then, "
                f"{now.size} now), so that its captions would go to other images: put the old one "
                "back, give the new one another name, or caption into a new folder "
                "(--data-dir DIR, storage.data_dir)"
            )
        return msgspec.structs.replace(known, size=now.size, version=now.version)

    def _vanished(self, name: str) -> Vanished:
        facts = self._facts[name]
        index = self._shelf.kept(name, facts.tar)
        samples = () if index is None else index.samples[:_EXAMPLES]
        return Vanished(name, facts.count, tuple(f"{name}/{one.key}" for one in samples) or (name,))

    # ------------------------------------------------------------------ describing

    def describe(self, shard: str, items: Sequence[int]) -> tuple[Item, ...]:
        """See the port; columns are read where they lie if prompts name any."""
        facts = self._facts[shard]
        tar = None if shard in self._gone else self._tars.get(shard)
        index = self._shelf.kept(shard, facts.tar)
        if index is None and tar is not None:
            index = self._index_again(tar, facts)
        if index is None:
            return tuple(Item(at, None, reason=f"the tar {shard} is gone") for at in items)
        samples = [(at, index.samples[at]) for at in items if at < len(index.samples)]
        columns: Iterator[Mapping[str, Any] | None] = iter([None] * len(samples))
        if self._columns and tar is not None:
            columns = self._pool.map(lambda one: self._columns_of(tar, one[1]), samples)
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
            log.warning("a tar can no longer be read", tar=tar.name, reason=_said(error))
            return None

    def _columns_of(self, tar: Tar, sample: Sample) -> dict[str, Any]:
        """Return those of a sample's columns that prompts name and that can be read."""
        found: dict[str, Any] = {}
        json_last = sorted(sample.texts, key=lambda member: member.suffix == "json")
        for member in json_last:
            is_json = member.suffix.rpartition(".")[2] == "json"
            if is_json and self._columns <= found.keys():
                continue
            if not is_json and member.suffix not in self._columns:
                continue
            try:
                values = _values_of(member, read_member(tar, member), is_json=is_json)
            except (ObjectError, OSError, ValueError) as error:
                log.warning("a column cannot be read", file=member.name, reason=_said(error))
                continue
            for name, value in values.items():
                if name in self._columns:
                    found.setdefault(name, value)
        return found

    def close(self) -> None:
        """See the port."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _remembered(shard: KnownShard) -> _Facts:
    return msgspec.json.decode(shard.facts, type=_Facts)


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _tell_of(tar: Tar, index: Index) -> None:
    if index.trouble:
        log.warning("a tar is not whole", tar=tar.name, trouble=index.trouble)
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
        return ObjectPlace(tar.location, image.offset, image.length, facts.size)
    path = os.fsencode(tar.location)
    return FilePlace(path, facts.size, int(facts.version), image.offset, image.length)


def _values_of(member: Member, data: bytes, *, is_json: bool) -> dict[str, Any]:
    """Return the columns in a member. Raises ValueError where it is not what its suffix says."""
    if len(data) > _LARGEST_TEXT:
        raise ValueError(f"it is larger than {_LARGEST_TEXT} bytes")
    text = data.decode(errors="replace").strip()
    if not is_json:
        return {member.suffix: text}
    try:
        values = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from error
    return dict(values) if isinstance(values, dict) else {member.suffix: values}
