"""What the screen shows, line by line, from what is looked at. Pure.

Nothing stands to the right of a text that may be of any script, so that a terminal which counts its
columns in another way moves nothing else; lines are as long as the screen is wide at most.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from caption_flow.cli.folders import for_people
from caption_flow.cli.viewer.entry import Paragraph, Style, paragraphs
from caption_flow.cli.viewer.pictures import Colours, Drawn, Size
from caption_flow.cli.viewer.state import HELP, Viewer

_BESIDE_FROM: Final = 100
"""Columns from which a picture stands beside its text, and not above."""
_ABOVE_FROM: Final = 14
"""Rows from which there is room for a picture above."""
_LEAST_COLUMNS: Final = 24
_GAP: Final = 2
_INDENT: Final = "  "
_HINTS: Final = "n next  p previous  / search  f filter  t field  : go to  ? help  q quit"

_PLAIN_CODES: Final = {
    Style.PLAIN: "", Style.TITLE: "1", Style.FIELD: "1", Style.DIM: "2", Style.OK: "",
    Style.FLAGGED: "", Style.FAILED: "1", Style.BAR: "7", Style.HIT: "7",
}  # fmt: skip
_COLOUR_CODES: Final = _PLAIN_CODES | {
    Style.FIELD: "36", Style.OK: "32", Style.FLAGGED: "33", Style.FAILED: "31",
}  # fmt: skip

Spans = Sequence[tuple[Style, str]]
_CONSOLE: Final = Console(
    file=io.StringIO(), width=80, color_system=None, legacy_windows=False, emoji=False
)


@dataclass(frozen=True, slots=True)
class Frame:
    """A screen: a text for each row, and where a picture is drawn, from row and column 1."""

    lines: tuple[str, ...]
    picture: Drawn | None = None
    at: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a picture may be, in cells, or None; ``is_beside``: left of the text, else above."""

    box: Size | None
    is_beside: bool = False


def layout(size: Size, *, pictures: bool) -> Layout:
    """Return where there is room for a picture on a screen of so many columns and rows."""
    columns, rows = size
    if not pictures or columns < _LEAST_COLUMNS:
        return Layout(None)
    if columns >= _BESIDE_FROM and rows >= _ABOVE_FROM // 2:
        return Layout((columns // 2 - _GAP, rows - 2), is_beside=True)
    return Layout((columns, (rows - 2) // 2)) if rows >= _ABOVE_FROM else Layout(None)


def compose(
    viewer: Viewer, size: Size, colours: Colours, where: str, picture: Drawn | str | None = None
) -> Frame:
    """Return the screen; ``picture`` is drawn already, or half a sentence that says why not."""
    columns, rows = size
    height = max(0, rows - 2)
    paint = _Painter(columns, colours)
    if viewer.is_helping:
        body = Frame(tuple(paint.line(one) for one in _help())[:height])
    elif viewer.row is None:
        nothing = "" if viewer.looking or viewer.total else "no rows yet: the view waits for them"
        body = Frame((paint.line([(Style.DIM, nothing)]),))
    else:
        body = _body(viewer, (columns, height), paint, picture)
    lines = [*body.lines, *[""] * height][:height]
    bars = (paint.bar(_header(viewer, where)), paint.bar(_footer(viewer)))
    shown = (bars[0], *lines, bars[1])[:rows] if rows > 1 else bars[:rows]
    return Frame(shown, body.picture, (body.at[0] + 1, body.at[1]))


class _Painter:
    """Makes lines for a terminal of so many columns."""

    def __init__(self, columns: int, colours: Colours) -> None:
        self.columns = columns
        self._codes = _PLAIN_CODES if colours is Colours.NONE else _COLOUR_CODES

    def line(self, spans: Spans, columns: int | None = None) -> str:
        """Return a line, cut at so many columns."""
        left = self.columns if columns is None else columns
        said = []
        for style, text in spans:
            width = cell_len(text)
            piece = text if width <= left else set_cell_size(text, left)
            code = self._codes[style]
            said.append(f"\x1b[{code}m{piece}\x1b[0m" if code and piece else piece)
            left -= min(width, left)
        return "".join(said)

    def bar(self, text: str) -> str:
        """Return a line over the whole width."""
        return self.line([(Style.BAR, set_cell_size(text, self.columns))])


def _body(viewer: Viewer, size: Size, paint: _Painter, picture: Drawn | str | None) -> Frame:
    columns, height = size
    place = layout((columns, height + 2), pictures=viewer.pictures)
    said = paragraphs(viewer.row or {}, viewer.output_fields, viewer.shown)
    if isinstance(picture, str) and place.box is not None:
        said.insert(1, Paragraph(for_people(f"no picture: {picture}"), Style.DIM))
    drawn = picture if isinstance(picture, Drawn) and place.box is not None else None
    left = drawn.columns + _GAP if drawn is not None and place.is_beside else 0
    above = drawn.rows if drawn is not None and not place.is_beside else 0
    width, room = max(1, columns - left), max(0, height - above)
    wrapped = _wrapped(tuple(said), width)
    viewer.note_layout(len(wrapped), room)
    seen = wrapped[viewer.scroll : viewer.scroll + room]
    texts = [paint.line(_with_hits(one, viewer.search), width) for one in seen]
    if drawn is None:
        return Frame(tuple(texts))
    pictured = [*drawn.lines, *[""] * (drawn.rows - len(drawn.lines))]
    if not place.is_beside:
        return Frame((*pictured, *texts), drawn, (1, 1))
    tall = max(len(pictured), len(texts))
    pairs = zip(_padded(pictured, tall), _padded(texts, tall), strict=True)
    # To the column itself, whatever the picture left of it is.
    beside = tuple(f"{one}\x1b[{left + 1}G{text}" if text else one for one, text in pairs)
    return Frame(beside, drawn, (1, 1))


def _padded(lines: Sequence[str], count: int) -> list[str]:
    return [*lines, *[""] * (count - len(lines))]


@lru_cache(maxsize=4)
def _wrapped(said: tuple[Paragraph, ...], width: int) -> tuple[tuple[Style, str], ...]:
    return tuple((one.style, line) for one in said for line in _folded(one, width))


def _folded(paragraph: Paragraph, width: int) -> Iterator[str]:
    indent = _INDENT if paragraph.is_indented and width > 2 * len(_INDENT) else ""
    if not paragraph.text:
        yield ""
        return
    for line in Text(paragraph.text).wrap(_CONSOLE, width - len(indent), overflow="fold"):
        yield f"{indent}{line.plain.rstrip()}"


def _with_hits(line: tuple[Style, str], search: str) -> Spans:
    """Return a line with what is searched in another style."""
    style, text = line
    if not search:
        return [line]
    pieces = re.split(f"({re.escape(search)})", text, flags=re.IGNORECASE)
    return [(Style.HIT if at % 2 else style, one) for at, one in enumerate(pieces) if one]


def _help() -> list[Spans]:
    widest = max(cell_len(keys) for keys, _ in HELP)
    lines = [[(Style.FIELD, f" {keys:<{widest}}  "), (Style.PLAIN, what)] for keys, what in HELP]
    return [[(Style.TITLE, " What keys do")], [], *lines, [], [(Style.DIM, " any key goes back")]]


def _header(viewer: Viewer, where: str) -> str:
    at = "-" if viewer.position is None else f"{viewer.position + 1:,}"
    said = [
        f" {at} of {viewer.total:,}",
        f"only {viewer.filter_words()}" if viewer.has_filter else "",
        f"/{viewer.search}" if viewer.search else "",
        ", ".join(viewer.shown),
        where,
    ]
    return for_people(" · ".join(filter(None, said)))


def _footer(viewer: Viewer) -> str:
    if viewer.prompt is not None:
        return f" {viewer.prompt.kind}{viewer.prompt.text}▏"
    if viewer.looking is not None:
        what = viewer.looking.look.text or f"items {viewer.filter_words()}"
        rows = f"{viewer.looking.rows:,} of {viewer.total:,} rows"
        return for_people(f" looking for {what}: {rows}; Esc stops")
    return f" {for_people(viewer.message)}" if viewer.message else f" {_HINTS}"
