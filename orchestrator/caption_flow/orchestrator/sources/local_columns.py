"""Whether a folder's images have the columns that prompts name. Blocking."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from caption_flow.orchestrator.sources.base import SourceError
from caption_flow.orchestrator.sources.metadata import MetadataIndex
from caption_flow.orchestrator.sources.scan import FoundFile, ScanOptions, scan
from caption_flow.orchestrator.sources.sidecars import TEXT_COLUMN, Sidecars
from caption_flow.orchestrator.sources.wanted import asked_for, suggested

_FIRST: Final = 64
_MORE: Final = 2000
_PROBLEMS_TOLD: Final = 5

Skip = Callable[[bytes], bool]
"""Whether an image is left out although it is there, by its path within the dataset."""


def sidecars_for(root: Path, columns: Sequence[str], data_dir: Path) -> Sidecars | None:
    """Return what reads the columns that prompts name; None if they name none."""
    if not columns:
        return None
    path = os.fsencode(root.absolute())
    return Sidecars(path, columns, MetadataIndex(data_dir, path, columns))


def take(files: Iterator[FoundFile], count: int, sidecars: Sidecars | None) -> list[FoundFile]:
    """Take the next files, knowing the metadata of their folders."""
    found = list(islice(files, count))
    if sidecars is not None:
        for file in found:
            sidecars.metadata.enter(file.path)
    return found


def check_columns(
    root: Path,
    options: ScanOptions,
    columns: Sequence[str],
    *,
    videos: bool,
    skip: Skip | None = None,
) -> None:
    """Raise `SourceError` if none of a folder's first images has a column; leaves nothing.

    Where ``videos`` are captioned, they count like images.
    """
    with TemporaryDirectory(prefix="caption-flow-") as nowhere:
        sidecars = sidecars_for(root, columns, Path(nowhere))
        if sidecars is None:
            return
        with closing(sidecars):
            files = scan(str(root.absolute()), options)
            refuse_missing(sidecars, take(files, _FIRST, sidecars), files, videos=videos, skip=skip)


def refuse_missing(
    sidecars: Sidecars,
    found: list[FoundFile],
    files: Iterator[FoundFile],
    *,
    videos: bool,
    skip: Skip | None,
) -> None:
    """Raise `SourceError` if none of the first images has a column; ``found`` may grow."""
    missing, there = sidecars.missing(_unskipped(found, videos=videos, skip=skip))
    if missing:  # the first folder may be an exception
        found += take(files, _MORE, sidecars)
        missing, there = sidecars.missing(_unskipped(found, videos=videos, skip=skip))
    if missing and any(videos or not file.is_video for file in found):
        raise SourceError(_about(sidecars, missing, there, looked_at=len(found), skip=skip))


def _unskipped(found: Sequence[FoundFile], *, videos: bool, skip: Skip | None) -> Iterator[bytes]:
    for file in found:
        if (videos or not file.is_video) and (skip is None or not skip(file.path)):
            yield file.path


def _about(
    sidecars: Sidecars, missing: set[str], there: set[str], *, looked_at: int, skip: Skip | None
) -> str:
    sentence = (
        f"prompts ask for {asked_for(missing)}, and none of the first {looked_at} images has "
        "that: columns come from x.json or x.txt (column text) beside x.jpg, and from "
        f"metadata.csv, .jsonl or .parquet with a column file_name{suggested(missing, there)}"
    )
    if TEXT_COLUMN in missing and skip is not None:
        sentence += "; images with a .txt are left out unless --existing is overwrite or append"
    return "; ".join([sentence, *sidecars.metadata.problems[:_PROBLEMS_TOLD]])
