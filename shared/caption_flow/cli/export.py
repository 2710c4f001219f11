"""``caption-flow export``: a run's rows in another format. What is done is in `exporting`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from caption_flow.cli.arrow import keep_pandas_out
from caption_flow.cli.failures import usage_error
from caption_flow.cli.folders import for_people, refuse_unwritable
from caption_flow.cli.logs import configure_logging
from caption_flow.cli.retries import tell_of_retries
from caption_flow.cli.statuses import Status


class Format(StrEnum):
    """What can be written."""

    TXT = "txt"
    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    LANCE = "lance"
    KOHYA = "kohya"
    IMAGEFOLDER = "imagefolder"
    SIMPLETUNER = "simpletuner"
    WEBSHART = "webshart"
    WEBDATASET = "webdataset"
    HUGGINGFACE_HUB = "huggingface_hub"
    ALL = "all"


_OF_TEXTS: Final = frozenset(
    {
        Format.TXT,
        Format.KOHYA,
        Format.IMAGEFOLDER,
        Format.SIMPLETUNER,
        Format.WEBSHART,
        Format.WEBDATASET,
        Format.ALL,
    }
)
DEFAULT_SHARD_SIZE: Final = 10_000
DEFAULT_SHARD_MIB: Final = 1024.0
_OPTIMIZED: Final = frozenset({Format.LANCE, Format.PARQUET, Format.HUGGINGFACE_HUB, Format.ALL})
_OF_THE_HUB: Final = frozenset({Format.HUGGINGFACE_HUB, Format.ALL})
_SHARD_MIB: Final = 128


class Existing(StrEnum):
    """What to do about files that are there already."""

    SKIP = "skip"
    OVERWRITE = "overwrite"
    APPEND = "append"
    BACKUP = "backup"


def export(
    data_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the run (storage.data_dir).")
    ] = Path("./caption_data"),
    format_: Annotated[
        Format, typer.Option("--format", metavar="NAME", help=f"{', '.join(Format)}; see above.")
    ] = Format.JSONL,
    output: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Folder to write into; the dataset's own puts files beside images."
        ),
    ] = Path("./export"),
    export_column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIST",
            help="Output fields that texts are made of, comma-separated, in this order. "
            "[default: captions, or else the last stage's]",
        ),
    ] = None,
    per_field: Annotated[
        bool,
        typer.Option(
            "--per-field", help="One file for each of these fields: NAME.FIELD.txt (txt)."
        ),
    ] = False,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Text of each item, made of fields and columns: '{caption}, {column:tags}'.",
        ),
    ] = None,
    prefix: Annotated[
        str,
        typer.Option(metavar="TEXT", help="Put before each text, such as a trigger word."),
    ] = "",
    suffix: Annotated[str, typer.Option(metavar="TEXT", help="Put after each text.")] = "",
    filename_column: Annotated[
        str,
        typer.Option(metavar="NAME", help="Column with the image's path within the dataset."),
    ] = "filename",
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIST",
            help="Columns to write, comma-separated, in formats of whole rows. [default: all; "
            "webdataset: those about the image]",
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
    status: Annotated[
        list[Status] | None,
        typer.Option(
            metavar="HOW",
            help="Only rows that ended so: ok (captioned, no flag), flagged or failed; may be "
            "repeated. [default: all]",
        ),
    ] = None,
    filter_: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="SQL",
            help="Only rows for which this holds, as in SQL's WHERE: \"image_width >= 512 AND "
            'len(captions) > 0".',
        ),
    ] = None,
    existing: Annotated[
        Existing,
        typer.Option(
            metavar="HOW",
            help="Files that are there already: skip, overwrite, append to them (txt), or backup: "
            "overwrite and keep what was there as NAME.txt.bak.",
        ),
    ] = Existing.OVERWRITE,
    include_empty: Annotated[
        bool, typer.Option("--include-empty", help="Write empty captions, too.")
    ] = False,
    optimize: Annotated[
        bool,
        typer.Option(
            "--optimize",
            help="Use less disk: remove earlier versions (lance), compress harder (parquet, "
            "huggingface_hub).",
        ),
    ] = False,
    shard_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=100_000,
            help="Samples of a tar at most (webdataset). [default: 10000]",
        ),
    ] = None,
    shard_mib: Annotated[
        float | None,
        typer.Option(
            metavar="MIB", min=0.01, help="MiB of a tar at most (webdataset). [default: 1024]"
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Whose dataset section says where the images are, if the run's folder does not "
            "(webdataset).",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE", help="Where the images are now, if they were moved (webdataset)."
        ),
    ] = None,
    hf_dataset: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="Dataset repository of the hub to upload to; made if it is not there "
            "(huggingface_hub, all).",
        ),
    ] = None,
    private: Annotated[
        bool,
        typer.Option(
            "--private", help="Make a new repository private; refuse one that is public already."
        ),
    ] = False,
    license_: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="NAME", help="License that the card names, such as cc-by-4.0."
        ),
    ] = None,
    nsfw: Annotated[
        bool, typer.Option("--nsfw", help="Tag the dataset not-for-all-audiences.")
    ] = False,
    tags: Annotated[
        list[str] | None,
        typer.Option(metavar="LIST", help="More tags of the card, comma-separated."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Split that all rows go to at the hub. [default: what the column split says, or "
            "the source's own, or train]",
        ),
    ] = None,
    hf_shard_mib: Annotated[
        float,
        typer.Option(metavar="MIB", min=0.01, help="About how large each file at the hub is."),
    ] = _SHARD_MIB,
    undo: Annotated[
        bool,
        typer.Option(
            "--undo",
            help="Put back what the last txt, json or webshart export replaced; do nothing else.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Say what was done as one JSON object, for scripts.")
    ] = False,
    stats_only: Annotated[
        bool, typer.Option("--stats-only", help="Only say how many rows there are of what kind.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Write a run's captions in another format, also while the run goes on.

    What is in no Parquet file yet is included.

    - txt, json: one file an image, beside the images if the output folder is the dataset's own,
      else in the same folders below OUTPUT/default.
    - jsonl, csv, parquet, lance: all rows in one table, OUTPUT/default.jsonl and so on.
    - kohya, imagefolder, simpletuner: the texts as trainers read them, in OUTPUT/metadata.json,
      OUTPUT/metadata.jsonl and OUTPUT/captions.parquet.
    - webshart: texts go into the metadata of tars that is in OUTPUT.
    - webdataset: new tars, OUTPUT/default-000000.tar and so on, with each captioned image, its
      texts and its columns. Images are read where they were captioned. Run again, it writes only
      tars whose samples are others than before, and goes on where it was interrupted.
    - huggingface_hub: all rows as a dataset of the hub, with a card, in one commit. One that was
      interrupted goes on. Takes HF_TOKEN, or hf auth login.
    - all: each of these that can be made here, but for webdataset, which copies all images; the hub
      only with --hf-dataset.

    Examples:
    - `caption-flow export --format txt --output photos --prefix "ohwx, "`
    - `caption-flow export --format parquet --status ok --filter "image_width >= 1024"`
    - `caption-flow export --format huggingface_hub --hf-dataset me/photos --license cc-by-4.0`
    - `caption-flow export --undo`
    """
    configure_logging("export", verbose=verbose)
    if not data_dir.is_dir():
        usage_error(f"there is no folder {for_people(data_dir)}; --data-dir names the run's folder")
    only_txt = {"--existing append": existing is Existing.APPEND, "--per-field": per_field}
    of_texts = {
        "--template": template is not None,
        "--prefix": bool(prefix),
        "--suffix": bool(suffix),
    }
    _refuse_where_it_means_nothing(format_, only_txt, frozenset({Format.TXT}))
    _refuse_where_it_means_nothing(format_, of_texts, _OF_TEXTS)
    of_the_hub = {
        "--hf-dataset": hf_dataset is not None,
        "--private": private,
        "--license": license_ is not None,
        "--nsfw": nsfw,
        "--tags": bool(tags),
        "--split": split is not None,
        "--hf-shard-mib": hf_shard_mib != _SHARD_MIB,
    }
    _refuse_where_it_means_nothing(format_, of_the_hub, _OF_THE_HUB)
    if hf_dataset is None and (format_ is Format.HUGGINGFACE_HUB or any(of_the_hub.values())):
        usage_error("--hf-dataset ORG/NAME is missing: it names the repository to upload to")
    _refuse_where_it_means_nothing(format_, {"--optimize": optimize}, _OPTIMIZED)
    of_tars = {
        "--shard-size": shard_size is not None,
        "--shard-mib": shard_mib is not None,
        "--config": config is not None,
        "--dataset": dataset is not None,
    }
    _refuse_where_it_means_nothing(format_, of_tars, frozenset({Format.WEBDATASET}))
    if format_ is Format.WEBDATASET and existing is Existing.BACKUP:
        usage_error("--existing backup means nothing with --format webdataset: tars are no texts")
    if template is not None and (export_column or per_field):
        usage_error("--template says which fields go into a text: drop --export-column")
    if not stats_only and not undo and format_ is not Format.HUGGINGFACE_HUB:
        refuse_unwritable(output, "choose another folder (--output)")

    from caption_flow.cli.export_formats import HubRequest, Request  # noqa: PLC0415
    from caption_flow.cli.exporting import export_rows, print_stats, undo_last  # noqa: PLC0415
    from caption_flow.storage.exporter.hub_shards import is_split  # noqa: PLC0415

    if split is not None and not is_split(split):
        usage_error(f"--split: {split!r} is no split: letters, digits, _ and single dots")
    keep_pandas_out()
    tell_of_retries()
    if stats_only:
        print_stats(data_dir, as_json=as_json)
        return
    if undo:
        undo_last(data_dir, as_json=as_json)
        return
    export_rows(
        Request(
            data_dir=data_dir,
            format=format_.value,
            output=output,
            export_columns=_listed(export_column),
            per_field=per_field,
            template=template,
            prefix=prefix,
            suffix=suffix,
            filename_column=filename_column,
            columns=_listed(columns),
            limit=limit,
            shards=_listed(shard),
            endings=frozenset(ending.value for ending in status or ()),
            condition=filter_,
            existing=existing.value,
            include_empty=include_empty,
            optimize=optimize,
            hub=None
            if hf_dataset is None
            else HubRequest(
                hf_dataset,
                private,
                license_,
                nsfw,
                _listed(tags),
                split,
                int(hf_shard_mib * 2**20),
            ),
            as_json=as_json,
            shard_size=shard_size or DEFAULT_SHARD_SIZE,
            shard_mib=shard_mib or DEFAULT_SHARD_MIB,
            config=config,
            dataset=dataset,
        )
    )


def _refuse_where_it_means_nothing(
    format_: Format, options: Mapping[str, bool], formats: Collection[Format]
) -> None:
    for option, given in options.items():
        if given and format_ not in formats:
            known = ", ".join(sorted(formats))
            usage_error(f"{option} means nothing with --format {format_}, only with {known}")


def _listed(values: list[str] | None) -> tuple[str, ...]:
    """Return ``a,b`` and repeated options alike as a list of names."""
    names = (name.strip() for value in values or () for name in value.split(","))
    return tuple(dict.fromkeys(name for name in names if name))
