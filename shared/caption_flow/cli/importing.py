"""What ``caption-flow import`` does once it is clear what is asked for."""

from __future__ import annotations

import asyncio
import os
import shlex
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Final

from caption_flow.cli.configuration import load_or_refuse
from caption_flow.cli.export_progress import ExportProgress
from caption_flow.cli.exporting import print_json
from caption_flow.cli.failures import EXIT_INTERRUPTED, CommandFailed, usage_error
from caption_flow.cli.folders import data_dir_beside, for_people
from caption_flow.cli.stores import storage_failures
from caption_flow.config.dataset import HUB, LOCAL
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.incoming.captions import Incoming, IncomingError, PassedOver
from caption_flow.incoming.columns import Columns, choose_columns, read_table
from caption_flow.incoming.folder import holds_texts, read_folder
from caption_flow.incoming.matching import SHOWN, Account, Matcher, Repeated
from caption_flow.incoming.tables import FORMATS, Table, format_of, open_table
from caption_flow.orchestrator.importing import Existing, Import, ImportPlan
from caption_flow.orchestrator.sources.base import SourceError
from caption_flow.recipe.stages import DEFAULT_OUTPUT_FIELD, output_field_problem
from caption_flow.storage.database import LEDGER_FILE, open_for_reading, read_meta
from caption_flow.worker.images.load import measure

_TXT: Final = "txt"
_ENDINGS: Final = {
    "imported": "",
    "replaced": "failed in the run until now, or --existing overwrite",
    "kept": "captioned in the run already",
    "unmatched": "of no image of the dataset",
    "ambiguous": "could be several images', or say different things of one (--repeated)",
    "repeated": "of an image that another row has a caption for",
    "empty": "without a text",
    "failed": "failed where they were made",
    "refused": "cannot be stored",
}
"""How rows end, in the order in which people are told, and what that means."""

_DONE: Final = ("imported", "replaced", "kept")


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """What the command line asks for; ``fields`` and ``caption_columns`` go together."""

    source: Path
    dataset: Path | None
    config: Path | None
    data_dir: Path | None
    format: str | None
    caption_columns: tuple[str, ...]
    filename_columns: tuple[str, ...]
    fields: tuple[str, ...]
    lines: bool | None
    text_suffix: str
    existing: Existing
    repeated: Repeated
    models: tuple[str, ...]
    hashes: bool
    dry_run: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class _Reading:
    """A source that was opened, with what is read of it if it is a table."""

    format: str
    table: Table | None = None
    columns: Columns | None = None


def bring_in(request: ImportRequest) -> None:
    """Import, and print what was done."""
    try:
        _bring_in(request)
    except (IncomingError, SourceError) as error:
        usage_error(error)
    except KeyboardInterrupt as error:
        sentence = (
            "interrupted: what has been imported stays, and the same command goes on from here"
        )
        raise CommandFailed(sentence, EXIT_INTERRUPTED) from error


def _bring_in(request: ImportRequest) -> None:
    config = _configuration(request)
    with storage_failures(config.storage.data_dir):
        output_fields, default = _fields(request, config)
        reading = _open(request, output_fields, default)
        dataset = Path(config.dataset.dataset_path)
        plan = ImportPlan(
            config,
            output_fields,
            request.existing,
            request.repeated,
            request.models,
            measure if request.hashes else None,
            request.dry_run,
        )
        with _scratch() as scratch, ExportProgress() as bar:
            is_local = config.dataset.processor_type == LOCAL
            roots = (dataset, _folder_of(request.source), Path()) if is_local else ()
            # A number that nobody called a row's is a name like others: positions are no identity.
            counts_rows = config.dataset.processor_type == HUB and bool(request.filename_columns)
            matcher = Matcher(scratch, roots, counts_rows=counts_rows)
            with closing(matcher):
                work = Import(plan, matcher, bar.advance)
                work.check()
                rows = _rows(request, reading, config, output_fields, default)
                matcher.put_rows(rows)
                bar.writing("import", matcher.rows)
                asyncio.run(work.carry_out())
        _report(request, config, reading, matcher, work.passed_over)


@contextmanager
def _scratch() -> Iterator[Path]:
    """Have a temporary folder, and end the command with a sentence where it has no room."""
    try:
        with TemporaryDirectory(prefix="caption-flow-import-") as folder:
            yield Path(folder)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
            raise
        raise CommandFailed(
            f"the temporary folder {for_people(gettempdir())} has no room for what is imported "
            f"({error}): TMPDIR names another; what has been imported so far stays"
        ) from error


# ------------------------------------------------------------------------------- what is asked for


def _configuration(request: ImportRequest) -> OrchestratorConfig:
    """Build the configuration that `run` would have of the same dataset."""
    overrides: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "ssl": None, "auth": None}
    dataset = request.dataset
    if dataset is None and request.config is None:
        if not request.source.is_dir() or request.format not in {None, _TXT}:
            usage_error(
                "say what the captions are for: --dataset FOLDER, or --config FILE with a dataset"
            )
        dataset = request.source
    if dataset is not None:
        overrides["dataset"] = {"type": "local_filesystem", "dataset_path": str(dataset)}
        overrides["storage.data_dir"] = str(request.data_dir or data_dir_beside(dataset))
    elif request.data_dir is not None:
        overrides["storage.data_dir"] = str(request.data_dir)
    if request.config is None:
        # What is not said is not decided here: the rows are of no recipe.
        overrides |= {"vllm.model": "unknown", "vllm.inference_prompts": ["unknown"]}
    return load_or_refuse(request.config, overrides).config


def _fields(request: ImportRequest, config: OrchestratorConfig) -> tuple[tuple[str, ...], str]:
    """Return the output fields of the rows, and the one for texts of which nothing else is said."""
    if request.config is not None:
        recipe = config.recipe()
        known, default = recipe.output_fields, recipe.stages[-1].output_field
    else:
        known = _remembered_fields(config.storage.data_dir)
        default = known[-1] if known else DEFAULT_OUTPUT_FIELD
        for name in request.fields:
            if problem := output_field_problem(name):
                usage_error(f"--field {name}: {problem}")
        known = known or request.fields or (default,)
    for name in request.fields:
        if name not in known:
            usage_error(f"--field {name}: no stage fills it; there are {', '.join(known)}")
    return known, request.fields[0] if request.fields else default


def _remembered_fields(data_dir: Path) -> tuple[str, ...]:
    connection = open_for_reading(data_dir)
    if connection is None:
        return ()
    with closing(connection):
        fields = read_meta(connection, "output_fields")
    return tuple(fields.split("\n")) if fields else ()


# ------------------------------------------------------------------------------- what is read


def _open(request: ImportRequest, fields: tuple[str, ...], default: str) -> _Reading:
    """Find out what the source is, and whether it can be read; raises `IncomingError`."""
    source = request.source
    format_ = request.format or format_of(source)
    if format_ == "parquet" and not request.format and source.is_dir() and _has_texts(request):
        raise IncomingError(
            f"{for_people(source)} has both text files and Parquet files: --format txt or parquet"
        )
    if format_ is None and source.is_dir():
        format_ = _TXT
    if format_ is None:
        raise IncomingError(
            f"{for_people(source)} is no table by its name: --format says which "
            f"({', '.join(FORMATS)})"
        )
    if format_ == _TXT:
        _check_folder(request)
        return _Reading(_TXT)
    if source.is_dir() and format_ not in {"parquet", "lance"}:
        raise IncomingError(f"{for_people(source)} is a folder, not a file of {format_}")
    table = open_table(source, format_)
    named = request.fields or (default,)
    columns = choose_columns(
        table.columns,
        fields,
        default,
        naming=request.filename_columns,
        texts=list(zip(named, request.caption_columns, strict=False)),
    )
    return _Reading(format_, table, columns)


def _has_texts(request: ImportRequest) -> bool:
    return holds_texts(request.source, request.text_suffix)


def _check_folder(request: ImportRequest) -> None:
    source, suffix = request.source, request.text_suffix
    if not source.is_dir():
        raise IncomingError(f"{for_people(source)} is no folder of text files")
    if request.caption_columns or request.filename_columns:
        raise IncomingError("a folder of text files has no columns: drop --…-column")
    if not _has_texts(request):
        hint = ""
        if (source / LEDGER_FILE).exists():
            hint = (
                "; it is a run's folder: caption-flow export --format parquet makes a table of it"
            )
        raise IncomingError(
            f"there is no {suffix} file in {for_people(source)} or below it, and no table "
            f"(captions.lance, *.parquet){hint}"
        )


def _rows(
    request: ImportRequest,
    reading: _Reading,
    config: OrchestratorConfig,
    fields: tuple[str, ...],
    default: str,
) -> Iterator[Incoming | PassedOver]:
    if reading.table is None or reading.columns is None:
        return read_folder(
            request.source,
            default,
            suffix=request.text_suffix,
            within=_within(request.source, config),
            whole=request.lines is False,
        )
    lines = reading.format == "csv" if request.lines is None else request.lines
    return read_table(reading.table, reading.columns, fields, lines=lines)


def _within(source: Path, config: OrchestratorConfig) -> bytes:
    """Return where a folder of texts is in the dataset, as a prefix of paths."""
    if config.dataset.processor_type != LOCAL:
        return b""
    root = os.path.realpath(os.fsencode(config.dataset.dataset_path))
    folder = os.path.realpath(os.fsencode(source))
    within = os.path.relpath(folder, root)
    return b"" if within == b"." or within.startswith(b"..") else within + b"/"


def _folder_of(source: Path) -> Path:
    return source if source.is_dir() else source.parent


# ------------------------------------------------------------------------------- what is said


def _report(
    request: ImportRequest,
    config: OrchestratorConfig,
    reading: _Reading,
    matcher: Matcher,
    passed_over: Mapping[str, str],
) -> None:
    account = matcher.account
    if request.as_json:
        print_json(_facts(request, config, reading, matcher, passed_over))
    else:
        _print(request, config, reading, matcher)
        for shard, reason in passed_over.items():
            print(f"Note: {for_people(shard)} cannot be read: {for_people(reason)}")
    if not any(account.counts[ending] for ending in _DONE):
        raise CommandFailed(_nothing(matcher, account, config))


def _print(
    request: ImportRequest, config: OrchestratorConfig, reading: _Reading, matcher: Matcher
) -> None:
    account = matcher.account
    data_dir = for_people(config.storage.data_dir)
    verb = "Would import" if request.dry_run else "Imported"
    count = account.counts["imported"] + account.counts["replaced"]
    print(f"{verb} {count:,} of {matcher.rows:,} captions from {for_people(request.source)}.")
    if reading.columns is not None:
        print(f"  columns    {', '.join(reading.columns.naming)}; {reading.columns.told}")
    for ending, meaning in _ENDINGS.items():
        if account.counts[ending] or ending == "imported":
            told = f"  ({meaning})" if meaning else ""
            print(f"  {ending:<10} {account.counts[ending]:,}{told}")
            _print_examples(account, ending)
    print(f"  results    {data_dir}")
    if not request.dry_run and any(account.counts[one] for one in _DONE):
        print(f"  next       {_next(request)}")


def _next(request: ImportRequest) -> str:
    """Return the command that captions what is left."""
    folder = request.dataset or (request.source if request.config is None else None)
    words = ["caption-flow", "run", *([str(folder)] if folder else [])]
    for option, value in (("--config", request.config), ("--data-dir", request.data_dir)):
        words += [option, str(value)] if value else []
    return f"{for_people(shlex.join(words))}  (captions what is left)"


def _print_examples(account: Account, ending: str) -> None:
    shown = account.examples.get(ending, [])
    for example in shown:
        print(f"    - {for_people(example)}")
    if shown and account.counts[ending] > SHOWN:
        print(f"    - and {account.counts[ending] - SHOWN:,} more")


def _facts(
    request: ImportRequest,
    config: OrchestratorConfig,
    reading: _Reading,
    matcher: Matcher,
    passed_over: Mapping[str, str],
) -> dict[str, Any]:
    account = matcher.account
    columns = reading.columns
    return {
        "source": for_people(request.source),
        "format": reading.format,
        "dataset": for_people(config.dataset.dataset_path),
        "data_dir": for_people(config.storage.data_dir),
        "dry_run": request.dry_run,
        "columns": None if columns is None else [list(columns.naming), columns.told],
        "rows": matcher.rows,
        **{ending: account.counts[ending] for ending in _ENDINGS},
        "examples": account.examples,
        "passed_over": dict(passed_over),
    }


def _nothing(matcher: Matcher, account: Account, config: OrchestratorConfig) -> str:
    if not matcher.rows:
        return "there is no row to import"
    if account.counts["unmatched"]:
        dataset = for_people(config.dataset.dataset_path)
        return (
            f"not one of the {matcher.rows:,} captions is of an image of {dataset}, see above: "
            "--dataset names the folder of images, --filename-column the column with their names"
        )
    return f"not one of the {matcher.rows:,} captions can be imported, see above"
