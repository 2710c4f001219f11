"""``caption-flow export``: a run's rows in another format. What is done is in `exporting`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from caption_flow.cli.failures import usage_error
from caption_flow.cli.folders import for_people, refuse_unwritable
from caption_flow.cli.logs import configure_logging


class Format(StrEnum):
    """What can be written."""

    TXT = "txt"
    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


class Existing(StrEnum):
    """What to do about files that are there already."""

    SKIP = "skip"
    OVERWRITE = "overwrite"
    APPEND = "append"


def export(
    data_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the run (storage.data_dir).")
    ] = Path("./caption_data"),
    format_: Annotated[
        Format, typer.Option("--format", metavar="NAME", help="txt, jsonl, json, csv or parquet.")
    ] = Format.JSONL,
    output: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Folder to write into; the dataset's own puts files beside images."
        ),
    ] = Path("./export"),
    export_column: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="Output field that goes into txt files. [default: captions, or the only one]",
        ),
    ] = None,
    filename_column: Annotated[
        str,
        typer.Option(metavar="NAME", help="Column with the image's path within the dataset."),
    ] = "filename",
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIST", help="Columns to write, comma-separated. Not for txt. [default: all]"
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Export at most this many rows.")
    ] = None,
    shard: Annotated[
        list[str] | None,
        typer.Option(
            "--shard", "--shards", metavar="LIST", help="Only these shards, comma-separated."
        ),
    ] = None,
    existing: Annotated[
        Existing,
        typer.Option(
            metavar="HOW",
            help="Files that are there already: skip, overwrite, or append to them (txt).",
        ),
    ] = Existing.OVERWRITE,
    include_empty: Annotated[
        bool, typer.Option("--include-empty", help="Write a file for empty captions, too (txt).")
    ] = False,
    stats_only: Annotated[
        bool, typer.Option("--stats-only", help="Only say how many rows there are of what kind.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Write a run's captions as txt, json, jsonl, csv or parquet, also while the run goes on.

    What is in no Parquet file yet is included. txt and json make one file an image: beside the
    images if the output folder is the dataset's own, else in the same folders below
    OUTPUT/default. The other formats make one file, OUTPUT/default.jsonl and so on.
    """
    configure_logging("export", verbose=verbose)
    if not data_dir.is_dir():
        usage_error(f"there is no folder {for_people(data_dir)}; --data-dir names the run's folder")
    if existing is Existing.APPEND and format_ is not Format.TXT:
        usage_error(f"--existing append adds lines to txt files, and cannot be done with {format_}")
    if not stats_only:
        refuse_unwritable(output, "choose another folder (--output)")

    from caption_flow.cli.exporting import Request, export_rows, print_stats  # noqa: PLC0415

    if stats_only:
        print_stats(data_dir)
        return
    export_rows(
        Request(
            data_dir=data_dir,
            format=format_.value,
            output=output,
            export_column=export_column,
            filename_column=filename_column,
            columns=_listed(columns),
            limit=limit,
            shards=_listed(shard),
            existing=existing.value,
            include_empty=include_empty,
        )
    )


def _listed(values: list[str] | None) -> tuple[str, ...]:
    """Return ``a,b`` and repeated options alike as a list of names."""
    names = (name.strip() for value in values or () for name in value.split(","))
    return tuple(dict.fromkeys(name for name in names if name))
