"""What the columns of a table mean: which name the image, and which hold texts for which field."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from caption_flow.incoming.captions import (
    Incoming,
    IncomingError,
    Name,
    PassedOver,
    checked,
    lines_of,
)
from caption_flow.incoming.tables import Record, Table

_RAW: Final = "filename_raw"
NAMING: Final = (
    *(_RAW, "filename", "file_name", "filepath", "file_path", "path", "image_path"),
    *("image_file", "image", "img_path", "img", "item_key", "__key__", "key", "url", "image_url"),
)
"""Columns that name an image, the best first; those that a table has are tried in this order."""
TEXTS: Final = ("captions", "caption", "text", "txt", "prompt", "description")
"""Columns that may hold texts where none is called like an output field; the first counts."""
OUTPUTS: Final = "outputs"
"""The older layout's column of texts by output field."""
_SHARD: Final = "shard"
_STATUS: Final = ("status", "error")
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")
_SHOWN: Final = 60
_MOST_ROWS: Final = 2**62


@dataclass(frozen=True, slots=True)
class Columns:
    """What is read from a table.

    ``texts`` are pairs of output field and column. Rows in which all of them are empty have the
    texts of ``otherwise``, if they are those of the column that stands for all fields.
    """

    naming: tuple[str, ...]
    texts: tuple[tuple[str, str], ...]
    otherwise: tuple[str, str] | None = None
    has_outputs: bool = False

    @property
    def told(self) -> str:
        """Which column goes where, for people."""
        pairs = [*self.texts, *([self.otherwise] if self.otherwise else [])]
        told = [column if column == field else f"{column} -> {field}" for field, column in pairs]
        return ", ".join(told + ([OUTPUTS] if self.has_outputs else []))


def choose_columns(
    table: Sequence[str],
    fields: Sequence[str],
    default_field: str,
    *,
    naming: Sequence[str] = (),
    texts: Sequence[tuple[str, str]] = (),
) -> Columns:
    """Choose what to read from a table with these columns.

    ``fields`` are the recipe's output fields, and ``default_field`` takes what is in a column of
    another name; ``naming`` and ``texts`` (field and column) are what was asked for.

    Raises:
        IncomingError: a column that was asked for is not there, or none will do; the sentence names
            those that are there.
    """
    there = ", ".join(map(repr, table)) or "none at all"
    wanted = [("--filename-column", name) for name in naming]
    wanted += [("--caption-column", column) for _, column in texts]
    for option, column in wanted:
        if column not in table:
            raise IncomingError(f"{option} {column}: there is no such column; there are {there}")
    named = tuple(naming) or tuple(name for name in NAMING if name in table)
    if not named:
        raise IncomingError(
            f"no column names the image (--filename-column); the table's columns are {there}"
        )
    if texts:
        return Columns(named, tuple(texts))
    of_fields = tuple((field, field) for field in fields if field in table)
    first = next((name for name in TEXTS if name in table and name not in fields), None)
    otherwise = None if first is None else (default_field, first)
    if not of_fields and otherwise is None and OUTPUTS not in table:
        raise IncomingError(
            f"no column holds captions (--caption-column); the table's columns are {there}"
        )
    return Columns(
        named,
        of_fields,
        None if of_fields else otherwise,
        OUTPUTS in table,
    )


def read_table(
    table: Table,
    columns: Columns,
    fields: Collection[str],
    *,
    lines: bool = False,
) -> Iterator[Incoming | PassedOver]:
    """Yield the captions of a table's rows.

    ``fields`` are those that count of the older layout's outputs; with ``lines``, a text is a
    caption a line.

    Raises:
        IncomingError: a row's value is nothing that can be a text, or a name; or the table cannot
            be read.
    """
    pairs = [*columns.texts, *([columns.otherwise] if columns.otherwise else [])]
    wanted = {*columns.naming, _SHARD, *_STATUS, *(column for _, column in pairs)}
    if columns.has_outputs:
        wanted.add(OUTPUTS)
    split = _splitter(is_csv=table.format == "csv", lines=lines)
    for origin, record in table.rows(wanted):
        names = list(_names(origin, record, columns.naming, is_csv=table.format == "csv"))
        names = [*_with_shard(record.get(_SHARD), names), *names]
        shown = f"{origin} ({_called(names[0])})" if names else origin
        if record.get("status") == "failed":
            yield PassedOver(shown, "failed", str(record.get("error") or "")[:200])
            continue
        texts = _texts(origin, record, columns, fields, split)
        if not names:
            yield PassedOver(origin, "refused", f"{', '.join(columns.naming)}: nothing there")
            continue
        found = checked(shown, names, texts)
        if isinstance(found, PassedOver) and found.why == "empty" and record.get("error"):
            found = PassedOver(shown, "failed", str(record["error"])[:200])
        yield found


Split = Callable[[str], Sequence[str]]


def _splitter(*, is_csv: bool, lines: bool) -> Split:
    def split(text: str) -> Sequence[str]:
        text = _without_guard(text) if is_csv else text
        return lines_of(text) if lines else (text,)

    return split


def _without_guard(text: str) -> str:
    """Return a cell without the apostrophe that keeps spreadsheets from running it."""
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA_STARTS) else text


def _names(origin: str, record: Record, columns: Sequence[str], *, is_csv: bool) -> Iterator[Name]:
    for column in columns:
        value = record.get(column)
        if value is None or (isinstance(value, str | bytes) and not value):
            continue
        if isinstance(value, Mapping) and isinstance(value.get("path"), str):
            value = value["path"]  # an image as the hub's tables hold it
        if isinstance(value, str):
            value = _without_guard(value) if is_csv else value
            yield from _forms(value, is_raw=column == _RAW)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield value if abs(value) < _MOST_ROWS else str(value)
        elif isinstance(value, bytes):
            yield value
        elif len(columns) == 1:
            raise IncomingError(f"{origin}: column {column!r} names no image: {_show(value)}")


def _with_shard(shard: Any, names: Sequence[Name]) -> Iterator[Name]:
    """Yield names within the tar that a table says beside them: in others they may be, too."""
    if not isinstance(shard, str) or not shard.endswith(".tar"):
        return
    for name in names:
        if isinstance(name, str) and not name.startswith(f"{shard}/"):
            yield _encodable(f"{shard}/{name}")


def _forms(name: str, *, is_raw: bool) -> Iterator[Name]:
    """Yield what a text may mean as a name: itself, and what programs make of names in a text."""
    if is_raw:
        with suppress(binascii.Error, ValueError):
            yield base64.b64decode(name, validate=True)  # as our tables of text have bytes
        return
    if name.startswith("file://"):
        yield unquote(urlsplit(name).path)
    yield _encodable(name)
    if "\\" in name and "/" not in name:
        yield _encodable(name.replace("\\", "/"))  # from Windows


def _called(name: Name) -> str:
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)


def _encodable(name: str) -> Name:
    """Return a name as its bytes where they are no UTF-8, as Python's JSON writes file names."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        is_escaped = all("\udc80" <= one <= "\udcff" for one in name[error.start : error.end])
        return name.encode("utf-8", "surrogateescape" if is_escaped else "surrogatepass")
    return name


def _texts(
    origin: str, record: Record, columns: Columns, fields: Collection[str], split: Split
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for field, column in columns.texts:
        texts = _as_texts(origin, column, record.get(column), split)
        if any(texts):
            found.setdefault(field, []).extend(texts)
    if columns.has_outputs:
        for field, value in _outputs(origin, record.get(OUTPUTS)).items():
            if field in fields and field not in found:
                found[field] = _as_texts(origin, f"{OUTPUTS}.{field}", value, split)
    if not any(map(any, found.values())) and columns.otherwise is not None:
        field, column = columns.otherwise
        return {field: _as_texts(origin, column, record.get(column), split)}
    return found


def _as_texts(origin: str, column: str, value: Any, split: Split) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return list(split(value))
    if isinstance(value, (list, tuple)) and all(isinstance(one, str | None) for one in value):
        return [text for one in value if one is not None for text in split(one)]
    raise IncomingError(
        f"{origin}: column {column!r} holds no text but {_show(value)}: --caption-column names "
        "another"
    )


def _outputs(origin: str, value: Any) -> Mapping[str, Any]:
    """Return texts by field: from an object, a list of pairs, or either as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (json.JSONDecodeError, RecursionError) as error:
            raise IncomingError(f"{origin}: column {OUTPUTS!r} is not JSON ({error})") from error
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list) and all(isinstance(one, tuple) and len(one) == 2 for one in value):
        return dict(value)
    raise IncomingError(f"{origin}: column {OUTPUTS!r} has no output fields: {_show(value)}")


def _show(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
