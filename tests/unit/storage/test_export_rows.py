"""The formats that hold every row: none is dropped, damaged, or half there."""

from __future__ import annotations

import csv
import json
import math
import os
import resource
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exporter import ExportError, Skip, StorageExporter, parquet
from caption_flow.storage.exporter.csv_file import cell
from tests.support.stored import WHEN, Item, Stored, failed, reading, stats, stored

OneFile = Callable[[StorageExporter, Path], int]

ONE_FILE: list[OneFile] = [
    StorageExporter.to_jsonl,
    StorageExporter.to_csv,
    StorageExporter.to_parquet,
]
OF_TEXTS: list[OneFile] = [
    StorageExporter.to_kohya,
    StorageExporter.to_imagefolder,
    StorageExporter.to_simpletuner,
]


def jsonl(contents: StorageContents, folder: Path) -> list[Item]:
    StorageExporter(contents).to_jsonl(folder / "out.jsonl")
    lines = (folder / "out.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    return [json.loads(line) for line in lines]


def table(contents: StorageContents, folder: Path) -> list[dict[str, str]]:
    StorageExporter(contents).to_csv(folder / "out.csv")
    with (folder / "out.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


# --- every format of one file


@pytest.mark.parametrize("write", ONE_FILE)
def test_results_and_failures_are_all_there_once(tmp_path: Path, write: OneFile) -> None:
    reader = Stored([stored(0), failed(1)], [], [stored(2)])
    exporter = StorageExporter(reading(reader))
    assert write(exporter, tmp_path / "deep" / "out") == 3
    assert exporter.report is not None
    assert exporter.report.written == 3
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize("write", ONE_FILE)
def test_a_limit_bounds_the_rows(tmp_path: Path, write: OneFile) -> None:
    reader = Stored([stored(0), stored(1)], [stored(2)], [stored(3)])
    for limit in range(5):
        assert write(StorageExporter(reading(reader, limit)), tmp_path / "out") == limit


@pytest.mark.parametrize("write", [*ONE_FILE, *OF_TEXTS])
def test_an_export_that_fails_midway_leaves_what_was_there(tmp_path: Path, write: OneFile) -> None:
    class Damaged(Stored):
        def batches(
            self, shards: Collection[str] | None = None, columns: Sequence[str] | None = None
        ) -> Iterator[pa.RecordBatch]:
            yield from super().batches(shards, columns)
            raise RuntimeError("part-7 is damaged")

    (tmp_path / "out").write_text("last week's")
    with pytest.raises(RuntimeError, match="part-7"):
        write(StorageExporter(reading(Damaged([stored(0)]))), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "last week's"


@pytest.mark.parametrize("write", [*ONE_FILE, *OF_TEXTS])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_what_was_there(
    tmp_path: Path, write: OneFile
) -> None:
    (tmp_path / "out").write_text("last week's")
    rows = [stored(index, captions=[os.urandom(500).hex()]) for index in range(100)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(ExportError, match=r"cannot write '.*/out': File too large"):
            write(StorageExporter(reading(Stored(rows))), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "last week's"


@pytest.mark.parametrize("write", ONE_FILE)
def test_a_pipe_whose_reader_has_gone_is_named(tmp_path: Path, write: OneFile) -> None:
    # Never a real device: a broken export would replace it.
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # Half a megabyte does not fit into a pipe: the writer is still at it when the reader goes.
    rows = [{"text": os.urandom(2**15).hex()} for _ in range(8)]
    reader = threading.Thread(target=lambda: pipe.open("rb").close(), daemon=True)
    reader.start()
    with pytest.raises(ExportError, match=r"cannot write '.*/pipe': Broken pipe"):
        write(StorageExporter(StorageContents(rows)), pipe)
    reader.join(timeout=10)
    assert pipe.is_fifo()


@pytest.mark.parametrize("write", [*ONE_FILE, *OF_TEXTS])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, write: OneFile) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    exporter = StorageExporter(StorageContents([stored(0)]))
    with pytest.raises(ExportError, match=r"cannot write '.*/file/out'"):
        write(exporter, tmp_path / "file" / "out")
    with pytest.raises(ExportError, match=r"cannot write '.*/folder': Is a directory"):
        write(exporter, tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("write", [*ONE_FILE, *OF_TEXTS])
def test_a_link_stays_a_link_and_the_file_it_names_is_replaced(
    tmp_path: Path, write: OneFile
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("old")
    (tmp_path / "link").symlink_to("real/file")
    write(StorageExporter(StorageContents([stored(0)])), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() != b"old"


@pytest.mark.parametrize("write", [*ONE_FILE, *OF_TEXTS])
def test_an_export_is_on_the_disk_when_it_is_reported(
    tmp_path: Path, write: OneFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write(StorageExporter(StorageContents([stored(0)])), tmp_path / "out")
    assert len(synced) == 2, "the file, then its folder"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    StorageExporter(StorageContents([{"a": 1}])).to_jsonl(pipe)
    reader.join(timeout=10)
    assert read == [b'{"a":1}\n']
    assert pipe.is_fifo()


@pytest.mark.parametrize("write", [*ONE_FILE, *OF_TEXTS])
def test_a_store_with_columns_and_no_rows_gives_a_file_without_rows(
    tmp_path: Path, write: OneFile
) -> None:
    assert write(StorageExporter(reading(Stored())), tmp_path / "out") == 0
    assert (tmp_path / "out").is_file()


# --- jsonl


def test_a_line_holds_all_columns_of_its_item(tmp_path: Path) -> None:
    reader = Stored([stored(0), failed(1, title="T")])
    first, second = jsonl(reading(reader), tmp_path)
    assert list(first) == list(reader.columns)
    assert first["captions"] == ["one", "two"]
    assert first["stage_stats"] == [stats("default")]
    assert first["committed_at"] == "2025-03-01T12:30:00Z"
    assert (second["captions"], second["title"]) == (None, "T")
    assert (second["status"], second["error_kind"]) == ("failed", "corrupt_image")


def test_text_is_utf8_and_not_escaped(tmp_path: Path) -> None:
    words = '\N{DOG FACE} d\u00e9j\u00e0 \u2028 <b> "q" \\'
    (row,) = jsonl(reading(Stored([stored(0, captions=[words, "a\nb\0"])])), tmp_path)
    assert row["captions"] == [words, "a\nb\0"]
    assert "\N{DOG FACE} d\u00e9j\u00e0 \u2028".encode() in (tmp_path / "out.jsonl").read_bytes()


def test_a_name_that_is_not_utf8_is_shown_and_its_bytes_are_kept(tmp_path: Path) -> None:
    odd = {"filename": "caf\\xe9.jpg", "filename_raw": b"caf\xe9.jpg"}
    (row,) = jsonl(reading(Stored([stored(0, **odd)])), tmp_path)
    assert (row["filename"], row["filename_raw"]) == ("caf\\xe9.jpg", "Y2Fm6S5qcGc=")


def test_what_json_has_no_word_for_does_not_break_the_line(tmp_path: Path) -> None:
    values = {
        "nan": math.nan,
        "infinite": -math.inf,
        "day": WHEN.date(),
        "bytes": b"\xff",
        "nested": {"\udcff": ["\udcff", ("x", 1)]},
        "lone": "\ud800",
        "big": 2**63,
    }
    (row,) = jsonl(StorageContents([values]), tmp_path)
    assert row == {
        "nan": None,
        "infinite": None,
        "day": "2025-03-01",
        "bytes": "/w==",
        "nested": {"\\xff": ["\\xff", ["x", 1]]},
        "lone": "\\ud800",
        "big": 2**63,
    }


def test_what_a_row_has_beside_its_columns_is_not_written(tmp_path: Path) -> None:
    (row,) = jsonl(StorageContents([{"a": 1, "secret": 2}], ["a", "b"]), tmp_path)
    assert row == {"a": 1, "b": None}


def test_only_the_columns_asked_for_are_written_in_their_order(tmp_path: Path) -> None:
    (row,) = jsonl(reading(Stored([stored(0)]), columns=["status", "filename"]), tmp_path)
    assert list(row.items()) == [("status", "captioned"), ("filename", "a/0.jpg")]


# --- csv


def test_a_csv_cell_has_one_text_per_line(tmp_path: Path) -> None:
    (row,) = table(reading(Stored([stored(0, captions=["one\r\ntwo", "", "three"])])), tmp_path)
    assert row["captions"] == "one two\n\nthree"


def test_csv_flattens_everything_else_as_documented(tmp_path: Path) -> None:
    row, bad = table(reading(Stored([stored(0), failed(1)])), tmp_path)
    assert json.loads(row["stage_stats"]) == [stats("default")]
    assert row["committed_at"] == "2025-03-01T12:30:00Z"
    assert (row["image_width"], row["image_height"], row["models"]) == ("640", "", "m")
    assert (bad["captions"], bad["status"], bad["error"]) == ("", "failed", "truncated at byte 7")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (True, "true"),
        (-1, "-1"),
        (-0.5, "-0.5"),
        (math.nan, ""),
        (b"\xff", "/w=="),
        (WHEN.time(), "12:30:00"),
        ({"a": [1]}, '{"a":[1]}'),
        ([1, 2], "[1,2]"),
        ([], ""),
        (["", None], "\n"),
        ("caf\udce9", "caf\\xe9"),
        ('say "hi"', 'say "hi"'),
    ],
)
def test_each_kind_of_value_has_one_form_in_a_cell(value: Any, expected: str) -> None:
    assert cell(value) == expected


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_text_becomes_a_formula_in_a_spreadsheet(tmp_path: Path, start: str) -> None:
    evil = start + 'HYPERLINK("http://x")'
    values = {evil: evil, "texts": [evil.strip()], "plain": "a=b"}
    (row,) = table(StorageContents([values]), tmp_path)
    assert row["'" + evil] == "'" + evil
    assert row["texts"].startswith("'") or start in "\t\r"
    assert row["plain"] == "a=b"


def test_any_text_survives_a_csv_reader(tmp_path: Path) -> None:
    odd = ["a,b", 'q"q', "a\nb", "a\rb", "a\r\nb", "\N{DOG FACE}", " ", "'x"]
    rows = table(StorageContents([{"n": n, "text": text} for n, text in enumerate(odd)]), tmp_path)
    assert [row["text"] for row in rows] == odd


# --- parquet


def test_a_parquet_file_has_the_types_of_the_parts(tmp_path: Path) -> None:
    reader = Stored([stored(0)], [failed(1)])
    StorageExporter(reading(reader)).to_parquet(tmp_path / "out.parquet")
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.schema.equals(reader.schema)
    assert written.to_pylist() == [stored(0), failed(1)]


def test_rows_held_in_memory_keep_the_types_they_were_read_with(tmp_path: Path) -> None:
    reader = Stored([stored(0)])
    contents = reading(reader)
    contents.rows[0]["captions"] = ["edited"]
    StorageExporter(contents).to_parquet(tmp_path / "out.parquet")
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.schema.equals(reader.schema)
    assert written.column("captions").to_pylist() == [["edited"]]


def test_rows_whose_types_were_changed_are_written_with_their_own(tmp_path: Path) -> None:
    contents = reading(Stored([stored(0)]))
    contents.rows[0]["item_index"] = "zero"
    StorageExporter(contents).to_parquet(tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").column("item_index").to_pylist() == ["zero"]


def test_a_true_name_that_is_not_utf8_goes_back_to_its_two_columns(tmp_path: Path) -> None:
    odd = {"filename": "caf\\xe9.jpg", "filename_raw": b"caf\xe9.jpg"}
    contents = reading(Stored([stored(0, **odd)]))
    assert contents.rows[0]["filename"] == "caf\udce9.jpg"
    StorageExporter(contents).to_parquet(tmp_path / "out.parquet")
    (row,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert {name: row[name] for name in odd} == odd


def test_the_bytes_of_a_name_given_in_python_go_to_their_column(tmp_path: Path) -> None:
    contents = StorageContents([stored(0, filename="caf\udce9.jpg")])
    StorageExporter(contents).to_parquet(tmp_path / "out.parquet")
    (row,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert (row["filename"], row["filename_raw"]) == ("caf\\xe9.jpg", b"caf\xe9.jpg")


def test_small_batches_share_a_row_group_and_large_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Stored(*([stored(index)] for index in range(10)))
    StorageExporter(reading(reader)).to_parquet(tmp_path / "one")
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 3 * reader.given[0].nbytes)
    exporter = StorageExporter(reading(reader))
    assert exporter.to_parquet(tmp_path / "four") == 10
    assert pq.read_metadata(tmp_path / "one").num_row_groups == 1
    assert pq.read_metadata(tmp_path / "four").num_row_groups == 4
    assert pq.read_table(tmp_path / "one").equals(pq.read_table(tmp_path / "four"))
    assert pq.read_metadata(tmp_path / "one").row_group(0).column(0).compression == "ZSTD"


# --- json files


def test_each_item_has_a_json_file_beside_its_image_also_a_failed_one(tmp_path: Path) -> None:
    exporter = StorageExporter(reading(Stored([stored(0), failed(1)])))
    assert exporter.to_json(tmp_path) == 2
    first = json.loads((tmp_path / "a/0.json").read_text())
    assert (first["captions"], first["image_width"]) == (["one", "two"], 640)
    assert json.loads((tmp_path / "a/1.json").read_text())["error_kind"] == "corrupt_image"


def test_a_json_file_has_the_columns_asked_for_and_no_others(tmp_path: Path) -> None:
    contents = reading(Stored([stored(0)]), columns=["filename", "captions"])
    StorageExporter(contents).to_json(tmp_path)
    expected = '{\n  "filename": "a/0.jpg",\n  "captions": [\n    "one",\n    "two"\n  ]\n}\n'
    assert (tmp_path / "a/0.json").read_text() == expected


def test_json_files_settle_conflicts_and_existing_files_as_text_files_do(tmp_path: Path) -> None:
    (tmp_path / "y.json").write_text("{}")
    names = ["x.png", "x.jpg", "y.jpg", "../z.jpg"]
    rows = [{"item_key": name, "filename": name} for name in names]
    exporter = StorageExporter(StorageContents(rows))
    assert exporter.to_json(tmp_path, existing="skip") == 1
    assert exporter.report is not None
    assert exporter.report.skipped == {Skip.CONFLICT: 1, Skip.EXISTING: 1, Skip.BAD_NAME: 1}
    assert json.loads((tmp_path / "x.json").read_text())["filename"] == "x.jpg"
    assert (tmp_path / "y.json").read_text() == "{}"
