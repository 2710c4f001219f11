"""``metadata.jsonl`` as Hugging Face's imagefolder reads it, in the folder of the images.

``{"file_name": "sub/a.jpg", "text": "..."}`` a line; paths are relative to the file's own folder.
Several texts are joined by ", ". `datasets` takes the rows for the dataset, so that images which
failed are not in it.
"""

from __future__ import annotations

from pathlib import Path

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exporter.captioned import Listing, captioned
from caption_flow.storage.exporter.encoding import json_bytes
from caption_flow.storage.exporter.output_file import output_file
from caption_flow.storage.exporter.report import ExportReport


def export_imagefolder(
    contents: StorageContents, output_path: Path, listing: Listing | None = None
) -> ExportReport:
    """Write every captioned item to one file.

    Raises:
        ExportError: no such column, nothing to export, or the file cannot be written; one that was
            there is as it was.
    """
    listing = listing or Listing()
    listing.check(contents)
    report = ExportReport(output_path)
    with output_file(output_path) as sink:
        for item in captioned(contents, listing, report):
            sink.write(json_bytes({"file_name": item.name, "text": item.text}) + b"\n")
            report.written += 1
    return report
