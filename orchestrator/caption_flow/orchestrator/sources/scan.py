"""Walking a folder for images: which files count, in which order. Blocking; owns no state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

import structlog

log = structlog.get_logger()

IMAGE_SUFFIXES: Final = frozenset(
    b".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff .avif .heic .heif .jxl .jp2 "
    b".ppm .pgm .pbm .pnm .tga".split()
)
_SIGNATURES: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """What is looked at.

    Patterns are matched against the path within the dataset and against the name alone; ``*``
    matches across folders.
    """

    recursive: bool = True
    follow_symlinks: bool = False
    include_hidden: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundFile:
    """An image file: path within the dataset as bytes, size in bytes, time of last change."""

    path: bytes
    size: int
    mtime_ns: int


def scan(root: str, options: ScanOptions) -> Iterator[FoundFile]:
    """Yield the image files of a folder, sorted by name within each folder, files first.

    A folder that cannot be opened is logged and passed over; links are followed when asked, but
    never into a folder they lie in.
    """
    yield from _scan_folder(os.fsencode(root), b"", options, frozenset())


def _scan_folder(
    folder: bytes, prefix: bytes, options: ScanOptions, above: frozenset[tuple[int, int]]
) -> Iterator[FoundFile]:
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        here = os.stat(folder)  # noqa: PTH116  -- bytes
    except OSError as error:
        log.warning(
            "a folder cannot be read and is passed over",
            folder=os.fsdecode(folder),
            reason=error.strerror,
        )
        return
    identity = (here.st_dev, here.st_ino)
    if identity in above:
        return
    folders = []
    for entry in entries:
        if entry.name.startswith(b".") and not options.include_hidden:
            continue
        if entry.is_symlink() and not options.follow_symlinks:
            continue
        if _is_folder(entry):
            folders.append(entry)
            continue
        found = _look_at(entry, prefix + entry.name, options)
        if found is not None:
            yield found
    if options.recursive:
        for entry in folders:
            yield from _scan_folder(
                entry.path, prefix + entry.name + b"/", options, above | {identity}
            )


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself, say; what it is instead is said where files are looked at


def _look_at(entry: os.DirEntry[bytes], path: bytes, options: ScanOptions) -> FoundFile | None:
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  -- bytes
    if suffix and suffix not in IMAGE_SUFFIXES:
        return None
    if not _matches(path, options):
        return None
    try:
        if not entry.is_file():
            return None
        if not suffix and not _looks_like_an_image(entry.path):
            return None
        status = entry.stat()
    except OSError as error:
        # Gone since the folder was read, or a dangling link: there is nothing to caption.
        log.warning("a file is passed over", file=os.fsdecode(path), reason=error.strerror)
        return None
    return FoundFile(path, status.st_size, status.st_mtime_ns)


def _matches(path: bytes, options: ScanOptions) -> bool:
    if not options.include and not options.exclude:
        return True
    text = os.fsdecode(path)
    name = text.rpartition("/")[2]

    def matches(patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(text, p) or fnmatchcase(name, p) for p in patterns)

    return (not options.include or matches(options.include)) and not matches(options.exclude)


def _looks_like_an_image(path: bytes) -> bool:
    """Tell by its first bytes whether a file without a suffix is an image."""
    with open(path, "rb") as file:  # noqa: PTH123  -- bytes
        head = file.read(16)
    return (
        head.startswith(_SIGNATURES)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in {b"avif", b"avis", b"heic", b"heix", b"mif1"})
    )
