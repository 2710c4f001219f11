"""Files that are there whole or not at all: written under another name, then renamed.

Owns the order of those steps and the clean-up after a failure. Raises plain `OSError`; who writes
what, and what to tell people, is the caller's.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

NEW_FILE_MODE: Final = 0o666
"""Before the umask, as any program creates a file (``tempfile`` would make it the owner's only)."""


@contextmanager
def replaced_file(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Yield a file whose contents become ``path`` when the block ends without an exception.

    A file that was there keeps its permissions, and keeps its contents when the block fails.
    ``durable`` waits for the disk, so that a power loss cannot leave an empty file.
    """
    temporary = path.with_name(_temporary_name())
    sink = _create(temporary)
    try:
        with closed_after(sink):
            yield sink
            _keep_permissions(sink, path)
            if durable:
                sink.flush()
                os.fsync(sink.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        fsync_folder(path.parent)


@contextmanager
def closed_after(sink: BinaryIO) -> Iterator[None]:
    """Close the file after the block; a failure of the block is the one that is raised.

    Closing tries once more to write what could not be written, and fails once more: a plain
    ``with sink`` would raise that second error instead.
    """
    try:
        yield
    except BaseException:
        with suppress(OSError):
            sink.close()
        raise
    sink.close()


def replace_bytes(path: Path, contents: bytes) -> None:
    """Make ``contents`` what ``path`` holds, without waiting for the disk."""
    with replaced_file(path) as sink:
        sink.write(contents)


def fsync_folder(folder: Path) -> None:
    """Wait until the folder's entries, a rename among them, are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_name() -> str:
    # Never made from the file's own name: that may already be as long as a name can be.
    return f".caption-flow-{secrets.token_hex(8)}.tmp"


def _create(path: Path) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, NEW_FILE_MODE), "wb")


def _keep_permissions(sink: BinaryIO, path: Path) -> None:
    try:
        before = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISREG(before.st_mode):
        os.fchmod(sink.fileno(), stat.S_IMODE(before.st_mode))
