"""Images in the cells of Parquet files. Blocking."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final

from caption_flow.places.base import MISSING, NotHereError, PlaceError
from caption_flow.places.files import read_file
from caption_flow.places.objects import read_object
from caption_flow.places.parquet import ParquetColumns, ParquetPlace
from caption_flow.protocol.places import CellPlace, FilePlace, ObjectPlace

_HUB_ROOT_PARTS: Final = 5
"""``hf://datasets/org/name@commit`` between slashes."""


class CellReader:
    """Reads cells; those of a row group that was just read cost nothing more."""

    def __init__(self, columns: ParquetColumns | None = None) -> None:
        self._columns = columns or ParquetColumns()

    def read(self, place: CellPlace) -> bytes:
        """Return the bytes in a cell, or those of the dataset's file that it names instead.

        Raises:
            NotHereError: this machine cannot read the Parquet file, or it is not the one listed.
            PlaceError: there is nothing in the cell, or the file is damaged.
        """
        values = self._columns.column(place.file, place.row_group, place.column)
        if place.row >= len(values):
            raise PlaceError(MISSING, "the row is not in its file")
        value = values[place.row].as_py()
        if isinstance(value, Mapping):
            return _from_struct(place.file, value)
        if value is None:
            raise PlaceError(MISSING, "the row has no image")
        if not isinstance(value, bytes):
            raise PlaceError(MISSING, f"column {place.column} holds no bytes")
        return value


def _from_struct(file: ParquetPlace, value: Mapping[str, Any]) -> bytes:
    data, path = value.get("bytes"), value.get("path")
    if isinstance(data, bytes):
        return data
    if not isinstance(path, str) or not path:
        raise PlaceError(MISSING, "the row has no image")
    if path.startswith("/") or ".." in PurePosixPath(path).parts or "://" in path:
        raise PlaceError(MISSING, f"the row names {path!r}, which is no file of the dataset")
    for candidate in _candidates(file, path):
        try:
            return candidate()
        except NotHereError:
            continue
    raise NotHereError(f"the row names {path!r}, which is not in the dataset")


def _candidates(file: ParquetPlace, path: str) -> Iterator[Callable[[], bytes]]:
    """Yield readers of what a path may mean: one beside the Parquet file, or below the root."""
    if isinstance(file, FilePlace):
        folder = os.path.dirname(file.path)  # noqa: PTH120  -- a path of any bytes
        for root in dict.fromkeys((folder, os.path.dirname(folder))):  # noqa: PTH120
            yield partial(_read_beside, os.path.join(root, os.fsencode(path)))  # noqa: PTH118
        return
    folders = [file.url.rpartition("/")[0]]
    if file.url.startswith("hf://"):
        folders.append("/".join(file.url.split("/")[:_HUB_ROOT_PARTS]))
    for url in dict.fromkeys(folders):
        yield partial(read_object, ObjectPlace(f"{url}/{path}"))


def _read_beside(path: bytes) -> bytes:
    try:
        found = os.stat(path)  # noqa: PTH116  -- a path of any bytes
    except (OSError, ValueError) as error:
        raise NotHereError(str(error)) from error
    return read_file(FilePlace(path, found.st_size, found.st_mtime_ns))
