"""Files of this machine. Blocking."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Final, Self

from caption_flow.places.base import CHANGED, NotHereError, PlaceError
from caption_flow.protocol.places import FilePlace

_CHANGED: Final = "the file has changed since it was listed"


def read_file(place: FilePlace) -> bytes:
    """Return the bytes of a place if this machine has the very file that was listed.

    Raises:
        NotHereError: there is no such file, it is another one, or it may not be read.
    """
    with _opened(place) as file:
        return file.read(file.length)


def read_own_file(place: FilePlace) -> bytes:
    """Return the bytes of a place on the machine that listed it; raises as `open_own_file`."""
    with open_own_file(place) as file:
        return file.read(file.length)


class OpenedFile:
    """The ``length`` bytes of an open file that a place is about."""

    def __init__(self, file: IO[bytes], length: int) -> None:
        self._file = file
        self.length = length

    def read(self, count: int) -> bytes:
        """Return the next bytes, as many as that. Raises `NotHereError`."""
        with _said():
            data = self._file.read(count)
        if len(data) != count:
            raise NotHereError("the file ends early")
        return data

    def close(self) -> None:
        """Close it; idempotent."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_own_file(place: FilePlace) -> OpenedFile:
    """Open a place on the machine that listed it.

    Here the path cannot mean another file: one that was written again meanwhile is read as it is
    now, if it was to be read as a whole.

    Raises:
        NotHereError: the file is gone, or may not be read.
        PlaceError: it is no longer what a part of it was listed for.
    """
    return _opened(place, is_lister=True)


def _opened(place: FilePlace, *, is_lister: bool = False) -> OpenedFile:
    with _said():
        file = open(place.path, "rb", buffering=0)  # noqa: PTH123, SIM115  -- a path of any bytes
    try:
        with _said():
            return OpenedFile(file, _find(file, place, is_lister=is_lister))
    except BaseException:
        file.close()
        raise


def _find(file: IO[bytes], place: FilePlace, *, is_lister: bool) -> int:
    """Go to where a place begins; return its length."""
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        raise NotHereError("it is not a file")
    if is_lister and not place.offset and place.length is None:
        return found.st_size
    if (found.st_size, found.st_mtime_ns) != (place.size, place.mtime_ns):
        if is_lister:
            raise PlaceError(CHANGED, _CHANGED)
        raise NotHereError(_CHANGED)
    file.seek(place.offset)
    return place.size - place.offset if place.length is None else place.length


@contextmanager
def _said() -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # a zero byte in the path
        raise NotHereError(str(error)) from error
    except OSError as error:
        raise NotHereError(error.strerror or str(error)) from error
