"""A Parquet table of captions as SimpleTuner's ``parquet`` metadata backend reads it.

Columns: ``filename`` (path within the dataset, suffix and all: ``identifier_includes_extension:
true``), ``caption`` (a list of texts, which SimpleTuner takes for variants), ``width``, ``height``.
Only captioned items: SimpleTuner leaves images out that the table does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import pyarrow as pa

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exporter.captioned import Captioned, Listing, captioned
from caption_flow.storage.exporter.parquet import write_parquet
from caption_flow.storage.exporter.report import ExportReport

SCHEMA: Final = pa.schema(
    [
        pa.field("filename", pa.string(), nullable=False),
        pa.field("caption", pa.list_(pa.string()), nullable=False),
        pa.field("width", pa.int64()),
        pa.field("height", pa.int64()),
    ]
)
_SIZE: Final = ("image_width", "image_height")
_ROWS_AT_ONCE: Final = 1024


def export_simpletuner(
    contents: StorageContents, output_path: Path, listing: Listing | None = None
) -> ExportReport:
    """Write every captioned item to one file.

    Raises:
        ExportError: no such column, nothing to export, or the file cannot be written; one that was
            there is as it was.
    """
    listing = listing or Listing()
    listing.check(contents)
    report = ExportReport(output_path)
    write_parquet(_batches(captioned(contents, listing, report, _SIZE)), SCHEMA, report)
    return report


def _batches(items: Iterable[Captioned]) -> Iterator[pa.RecordBatch]:
    unread = iter(items)
    while some := list(islice(unread, _ROWS_AT_ONCE)):
        columns = [
            [item.name for item in some],
            [item.lines for item in some],
            *([item.row[name] for item in some] for name in _SIZE),
        ]
        arrays = [
            pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)
        ]
        yield pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
