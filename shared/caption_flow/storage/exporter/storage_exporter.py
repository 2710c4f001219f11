"""`StorageExporter`: the formats behind one object, as Python programs call them."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Literal, NoReturn

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exporter.csv_file import export_csv
from caption_flow.storage.exporter.errors import ExportError
from caption_flow.storage.exporter.json_files import export_json_files
from caption_flow.storage.exporter.jsonl import export_jsonl
from caption_flow.storage.exporter.parquet import export_parquet
from caption_flow.storage.exporter.report import ExportReport
from caption_flow.storage.exporter.sidecars import Existing
from caption_flow.storage.exporter.texts import Wording
from caption_flow.storage.exporter.txt import export_txt

AnyPath = str | PathLike[str]


class StorageExporter:
    """Writes contents in other formats.

    Each method returns a number, keeps the whole `ExportReport` as ``report``, and raises
    `ExportError` when the export cannot be made. Formats of one file per item count the files that
    now hold their item's text, whether this export wrote them or found them so; the others count
    rows.
    """

    def __init__(self, contents: StorageContents) -> None:
        self.contents = contents
        self.report: ExportReport | None = None

    def to_txt(
        self,
        output_dir: AnyPath,
        filename_column: str = "filename",
        export_column: str = "captions",
        *,
        existing: Existing = "overwrite",
        include_empty: bool = False,
    ) -> int:
        """Write ``<image stem>.txt`` beside each image under ``output_dir``; see `export_txt`."""
        return self._keep(
            export_txt(
                self.contents,
                Path(output_dir),
                filename_column=filename_column,
                wording=Wording((export_column,)),
                existing=existing,
                include_empty=include_empty,
            )
        )

    def to_json(
        self,
        output_dir: AnyPath,
        filename_column: str = "filename",
        *,
        existing: Literal["overwrite", "skip"] = "overwrite",
    ) -> int:
        """Write ``<image stem>.json`` beside each image under ``output_dir``."""
        return self._keep(
            export_json_files(
                self.contents,
                Path(output_dir),
                filename_column=filename_column,
                existing=existing,
            )
        )

    def to_jsonl(self, output_path: AnyPath) -> int:
        """Write one JSON object per row; returns the rows written."""
        return self._keep(export_jsonl(self.contents, Path(output_path)))

    def to_csv(self, output_path: AnyPath) -> int:
        """Write a table for spreadsheets; returns the rows written."""
        return self._keep(export_csv(self.contents, Path(output_path)))

    def to_parquet(self, output_path: AnyPath) -> int:
        """Write one Parquet file; returns the rows written."""
        return self._keep(export_parquet(self.contents, Path(output_path)))

    def to_webshart_metadata(
        self,
        metadata_path: AnyPath,
        filename_column: str = "filename",
        export_column: str = "captions",
    ) -> NoReturn:
        """Refuse: this release has no webshart export."""
        del metadata_path, filename_column, export_column
        raise ExportError(
            "webshart metadata cannot be written by this release; "
            "export jsonl or parquet and convert that"
        )

    def _keep(self, report: ExportReport) -> int:
        self.report = report
        return report.delivered
