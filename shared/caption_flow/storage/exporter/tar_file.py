"""Tars whose bytes follow from what is in them: no times, owners or anything of this machine.

Owns the form of members (POSIX.1-2001, "pax", names in UTF-8), and that a tar is there whole or not
at all.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO, Final

from caption_flow.storage.atomic import closed_after, fsync_folder
from caption_flow.storage.exporter.errors import naming

BLOCK: Final = 512
_END: Final = 2 * BLOCK
_RECORD: Final = 20 * BLOCK
_PLAIN_NAME: Final = 100
_HALF: Final = ".part"


def member_bytes(name: str, size: int) -> int:
    """Return how much room a member takes at most."""
    encoded = name.encode()
    is_plain = name.isascii() and len(encoded) <= _PLAIN_NAME
    return BLOCK + _padded(size) + (0 if is_plain else BLOCK + _padded(len(encoded) + 32))


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> int:
    """Write a tar in place of what is there, on disk when this returns; return its bytes.

    Exceptions of ``members`` pass through, and leave everything as it was.

    Raises:
        ExportError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}{_HALF}")
    with naming(path):
        sink = temporary.open("wb")
    try:
        with closed_after(sink):
            size = _fill(sink, members, path)
            with naming(path):
                sink.flush()
                os.fsync(sink.fileno())
        with naming(path):
            temporary.replace(path)
            fsync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return size


def remove_halves(folder: Path, name: str) -> None:
    """Remove what exports that were killed left of their tars; raises `ExportError`."""
    for half in folder.glob(f".{escape(name)}-*.tar{_HALF}"):
        with naming(half):
            half.unlink()


def member_names(path: Path) -> frozenset[str]:
    """Return the names of a tar's members; none if it cannot be read as one."""
    try:
        with tarfile.open(path, "r:") as tar:
            return frozenset(tar.getnames())
    except (OSError, tarfile.TarError):
        return frozenset()


def _fill(sink: BinaryIO, members: Iterable[tuple[str, bytes]], path: Path) -> int:
    written = 0
    for name, data in members:
        header = tarfile.TarInfo(name)
        header.size = len(data)
        with naming(path):
            written += sink.write(header.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))
            written += sink.write(data)
            written += sink.write(bytes(-len(data) % BLOCK))
    with naming(path):
        written += sink.write(bytes(_END + -(written + _END) % _RECORD))
    return written


def _padded(size: int) -> int:
    return size + -size % BLOCK
