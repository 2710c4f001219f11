"""``caption-flow view``: a run's images and captions, one by one. What is done is in `viewer`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from caption_flow.cli.failures import usage_error
from caption_flow.cli.folders import for_people
from caption_flow.cli.logs import configure_logging
from caption_flow.cli.statuses import Status


class Images(StrEnum):
    """How images are shown."""

    AUTO = "auto"
    KITTY = "kitty"
    ITERM = "iterm"
    SIXEL = "sixel"
    BLOCKS = "blocks"
    NONE = "none"


def view(
    data_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the run (storage.data_dir).")
    ] = Path("./caption_data"),
    field: Annotated[
        list[str] | None,
        typer.Option(metavar="LIST", help="Output fields to show, comma-separated. [default: all]"),
    ] = None,
    status: Annotated[
        Status | None,
        typer.Option(
            metavar="HOW",
            help="Only items that ended so: ok (captioned, no flag), flagged or failed. "
            "[default: all]",
        ),
    ] = None,
    filter_: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="SQL",
            help='Only items for which this holds, as in SQL\'s WHERE: "image_width < 512".',
        ),
    ] = None,
    search: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Begin at the first item with this in a caption, its name or its error; with "
            "--plain, only those that have it.",
        ),
    ] = "",
    refresh_rate: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0.1, help="How often to look for new rows."),
    ] = 2.0,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Show no images, only what is said of them.")
    ] = False,
    images: Annotated[
        Images,
        typer.Option(
            metavar="HOW",
            help=f"{', '.join(Images)}; auto: as well as the terminal can.",
        ),
    ] = Images.AUTO,
    dataset: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the images are now, if they have moved."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The run's configuration, to find images of other datasets by."
        ),
    ] = None,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Print as text and end, as when the output is no terminal."),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Print at most this many (--plain).")
    ] = None,
) -> None:
    """Look through a run's images and captions, also while the run goes on; changes nothing.

    Images appear where the terminal can show them (kitty, Ghostty, WezTerm, iTerm2, Sixel), else
    as coloured blocks. In tmux and screen they are blocks.

    - `n` or `j`, `p` or `k`, arrows: next, previous item; `g` `G`: first, last; `:123`: go there.
    - `/text`: search in captions, names and errors; then `n` `N`: next, previous hit; Esc stops.
    - `f`: all, then only ok, flagged, failed items; `t`: one output field after the other.
    - Space, PgDn, PgUp: more of a long text; `i`: images on or off; `?`: all keys; `q`: quit.

    Examples:
    - `caption-flow view --data-dir .caption-flow/photos`
    - `caption-flow view --data-dir .caption-flow/photos --status failed --no-images`
    - `caption-flow view --data-dir .caption-flow/photos --search dog --field caption | less`
    """
    configure_logging("view", quiet=True)
    if not data_dir.is_dir():
        usage_error(f"there is no folder {for_people(data_dir)}; --data-dir names the run's folder")
    if dataset is not None and not dataset.is_dir():
        usage_error(f"there is no folder {for_people(dataset)}; --dataset names that of the images")

    from caption_flow.cli.viewer.pictures import Way  # noqa: PLC0415  -- mistakes are answered at once
    from caption_flow.cli.viewer.show import (  # noqa: PLC0415
        Request,
        browse,
        can_be_drawn,
        print_rows,
    )

    way = None if images is Images.AUTO else Way(images.value)
    fields = (name.strip() for value in field or () for name in value.split(","))
    request = Request(
        data_dir=data_dir,
        fields=tuple(dict.fromkeys(name for name in fields if name)),
        ending=None if status is None else status.value,
        condition=filter_,
        search=search,
        limit=limit,
        refresh_seconds=refresh_rate,
        way=Way.NONE if no_images else way,
        dataset=dataset,
        config=config,
    )
    if plain or not can_be_drawn():
        print_rows(request)
        return
    if limit is not None:
        usage_error("--limit is for what is printed: add --plain")
    raise typer.Exit(browse(request))
