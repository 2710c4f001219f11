"""What ``caption-flow view`` does once it is clear what is asked for."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from caption_flow.cli.configuration import load_or_refuse
from caption_flow.cli.failures import CommandFailed, usage_error
from caption_flow.cli.folders import for_people
from caption_flow.cli.stores import storage_failures
from caption_flow.cli.viewer.entry import paragraphs
from caption_flow.cli.viewer.pictures import (
    Colours,
    Way,
    colours_by_environment,
    is_multiplexed,
    way_by_environment,
)
from caption_flow.cli.viewer.session import Looks, Session
from caption_flow.cli.viewer.state import Viewer
from caption_flow.cli.viewer.terminal import Terminal
from caption_flow.storage.browse import RowIndex, Wanted
from caption_flow.storage.choice import Choice, ChoiceError, Ending
from caption_flow.storage.contents import Row, no_such
from caption_flow.storage.database import LEDGER_FILE
from caption_flow.storage.search import Search

if TYPE_CHECKING:
    from caption_flow.cli.viewer.sight import Sight


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be seen of which run, and how."""

    data_dir: Path
    fields: tuple[str, ...] = ()
    ending: Ending | None = None
    condition: str | None = None
    search: str = ""
    limit: int | None = None
    refresh_seconds: float = 2.0
    way: Way | None = None
    """How pictures are shown; None: as well as the terminal can."""
    dataset: Path | None = None
    config: Path | None = None


def can_be_drawn() -> bool:
    """Tell whether somebody sits before a terminal that can be drawn on."""
    return (
        sys.stdin.isatty()
        and sys.stdout.isatty()
        and os.environ.get("TERM", "") not in {"", "dumb"}
    )


def print_rows(request: Request) -> None:
    """Print rows as text, as the run was at one moment."""
    _require_run(request.data_dir)
    with (
        storage_failures(request.data_dir),
        closing(RowIndex(request.data_dir, as_of_now=True)) as index,
    ):
        _refuse_mistakes(request, index)
        ending = request.ending
        endings: frozenset[Ending] = frozenset(() if ending is None else (ending,))
        fields = frozenset(request.fields)
        search = Search(request.search, fields) if request.search else None
        wanted = Wanted(Choice(endings, request.condition), search)
        try:
            for number, row in enumerate(islice(index.rows(wanted), request.limit)):
                _print_row(row, index.output_fields, request.fields, is_first=not number)
        except ChoiceError as error:
            raise CommandFailed(str(error)) from error


def _print_row(
    row: Row, output_fields: Sequence[str], shown: Sequence[str], *, is_first: bool
) -> None:
    if not is_first:
        print()
    for one in paragraphs(row, output_fields, shown, whole=True):
        print(f"  {one.text}" if one.is_indented else one.text)


def browse(request: Request) -> int:
    """Show rows on the terminal until the user leaves; return the exit code."""
    _require_run(request.data_dir)
    with (
        storage_failures(request.data_dir),
        closing(RowIndex(request.data_dir)) as index,
    ):
        _refuse_mistakes(request, index)
        viewer = Viewer(
            ending=request.ending,
            shown=request.fields,
            search=request.search,
            is_conditioned=request.condition is not None,
            pictures=request.way is not Way.NONE,
        )
        with closing(_Seer(request, index)) as seer, Terminal() as terminal:
            session = Session(
                terminal,
                index,
                viewer,
                seer.find,
                looks=_looks(request, terminal),
                where=for_people(request.data_dir),
                condition=request.condition,
                refresh_seconds=request.refresh_seconds,
            )
            return asyncio.run(session.run())


class _Seer:
    """Finds pictures; what that takes is imported when the first one is looked for."""

    def __init__(self, request: Request, index: RowIndex) -> None:
        self._request = request
        self._index = index
        self._sight: Sight | None = None
        config = (
            None if request.config is None else load_or_refuse(request.config, {}).config.dataset
        )
        self._config = config

    def find(self, row: Row) -> Image.Image | str:
        """Return a row's picture, or why there is none."""
        from caption_flow.cli.viewer.sight import NoPictureError, Sight  # noqa: PLC0415  -- half a second

        if self._sight is None:
            request, dataset = self._request, self._index.dataset
            self._sight = Sight(request.data_dir, dataset, request.dataset, self._config)
        try:
            return self._sight.picture(row)
        except NoPictureError as error:
            return str(error)

    def close(self) -> None:
        """Let go of the dataset."""
        if self._sight is not None:
            self._sight.close()


def _looks(request: Request, terminal: Terminal) -> Looks:
    colours = colours_by_environment(os.environ)
    way = way_by_environment(os.environ) if request.way is None else request.way
    is_unicode = terminal.encoding.lower().replace("-", "") in {"utf8", "utf16", "utf32"}
    if way is Way.BLOCKS and (not is_unicode or colours is Colours.NONE):
        way = Way.NONE
    may_ask = request.way is None and not is_multiplexed(os.environ)
    return Looks(way, colours, is_fixed=not may_ask or os.environ.get("TERM") == "linux")


def _require_run(data_dir: Path) -> None:
    if not (data_dir / LEDGER_FILE).exists():
        usage_error(
            f"{for_people(data_dir)} holds no run (no {LEDGER_FILE}); --data-dir names its folder"
        )


def _refuse_mistakes(request: Request, index: RowIndex) -> None:
    for name in request.fields if index.output_fields else ():
        if name not in index.output_fields:
            usage_error(f"--field: {no_such('output field', name, index.output_fields)}")
    if request.condition is not None and index.schema is not None:
        try:
            Choice(condition=request.condition).check(index.schema)
        except ChoiceError as error:
            usage_error(f"--filter: {error}")
