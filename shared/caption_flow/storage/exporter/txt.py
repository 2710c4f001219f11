"""``<image stem>.txt`` beside its image: the form trainers read captions in.

A file is UTF-8, one caption per line, without a line end after the last: programs that take the
whole file for the caption get the caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caption_flow.protocol.rows import FAILED
from caption_flow.storage.contents import Row, StorageContents
from caption_flow.storage.exported import Exported
from caption_flow.storage.exporter.columns import require
from caption_flow.storage.exporter.report import ExportReport, Skip
from caption_flow.storage.exporter.sidecars import Existing, SidecarFormat, write_sidecars


def export_txt(
    contents: StorageContents,
    output_dir: Path,
    *,
    filename_column: str = "filename",
    export_column: str = "captions",
    existing: Existing = "overwrite",
    include_empty: bool = False,
    earlier: Exported | None = None,
) -> ExportReport:
    """Write each captioned item's texts to a file beside its image.

    Failed items write nothing and leave a file that exists as it was, and so do items whose texts
    are all empty, unless ``include_empty`` asks for empty files. ``earlier`` is the record of what
    this run's exports wrote before; see `write_sidecars`.

    Raises:
        ExportError: no such column, nothing to export, or a file that cannot be written.
    """
    require(contents, filename_column, export_column)

    def render(row: Row) -> bytes | Skip:
        if row["status"] == FAILED:
            return Skip.FAILED
        lines = caption_lines(row[export_column])
        if not lines and not include_empty:
            return Skip.EMPTY
        return "\n".join(lines).encode("utf-8", "backslashreplace")

    format_ = SidecarFormat(".txt", ("status", export_column), render)
    return write_sidecars(
        contents,
        output_dir,
        format_,
        filename_column=filename_column,
        existing=existing,
        earlier=earlier,
    )


def caption_lines(value: Any) -> list[str]:
    """Return a column's value as lines: one per text, none for an empty one."""
    return [line for text in texts_of(value) if (line := one_line(text))]


def texts_of(value: Any) -> Sequence[str]:
    """Return a column's value as texts; a column need not be an output field."""
    if value is None:
        return ()
    if isinstance(value, (list, tuple)):
        return [str(text) for text in value if text is not None]
    return (str(value),)


def one_line(text: str) -> str:
    """Return a text with each line break, and the white space around it, as one space."""
    return " ".join(stripped for line in text.splitlines() if (stripped := line.strip()))
