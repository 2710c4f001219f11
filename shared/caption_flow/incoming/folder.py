"""A folder of text files beside images, or in the same folders elsewhere: one file an image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from caption_flow.incoming.captions import Incoming, IncomingError, PassedOver, checked, lines_of

MAX_FILE_BYTES: Final = 16 * 2**20
_BOM: Final = b"\xef\xbb\xbf"
_OTHER_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")


def read_folder(
    folder: Path, field: str, *, suffix: str = ".txt", within: bytes = b"", whole: bool = False
) -> Iterator[Incoming | PassedOver]:
    """Yield what the text files below a folder say, sorted by name within each folder.

    It is for one output field. ``within`` is where the folder is in the dataset, as a prefix of
    paths. Each line is a caption, unless the ``whole`` file is one. Linked folders and hidden names
    are left out. Memory follows the names in the largest folder.

    Raises:
        IncomingError: a folder cannot be read.
    """
    ending = suffix.encode().lower()
    for path in _files(os.fsencode(folder), b"", ending):
        origin = path.decode("utf-8", "backslashreplace")
        try:
            content = _read(os.path.join(os.fsencode(folder), path))  # noqa: PTH118  -- bytes
            text = _decoded(content)
        except (OSError, ValueError) as error:
            reason = (error.strerror or "") if isinstance(error, OSError) else str(error)
            yield PassedOver(origin, "refused", reason)
            continue
        texts = [text] if whole else lines_of(text)
        name = within + path[: -len(ending)]
        yield checked(origin, [name], {field: texts}, is_stem=True)


def holds_texts(folder: Path, suffix: str = ".txt") -> bool:
    """Tell whether there is a text file below a folder. Raises `IncomingError`."""
    return next(_files(os.fsencode(folder), b"", suffix.encode().lower()), None) is not None


def _files(folder: bytes, prefix: bytes, ending: bytes) -> Iterator[bytes]:
    files: list[bytes] = []
    folders: list[bytes] = []
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                if entry.name.startswith(b"."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif entry.name.lower().endswith(ending) and entry.is_file():
                    files.append(entry.name)
    except OSError as error:
        raise IncomingError(f"{os.fsdecode(folder)} cannot be read: {error.strerror}") from error
    for name in sorted(files):
        yield prefix + name
    for name in sorted(folders):
        yield from _files(os.path.join(folder, name), prefix + name + b"/", ending)  # noqa: PTH118


def _read(path: bytes) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123  -- bytes
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES >> 20} MiB: that is no caption")
    return content


def _decoded(content: bytes) -> str:
    if content.startswith(_OTHER_BOMS):
        raise ValueError("it is UTF-16: save it as UTF-8")
    try:
        return content.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        byte = content.removeprefix(_BOM)[error.start]
        raise ValueError(
            f"it is not UTF-8 (byte 0x{byte:02x} at {error.start}): save it as UTF-8"
        ) from error
