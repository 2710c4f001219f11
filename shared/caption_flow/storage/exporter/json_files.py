"""``<image stem>.json`` beside its image: one object with all of the item's columns.

Failed items have a file too: its ``status`` says so, and ``error_kind`` and ``error`` why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from caption_flow.storage.contents import Row, StorageContents
from caption_flow.storage.exported import Replaced
from caption_flow.storage.exporter.columns import require
from caption_flow.storage.exporter.encoding import json_bytes
from caption_flow.storage.exporter.report import ExportReport
from caption_flow.storage.exporter.sidecars import SidecarFormat, write_sidecars


def export_json_files(
    contents: StorageContents,
    output_dir: Path,
    *,
    filename_column: str = "filename",
    existing: Literal["overwrite", "skip", "backup"] = "overwrite",
    replaced: Replaced | None = None,
) -> ExportReport:
    """Write each item's row to a file beside its image; for ``replaced`` see `write_sidecars`.

    Raises:
        ExportError: no such column, nothing to export, or a file that cannot be written.
    """
    require(contents, filename_column)
    columns = tuple(contents.columns)

    def render(row: Row) -> bytes:
        encoded = json_bytes({name: row[name] for name in columns})
        return msgspec.json.format(encoded, indent=2) + b"\n"

    format_ = SidecarFormat(".json", columns, render)
    return write_sidecars(
        contents,
        output_dir,
        format_,
        filename_column=filename_column,
        existing=existing,
        replaced=replaced,
    )
