"""The indexes of a run's tars: made or taken from webshart's, kept on disk, a few in memory."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from hashlib import blake2b
from pathlib import Path
from typing import IO, Final, cast

import msgspec
import structlog

from caption_flow.orchestrator.sources.tar_files import Tar, TarFacts
from caption_flow.orchestrator.sources.tar_index import (
    Index,
    Member,
    TarError,
    index_from_webshart,
    index_tar,
)
from caption_flow.places.objects import OBJECTS, ObjectError

log = structlog.get_logger()

FOLDER: Final = "indexes"
_SAMPLES_IN_MEMORY: Final = 200_000
_BLOCK: Final = 4 * 2**20
_SMALL_BLOCK: Final = 64 * 2**10


class Shelf:
    """Indexes by tar and version; callable from any thread.

    In memory are as many of the last used as have ``_SAMPLES_IN_MEMORY`` samples together, at least
    one.
    """

    def __init__(self, data_dir: Path, metadata: Path | None) -> None:
        self._folder = data_dir / FOLDER
        self._metadata = metadata
        self._memory: OrderedDict[str, Index] = OrderedDict()
        self._lock = threading.Lock()

    def kept(self, name: str, facts: TarFacts) -> Index | None:
        """Return the index of a tar if it is kept."""
        key = blake2b(f"{name}\n{facts.text}".encode(errors="surrogateescape"), digest_size=16)
        digest = key.hexdigest()
        with self._lock:
            found = self._memory.get(digest)
            if found is not None:
                self._memory.move_to_end(digest)
                return found
        try:
            data = (self._folder / f"{digest}.msgpack").read_bytes()
            found = msgspec.msgpack.decode(data, type=Index)
        except (OSError, msgspec.MsgspecError):
            return None  # it is made again
        self._remember(digest, found)
        return found

    def index(self, tar: Tar, facts: TarFacts) -> Index:
        """Return the index of a tar, made if there is none.

        Raises:
            TarError: it is no tar that can be read.
            ObjectError, OSError: it cannot be reached.
        """
        found = self.kept(tar.name, facts)
        if found is not None:
            return found
        found = self._from_webshart(tar, facts.size) or _index_of(tar, facts)
        self._keep(tar.name, facts, found)
        return found

    def _keep(self, name: str, facts: TarFacts, index: Index) -> None:
        key = blake2b(f"{name}\n{facts.text}".encode(errors="surrogateescape"), digest_size=16)
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{key.hexdigest()}.msgpack"
        written = path.with_suffix(".new")
        written.write_bytes(msgspec.msgpack.encode(index))
        written.replace(path)
        self._remember(key.hexdigest(), index)

    def _remember(self, digest: str, index: Index) -> None:
        with self._lock:
            self._memory[digest] = index
            total = sum(len(one.samples) for one in self._memory.values())
            while total > _SAMPLES_IN_MEMORY and len(self._memory) > 1:
                _, dropped = self._memory.popitem(last=False)
                total -= len(dropped.samples)

    def _from_webshart(self, tar: Tar, size: int) -> Index | None:
        for source, data in self._webshart_files(tar):
            try:
                return index_from_webshart(data, size)
            except TarError as error:
                log.info("an index is not used", file=source, reason=f"it {error}")
        return None

    def _webshart_files(self, tar: Tar) -> list[tuple[str, bytes]]:
        """Return the JSON files there are about a tar, with where they are."""
        name = Path(tar.name).with_suffix(".json")
        paths = []
        if self._metadata is not None:
            folder = self._metadata
            paths = [folder / name, folder / name.name] if folder.is_dir() else [folder]
        if not tar.is_remote:
            paths.append(Path(tar.location).with_suffix(".json"))
        found = [(str(path), path.read_bytes()) for path in paths if path.is_file()]
        if not found and tar.is_remote:
            url = tar.location.removesuffix(".tar") + ".json"
            try:
                found = [(url, OBJECTS.read(url))] if tar.location.endswith(".tar") else []
            except ObjectError:
                return []  # most have none, and whoever refuses says so of the tar itself
        return found


def read_member(tar: Tar, facts: TarFacts, member: Member) -> bytes:
    """Return a member's bytes if the tar is still the same. Raises `ObjectError` or `OSError`."""
    if tar.is_remote:
        size, etag = facts.size, facts.etag
        return OBJECTS.read(tar.location, member.offset, member.length, size=size, etag=etag)
    with Path(tar.location).open("rb") as file:
        status = os.fstat(file.fileno())
        if TarFacts(status.st_size, str(status.st_mtime_ns)) != facts:
            raise ObjectError("changed", "the tar has changed since it was listed")
        return os.pread(file.fileno(), member.length, member.offset)


def _index_of(tar: Tar, facts: TarFacts) -> Index:
    if not tar.is_remote:
        with Path(tar.location).open("rb") as file:
            return index_tar(file, facts.size)
    return index_tar(cast("IO[bytes]", _Blocks(tar.location, facts)), facts.size)


class _Blocks(io.RawIOBase):
    """An object read in blocks: large ones where reads follow each other, small ones elsewhere."""

    def __init__(self, url: str, facts: TarFacts) -> None:
        self._url = url
        self._size = facts.size
        self._etag = facts.etag
        self._at = 0
        self._start = 0
        self._block = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._at + size, self._size)
        parts = []
        while self._at < stop:
            end = self._start + len(self._block)
            if not self._start <= self._at < end:
                self._fetch(end)
                continue
            part = self._block[self._at - self._start : stop - self._start]
            parts.append(part)
            self._at += len(part)
        return b"".join(parts)

    def _fetch(self, end: int) -> None:
        is_near = 0 <= self._at - end < _BLOCK
        length = min(_BLOCK if is_near else _SMALL_BLOCK, self._size - self._at)
        self._block = OBJECTS.read(self._url, self._at, length, size=self._size, etag=self._etag)
        self._start = self._at
