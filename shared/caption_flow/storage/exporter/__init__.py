"""Derived copies of what a store holds, one module per format."""

from caption_flow.storage.exporter.captioned import Listing
from caption_flow.storage.exporter.csv_file import export_csv
from caption_flow.storage.exporter.errors import ExportError
from caption_flow.storage.exporter.imagefolder import export_imagefolder
from caption_flow.storage.exporter.json_files import export_json_files
from caption_flow.storage.exporter.jsonl import export_jsonl
from caption_flow.storage.exporter.kohya import export_kohya
from caption_flow.storage.exporter.lance_table import export_lance
from caption_flow.storage.exporter.parquet import export_parquet
from caption_flow.storage.exporter.report import ExportReport, Skip
from caption_flow.storage.exporter.sidecars import Existing
from caption_flow.storage.exporter.simpletuner import export_simpletuner
from caption_flow.storage.exporter.storage_exporter import StorageExporter
from caption_flow.storage.exporter.txt import export_txt
from caption_flow.storage.exporter.webdataset import export_webdataset
from caption_flow.storage.exporter.webshart import export_webshart

__all__ = [
    "Existing",
    "ExportError",
    "ExportReport",
    "Listing",
    "Skip",
    "StorageExporter",
    "export_csv",
    "export_imagefolder",
    "export_json_files",
    "export_jsonl",
    "export_kohya",
    "export_lance",
    "export_parquet",
    "export_simpletuner",
    "export_txt",
    "export_webdataset",
    "export_webshart",
]
