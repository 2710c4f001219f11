"""A Lance dataset of all rows, with the types and columns that the parts have.

Lance commits a write as a new version of the dataset: whoever opens it sees the one before until
then, and can ask for earlier ones (``lance.dataset(PATH, version=N)``). pylance is an extra.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exporter.columns import require
from caption_flow.storage.exporter.errors import ExportError, naming
from caption_flow.storage.exporter.report import ExportReport

HOW_TO_INSTALL: Final = "pip install 'caption-flow[lance]'"
_VERSIONS: Final = "_versions"
_OF_A_DATASET: Final = frozenset({"data", "_transactions", _VERSIONS})
_BUFFERED_BYTES: Final = 4 * 2**20
"""Of each column; with Lance's own 8 MiB, ten million rows took 600 MB of memory."""
_ROWS_OF_A_FILE: Final = 2**18
"""A quarter of Lance's own, for pylance 8, which buffers more where files are larger."""


def export_lance(
    contents: StorageContents, output_path: Path, *, optimize: bool = False
) -> ExportReport:
    """Write every row, the failed ones with their reason, as the dataset's next version.

    ``optimize`` removes earlier versions, and what exports that were cut short have left.

    Raises:
        ExportError: nothing to export, pylance is not installed, something else is at this path,
            or the dataset cannot be written; one that was there is as it was.
    """
    require(contents)
    lance = _pylance()
    is_new = _is_new(output_path)
    was_there = os.path.lexists(output_path)
    report = ExportReport(output_path)
    source = _Source(contents, report)
    with naming(output_path):
        output_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            written = lance.write_dataset(
                source.reader(),
                output_path,
                mode="create" if is_new else "overwrite",
                **_bounded_memory(lance),
            )
            if optimize:
                written.cleanup_old_versions(
                    timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False
                )
            _sync(output_path)
        except BaseException:
            if not was_there:
                shutil.rmtree(output_path, ignore_errors=True)
            if source.error is not None:
                # Lance hands it on as an error of its own, with a traceback for a message.
                raise source.error from None
            raise
    return report


class _Source:
    """The rows as Lance wants them; keeps what went wrong while they were read."""

    def __init__(self, contents: StorageContents, report: ExportReport) -> None:
        self._contents = contents
        self._report = report
        self.error: BaseException | None = None

    def reader(self) -> pa.RecordBatchReader:
        batches = self._contents.iter_batches()
        first = next(batches, None)
        if first is None:
            return pa.RecordBatchReader.from_batches(self._contents.empty_schema(), iter(()))
        return pa.RecordBatchReader.from_batches(
            first.schema, self._counted(chain([first], batches))
        )

    def _counted(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        try:
            for batch in batches:
                self._report.written += batch.num_rows
                yield batch
        except BaseException as error:
            self.error = error
            raise


def has_pylance() -> bool:
    """Tell whether `export_lance` can do anything here."""
    try:
        _pylance()
    except ExportError:
        return False
    return True


def _pylance() -> Any:
    try:
        import lance  # noqa: PLC0415  -- an extra, and a second to load
    except ImportError as error:
        raise ExportError(
            f"lance needs pylance, which is not installed: {HOW_TO_INSTALL}"
        ) from error
    return lance


def _bounded_memory(lance: Any) -> dict[str, int]:
    """Return the options that bound what Lance buffers."""
    if "data_cache_bytes" in inspect.signature(lance.write_dataset).parameters:
        return {"data_cache_bytes": _BUFFERED_BYTES}
    return {"max_rows_per_file": _ROWS_OF_A_FILE}


def _is_new(path: Path) -> bool:
    """Tell whether there is nothing yet; raises `ExportError` for what is no Lance dataset."""
    if (path / _VERSIONS).is_dir():
        return False
    with naming(path):
        # An export that was killed before its first version has left data and no version.
        is_free = not os.path.lexists(path) or (
            path.is_dir() and _OF_A_DATASET.issuperset(entry.name for entry in path.iterdir())
        )
        if not is_free:
            raise ExportError(f"{str(path)!r} exists and is no Lance dataset: it is left as it is")
    return True


def _sync(folder: Path) -> None:
    """Wait until all of a dataset is on the disk."""
    for place in (folder, *folder.rglob("*"), folder.parent):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
