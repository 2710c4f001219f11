"""Footers and columns of Parquet files, wherever they lie, by ranges of bytes. Blocking."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
import stamina

from caption_flow.places.base import MISSING, NotHereError, PlaceError, UnreachableError, status_of
from caption_flow.places.kept import Kept
from caption_flow.places.objects import storage_of
from caption_flow.protocol.places import FilePlace, ObjectPlace

ParquetPlace = FilePlace | ObjectPlace

T = TypeVar("T")

_KEPT_BYTES: Final = 256 * 2**20
_KEPT_FOOTERS: Final = 64
_BATCH_ROWS: Final = 256
"""Rows decoded at a time: a column of more than 2 GiB cannot be had as one array."""
_ATTEMPTS: Final = 3
_PAUSE_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 90.0
"""After so long nothing is asked for again; `huggingface_hub` itself has some patience, too."""
_TRANSPORTS: Final = frozenset(
    {"aiohttp", "botocore", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"}
)
"""Packages whose exceptions, where no response comes with them, are lost connections."""
_TOO_EARLY: Final = frozenset({408, 425, 429})


class NoColumnError(PlaceError):
    """The file can be read, and has no column of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(MISSING, f"there is no column {name} in the row's file")


class ParquetColumns:
    """Reads row groups column by column, and keeps the last of them, at most ``max_bytes``."""

    def __init__(self, max_bytes: int = _KEPT_BYTES) -> None:
        self._footers: Kept[ParquetPlace, Any] = Kept(_KEPT_FOOTERS, lambda _: 1)
        self._columns: Kept[tuple[ParquetPlace, int, str], Any] = Kept(max_bytes, _bytes_of)

    def footer(self, file: ParquetPlace) -> Any:
        """Return a file's `pyarrow.parquet.FileMetaData`. Raises as `column` does."""
        return self._footers.get(file, lambda: _patiently(lambda: read_footer(file)))

    def column(self, file: ParquetPlace, row_group: int, name: str) -> Any:
        """Return a column of a row group as a `pyarrow.ChunkedArray`; nothing else is read.

        What cannot be reached is tried again for a while.

        Raises:
            UnreachableError: it still cannot be reached.
            NotHereError: this machine cannot read the file, or it is not the one that was listed.
            NoColumnError: the file has no such column.
            PlaceError: the file is damaged, or has no such row group.
        """
        return self._columns.get(
            (file, row_group, name),
            lambda: _patiently(lambda: self._read_column(file, row_group, name)),
        )

    def _read_column(self, file: ParquetPlace, row_group: int, name: str) -> Any:
        footer = self.footer(file)
        with _opened(file) as opened:
            reader = pq.ParquetFile(opened, metadata=footer, pre_buffer=True)
            if name not in reader.schema_arrow.names:
                raise NoColumnError(name)
            if row_group >= footer.num_row_groups:
                raise PlaceError(MISSING, "the row is not in its file")
            batches = list(reader.iter_batches(_BATCH_ROWS, row_groups=[row_group], columns=[name]))
            kind = reader.schema_arrow.field(name).type
        return pa.chunked_array([batch.column(0) for batch in batches], type=kind)


def _patiently(read: Callable[[], T]) -> T:
    for attempt in stamina.retry_context(
        on=UnreachableError,
        attempts=_ATTEMPTS,
        timeout=_PATIENCE_SECONDS,
        wait_initial=_PAUSE_SECONDS,
        wait_jitter=_PAUSE_SECONDS,
    ):
        with attempt:
            return read()
    raise AssertionError("unreachable: the last attempt returns or raises")


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
        kind = UnreachableError if _is_passing(error) else NotHereError
        raise kind(f"{name} cannot be read: {_reason(error)}") from error


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


def _is_passing(error: Exception) -> bool:
    status = status_of(error)
    if status is not None:
        return status in _TOO_EARLY or status >= 500
    is_transport = type(error).__module__.partition(".")[0] in _TRANSPORTS
    return is_transport or isinstance(error, ConnectionError | TimeoutError)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) or status_of(error) == 404:
        return "it is not there (any more)"
    if status_of(error) in {401, 403}:
        return "the storage refuses it: check HF_TOKEN, and that its account may read the dataset"
    return _line(error)


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
