"""One Parquet file (zstd) of all rows, with the types and columns that the parts have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exporter.columns import require
from caption_flow.storage.exporter.output_file import output_file
from caption_flow.storage.exporter.report import ExportReport

ROW_GROUP_BYTES: Final = 64 * 2**20
"""In memory, before compression: parts and buffered batches are small, row groups should not be."""


def export_parquet(contents: StorageContents, output_path: Path) -> ExportReport:
    """Write every row, the failed ones with their reason, to one file.

    Raises:
        ExportError: nothing to export, or the file cannot be written; one that was there is as it
            was.
    """
    require(contents)
    report = ExportReport(output_path)
    groups = row_groups(contents.iter_batches())
    first = next(groups, None)
    if first is None:
        first = contents.empty_schema().empty_table()
    with (
        output_file(output_path) as sink,
        pq.ParquetWriter(cast("IO[bytes]", sink), first.schema, compression="zstd") as writer,
    ):
        for group in _chain(first, groups):
            writer.write_table(group)
            report.written += group.num_rows
    return report


def row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield the batches gathered into tables that are worth a row group."""
    gathered: list[pa.RecordBatch] = []
    gathered_bytes = 0
    for batch in batches:
        gathered.append(batch)
        gathered_bytes += batch.nbytes
        if gathered_bytes >= ROW_GROUP_BYTES:
            yield pa.Table.from_batches(gathered)
            gathered, gathered_bytes = [], 0
    if gathered:
        yield pa.Table.from_batches(gathered)


def _chain(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest
