"""New tars of images and their texts, as the ``webdataset`` package and trainers read them.

A sample is ``KEY.jpg`` (the image's bytes as they are in the dataset, with the suffix of what they
are), ``KEY.json`` (columns) and ``KEY.txt`` (texts, one a line, as the txt format has them).

Which samples a tar has, and how large it gets, follows from the rows alone, before any image is
read: a tar that is whole needs no image again, and one that lacks an image has no other in its
place. Rows come in the order in which they were captioned, and new ones only at the end; within a
tar samples have the dataset's order, which is the cheapest to read.

Images come from a port, `Images`. One that is no longer the one that was captioned is left out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

from caption_flow.protocol.identity import content_hash
from caption_flow.protocol.rows import FAILED
from caption_flow.storage.contents import Row, StorageContents
from caption_flow.storage.exporter.captioned import Listing
from caption_flow.storage.exporter.claims import Claim, Claims
from caption_flow.storage.exporter.encoding import json_bytes
from caption_flow.storage.exporter.errors import ExportError, naming
from caption_flow.storage.exporter.names import name_for_people
from caption_flow.storage.exporter.report import ExportReport, Skip
from caption_flow.storage.exporter.tar_file import (
    member_bytes,
    member_names,
    remove_halves,
    write_tar,
)
from caption_flow.storage.exporter.tar_manifest import Manifest, TarFacts, alone_in
from caption_flow.storage.exporter.tar_names import (
    image_suffix,
    key_beside,
    key_of_file,
    sample_key,
)

Existing = Literal["overwrite", "skip"]

_FORM: Final = b"1"
"""Goes into each plan: another release that writes samples otherwise writes all tars anew."""
_OF_THE_RUN: Final = frozenset(
    {"chunk_id", "item_index", "filename_raw", "image_scaled_to", "status", "error_kind", "error"}
    | {"stage_stats", "contributor", "worker", "committed_at"}
)
"""Columns that say how a row came about: none of a trainer's business, and some name people."""
_ALWAYS_READ: Final = (
    *("item_key", "shard", "item_index", "filename", "url"),
    *("image_format", "file_size", "content_hash", "status"),
)
_MOST_IN_A_ROW: Final = 100
"""So many images that are out of reach for the moment: it is the dataset that is."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image: its place in the dataset, its size in bytes and content hash where known."""

    shard: str
    item_index: int
    size: int | None
    content_hash: str | None
    name: str
    """For people."""


@dataclass(frozen=True, slots=True)
class Unread:
    """An image that could not be read, and why.

    ``is_passing`` if it may well be later, ``is_changed`` if what is there is another version.
    """

    reason: str
    is_passing: bool = False
    is_changed: bool = False


class Images(Protocol):
    """The port: a dataset's images."""

    def read(self, wanted: Sequence[Wanted], /) -> Iterator[bytes | Unread]:
        """Yield the bytes of each, in this order; what is read ahead is bounded in bytes."""
        ...


@dataclass(frozen=True, slots=True)
class TarLimits:
    """How large a tar gets: at most so many samples, and bytes unless one sample alone has more."""

    samples: int = 10_000
    bytes: int = 2**30


@dataclass(frozen=True, slots=True)
class _Sample:
    key: str
    suffix: str
    image: Wanted
    json: bytes
    text: bytes

    @property
    def names(self) -> tuple[str, str, str]:
        return f"{self.key}.{self.suffix}", f"{self.key}.json", f"{self.key}.txt"

    @property
    def bytes(self) -> int:
        sizes = (self.image.size or 0, len(self.json), len(self.text))
        return sum(member_bytes(*member) for member in zip(self.names, sizes, strict=True))


def export_webdataset(
    contents: StorageContents,
    output_dir: Path,
    images: Images,
    listing: Listing | None = None,
    *,
    name: str = "default",
    limits: TarLimits | None = None,
    columns: Sequence[str] = (),
    existing: Existing = "overwrite",
    watch: Callable[[int], None] = lambda _: None,
) -> ExportReport:
    """Write each captioned item into ``NAME-000000.tar`` and so on in ``output_dir``.

    ``columns`` go into each sample's JSON; none stands for all that say something of the image.
    ``watch`` hears how many more rows have been dealt with. Tars that are as they should be are
    left alone (``unchanged`` counts their samples), others of earlier exports are replaced or
    removed; with ``existing`` ``skip`` none is touched. An export that was interrupted goes on at
    the first tar that is not whole. Images that cannot be had are counted, and tried again by the
    next export.

    Raises:
        ExportError: no such column, nothing to export, a tar in the way that no export wrote, one
            that cannot be written, or too many images in a row that are out of reach; the tars
            before it are whole.
    """
    listing = listing or Listing()
    listing.check(contents)
    report = ExportReport(output_dir)
    told = columns or [one for one in contents.columns if one not in _OF_THE_RUN]
    with alone_in(output_dir):
        remove_halves(output_dir, name)
        tars = _Tars(output_dir, name, images, existing, report, watch)
        planner = _Planner(contents, listing, told, limits or TarLimits(), report, watch)
        for samples in planner.tars():
            tars.add(samples)
        tars.remove_others()
    return report


# --------------------------------------------------------------------------- which samples


@dataclass(slots=True)
class _Planner:
    contents: StorageContents
    listing: Listing
    told: Sequence[str]
    limits: TarLimits
    report: ExportReport
    watch: Callable[[int], None]

    def tars(self) -> Iterator[list[_Sample]]:
        """Yield the samples of one tar after the other."""
        gathered: list[_Sample] = []
        gathered_bytes = 0
        for sample in self._samples():
            is_full = len(gathered) == self.limits.samples
            if gathered and (is_full or gathered_bytes + sample.bytes > self.limits.bytes):
                yield _in_order(gathered)
                gathered, gathered_bytes = [], 0
            gathered.append(sample)
            gathered_bytes += sample.bytes
        if gathered:
            yield _in_order(gathered)

    def _samples(self) -> Iterator[_Sample]:
        claims = Claims(self._claims)
        read = dict.fromkeys(
            (*_ALWAYS_READ, self.listing.filename_column, *self.listing.wording.reads, *self.told)
        )
        for row, lines in self._captioned(tuple(read), self.report, self.watch):
            claim = _claim(row, self.listing.filename_column)
            key = claim.target
            if claims.take(claim) is not None:
                key = key_beside(key, claim.item_key)
            yield self._sample(row, lines, key)

    def _claims(self) -> Iterator[Claim]:
        columns = ("item_key", "status", self.listing.filename_column, *self.listing.wording.reads)
        # What the report counts is counted when it is written.
        for row, _ in self._captioned(tuple(dict.fromkeys(columns)), ExportReport(Path())):
            yield _claim(row, self.listing.filename_column)

    def _captioned(
        self,
        columns: tuple[str, ...],
        report: ExportReport,
        watch: Callable[[int], None] = lambda _: None,
    ) -> Iterator[tuple[Row, list[str]]]:
        for row in self.contents.iter_rows(columns):
            lines = [] if row["status"] == FAILED else self.listing.wording.lines(row)
            if row["status"] != FAILED and (lines or self.listing.include_empty):
                yield row, lines
                continue
            report.skip(Skip.FAILED if row["status"] == FAILED else Skip.EMPTY)
            watch(1)

    def _sample(self, row: Row, lines: list[str], key: str) -> _Sample:
        item_key, name = str(row["item_key"]), row["filename"]
        return _Sample(
            key,
            image_suffix(row["image_format"], name or row["url"]),
            Wanted(
                str(row["shard"]),
                int(row["item_index"]),
                row["file_size"],
                row["content_hash"],
                name_for_people(name or item_key),
            ),
            json_bytes({column: row[column] for column in self.told}),
            "\n".join(lines).encode("utf-8", "backslashreplace"),
        )


def _claim(row: Row, filename_column: str) -> Claim:
    name, item_key = row[filename_column], str(row["item_key"])
    is_file = isinstance(name, str) and bool(name)
    key = key_of_file(name) if is_file else sample_key(item_key)
    return Claim(item_key, key, name if is_file else item_key)


def _in_order(samples: list[_Sample]) -> list[_Sample]:
    return sorted(samples, key=lambda one: (one.image.shard, one.image.item_index, one.key))


def _plan_of(samples: Sequence[_Sample]) -> str:
    digest = hashlib.blake2b(_FORM, digest_size=16)
    for one in samples:
        facts = (one.names[0], one.image.size, one.image.content_hash, one.json, one.text)
        digest.update(msgspec.msgpack.encode(facts))
    return digest.hexdigest()


# --------------------------------------------------------------------------- their tars


@dataclass(slots=True)
class _Tars:
    folder: Path
    name: str
    images: Images
    existing: Existing
    report: ExportReport
    watch: Callable[[int], None]
    _manifest: Manifest = field(init=False)
    _files: set[str] = field(init=False, default_factory=set)
    _passing: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._manifest = Manifest(self.folder / f"{self.name}.tars.json")

    def add(self, samples: Sequence[_Sample]) -> None:
        """Write the next tar, unless it is whole."""
        file = f"{self.name}-{len(self._files):06d}.tar"
        self._files.add(file)
        path = self.folder / file
        known = self._manifest.get(file)
        size = _size_of(path)
        plan = _plan_of(samples)
        if self.existing == "skip" and size is not None:
            self.report.skipped[Skip.EXISTING] += len(samples)
            self.watch(len(samples))
        elif known is not None and (known.plan, known.bytes) == (plan, size):
            self._look_again(path, samples, known)
        elif known is None and size is not None:
            raise ExportError(
                f"{name_for_people(str(path))} is there, and no export of ours wrote it: choose "
                "another folder (--output), or move it away"
            )
        else:
            self._write(path, samples, plan)

    def remove_others(self) -> None:
        """Remove the tars that earlier exports wrote and that are no part of this one."""
        if self.existing == "skip":
            return
        others = self._manifest.others(self._files)
        for file in others:
            with naming(self.folder / file):
                (self.folder / file).unlink(missing_ok=True)
            self._manifest.forget(file)
        if others:
            count = "1 tar" if len(others) == 1 else f"{len(others):,} tars"
            self.report.problems.append(
                f"{count} of an earlier export removed, from {others[0]} on: not part of this one"
            )

    def _look_again(self, path: Path, samples: Sequence[_Sample], known: TarFacts) -> None:
        """Leave a tar alone that is whole, or lacks only images that still cannot be had."""
        lacking: list[_Sample] = []
        if known.left_out:
            there = member_names(path)
            lacking = [one for one in samples if one.names[0] not in there]
        troubles = Counter[Skip]()
        for sample, found in self._read(lacking):
            if isinstance(found, bytes):
                self._write(path, samples, known.plan)
                return
            troubles[found[0]] += 1
            self._say(sample, found)
        self.report.skipped.update(troubles)
        self.report.unchanged += known.samples
        self.watch(len(samples))

    def _write(self, path: Path, samples: Sequence[_Sample], plan: str) -> None:
        self._manifest.set(TarFacts(path.name))
        troubles = Counter[Skip]()

        def members() -> Iterator[tuple[str, bytes]]:
            for sample, found in self._read(samples):
                if isinstance(found, bytes):
                    yield from zip(sample.names, (found, sample.json, sample.text), strict=True)
                else:
                    troubles[found[0]] += 1
                    self._say(sample, found)
                self.watch(1)

        size = write_tar(path, members())
        left_out = troubles.total()
        written = len(samples) - left_out
        self._manifest.set(TarFacts(path.name, plan, written, size, left_out))
        self.report.written += written
        self.report.skipped.update(troubles)

    def _read(
        self, samples: Sequence[_Sample]
    ) -> Iterator[tuple[_Sample, bytes | tuple[Skip, str]]]:
        """Yield samples with their images, or with why they have none."""
        found = self.images.read([one.image for one in samples])
        for sample, image in zip(samples, found, strict=True):
            if isinstance(image, bytes):
                self._passing = 0
                is_same = _is_same(sample.image, image)
                yield sample, image if is_same else (Skip.CHANGED, "other bytes were captioned")
                continue
            self._passing = self._passing + 1 if image.is_passing else 0
            if self._passing == _MOST_IN_A_ROW:
                raise ExportError(
                    f"the dataset is out of reach, {_MOST_IN_A_ROW} images in a row could not be "
                    f"read: {image.reason}; the same command goes on from here"
                )
            yield sample, (Skip.CHANGED if image.is_changed else Skip.UNREADABLE, image.reason)

    def _say(self, sample: _Sample, trouble: tuple[Skip, str]) -> None:
        self.report.tell(f"{sample.image.name} is in no tar: {trouble[1]}")


def _is_same(wanted: Wanted, image: bytes) -> bool:
    if wanted.size is not None and wanted.size != len(image):
        return False
    return wanted.content_hash is None or wanted.content_hash == content_hash(image)


def _size_of(path: Path) -> int | None:
    with naming(path):
        try:
            return path.lstat().st_size
        except FileNotFoundError:
            return None
