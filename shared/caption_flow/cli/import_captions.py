"""``caption-flow import``: captions that were made elsewhere. What is done is in `importing`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from caption_flow.cli.failures import usage_error
from caption_flow.cli.folders import DATA_FOLDER, for_people
from caption_flow.cli.logs import configure_logging


class Format(StrEnum):
    """What can be read."""

    TXT = "txt"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    LANCE = "lance"


class Existing(StrEnum):
    """What to do about items that are captioned already."""

    KEEP = "keep"
    OVERWRITE = "overwrite"


class Lines(StrEnum):
    """What a text of several lines is."""

    SPLIT = "split"
    WHOLE = "whole"


class Repeated(StrEnum):
    """What to do about several rows for one image that say different things."""

    SKIP = "skip"
    FIRST = "first"
    LAST = "last"
    ALL = "all"


def import_captions(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of .txt files, table (.jsonl, .csv, .parquet), or older caption_data "
            "folder (captions.lance).",
            show_default=False,
        ),
    ],
    dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of images that the captions are for. [default: the dataset of --config, "
            "or else SOURCE itself]",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The run's configuration: its dataset and its recipe."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help=f"Folder of the run's results. [default: as with run: {DATA_FOLDER}/NAME beside "
            "the images, or the configuration's]",
        ),
    ] = None,
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help=f"{', '.join(Format)}. [default: by SOURCE's name and what is in it]",
        ),
    ] = None,
    caption_column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Column with the texts; may be repeated, each with its --field. [default: those "
            "called like output fields, or else captions, caption, text, …]",
        ),
    ] = None,
    filename_column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Column that names the image: path, key, address, or number of a hub dataset's "
            "row; may be repeated. [default: filename, path, image, item_key, url, …]",
        ),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Output field that the texts are for. [default: the last stage's, or captions]",
        ),
    ] = None,
    lines: Annotated[
        Lines | None,
        typer.Option(
            metavar="HOW",
            help="Texts of several lines: split, a caption a line, as `export --format txt` writes "
            "them; or whole, one caption. [default: split in .txt and CSV, else whole]",
        ),
    ] = None,
    text_suffix: Annotated[
        str, typer.Option(metavar="SUFFIX", help="What text files of a folder end in.")
    ] = ".txt",
    existing: Annotated[
        Existing,
        typer.Option(
            metavar="HOW",
            help="Images that are captioned in the run already: keep what is there, or overwrite. "
            "Failed ones get the caption either way.",
        ),
    ] = Existing.KEEP,
    repeated: Annotated[
        Repeated,
        typer.Option(
            metavar="HOW",
            help="Rows for one image that say different things: skip them, take the first or the "
            "last, or all as several captions.",
        ),
    ] = Repeated.SKIP,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Model to credit; may be repeated. [default: none]"),
    ] = None,
    no_hash: Annotated[
        bool,
        typer.Option(
            "--no-hash",
            help="Do not read the images. A later run then takes each whose time or size changes "
            "for another image, and captions it again.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be imported, and write nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Say what was done as one JSON object, for scripts.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Bring in captions that were made elsewhere, so that a run captions only what is left.

    Captions become rows of the run, beside those of its workers, and every export has both. Files
    that are read are never changed. No orchestrator may be running on the folder; importing again
    brings in only what is new.

    - `caption-flow import photos`, then `caption-flow run photos`
    - `caption-flow import captions.jsonl --dataset photos --caption-column text`
    - `caption-flow import old/caption_data --config orchestrator.yaml --dry-run`

    A table's row belongs to the image whose path, key or address it names; or whose path ends as
    the name does, if that is only one. Nothing is guessed: what could be two images' is told of
    and left out. The rows are those of the worker `import`.
    """
    configure_logging("import", verbose=verbose, quiet=True)
    if not source.exists():
        usage_error(f"there is no file or folder {for_people(source)}")
    if not text_suffix:
        usage_error("--text-suffix: text files have one, such as .txt")
    if len(field or ()) > 1 and len(field or ()) != len(caption_column or ()):
        usage_error("each --field needs its --caption-column, in the same order")
    if len(caption_column or ()) > 1 and len(field or ()) != len(caption_column or ()):
        usage_error("each --caption-column needs its --field, in the same order")

    from caption_flow.cli.importing import ImportRequest, bring_in  # noqa: PLC0415

    bring_in(
        ImportRequest(
            source=source,
            dataset=dataset,
            config=config,
            data_dir=data_dir,
            format=None if format_ is None else format_.value,
            caption_columns=tuple(caption_column or ()),
            filename_columns=tuple(filename_column or ()),
            fields=tuple(field or ()),
            lines=None if lines is None else lines is Lines.SPLIT,
            text_suffix=text_suffix,
            existing=existing.value,
            repeated=repeated.value,
            models=tuple(model or ()),
            hashes=not no_hash,
            dry_run=dry_run,
            as_json=as_json,
        )
    )
