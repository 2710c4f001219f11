"""What ``caption-flow export`` does once it is clear what is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from caption_flow.cli.failures import CommandFailed, usage_error
from caption_flow.cli.folders import for_people
from caption_flow.cli.stores import storage_failures
from caption_flow.storage.contents import Selection, StorageContents, no_such
from caption_flow.storage.database import LEDGER_FILE
from caption_flow.storage.exporter.csv_file import export_csv
from caption_flow.storage.exporter.errors import ExportError
from caption_flow.storage.exporter.json_files import export_json_files
from caption_flow.storage.exporter.jsonl import export_jsonl
from caption_flow.storage.exporter.parquet import export_parquet
from caption_flow.storage.exporter.report import ExportReport, Skip
from caption_flow.storage.exporter.txt import export_txt
from caption_flow.storage.manager import StorageManager
from caption_flow.storage.reader import StorageReader

DEFAULT_COLUMN: Final = "captions"
DEFAULT_NAME: Final = "default"
_LOOKED_AT: Final = 200


@dataclass(frozen=True, slots=True)
class Request:
    """One export. No ``columns`` and no ``shards`` mean all of them."""

    data_dir: Path
    format: str
    output: Path
    export_column: str | None = None
    filename_column: str = "filename"
    columns: tuple[str, ...] = ()
    limit: int | None = None
    shards: tuple[str, ...] = ()
    existing: str = "overwrite"
    include_empty: bool = False


def export_rows(request: Request) -> None:
    """Write what is asked for and print what was done."""
    with storage_failures(request.data_dir):
        contents = _contents(request)
        try:
            report = _EXPORTERS[request.format](request, contents)
        except ExportError as error:
            raise CommandFailed(str(error)) from error
    print(f"{for_people(report.destination)}: {report.summary()}")
    for problem in report.problems:
        print(f"Note: {for_people(problem)}")


def print_stats(data_dir: Path) -> None:
    """Print how many rows there are of what kind."""
    _require_run(data_dir)
    with storage_failures(data_dir):
        stats: Mapping[str, Any] = asyncio.run(StorageManager(data_dir).get_caption_stats())
    kinds = ", ".join(f"{k}: {n:,}" for k, n in sorted(stats["failures_by_kind"].items()))
    print(f"rows       {stats['total_rows']:,}")
    print(f"captioned  {stats['captioned']:,}")
    print(f"failed     {stats['failed']:,}{f'  ({kinds})' if kinds else ''}")
    for flag, count in sorted(stats["flags"].items()):
        print(f"flagged    {count:,} {flag}")
    for name, count in stats["captions_by_field"].items():
        print(f"texts      {count:,} in {name}")
    if len(stats["shards"]) > 1:
        print(f"shards     {len(stats['shards']):,}")


def _require_run(data_dir: Path) -> None:
    if not (data_dir / LEDGER_FILE).exists():
        usage_error(
            f"{for_people(data_dir)} holds no run (no {LEDGER_FILE}); --data-dir names its folder"
        )


def _contents(request: Request) -> StorageContents:
    """Return what is to be exported, to be read when it is passed over. Raises `StorageError`."""
    _require_run(request.data_dir)
    with closing(StorageReader(request.data_dir)) as reader:
        if not reader.columns:
            raise CommandFailed(f"{for_people(request.data_dir)} holds no captions yet")
        _require("--filename-column", "column", [request.filename_column], reader.columns)
        _require("--columns", "column", request.columns, reader.columns)
        _require("--shard", "shard", request.shards, reader.shards)
        shards = frozenset(request.shards) or None
        columns = request.columns or reader.columns
        return StorageContents.reading(
            Selection(lambda: StorageReader(request.data_dir), shards, request.limit),
            columns=list(columns if request.format != "txt" else reader.columns),
            output_fields=[name for name in reader.output_fields if name in columns],
            total_rows=reader.count_rows(shards),
        )


def _require(option: str, kind: str, names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            usage_error(f"{option}: {no_such(kind, name, known)}")


def _text_column(request: Request, contents: StorageContents) -> str:
    """Return the column that goes into txt files."""
    fields = contents.output_fields
    if request.export_column is None:
        if DEFAULT_COLUMN in fields or len(fields) != 1:
            _require("--export-column", "output field", [DEFAULT_COLUMN], fields)
            return DEFAULT_COLUMN
        return fields[0]
    if request.export_column not in contents.columns:
        _require("--export-column", "output field", [request.export_column], fields)
    return request.export_column


def _folder(request: Request, contents: StorageContents) -> Path:
    """Return where files of one image each go: the dataset itself, or a folder of their own."""
    with closing(contents.iter_rows([request.filename_column])) as found:
        names = islice(found, _LOOKED_AT)
        is_dataset = any(
            (request.output / str(row[request.filename_column])).is_file() for row in names
        )
    return request.output if is_dataset else request.output / DEFAULT_NAME


def _txt(request: Request, contents: StorageContents) -> ExportReport:
    return export_txt(
        contents,
        _folder(request, contents),
        filename_column=request.filename_column,
        export_column=_text_column(request, contents),
        existing=request.existing,  # type: ignore[arg-type]  # one of the three by its enum
        include_empty=request.include_empty,
    )


def _json(request: Request, contents: StorageContents) -> ExportReport:
    return export_json_files(
        contents,
        _folder(request, contents),
        filename_column=request.filename_column,
        existing=request.existing,  # type: ignore[arg-type]  # append has been refused
    )


def _one_file(
    export: Callable[[StorageContents, Path], ExportReport], suffix: str
) -> Callable[[Request, StorageContents], ExportReport]:
    def write(request: Request, contents: StorageContents) -> ExportReport:
        path = request.output / f"{DEFAULT_NAME}.{suffix}"
        if request.existing == "skip" and path.exists():
            report = ExportReport(path)
            report.skip(Skip.EXISTING)
            return report
        return export(contents, path)

    return write


_EXPORTERS: Final[dict[str, Callable[[Request, StorageContents], ExportReport]]] = {
    "txt": _txt,
    "json": _json,
    "jsonl": _one_file(export_jsonl, "jsonl"),
    "csv": _one_file(export_csv, "csv"),
    "parquet": _one_file(export_parquet, "parquet"),
}
