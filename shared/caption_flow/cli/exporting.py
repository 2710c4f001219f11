"""What ``caption-flow export`` does once it is clear what is asked for."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from caption_flow.cli.failures import CommandFailed, usage_error
from caption_flow.cli.folders import for_people
from caption_flow.cli.stores import storage_failures
from caption_flow.storage.choice import Choice, ChoiceError, Ending
from caption_flow.storage.contents import Selection, StorageContents, no_such
from caption_flow.storage.database import LEDGER_FILE
from caption_flow.storage.exported import UNDO_FILE, Replaced, replaced_by_export
from caption_flow.storage.exporter.csv_file import export_csv
from caption_flow.storage.exporter.encoding import json_bytes
from caption_flow.storage.exporter.errors import ExportError
from caption_flow.storage.exporter.json_files import export_json_files
from caption_flow.storage.exporter.jsonl import export_jsonl
from caption_flow.storage.exporter.parquet import export_parquet
from caption_flow.storage.exporter.report import ExportReport, Skip
from caption_flow.storage.exporter.sidecars import keep_beside
from caption_flow.storage.exporter.texts import DEFAULT_COLUMN, Wording
from caption_flow.storage.exporter.txt import export_txt
from caption_flow.storage.exporter.undo import undo_export
from caption_flow.storage.manager import StorageManager
from caption_flow.storage.reader import StorageReader

DEFAULT_NAME: Final = "default"
_LOOKED_AT: Final = 200


@dataclass(frozen=True, slots=True)
class Request:
    """One export. No ``columns`` and no ``shards`` mean all of them."""

    data_dir: Path
    format: str
    output: Path
    export_columns: tuple[str, ...] = ()
    per_field: bool = False
    template: str | None = None
    prefix: str = ""
    suffix: str = ""
    filename_column: str = "filename"
    columns: tuple[str, ...] = ()
    limit: int | None = None
    shards: tuple[str, ...] = ()
    endings: frozenset[Ending] = frozenset()
    condition: str | None = None
    existing: str = "overwrite"
    include_empty: bool = False
    as_json: bool = False


def export_rows(request: Request) -> None:
    """Write what is asked for and print what was done."""
    choice = Choice(request.endings, request.condition)
    with storage_failures(request.data_dir):
        contents = _contents(request, choice)
        try:
            reports = _EXPORTERS[request.format](request, contents)
        except (ExportError, ChoiceError) as error:
            raise CommandFailed(str(error)) from error
    for report in reports:
        if choice.left_out:
            report.skipped[Skip.NOT_CHOSEN] = choice.left_out
    if request.as_json:
        print_json([report.facts() for report in reports])
        return
    for report in reports:
        print(f"{for_people(report.destination)}: {report.summary()}")
        for problem in report.problems:
            print(f"Note: {for_people(problem)}")


def undo_last(data_dir: Path, *, as_json: bool) -> None:
    """Put back what the last export replaced, and print what was done."""
    _require_run(data_dir)
    if not (data_dir / UNDO_FILE).exists():
        raise CommandFailed(f"no export of {for_people(data_dir)} has replaced any file")
    try:
        report = undo_export(data_dir)
    except ExportError as error:
        raise CommandFailed(f"{error}; --undo goes on from here") from error
    except sqlite3.DatabaseError as error:
        raise CommandFailed(f"{for_people(data_dir / UNDO_FILE)} is damaged: {error}") from error
    if as_json:
        print_json({"restored": report.restored, "left": report.left})
        return
    files = "1 file" if report.restored == 1 else f"{report.restored:,} files"
    print(f"{files} put back as before the last export that replaced any")
    for name in report.left:
        print(f"Note: {for_people(name)} was changed since, and is left as it is")


def print_stats(data_dir: Path, *, as_json: bool) -> None:
    """Print how many rows there are of what kind."""
    _require_run(data_dir)
    with storage_failures(data_dir):
        stats: Mapping[str, Any] = asyncio.run(StorageManager(data_dir).get_caption_stats())
    if as_json:
        print_json(stats)
        return
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


def print_json(value: object) -> None:
    """Print a value as one line of JSON."""
    print(json_bytes(value).decode())


def _require_run(data_dir: Path) -> None:
    if not (data_dir / LEDGER_FILE).exists():
        usage_error(
            f"{for_people(data_dir)} holds no run (no {LEDGER_FILE}); --data-dir names its folder"
        )


def _contents(request: Request, choice: Choice) -> StorageContents:
    """Return what is to be exported, to be read when it is passed over. Raises `StorageError`."""
    _require_run(request.data_dir)
    with closing(StorageReader(request.data_dir)) as reader:
        if not reader.columns:
            raise CommandFailed(f"{for_people(request.data_dir)} holds no captions yet")
        _require("--filename-column", "column", [request.filename_column], reader.columns)
        _require("--columns", "column", request.columns, reader.columns)
        _require("--shard", "shard", request.shards, reader.shards)
        chooses = bool(choice.endings or choice.condition)
        if chooses:
            _refuse_condition(choice, reader)
        shards = frozenset(request.shards) or None
        columns = request.columns or reader.columns
        return StorageContents.reading(
            Selection(
                lambda: StorageReader(request.data_dir),
                shards,
                request.limit,
                choice if chooses else None,
            ),
            columns=list(columns if request.format != "txt" else reader.columns),
            output_fields=[name for name in reader.output_fields if name in columns],
            total_rows=reader.count_rows(shards),
        )


def _require(option: str, kind: str, names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            usage_error(f"{option}: {no_such(kind, name, known)}")


def _refuse_condition(choice: Choice, reader: StorageReader) -> None:
    try:
        choice.check(reader.schema)
    except ChoiceError as error:
        usage_error(f"--filter: {error}")


def _wording(request: Request, contents: StorageContents) -> Wording:
    """Return what goes into txt files."""
    if request.template is not None:
        wording = Wording((), request.template, request.prefix, request.suffix)
        wording.check(contents)
        return wording
    fields = contents.output_fields
    if request.export_columns:
        # A column of the dataset may be written, too; what is neither is a misspelt output field.
        columns = request.export_columns
        unknown = [name for name in columns if name not in contents.columns]
        _require("--export-column", "output field", unknown, fields)
    else:
        columns = (fields[0],) if len(fields) == 1 else (DEFAULT_COLUMN,)
        _require("--export-column", "output field", columns, fields)
    return Wording(columns, None, request.prefix, request.suffix)


def _folder(request: Request, contents: StorageContents) -> Path:
    """Return where files of one image each go: the dataset itself, or a folder of their own."""
    with closing(contents.iter_rows([request.filename_column])) as found:
        names = islice(found, _LOOKED_AT)
        is_dataset = any(
            (request.output / str(row[request.filename_column])).is_file() for row in names
        )
    return request.output if is_dataset else request.output / DEFAULT_NAME


def _txt(request: Request, contents: StorageContents) -> list[ExportReport]:
    whole = _wording(request, contents)
    files = {".txt": whole}
    if request.per_field:
        files = {f".{name}.txt": replace(whole, columns=(name,)) for name in whole.columns}
    folder = _folder(request, contents)
    with _replaced(request) as replaced:
        return [
            export_txt(
                contents,
                folder,
                filename_column=request.filename_column,
                wording=wording,
                suffix=suffix,
                existing=request.existing,  # type: ignore[arg-type]  # one of them by its enum
                include_empty=request.include_empty,
                replaced=replaced,
            )
            for suffix, wording in files.items()
        ]


def _json(request: Request, contents: StorageContents) -> list[ExportReport]:
    with _replaced(request) as replaced:
        return [
            export_json_files(
                contents,
                _folder(request, contents),
                filename_column=request.filename_column,
                existing=request.existing,  # type: ignore[arg-type]  # append has been refused
                replaced=replaced,
            )
        ]


@contextmanager
def _replaced(request: Request) -> Iterator[Replaced]:
    """Open the record that `--undo` goes by; without it, nothing is replaced."""
    with ExitStack() as stack:
        try:
            record = stack.enter_context(replaced_by_export(request.data_dir))
        except (sqlite3.DatabaseError, OSError) as error:
            raise ExportError(
                f"what files hold before they are replaced cannot be kept in "
                f"{for_people(request.data_dir / UNDO_FILE)}: {error}"
            ) from error
        yield record


def _one_file(
    export: Callable[[StorageContents, Path], ExportReport], suffix: str
) -> Callable[[Request, StorageContents], list[ExportReport]]:
    def write(request: Request, contents: StorageContents) -> list[ExportReport]:
        path = request.output / f"{DEFAULT_NAME}.{suffix}"
        if request.existing == "skip" and path.exists():
            report = ExportReport(path)
            report.skip(Skip.EXISTING)
            return [report]
        if request.existing == "backup" and path.is_file():
            keep_beside(path)
        return [export(contents, path)]

    return write


_EXPORTERS: Final[dict[str, Callable[[Request, StorageContents], list[ExportReport]]]] = {
    "txt": _txt,
    "json": _json,
    "jsonl": _one_file(export_jsonl, "jsonl"),
    "csv": _one_file(export_csv, "csv"),
    "parquet": _one_file(export_parquet, "parquet"),
}
