"""What reading a place may come to."""

from __future__ import annotations

from typing import Final

MISSING: Final = "image_missing"
"""The ``error_kind`` of items whose bytes nobody has."""
CHANGED: Final = "image_changed"
"""That of items whose bytes have become others since they were listed."""


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an exception of a storage is about, if it is about one."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


class NotHereError(Exception):
    """This machine cannot read the place, or not that very content; another one may."""


class UnreachableError(NotHereError):
    """The place cannot be read at this moment; later it may be."""


class PlaceError(Exception):
    """There is nothing to be read, wherever one stands; ``kind`` is the row's ``error_kind``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
