"""Rows of images that are still there: whoever deletes an image wants no text beside the gap."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from caption_flow.storage.reader import StorageReader
from caption_flow.storage.schema import native_path


class PresentRows(StorageReader):
    """Reads a run's folder without the rows of files that are gone from the dataset."""

    def __init__(self, data_dir: Path, dataset: Path) -> None:
        super().__init__(data_dir)
        self._dataset = dataset

    def batches(
        self, shards: Collection[str] | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows as the base does, those of files that are there."""
        for batch in super().batches(shards, columns):
            yield batch.filter(pa.array(self._are_there(batch), pa.bool_()))

    def _are_there(self, batch: pa.RecordBatch) -> list[bool]:
        names = batch.column("filename").to_pylist()
        raws = batch.column("filename_raw").to_pylist()
        return [
            name is not None and os.path.lexists(self._dataset / native_path(name, raw))
            for name, raw in zip(names, raws, strict=True)
        ]
