"""One JSON object per line and item, captioned or failed, with all columns; see `encoding`."""

from __future__ import annotations

from pathlib import Path

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exporter.columns import require
from caption_flow.storage.exporter.encoding import json_bytes
from caption_flow.storage.exporter.output_file import output_file
from caption_flow.storage.exporter.report import ExportReport


def export_jsonl(contents: StorageContents, output_path: Path) -> ExportReport:
    """Write every row, the failed ones with their reason, to one file.

    Raises:
        ExportError: nothing to export, or the file cannot be written; one that was there is as it
            was.
    """
    require(contents)
    report = ExportReport(output_path)
    with output_file(output_path) as sink:
        for row in contents.iter_rows(contents.columns):
            sink.write(json_bytes(row) + b"\n")
            report.written += 1
    return report
