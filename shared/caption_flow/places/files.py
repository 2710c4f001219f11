"""Files of this machine. Blocking."""

from __future__ import annotations

import os
import stat
from typing import Final

from caption_flow.places.base import CHANGED, NotHereError, PlaceError
from caption_flow.protocol.places import FilePlace

_CHANGED: Final = "the file has changed since it was listed"


def read_file(place: FilePlace) -> bytes:
    """Return the bytes of a place if this machine has the very file that was listed.

    Raises:
        NotHereError: there is no such file, it is another one, or it may not be read.
    """
    return _read(place, is_any_version=False)


def read_own_file(place: FilePlace) -> bytes:
    """Return the bytes of a place on the machine that listed it.

    Here the path cannot mean another file: one that was written again meanwhile is read as it is
    now, if it was to be read as a whole.

    Raises:
        NotHereError: the file is gone, or may not be read.
        PlaceError: it is no longer what a part of it was listed for.
    """
    is_any_version = not place.offset and place.length is None
    return _read(place, is_any_version=is_any_version, is_lister=True)


def _read(place: FilePlace, *, is_any_version: bool, is_lister: bool = False) -> bytes:
    try:
        with open(place.path, "rb") as file:  # noqa: PTH123  -- a path of any bytes
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise NotHereError("it is not a file")
            if is_any_version:
                return file.read()
            if (found.st_size, found.st_mtime_ns) != (place.size, place.mtime_ns):
                if is_lister:
                    raise PlaceError(CHANGED, _CHANGED)
                raise NotHereError(_CHANGED)
            length = place.size - place.offset if place.length is None else place.length
            file.seek(place.offset)
            data = file.read(length)
    except ValueError as error:  # a zero byte in the path
        raise NotHereError(str(error)) from error
    except OSError as error:
        raise NotHereError(error.strerror or str(error)) from error
    if len(data) != length:
        raise NotHereError("the file ends early")
    return data
