"""The formats of ``caption-flow export``: for each, where it goes and how it is written.

`FORMATS` is the registry: another format is another entry.
"""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Final

from caption_flow.cli.failures import usage_error
from caption_flow.storage.choice import Ending
from caption_flow.storage.contents import StorageContents, no_such
from caption_flow.storage.database import open_for_reading, read_meta
from caption_flow.storage.exported import exported_from
from caption_flow.storage.exporter.captioned import Listing
from caption_flow.storage.exporter.csv_file import export_csv
from caption_flow.storage.exporter.errors import ExportError, naming
from caption_flow.storage.exporter.hub import ALSO_READ, Publication, export_hub
from caption_flow.storage.exporter.hub_card import StageFacts
from caption_flow.storage.exporter.imagefolder import export_imagefolder
from caption_flow.storage.exporter.json_files import export_json_files
from caption_flow.storage.exporter.jsonl import export_jsonl
from caption_flow.storage.exporter.kohya import export_kohya
from caption_flow.storage.exporter.lance_table import HOW_TO_INSTALL, export_lance, has_pylance
from caption_flow.storage.exporter.parquet import export_parquet
from caption_flow.storage.exporter.report import ExportReport, Skip
from caption_flow.storage.exporter.sidecars import keep_beside
from caption_flow.storage.exporter.simpletuner import export_simpletuner
from caption_flow.storage.exporter.texts import DEFAULT_COLUMN, Wording
from caption_flow.storage.exporter.txt import export_txt
from caption_flow.storage.exporter.undo import kept_for_undo
from caption_flow.storage.exporter.webshart import export_webshart, has_metadata, require_metadata

ALL: Final = "all"
DEFAULT_NAME: Final = "default"
_LOOKED_AT: Final = 200
_OF_THE_HUB: Final = re.compile(r"(?P<name>[\w.-]+/[\w.-]+) \((?P<split>[\w.]+)[,)]")
"""How a run remembers a dataset of the hub."""


@dataclass(frozen=True, slots=True)
class HubRequest:
    """What concerns the hub alone: the repository, and what its card says."""

    repository: str
    private: bool = False
    license: str | None = None
    nsfw: bool = False
    tags: tuple[str, ...] = ()
    split: str | None = None
    shard_bytes: int = 128 * 2**20


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
    optimize: bool = False
    hub: HubRequest | None = None
    as_json: bool = False
    shard_size: int = 10_000
    shard_mib: float = 1024
    config: Path | None = None
    dataset: str | None = None
    images_read: Callable[[int], None] | None = field(default=None, repr=False, compare=False)
    """Hears of rows whose images have been dealt with, in formats that have images."""
    number: int = field(default_factory=lambda: secrets.randbits(31))
    """Tells this export from others: `--undo` takes back all formats of one."""


Export = Callable[[Request, StorageContents], list[ExportReport]]


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    ``carries_texts``: it is made of the items' texts, so that the options about those hold, and
    whatever column the texts need is read. ``obstacle`` says why it cannot be made here, or
    nothing: only `ALL` asks, who wants the one format gets its own error. One that
    ``copies_images`` is no part of `ALL`. ``also_reads`` are columns that it takes besides those
    that are asked for.
    """

    write: Export
    carries_texts: bool = False
    obstacle: Callable[[Request, Collection[str]], str] = lambda _request, _shards: ""
    copies_images: bool = False
    also_reads: tuple[str, ...] = ()


def require_known(option: str, kind: str, names: Collection[str], known: Collection[str]) -> None:
    """End the command if one of the names is none of those there are."""
    for name in names:
        if name not in known:
            usage_error(f"{option}: {no_such(kind, name, known)}")


def _wording(request: Request, contents: StorageContents) -> Wording:
    """Return which texts items have."""
    if request.template is not None:
        wording = Wording((), request.template, request.prefix, request.suffix)
        wording.check(contents)
        return wording
    fields = contents.output_fields
    if request.export_columns:
        # A column of the dataset may be written, too; what is neither is a misspelt output field.
        columns = request.export_columns
        unknown = [name for name in columns if name not in contents.columns]
        require_known("--export-column", "output field", unknown, fields)
    else:
        # As `run` chooses: what the last stage gave is what the chain was for.
        columns = (DEFAULT_COLUMN,) if DEFAULT_COLUMN in fields or not fields else (fields[-1],)
    return Wording(columns, None, request.prefix, request.suffix)


def _listing(request: Request, contents: StorageContents) -> Listing:
    wording = _wording(request, contents)
    return Listing(wording, request.filename_column, request.include_empty)


def _is_dataset(request: Request, contents: StorageContents) -> bool:
    """Tell whether the images lie in the output folder."""
    with closing(contents.iter_rows([request.filename_column])) as found:
        names = islice(found, _LOOKED_AT)
        return any((request.output / str(row[request.filename_column])).is_file() for row in names)


def _folder(request: Request, contents: StorageContents) -> Path:
    """Return where files of one image each go: the dataset itself, or a folder of their own."""
    is_dataset = _is_dataset(request, contents)
    return request.output if is_dataset else request.output / DEFAULT_NAME


def _txt(request: Request, contents: StorageContents) -> list[ExportReport]:
    whole = _wording(request, contents)
    files = {".txt": whole}
    if request.per_field:
        files = {f".{name}.txt": replace(whole, columns=(name,)) for name in whole.columns}
    folder = _folder(request, contents)
    with kept_for_undo(request.data_dir, request.number) as replaced:
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
    with kept_for_undo(request.data_dir, request.number) as replaced:
        return [
            export_json_files(
                contents,
                _folder(request, contents),
                filename_column=request.filename_column,
                existing=request.existing,  # type: ignore[arg-type]  # append has been refused
                replaced=replaced,
            )
        ]


def _webshart(request: Request, contents: StorageContents) -> list[ExportReport]:
    listing = _listing(request, contents)
    require_metadata(request.output)
    with kept_for_undo(request.data_dir, request.number) as replaced:
        return [
            export_webshart(
                contents,
                request.output,
                listing,
                existing=request.existing,  # type: ignore[arg-type]  # append has been refused
                replaced=replaced,
            )
        ]


def _webdataset(request: Request, contents: StorageContents) -> list[ExportReport]:
    listing = _listing(request, contents)
    # Sources and their storages take a while to import, and no other format reads images.
    from caption_flow.cli.export_tars import write_tars  # noqa: PLC0415

    return [write_tars(request, contents, listing)]


def _one_file(
    name: str, export: Callable[[Request, StorageContents, Path], ExportReport]
) -> Export:
    """Return what writes one file whose name is ours alone."""

    def write(request: Request, contents: StorageContents) -> list[ExportReport]:
        path = request.output / name
        if request.existing == "skip" and path.exists():
            report = ExportReport(path)
            report.skip(Skip.EXISTING)
            return [report]
        backed_up = request.existing == "backup" and path.is_file() and keep_beside(path)
        report = export(request, contents, path)
        report.backed_up += backed_up
        return [report]

    return write


def _shared_name(
    name: str, export: Callable[[Request, StorageContents, Path], ExportReport]
) -> Export:
    """Return what writes one file whose name others use, too: what is not ours is kept beside."""
    write_file = _one_file(name, export)

    def write(request: Request, contents: StorageContents) -> list[ExportReport]:
        path = request.output / name
        is_foreign = request.existing == "overwrite" and path.is_file() and not _ours(request, path)
        if is_foreign:
            with naming(path):
                is_foreign = keep_beside(path)
        (report,) = write_file(request, contents)
        report.backed_up += is_foreign
        if report.skipped[Skip.EXISTING] == 0:
            _remember(request, path)
        return [report]

    return write


def _ours(request: Request, path: Path) -> bool:
    with suppress(sqlite3.DatabaseError), exported_from(request.data_dir) as record:
        return record.has_ours(path)
    return False


def _remember(request: Request, path: Path) -> None:
    # Where it cannot be remembered, the next export keeps what it replaces: that harms nobody.
    with suppress(sqlite3.DatabaseError), exported_from(request.data_dir) as record:
        record.remember_file(path)


def _kohya(request: Request, contents: StorageContents, path: Path) -> ExportReport:
    images = request.output if _is_dataset(request, contents) else None
    return export_kohya(contents, path, _listing(request, contents), images=images)


def _hub(request: Request, contents: StorageContents) -> list[ExportReport]:
    if request.hub is None:
        raise ExportError("no repository is named: --hf-dataset ORG/NAME")
    run = _known_of(request.data_dir)
    dataset = _OF_THE_HUB.match(run.get("dataset", ""))
    publication = Publication(
        **asdict(request.hub),
        columns=request.columns,
        source=dataset and dataset["name"],
        source_split=dataset and dataset["split"],
        stages=tuple(StageFacts(**stage) for stage in json.loads(run.get("stages", "[]"))),
        keep_existing=request.existing == "skip",
        optimize=request.optimize,
    )
    return [export_hub(contents, publication, request.data_dir)]


def _known_of(data_dir: Path) -> dict[str, str]:
    """Return what the run remembers of its dataset and its stages."""
    connection = open_for_reading(data_dir)
    if connection is None:
        return {}
    with closing(connection):
        known = {name: read_meta(connection, name) for name in ("dataset", "stages")}
    return {name: value for name, value in known.items() if value is not None}


def _without_repository(request: Request, _shards: Collection[str]) -> str:
    return "" if request.hub else "--hf-dataset names no repository"


def _without_pylance(_request: Request, _shards: Collection[str]) -> str:
    return "" if has_pylance() else f"pylance is not installed: {HOW_TO_INSTALL}"


def _without_metadata(request: Request, shards: Collection[str]) -> str:
    there = has_metadata(request.output, shards)
    return "" if there else "there is no webshart metadata in the output folder"


FORMATS: Final[dict[str, Format]] = {
    "txt": Format(_txt, carries_texts=True),
    "json": Format(_json),
    "jsonl": Format(_one_file("default.jsonl", lambda _, rows, path: export_jsonl(rows, path))),
    "csv": Format(_one_file("default.csv", lambda _, rows, path: export_csv(rows, path))),
    "parquet": Format(
        _one_file(
            "default.parquet",
            lambda asked, rows, path: export_parquet(rows, path, optimize=asked.optimize),
        )
    ),
    "lance": Format(
        _one_file(
            "default.lance",
            lambda asked, rows, path: export_lance(rows, path, optimize=asked.optimize),
        ),
        obstacle=_without_pylance,
    ),
    "kohya": Format(_shared_name("metadata.json", _kohya), carries_texts=True),
    "imagefolder": Format(
        _shared_name(
            "metadata.jsonl",
            lambda asked, rows, path: export_imagefolder(rows, path, _listing(asked, rows)),
        ),
        carries_texts=True,
    ),
    "simpletuner": Format(
        _one_file(
            "captions.parquet",
            lambda asked, rows, path: export_simpletuner(rows, path, _listing(asked, rows)),
        ),
        carries_texts=True,
    ),
    "webshart": Format(_webshart, carries_texts=True, obstacle=_without_metadata),
    "webdataset": Format(_webdataset, carries_texts=True, copies_images=True),
    "huggingface_hub": Format(_hub, obstacle=_without_repository, also_reads=ALSO_READ),
}
"""In this order where all are wanted: what refuses a choice of texts comes before any file."""
