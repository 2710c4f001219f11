"""What is in a tar, sample by sample, and where in it: read once, then kept in a compact file.

A sample is what has the same path up to the first dot of its last part: its key. WebDataset wants
such members to follow each other; where they do not they are taken together all the same, so that a
key is one sample's. Of members of one name the last counts, as when the tar is unpacked. Blocking;
knows nothing of where a tar lies.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import IO, Any, Final, cast

import msgspec

from caption_flow.orchestrator.sources.scan import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from caption_flow.storage.schema import readable_path

_TEXT_SUFFIXES: Final = frozenset({"json", "txt", "cls"})
_IMAGE_SUFFIXES: Final = frozenset(suffix.decode().removeprefix(".") for suffix in IMAGE_SUFFIXES)
_VIDEO_SUFFIXES: Final = frozenset(suffix.decode().removeprefix(".") for suffix in VIDEO_SUFFIXES)
_META: Final = re.compile(r"__[^/]*__($|/)")
"""Members that describe the whole tar, which WebDataset passes over."""
_MAGIC: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_BLOCK: Final = 512


class TarError(Exception):
    """A tar cannot be read as one; half a sentence that says why."""


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A file in a tar: ``suffix`` is what follows the first dot of its name, in lower case."""

    name: str
    suffix: str
    offset: int
    length: int


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One item: its image, or else its video, or None, and the members that give columns.

    ``others`` are the suffixes of all else.
    """

    key: str
    image: Member | None
    texts: tuple[Member, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def is_video(self) -> bool:
        """Whether it has a video and no image."""
        return self.image is not None and _is_video(self.image)


class Index(msgspec.Struct, frozen=True, array_like=True):
    """The samples of a tar of ``size`` bytes, in its order, but those that are videos last.

    So a run that captions videos later finds all others where they were. ``trouble`` says what of
    the tar could not be read, or is empty; ``remarks`` what people may not expect of what could.
    """

    size: int
    samples: tuple[Sample, ...]
    trouble: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def videos(self) -> int:
        """How many samples are videos."""
        return sum(sample.is_video for sample in self.samples)

    @property
    def digest(self) -> str:
        """Tell two layouts apart: other names, places or lengths are another digest."""
        layout = msgspec.msgpack.encode((self.size, self.samples, self.trouble))
        return blake2b(layout, digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    offset: int
    length: int


def index_tar(file: IO[bytes], size: int) -> Index:
    """Read the headers of a tar of ``size`` bytes in one pass.

    What can no longer be read after a damaged place is left out, and said in ``trouble``.

    Raises:
        TarError: it is none, or is compressed.
        OSError: reading fails.
    """
    head = file.read(_BLOCK)
    file.seek(0)
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            raise TarError(f"is compressed ({name}): single images in it cannot be read, unpack it")
    if not head:
        raise TarError("is empty")
    troubles: list[str] = []
    samples, remarks = _samples(_entries(file, size, troubles), size)
    return Index(size, _videos_last(samples), "; ".join(troubles), remarks)


def _videos_last(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda sample: sample.is_video))


def _entries(file: IO[bytes], size: int, troubles: list[str]) -> Iterator[_Entry]:
    """Yield the files of a tar; one that is cut short is the last."""
    try:
        tar = tarfile.open(fileobj=file, mode="r:", errors="surrogateescape")  # noqa: SIM115
    except tarfile.TarError as error:
        raise TarError(f"is no tar: {error}") from error
    sparse = 0
    try:
        while (member := tar.next()) is not None:
            cast("Any", tar).members.clear()  # it keeps every one otherwise
            if member.issparse():
                sparse += 1
            elif member.isreg():
                yield _Entry(member.name, member.offset_data, member.size)
    except tarfile.TarError:
        pass  # what it means is told by where it stopped
    if sparse:
        troubles.append(f"{sparse} sparse files in it cannot be read")
    end = _trouble_at(file, tar.offset, size)
    if end:
        troubles.append(end)


def _trouble_at(file: IO[bytes], offset: int, size: int) -> str:
    """Say what is wrong with the place where a tar's members end; nothing if it is the end."""
    if offset > size:
        return f"it is cut short: it has {size} bytes and its last file would end later"
    file.seek(offset)
    block = file.read(_BLOCK)
    if not block.strip(b"\0"):
        return ""
    if len(block) < _BLOCK:
        return f"it is cut short at byte {offset}"
    return f"it is damaged at byte {offset}: what follows is not read"


def _samples(entries: Iterable[_Entry], size: int) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Return the samples, in the order in which they begin, and what is to be said of them."""
    groups: dict[str, list[Member]] = {}
    names: set[str] = set()
    scattered: set[str] = set()
    replaced, last = 0, None
    for entry in entries:
        found = _split(entry.name)
        if found is None:
            continue
        key, suffix = found
        members = groups.setdefault(key, [])
        member = Member(_readable(entry.name), suffix, entry.offset, entry.length)
        name = entry.name.removeprefix("./")
        if name in names:
            replaced += 1
            _replace(members, member)
        else:
            if members and key != last:
                scattered.add(key)
            names.add(name)
            members.append(member)
        last = key
    samples = tuple(_sample(key, members, size) for key, members in groups.items())
    return samples, tuple(_remarks(replaced, len(scattered), samples))


def _replace(members: list[Member], member: Member) -> None:
    """Put a member where the earlier one of its name is, as unpacking the tar would."""
    names = [one.name.removeprefix("./") for one in members]
    at = names.index(member.name.removeprefix("./"))
    members[at] = member


def _remarks(replaced: int, scattered: int, samples: tuple[Sample, ...]) -> Iterator[str]:
    if replaced:
        yield f"files passed over, since a later one has the same name: {replaced}"
    if scattered:
        yield f"samples whose files do not follow each other, taken together: {scattered}"
    second = sum(_is_image(suffix) for one in samples if one.image for suffix in one.others)
    if second:
        yield f"images not captioned, since another of their sample comes first: {second}"


def _split(name: str) -> tuple[str, str] | None:
    """Return key and suffix of a member; None if it belongs to no sample."""
    name = name.removeprefix("./")
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    if not stem or not dot or _META.match(name):
        return None
    return folder + slash + stem, suffix.lower()


def _sample(key: str, members: list[Member], size: int) -> Sample:
    images = [one for one in members if _is_image(one.suffix)]
    videos = [one for one in members if _is_video(one)]
    image = next(iter(images or videos), None)
    texts, others = [], []
    for member in members:
        last = member.suffix.rpartition(".")[2]
        if member is image:
            continue
        if last in _TEXT_SUFFIXES and member.offset + member.length <= size:
            texts.append(member)
        else:
            others.append(member.suffix)
    return Sample(_readable(key), image, tuple(texts), tuple(others))


def _is_image(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in _IMAGE_SUFFIXES


def _is_video(member: Member) -> bool:
    return member.suffix.rpartition(".")[2] in _VIDEO_SUFFIXES


def _readable(name: str) -> str:
    return readable_path(os.fsencode(name))


def index_from_webshart(data: bytes, size: int) -> Index:
    """Take an index from webshart's JSON about a tar of ``size`` bytes.

    ``{"filesize": N, "files": {"name.jpg": {"offset": N, "length": N, ...}, ...}, ...}``, with
    offsets of the data, not of headers.

    Raises:
        TarError: it is no such JSON, or about another tar.
    """
    try:
        found = cast("dict[str, Any]", msgspec.json.decode(data))
        files = found["files"]
        named = found.get("filesize", size)
        entries = [
            _Entry(str(name), int(facts["offset"]), int(facts["length"]))
            for name, facts in files.items()
        ]
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise TarError(f"is no webshart index: {error!r}") from error
    if named != size:
        raise TarError(f"is about a tar of {named} bytes")
    entries.sort(key=lambda entry: entry.offset)
    if any(entry.offset < 0 or entry.length < 0 for entry in entries) or (
        entries and entries[-1].offset + entries[-1].length > size
    ):
        raise TarError("names files beyond the tar's end")
    samples, remarks = _samples(entries, size)
    return Index(size, _videos_last(samples), remarks=remarks)
