"""What ``caption-flow export`` does once it is clear what is asked for."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from caption_flow.cli.export_formats import ALL, FORMATS, Format, Request, require_known
from caption_flow.cli.export_progress import ExportProgress
from caption_flow.cli.failures import CommandFailed, usage_error
from caption_flow.cli.folders import for_people
from caption_flow.cli.stores import storage_failures
from caption_flow.storage.choice import Choice, ChoiceError
from caption_flow.storage.contents import Selection, StorageContents
from caption_flow.storage.database import LEDGER_FILE
from caption_flow.storage.exported import UNDO_FILE
from caption_flow.storage.exporter.encoding import json_bytes
from caption_flow.storage.exporter.errors import ExportError
from caption_flow.storage.exporter.hub_client import HubMistakeError
from caption_flow.storage.exporter.report import ExportReport, Skip
from caption_flow.storage.exporter.undo import undo_export
from caption_flow.storage.manager import StorageManager
from caption_flow.storage.reader import StorageReader


def export_rows(request: Request) -> None:
    """Write what is asked for and print what was done."""
    choice = Choice(request.endings, request.condition)
    with (
        storage_failures(request.data_dir),
        _opened(request, choice) as rows,
        ExportProgress() as progress,
    ):
        try:
            reports = [
                (name, report)
                for name in _formats(request)
                for report in _export(request, name, rows, choice, progress)
            ]
        except HubMistakeError as error:
            usage_error(error)
        except (ExportError, ChoiceError) as error:
            raise CommandFailed(str(error)) from error
    if request.as_json:
        print_json([{"format": name, **report.facts()} for name, report in reports])
    else:
        for name, report in reports:
            _print_report(report, f"{name}: " if request.format == ALL else "")
    _fail_without_images(sum(report.without_image for _, report in reports))


def _print_report(report: ExportReport, before: str) -> None:
    print(f"{before}{for_people(report.shown)}: {report.summary()}")
    for problem in report.problems:
        print(f"Note: {for_people(problem)}")


def _fail_without_images(count: int) -> None:
    if count:
        images = "1 image is" if count == 1 else f"{count:,} images are"
        raise CommandFailed(
            f"{images} left out, unreadable or changed since captioned: the same command tries "
            "again, and writes only the tars concerned"
        )


def _formats(request: Request) -> list[str]:
    if request.format != ALL:
        return [request.format]
    return [name for name, format_ in FORMATS.items() if not format_.copies_images]


def _export(
    request: Request, name: str, rows: _Rows, choice: Choice, progress: ExportProgress
) -> list[ExportReport]:
    """Write one format; one that cannot be made here is left out where all are asked for."""
    format_ = FORMATS[name]
    contents = _contents(request, format_, rows, choice, progress)
    if request.format == ALL and (obstacle := format_.obstacle(request, rows.shards)):
        left_out = ExportReport(request.output)
        left_out.problems.append(f"{name} was left out: {obstacle}")
        return [left_out]
    progress.writing(name, contents.total_rows)
    if format_.copies_images:
        request = replace(request, images_read=progress.counting_images())
    reports = format_.write(request, contents)
    for report in reports:
        if choice.left_out:
            report.skipped[Skip.NOT_CHOSEN] = choice.left_out
    return reports


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


class _Rows:
    """A run's rows at one moment, whichever format passes over them, and however often.

    A `RowReader` that stays open: who opened it closes it.
    """

    def __init__(self, reader: StorageReader, wanted: Collection[str] | None) -> None:
        self._reader = reader
        self.columns = reader.columns
        self.output_fields = reader.output_fields
        self.shards = reader.shards
        self.total = reader.count_rows(wanted)
        self.count_rows = reader.count_rows
        self.batches = reader.batches

    def close(self) -> None:
        """Leave it open."""


@contextmanager
def _opened(request: Request, choice: Choice) -> Iterator[_Rows]:
    """Open the store, and end the command if it does not have what is asked for.

    Raises:
        StorageError: the store cannot be read.
    """
    _require_run(request.data_dir)
    with closing(StorageReader(request.data_dir)) as reader:
        if not reader.columns:
            raise CommandFailed(f"{for_people(request.data_dir)} holds no captions yet")
        require_known("--filename-column", "column", [request.filename_column], reader.columns)
        require_known("--columns", "column", request.columns, reader.columns)
        require_known("--shard", "shard", request.shards, reader.shards)
        if _chooses(choice):
            _refuse_condition(choice, reader)
        yield _Rows(reader, frozenset(request.shards) or None)


def _contents(
    request: Request, format_: Format, rows: _Rows, choice: Choice, progress: ExportProgress
) -> StorageContents:
    """Return what is to be exported, to be read when it is passed over."""
    columns = tuple(rows.columns)
    if request.columns and not format_.carries_texts:
        also = (name for name in format_.also_reads if name in rows.columns)
        columns = tuple(dict.fromkeys((*request.columns, *also)))
    return StorageContents.reading(
        Selection(
            lambda: rows,
            frozenset(request.shards) or None,
            request.limit,
            choice if _chooses(choice) else None,
            progress,
        ),
        columns=list(columns),
        output_fields=[name for name in rows.output_fields if name in columns],
        total_rows=rows.total,
    )


def _chooses(choice: Choice) -> bool:
    return bool(choice.endings or choice.condition)


def _refuse_condition(choice: Choice, reader: StorageReader) -> None:
    try:
        choice.check(reader.schema)
    except ChoiceError as error:
        usage_error(f"--filter: {error}")
