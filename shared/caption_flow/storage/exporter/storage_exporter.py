"""`StorageExporter`: the formats behind one object, as Python programs call them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Literal

import structlog

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exported import Replaced
from caption_flow.storage.exporter.captioned import Listing
from caption_flow.storage.exporter.csv_file import export_csv
from caption_flow.storage.exporter.imagefolder import export_imagefolder
from caption_flow.storage.exporter.json_files import export_json_files
from caption_flow.storage.exporter.jsonl import export_jsonl
from caption_flow.storage.exporter.kohya import export_kohya
from caption_flow.storage.exporter.lance_table import export_lance
from caption_flow.storage.exporter.parquet import export_parquet
from caption_flow.storage.exporter.report import ExportReport
from caption_flow.storage.exporter.sidecars import Existing
from caption_flow.storage.exporter.simpletuner import export_simpletuner
from caption_flow.storage.exporter.texts import Wording
from caption_flow.storage.exporter.txt import export_txt
from caption_flow.storage.exporter.undo import kept_for_undo
from caption_flow.storage.exporter.webshart import export_webshart

log = structlog.get_logger()

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
        """Write ``<image stem>.txt`` beside each image under ``output_dir``; see `export_txt`.

        What files held that are replaced is kept in the run's folder, if the contents say which
        one it is: ``caption-flow export --undo`` puts it back.
        """
        with self._undoable() as replaced:
            report = export_txt(
                self.contents,
                Path(output_dir),
                filename_column=filename_column,
                wording=Wording((export_column,)),
                existing=existing,
                include_empty=include_empty,
                replaced=replaced,
            )
        self._tell_of_replaced(report)
        return self._keep(report)

    def to_json(
        self,
        output_dir: AnyPath,
        filename_column: str = "filename",
        *,
        existing: Literal["overwrite", "skip"] = "overwrite",
    ) -> int:
        """Write ``<image stem>.json`` beside each image under ``output_dir``, as `to_txt` does."""
        with self._undoable() as replaced:
            report = export_json_files(
                self.contents,
                Path(output_dir),
                filename_column=filename_column,
                existing=existing,
                replaced=replaced,
            )
        self._tell_of_replaced(report)
        return self._keep(report)

    def to_jsonl(self, output_path: AnyPath) -> int:
        """Write one JSON object per row; returns the rows written."""
        return self._keep(export_jsonl(self.contents, Path(output_path)))

    def to_csv(self, output_path: AnyPath) -> int:
        """Write a table for spreadsheets; returns the rows written."""
        return self._keep(export_csv(self.contents, Path(output_path)))

    def to_parquet(self, output_path: AnyPath) -> int:
        """Write one Parquet file; returns the rows written."""
        return self._keep(export_parquet(self.contents, Path(output_path)))

    def to_lance(self, output_path: AnyPath) -> int:
        """Write a Lance dataset's next version; returns the rows written. Needs pylance."""
        return self._keep(export_lance(self.contents, Path(output_path)))

    def to_kohya(
        self,
        output_path: AnyPath,
        filename_column: str = "filename",
        export_column: str = "captions",
        *,
        images: AnyPath | None = None,
    ) -> int:
        """Write kohya's ``metadata.json``; returns the items in it. See `export_kohya`."""
        listing = Listing(Wording((export_column,)), filename_column)
        folder = None if images is None else Path(images)
        return self._keep(export_kohya(self.contents, Path(output_path), listing, images=folder))

    def to_imagefolder(
        self,
        output_path: AnyPath,
        filename_column: str = "filename",
        export_column: str = "captions",
    ) -> int:
        """Write imagefolder's ``metadata.jsonl``; returns the items in it."""
        listing = Listing(Wording((export_column,)), filename_column)
        return self._keep(export_imagefolder(self.contents, Path(output_path), listing))

    def to_simpletuner(
        self,
        output_path: AnyPath,
        filename_column: str = "filename",
        export_column: str = "captions",
    ) -> int:
        """Write SimpleTuner's Parquet table of captions; returns the items in it."""
        listing = Listing(Wording((export_column,)), filename_column)
        return self._keep(export_simpletuner(self.contents, Path(output_path), listing))

    def to_webshart_metadata(
        self,
        metadata_path: AnyPath,
        filename_column: str = "filename",
        export_column: str = "captions",
    ) -> int:
        """Write captions into webshart's JSON files; returns the samples that have theirs.

        ``metadata_path`` is a folder of them, or the one of a single tar; see `export_webshart`.
        """
        listing = Listing(Wording((export_column,)), filename_column)
        return self._keep(export_webshart(self.contents, Path(metadata_path), listing))

    def _undoable(self) -> AbstractContextManager[Replaced | None]:
        data_dir = self._data_dir
        return nullcontext() if data_dir is None else kept_for_undo(data_dir)

    @property
    def _data_dir(self) -> Path | None:
        known = self.contents.metadata.get("data_dir")
        return Path(known) if known is not None and Path(known).is_dir() else None

    def _tell_of_replaced(self, report: ExportReport) -> None:
        if report.replaced:
            data_dir = self._data_dir
            undo = f"caption-flow export --undo --data-dir {data_dir}"
            log.warning(
                "files that held something else were replaced",
                files=report.replaced,
                **({} if data_dir is None else {"to_undo": undo}),
            )

    def _keep(self, report: ExportReport) -> int:
        self.report = report
        return report.delivered
