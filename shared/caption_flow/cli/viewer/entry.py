"""What is said of a row, in paragraphs that any terminal shows as they are. Pure.

Captions, names and columns come from models and datasets: each line of them goes through
`for_people`, which leaves nothing that a terminal would act on.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from caption_flow.cli.folders import for_people
from caption_flow.protocol.rows import CAPTIONED
from caption_flow.storage.schema import FIXED_COLUMNS

_MOST_CHARACTERS: Final = 20_000
"""Of a text on the screen: wrapping a megabyte would take seconds."""
_MOST_OF_A_COLUMN: Final = 300


class Style(StrEnum):
    """How a piece of text looks."""

    PLAIN = "plain"
    TITLE = "title"
    FIELD = "field"
    DIM = "dim"
    OK = "ok"
    FLAGGED = "flagged"
    FAILED = "failed"
    BAR = "bar"
    HIT = "hit"


@dataclass(frozen=True, slots=True)
class Paragraph:
    """One line of text, however long; ``is_indented`` if it belongs to the one before."""

    text: str
    style: Style = Style.PLAIN
    is_indented: bool = False


def paragraphs(
    row: Mapping[str, Any],
    output_fields: Sequence[str],
    shown: Sequence[str] = (),
    *,
    whole: bool = False,
) -> list[Paragraph]:
    """Return what is said of a row, with the texts of the fields that are shown, or of all.

    ``whole`` leaves nothing out, however long texts are.
    """
    most = None if whole else _MOST_CHARACTERS
    own = [name for name in row if name not in FIXED_COLUMNS and name not in output_fields]
    said = [Paragraph(name_of(row), Style.TITLE), Paragraph(_outcome(row), style_of(row))]
    if row.get("error") or row.get("error_kind"):
        reason = ": ".join(str(row[key]) for key in ("error_kind", "error") if row.get(key))
        said += _lines(reason, Style.FAILED, most)
    for name in shown or output_fields:
        said += _field(name, row.get(name), most)
    said += [Paragraph(one, Style.DIM) for one in _origin(row)]
    said += [Paragraph(_column(name, row[name]), Style.DIM) for name in own if _is_said(row[name])]
    return said


def name_of(row: Mapping[str, Any]) -> str:
    """Return what an item is called."""
    readable = row["filename"] if row.get("filename_raw") is None else row["item_key"]
    return for_people(str(readable or row["item_key"]))


def style_of(row: Mapping[str, Any]) -> Style:
    """Return how a row's outcome looks."""
    if row["status"] != CAPTIONED:
        return Style.FAILED
    return Style.FLAGGED if row.get("flags") else Style.OK


def _outcome(row: Mapping[str, Any]) -> str:
    flags = row.get("flags")
    width, height, kind = (row.get(f"image_{name}") for name in ("width", "height", "format"))
    size = row.get("file_size")
    said = [
        str(row["status"]),
        f"flagged: {', '.join(flags)}" if flags else "",
        f"{width} x {height} {kind or ''}".strip() if width and height else "",
        f"seen as {row['image_scaled_to']}" if row.get("image_scaled_to") else "",
        f"{size:,} bytes" if size else "",
    ]
    return for_people(" · ".join(filter(None, said)))


def _field(name: str, texts: Sequence[str | None] | None, most: int | None) -> Iterator[Paragraph]:
    if not texts:
        yield Paragraph(f"{for_people(name)}: none", Style.FIELD)
        return
    for number, text in enumerate(texts, start=1):
        which = f" {number} of {len(texts)}" if len(texts) > 1 else ""
        yield Paragraph(f"{for_people(name)}{which}", Style.FIELD)
        yield from _lines("" if text is None else text, Style.PLAIN, most)


def _lines(text: str, style: Style, most: int | None) -> Iterator[Paragraph]:
    """Yield a text line by line; where it is cut, that is said."""
    lines = text[:most].replace("\r\n", "\n").replace("\t", "    ").split("\n")
    for line in lines:
        yield Paragraph(for_people(line), style, is_indented=True)
    if most is not None and len(text) > most:
        more = f"… {len(text) - most:,} more characters (--plain shows all)"
        yield Paragraph(more, Style.DIM, is_indented=True)


def _origin(row: Mapping[str, Any]) -> Iterator[str]:
    when = row.get("committed_at")
    models = row.get("models") or ()
    said = [
        ", ".join(str(one) for one in models),
        f"worker {row['worker']}" if row.get("worker") else "",
        f"contributor {row['contributor']}" if row.get("contributor") else "",
        f"{when:%Y-%m-%d %H:%M:%S} UTC" if isinstance(when, dt.datetime) else "",
    ]
    if any(said):
        yield for_people(" · ".join(filter(None, said)))
    if row.get("url"):
        yield for_people(str(row["url"]))


def _is_said(value: Any) -> bool:
    return value is not None and value not in ("", [], {})


def _column(name: str, value: Any) -> str:
    text = ", ".join(str(one) for one in value) if isinstance(value, list) else str(value)
    cut = f"{text[:_MOST_OF_A_COLUMN]}…" if len(text) > _MOST_OF_A_COLUMN else text
    return for_people(f"{name}: {cut}")
