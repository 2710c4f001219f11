"""What reading a place may come to."""

from __future__ import annotations

from typing import Final

MISSING: Final = "image_missing"
"""The ``error_kind`` of items whose bytes nobody has."""
CHANGED: Final = "image_changed"
"""That of items whose bytes have become others since they were listed."""


class NotHereError(Exception):
    """This machine cannot read the place, or not that very content; another one may."""


class PlaceError(Exception):
    """There is nothing to be read, wherever one stands; ``kind`` is the row's ``error_kind``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
