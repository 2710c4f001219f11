"""One Parquet file (zstd) of all rows, with the types and columns that the parts have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exporter.columns import require
from caption_flow.storage.exporter.output_file import output_file
from caption_flow.storage.exporter.report import ExportReport

ROW_GROUP_BYTES: Final = 32 * 2**20
"""In memory, before compression: parts and buffered batches are small, row groups should not be."""
HARDER: Final = 15
"""Of zstd's 22 levels; more cost much time and much memory, and give little."""


def export_parquet(
    contents: StorageContents, output_path: Path, *, optimize: bool = False
) -> ExportReport:
    """Write every row, the failed ones with their reason, to one file.

    ``optimize`` compresses harder, which takes longer.

    Raises:
        ExportError: nothing to export, or the file cannot be written; one that was there is as it
            was.
    """
    require(contents)
    report = ExportReport(output_path)
    batches = contents.iter_batches()
    first = next(batches, None)
    schema = contents.empty_schema() if first is None else first.schema
    everything = batches if first is None else chain([first], batches)
    write_parquet(everything, schema, report, level=HARDER if optimize else None)
    return report


def write_parquet(
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    report: ExportReport,
    *,
    level: int | None = None,
) -> None:
    """Write batches to the report's destination, whole or not at all, and count their rows.

    Raises:
        ExportError: the file cannot be written; one that was there is as it was.
    """
    with (
        output_file(report.destination) as sink,
        pq.ParquetWriter(
            cast("IO[bytes]", sink), schema, compression="zstd", compression_level=level
        ) as writer,
    ):
        for group in row_groups(batches):
            writer.write_table(group)
            report.written += group.num_rows
            # Arrow keeps what it once had: at the next group that would be there twice.
            del group
            pa.default_memory_pool().release_unused()


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
