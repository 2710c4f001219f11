"""Time and memory of exports: a made-up run of many rows, each format in a process of its own.

    python benchmarks/exports.py                          a million rows, every format of tables
    python benchmarks/exports.py --rows 100000 --formats txt,json
    python benchmarks/exports.py --rows 10000000 --formats txt,json --one-in 100
                                                          one row in a hundred has a text
    python benchmarks/exports.py --json FILE              keep the figures as well

A row has a caption of some 60 words, a size and statistics, as after one stage. The run is in a
temporary folder that is removed. What is measured is ``caption-flow export`` as a whole, start
included; memory is the process's highest resident set. Formats of a file an item keep something of
each row, whether it has a text or not, and nothing of a file that is written: with few texts their
memory can be seen without ten million files.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from caption_flow.storage.database import PARTS_FOLDER, open_for_writing
from caption_flow.storage.parts import write_part
from caption_flow.storage.schema import stored_schema

ROWS_OF_A_PART: Final = 50_000
TAR: Final = 10_000
"""Rows of a shard, each a tar."""
TABLES: Final = "jsonl,csv,parquet,lance,kohya,imagefolder,simpletuner,webshart"
WORDS: Final = ("a", "red", "old", "small", "bright", "house", "river", "man", "under", "light")


def make_run(data_dir: Path, rows: int, one_in: int) -> None:
    """Write a run of so many captioned rows; one in so many has a text, the others an empty one."""
    data_dir.mkdir()
    chance = random.Random(1)
    texts = [" ".join(chance.choices(WORDS, k=60)) for _ in range(1000)]
    same = same_in_all(ROWS_OF_A_PART)
    with closing(open_for_writing(data_dir)) as ledger:
        for number, first in enumerate(range(0, rows, ROWS_OF_A_PART), start=1):
            table = some_rows(same.slice(0, rows - first), first, texts, one_in)
            part = write_part(data_dir / PARTS_FOLDER, number, table)
            ledger.execute(
                "INSERT INTO parts (part, file, rows, bytes, checksum, counts, recorded_at) "
                "VALUES (?, ?, ?, ?, ?, ?, 0)",
                (number, part.file, part.rows, part.bytes, part.checksum, json.dumps(part.counts)),
            )
            for shard in set(table.column("shard").to_pylist()):
                ledger.execute("INSERT INTO part_ranges VALUES (?, ?, ?)", (number, shard, b""))


def same_in_all(count: int) -> pa.Table:
    """Return what so many rows have in common."""
    stats = {"stage": "default", "tokens_in": 500, "tokens_out": 80, "finish_reasons": ["stop"]}
    row: dict[str, Any] = {
        "image_width": 1024,
        "image_height": 768,
        "image_format": "JPEG",
        "file_size": 250_000,
        "status": "captioned",
        "stage_stats": [stats | {"milliseconds": 900}],
        "models": ["m"],
        "recipe": "0123456789abcdef",
        "committed_at": dt.datetime.now(dt.UTC),
        "contributor": "somebody",
        "worker": "worker-0",
        "flags": [],
        **dict.fromkeys(("item_key", "filename", "shard", "chunk_id"), ""),
        "item_index": 0,
        "captions": [],
    }
    return pa.Table.from_pylist([row] * count, stored_schema(("captions",)))


def some_rows(same: pa.Table, first: int, texts: list[str], one_in: int) -> pa.Table:
    """Return rows of one part: the ``same``, with what is each one's own."""
    numbers = range(first, first + same.num_rows)
    shards = [f"{at // TAR:05d}.tar" for at in numbers]
    names = [f"{shard}/image_{at:09d}.jpg" for shard, at in zip(shards, numbers, strict=True)]
    own = {
        "item_key": names,
        "filename": names,
        "shard": shards,
        "chunk_id": [f"{shard}:0" for shard in shards],
        "item_index": [at % TAR for at in numbers],
        "captions": [
            [f"{texts[at % len(texts)]} {at}"] if at % one_in == 0 else [] for at in numbers
        ],
    }
    for name, values in own.items():
        field = same.schema.field(name)
        same = same.set_column(
            same.schema.get_field_index(name), field, pa.array(values, field.type)
        )
    return same


def make_webshart(folder: Path, rows: int) -> None:
    """Write the metadata files that webshart would have made of the tars."""
    folder.mkdir()
    for first in range(0, rows, TAR):
        names = (f"image_{at:09d}.jpg" for at in range(first, min(first + TAR, rows)))
        files = {name: {"offset": 512, "length": 250_000} for name in names}
        (folder / f"{first // TAR:05d}.json").write_text(json.dumps({"files": files}))


def export(data_dir: Path, format_: str, output: Path) -> dict[str, float]:
    """Export once; return seconds, and the peak of memory in megabytes."""
    command = [sys.executable, "-m", "caption_flow.cli", "export", "--data-dir", str(data_dir)]
    began = time.monotonic()
    child = os.posix_spawn(
        sys.executable, [*command, "--format", format_, "--output", str(output)], os.environ
    )
    _, status, usage = os.wait4(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, format_
    return {"seconds": time.monotonic() - began, "megabytes": usage.ru_maxrss / 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--formats", default=TABLES)
    parser.add_argument("--one-in", type=int, default=1, metavar="N")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory(prefix="caption-flow-exports-") as made:
        data_dir = Path(made) / "run"
        # In a process of its own: a child's peak counts from what its parent held.
        maker = multiprocessing.get_context("spawn").Process(
            target=make_run, args=(data_dir, asked.rows, asked.one_in)
        )
        maker.start()
        maker.join()
        assert maker.exitcode == 0
        for format_ in asked.formats.split(","):
            output = Path(made) / format_
            if format_ == "webshart":
                make_webshart(output, asked.rows)
            found = export(data_dir, format_, output)
            figures[format_] = found | {"rows_per_second": asked.rows / found["seconds"]}
            print(
                f"{format_:12} {found['seconds']:7.1f} s  "
                f"{asked.rows / found['seconds']:9,.0f} rows/s  {found['megabytes']:6.0f} MB"
            )
    if asked.json is not None:
        asked.json.write_text(json.dumps({"rows": asked.rows, "formats": figures}, indent=2))


if __name__ == "__main__":
    main()
