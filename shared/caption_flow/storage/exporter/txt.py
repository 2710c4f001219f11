"""``<image stem>.txt`` beside its image: the form trainers read captions in.

A file is UTF-8, one caption per line, without a line end after the last: programs that take the
whole file for the caption get the caption.
"""

from __future__ import annotations

from pathlib import Path

from caption_flow.protocol.rows import FAILED
from caption_flow.storage.contents import Row, StorageContents
from caption_flow.storage.exported import Exported, Replaced
from caption_flow.storage.exporter.columns import require
from caption_flow.storage.exporter.report import ExportReport, Skip
from caption_flow.storage.exporter.sidecars import Existing, SidecarFormat, write_sidecars
from caption_flow.storage.exporter.texts import Wording


def export_txt(
    contents: StorageContents,
    output_dir: Path,
    *,
    filename_column: str = "filename",
    wording: Wording | None = None,
    suffix: str = ".txt",
    existing: Existing = "overwrite",
    include_empty: bool = False,
    earlier: Exported | None = None,
    replaced: Replaced | None = None,
) -> ExportReport:
    """Write each captioned item's texts to a file beside its image.

    Failed items write nothing and leave a file that exists as it was, and so do items whose texts
    are all empty, unless ``include_empty`` asks for empty files. ``earlier`` is the record of what
    this run's exports wrote before, ``replaced`` the one of what they replace; see
    `write_sidecars`.

    Raises:
        ExportError: no such column, nothing to export, or a file that cannot be written.
    """
    wording = wording or Wording()
    require(contents, filename_column)
    wording.check(contents)

    def render(row: Row) -> bytes | Skip:
        if row["status"] == FAILED:
            return Skip.FAILED
        lines = wording.lines(row)
        if not lines and not include_empty:
            return Skip.EMPTY
        return "\n".join(lines).encode("utf-8", "backslashreplace")

    format_ = SidecarFormat(suffix, ("status", *wording.reads), render)
    return write_sidecars(
        contents,
        output_dir,
        format_,
        filename_column=filename_column,
        existing=existing,
        earlier=earlier,
        replaced=replaced,
    )
