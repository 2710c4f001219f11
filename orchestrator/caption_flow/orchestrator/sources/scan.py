"""Walking a folder for images and videos: what counts, in which order. Blocking; stateless."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from stat import S_ISREG
from typing import Final

import structlog

log = structlog.get_logger()

IMAGE_SUFFIXES: Final = frozenset(
    b".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff .avif .heic .heif .jxl .jp2 "
    b".ppm .pgm .pbm .pnm .tga".split()
)
VIDEO_SUFFIXES: Final = frozenset(b".mp4 .m4v .mov .webm .mkv".split())
_SIGNATURES: Final = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
)


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
    """An image or video: path within the dataset as bytes, size in bytes, time of last change."""

    path: bytes
    size: int
    mtime_ns: int

    @property
    def is_video(self) -> bool:
        """Whether its name is one of a video."""
        return is_video(self.path)


def is_video(name: bytes) -> bool:
    """Tell by its name whether a file is a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES  # noqa: PTH122  -- bytes


def scan(root: str, options: ScanOptions) -> Iterator[FoundFile]:
    """Yield the images and videos of a folder, sorted by name within each folder, files first.

    A folder that cannot be opened is logged and passed over; links are followed when asked, but
    never into a folder they lie in. Memory follows the names in the largest folder.
    """
    yield from _scan_folder(os.fsencode(root), b"", options, frozenset())


def holds_item(root: str, options: ScanOptions, *, videos: bool) -> bool:
    """Tell whether `scan` would find an image, or any ``videos`` if they are wanted.

    Sorts nothing, and looks no further than needed.
    """
    return _holds_item(os.fsencode(root), b"", options, frozenset(), videos)


_Above = frozenset[tuple[int, int]]


def _scan_folder(
    folder: bytes, prefix: bytes, options: ScanOptions, above: _Above
) -> Iterator[FoundFile]:
    # Names alone: an entry of the folder that was asked for its status keeps some 900 bytes.
    files: list[bytes] = []
    folders: list[bytes] = []
    above = _enter(folder, above)
    for name, is_folder in _candidates(folder, prefix, options) if above else ():
        (folders if is_folder else files).append(name)
    files.sort()
    folders.sort()
    for name in files:
        found = _look_at(os.path.join(folder, name), prefix + name)  # noqa: PTH118  -- bytes
        if found is not None:
            yield found
    del files
    for name in folders:
        below = os.path.join(folder, name)  # noqa: PTH118  -- bytes
        yield from _scan_folder(below, prefix + name + b"/", options, above)


def _holds_item(
    folder: bytes, prefix: bytes, options: ScanOptions, above: _Above, videos: bool
) -> bool:
    folders: list[bytes] = []
    above = _enter(folder, above)
    for name, is_folder in _candidates(folder, prefix, options) if above else ():
        path = os.path.join(folder, name)  # noqa: PTH118  -- bytes
        if is_folder:
            folders.append(name)
        elif (videos or not is_video(name)) and _look_at(path, prefix + name) is not None:
            return True
    return any(
        _holds_item(os.path.join(folder, name), prefix + name + b"/", options, above, videos)  # noqa: PTH118
        for name in folders
    )


def _enter(folder: bytes, above: _Above) -> _Above:
    """Return the folders that are above those in ``folder``; none if it is one of them itself."""
    try:
        here = os.stat(folder)  # noqa: PTH116  -- bytes
    except OSError as error:
        _pass_over(folder, error)
        return frozenset()
    identity = (here.st_dev, here.st_ino)
    return frozenset() if identity in above else above | {identity}


def _candidates(folder: bytes, prefix: bytes, options: ScanOptions) -> Iterator[tuple[bytes, bool]]:
    """Yield names that may count, and with True those of folders to look into; unsorted."""
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                if entry.name.startswith(b".") and not options.include_hidden:
                    continue
                if entry.is_symlink() and not options.follow_symlinks:
                    continue
                if _is_folder(entry):
                    if options.recursive:
                        yield entry.name, True
                elif _may_count(entry.name) and _matches(prefix + entry.name, options):
                    yield entry.name, False
    except OSError as error:
        _pass_over(folder, error)


def _pass_over(folder: bytes, error: OSError) -> None:
    log.warning(
        "a folder cannot be read and is passed over",
        folder=os.fsdecode(folder),
        reason=error.strerror,
    )


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself, say; what it is instead is said where files are looked at


def _may_count(name: bytes) -> bool:
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122  -- bytes
    return not suffix or suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES


def _look_at(path: bytes, within: bytes) -> FoundFile | None:
    try:
        status = os.stat(path)  # noqa: PTH116  -- bytes
        if not S_ISREG(status.st_mode):
            return None
        has_suffix = os.path.splitext(within)[1]  # noqa: PTH122  -- bytes
        if not has_suffix and not _looks_like_an_image(path):
            return None
    except OSError as error:
        # Gone since the folder was read, or a dangling link: there is nothing to caption.
        log.warning("a file is passed over", file=os.fsdecode(within), reason=error.strerror)
        return None
    return FoundFile(within, status.st_size, status.st_mtime_ns)


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
        # Two letters are soon met at the beginning of a text; four zeros are not.
        or (head[:2] == b"BM" and head[6:10] == bytes(4))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in {b"avif", b"avis", b"heic", b"heix", b"mif1"})
    )
