"""Footers and columns of Parquet files, wherever they lie, by ranges of bytes. Blocking."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from caption_flow.places.base import MISSING, NotHereError, PlaceError
from caption_flow.places.kept import Kept
from caption_flow.places.objects import storage_of
from caption_flow.protocol.places import FilePlace, ObjectPlace

ParquetPlace = FilePlace | ObjectPlace

_KEPT_BYTES: Final = 256 * 2**20
_KEPT_FOOTERS: Final = 64
_BATCH_ROWS: Final = 256
"""Rows decoded at a time: a column of more than 2 GiB cannot be had as one array."""


class ParquetColumns:
    """Reads row groups column by column, and keeps the last of them, at most ``max_bytes``."""

    def __init__(self, max_bytes: int = _KEPT_BYTES) -> None:
        self._footers: Kept[ParquetPlace, Any] = Kept(_KEPT_FOOTERS, lambda _: 1)
        self._columns: Kept[tuple[ParquetPlace, int, str], Any] = Kept(max_bytes, _bytes_of)

    def footer(self, file: ParquetPlace) -> Any:
        """Return a file's `pyarrow.parquet.FileMetaData`. Raises as `column` does."""
        return self._footers.get(file, lambda: read_footer(file))

    def column(self, file: ParquetPlace, row_group: int, name: str) -> Any:
        """Return a column of a row group as a `pyarrow.ChunkedArray`; nothing else is read.

        Raises:
            NotHereError: this machine cannot read the file, or it is not the one that was listed.
            PlaceError: the file is damaged, or has no such row group or column.
        """
        return self._columns.get(
            (file, row_group, name), lambda: self._read_column(file, row_group, name)
        )

    def _read_column(self, file: ParquetPlace, row_group: int, name: str) -> Any:
        footer = self.footer(file)
        with _opened(file) as opened:
            reader = pq.ParquetFile(opened, metadata=footer, pre_buffer=True)
            if row_group >= footer.num_row_groups or name not in reader.schema_arrow.names:
                raise PlaceError(MISSING, f"there is no column {name} in the row's file")
            batches = list(reader.iter_batches(_BATCH_ROWS, row_groups=[row_group], columns=[name]))
            kind = reader.schema_arrow.field(name).type
        return pa.chunked_array([batch.column(0) for batch in batches], type=kind)


def read_footer(file: ParquetPlace) -> Any:
    """Return a file's `pyarrow.parquet.FileMetaData`. Raises `NotHereError`, `PlaceError`."""
    with _opened(file) as opened:
        return pq.ParquetFile(opened).metadata


@contextmanager
def _opened(file: ParquetPlace) -> Iterator[Any]:
    name = os.fsdecode(file.path) if isinstance(file, FilePlace) else file.url
    try:
        with _open(file) as opened:
            yield opened
    except (NotHereError, PlaceError):
        raise
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise PlaceError(MISSING, f"{name} is damaged: {_line(error)}") from error
    except Exception as error:  # each storage has its own exceptions
        raise NotHereError(f"{name} cannot be read: {_line(error)}") from error


def _open(file: ParquetPlace) -> Any:
    if isinstance(file, FilePlace):
        opened = open(file.path, "rb")  # noqa: PTH123, SIM115  -- a path of any bytes; closed above
        found = os.fstat(opened.fileno())
        if (found.st_size, found.st_mtime_ns) != (file.size, file.mtime_ns):
            opened.close()
            raise NotHereError("the file has changed since it was listed")
        return opened
    storage, path = storage_of(file.url)
    # pyarrow knows which ranges it wants, and asks for each at once: whatever reads ahead of that
    # reads in vain. The hub's storage needs not ask again for a size that is known.
    known = {"size": file.size} if file.size is not None and file.url.startswith("hf://") else {}
    return storage.open(path, "rb", cache_type="none", **known)


def _bytes_of(column: Any) -> int:
    return cast("int", column.nbytes)


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
