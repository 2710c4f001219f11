"""Captions that were made elsewhere, one image's at a time, and what may stand in them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from caption_flow.protocol.rows import MAX_TEXT_BYTES

Name = str | bytes | int
"""What an image is called: a path, key or address; a path's own bytes; the number of a row."""
Why = Literal["empty", "failed", "refused"]

IMPORT_WORKER: Final = "import"
"""Who brought a row that was imported, in its column ``worker``."""
MAX_TEXTS: Final = 10_000
"""Texts of one field of one row, as in rows from workers."""


class IncomingError(Exception):
    """Captions that cannot be read as asked; one sentence with what to do about it."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """One image's captions: its texts by output field.

    ``names`` are what the image may be called, the best first; ``is_stem`` if they are paths that
    lack its suffix. ``origin`` says where it stands, for people.
    """

    origin: str
    names: tuple[Name, ...]
    texts: Mapping[str, tuple[str, ...]]
    is_stem: bool = False


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A row that brings nothing: without a text, failed where it was made, or not to be stored."""

    origin: str
    why: Why
    reason: str = ""


def checked(
    origin: str,
    names: Sequence[Name],
    texts: Mapping[str, Sequence[str]],
    *,
    is_stem: bool = False,
) -> Incoming | PassedOver:
    """Return captions as they are stored: stripped, without empty ones, and within bounds."""
    kept: dict[str, tuple[str, ...]] = {}
    for field, of_field in texts.items():
        stripped = tuple(text for one in of_field if (text := one.strip()))
        if problem := _problem(stripped):
            return PassedOver(origin, "refused", problem)
        if stripped:
            kept[field] = stripped
    if not kept:
        return PassedOver(origin, "empty")
    return Incoming(origin, tuple(names), kept, is_stem)


def lines_of(text: str) -> list[str]:
    """Return a text with a caption on each line as its captions; only real line ends count."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _problem(texts: Sequence[str]) -> str | None:
    if len(texts) > MAX_TEXTS:
        return f"{len(texts):,} captions of one image: {MAX_TEXTS:,} at most"
    for text in texts:
        if "\0" in text:
            return "it has NUL characters: that is no text"
        try:
            length = len(text.encode())
        except UnicodeEncodeError:
            return "it has half a character (a lone surrogate), which no file can hold"
        if length > MAX_TEXT_BYTES:
            return f"a caption of {length:,} bytes: {MAX_TEXT_BYTES:,} at most"
    return None
