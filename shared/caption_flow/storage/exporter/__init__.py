"""Derived copies of what a store holds, one module per format."""

from caption_flow.storage.exporter.csv_file import export_csv
from caption_flow.storage.exporter.errors import ExportError
from caption_flow.storage.exporter.json_files import export_json_files
from caption_flow.storage.exporter.jsonl import export_jsonl
from caption_flow.storage.exporter.parquet import export_parquet
from caption_flow.storage.exporter.report import ExportReport, Skip
from caption_flow.storage.exporter.sidecars import Existing
from caption_flow.storage.exporter.storage_exporter import StorageExporter
from caption_flow.storage.exporter.txt import export_txt

__all__ = [
    "Existing",
    "ExportError",
    "ExportReport",
    "Skip",
    "StorageExporter",
    "export_csv",
    "export_json_files",
    "export_jsonl",
    "export_parquet",
    "export_txt",
]
