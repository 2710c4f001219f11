r"""A table for spreadsheets and for whoever wants one: RFC 4180, UTF-8, a header line.

- A list of texts is one cell with one text per line, line breaks inside a text as spaces.
- Everything else that is no text is as in jsonl: times ISO 8601, bytes base64, nested values JSON.
- A null, and a number that is none (NaN), is an empty cell.
- Text that a spreadsheet would run as a formula (``= + - @``, a tab or a carriage return first)
  has an apostrophe before it. Numbers have not.
- A file name that is not valid UTF-8 shows its odd bytes as ``\xff``; see ``filename_raw``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from caption_flow.storage.contents import Row, StorageContents, displayed
from caption_flow.storage.exporter.columns import require
from caption_flow.storage.exporter.encoding import json_bytes
from caption_flow.storage.exporter.output_file import output_file
from caption_flow.storage.exporter.report import ExportReport
from caption_flow.storage.exporter.texts import one_line

FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


def export_csv(contents: StorageContents, output_path: Path) -> ExportReport:
    """Write every row, the failed ones with their reason, to one file.

    Raises:
        ExportError: nothing to export, or the file cannot be written; one that was there is as it
            was.
    """
    require(contents)
    report = ExportReport(output_path)
    with output_file(output_path) as sink:
        sink.write(_line(_text_cell(name) for name in contents.columns))
        for row in contents.iter_rows(contents.columns):
            sink.write(_line(_cells(row, contents.columns)))
            report.written += 1
    return report


def cell(value: Any) -> str:
    """Return a value as a cell; the rules are this module's."""
    if isinstance(value, str):
        return _text_cell(value)
    if isinstance(value, (list, tuple)) and all(isinstance(text, str | None) for text in value):
        return _text_cell("\n".join(one_line(text or "") for text in value))
    encoded = json_bytes(value).decode()
    if encoded == "null":
        return ""
    return str(msgspec.json.decode(encoded)) if encoded.startswith('"') else encoded


def _cells(row: Row, columns: list[str]) -> Iterator[str]:
    return (cell(row[name]) for name in columns)


def _text_cell(text: str) -> str:
    text = displayed(text)
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _line(cells: Iterator[str]) -> bytes:
    text = io.StringIO(newline="")
    # The line end must hold the carriage return: before 3.13 a cell with one is quoted only then.
    csv.writer(text, lineterminator="\r\n").writerow(list(cells))
    return text.getvalue().encode()
