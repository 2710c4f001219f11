"""Datasets in the hub's layout, with pictures that no other number has."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from caption_flow.protocol.identity import content_hash
from caption_flow.worker.engines.synthetic import synthetic_caption


def png(number: int, *, side: int = 24) -> bytes:
    """Return a picture that no other number has, hard to compress."""
    pixels = random.Random(number).randbytes(side * side * 3)
    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), pixels).save(file, "PNG")
    return file.getvalue()


def caption(picture: bytes, prompt: str) -> str:
    """Return what the synthetic engine says of a picture."""
    return synthetic_caption(content_hash(picture), prompt)


def struct(numbers: Iterable[int], **options: Any) -> Any:
    """Return an image column as the library `datasets` writes it."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": png(number, **options), "path": f"{number}.png"} for number in numbers]
    return pa.array(cells, type=kind)


def write(path: Path, *, rows_per_group: int = 4, **columns: Any) -> Path:
    """Write a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # whose name may be one that Arrow cannot open
        pq.write_table(pa.table(columns), file, row_group_size=rows_per_group)
    return path


def dataset(folder: Path, shards: int, rows: int, *, side: int = 24) -> Path:
    """Write ``data/train-0000N-of-0000M.parquet`` with pictures numbered through, and titles."""
    for shard in range(shards):
        numbers = range(shard * rows, (shard + 1) * rows)
        write(
            folder / f"data/train-{shard:05}-of-{shards:05}.parquet",
            image=struct(numbers, side=side),
            title=[f"title {number}" for number in numbers],
        )
    return folder
