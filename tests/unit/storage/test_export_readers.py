"""Tables of all rows, read back by the tools they are for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import datasets
import duckdb
import lance
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exporter import (
    ExportError,
    StorageExporter,
    export_lance,
    export_parquet,
)
from tests.support.stored import Item, Stored, failed, reading, stored

ROWS = [stored(0, captions=["say \N{DOG FACE}", "two"]), failed(1), stored(2, captions=[])]
EXPECTED = [["say \N{DOG FACE}", "two"], None, []]

Exported = Callable[[Path], StorageExporter]


def table(path: Path) -> list[Item]:
    return list(pq.read_table(path).to_pylist())


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    StorageExporter(reading(Stored(ROWS))).to_parquet(tmp_path / "out.parquet")
    return tmp_path / "out.parquet"


def test_duckdb_reads_the_parquet_file(parquet: Path) -> None:
    with duckdb.connect() as connection:
        query = "SELECT captions, status FROM read_parquet(?) ORDER BY item_index"
        found = connection.execute(query, [str(parquet)]).fetchall()
    assert [captions for captions, _ in found] == EXPECTED
    assert [status for _, status in found] == ["captioned", "failed", "captioned"]


def test_polars_reads_the_parquet_file(parquet: Path) -> None:
    found = pl.read_parquet(parquet).sort("item_index")
    assert found["captions"].to_list() == EXPECTED
    assert pl.scan_parquet(parquet).filter(pl.col("status") == "failed").collect().height == 1


def test_datasets_reads_the_parquet_file(parquet: Path, tmp_path: Path) -> None:
    found = datasets.load_dataset(
        "parquet", data_files=str(parquet), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert [row["captions"] for row in found] == EXPECTED


def test_a_parquet_file_compressed_harder_holds_the_same(parquet: Path, tmp_path: Path) -> None:
    export_parquet(reading(Stored(ROWS)), tmp_path / "small.parquet", optimize=True)
    assert pq.read_table(tmp_path / "small.parquet").equals(pq.read_table(parquet))


# --- lance


def versions(path: Path) -> int:
    return len(lance.dataset(path).versions())


def test_lance_reads_every_row_with_its_types(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.lance"
    reader = Stored(ROWS[:2], ROWS[2:])
    exporter = StorageExporter(reading(reader))
    assert exporter.to_lance(path) == 3
    found = lance.dataset(path)
    assert found.schema.names == list(reader.columns)
    assert found.to_table().to_pylist() == ROWS
    assert found.to_table(filter="status = 'failed'", columns=["error"]).num_rows == 1


def test_a_lance_export_made_again_replaces_the_rows_and_keeps_the_version_before(
    tmp_path: Path,
) -> None:
    path = tmp_path / "out.lance"
    export_lance(reading(Stored(ROWS)), path)
    export_lance(reading(Stored(ROWS[:1])), path)
    assert lance.dataset(path).count_rows() == 1
    assert lance.dataset(path, version=1).count_rows() == 3


def test_an_optimized_lance_dataset_has_no_earlier_versions(tmp_path: Path) -> None:
    path = tmp_path / "out.lance"
    for _ in range(3):
        export_lance(reading(Stored(ROWS)), path)
    assert versions(path) == 3
    export_lance(reading(Stored(ROWS)), path, optimize=True)
    assert versions(path) == 1
    assert lance.dataset(path).count_rows() == 3
    assert len(list((path / "data").iterdir())) == 1


@pytest.mark.parametrize("error", [RuntimeError("part-7 is damaged"), KeyboardInterrupt()])
def test_a_lance_export_that_fails_midway_leaves_what_was_there(
    tmp_path: Path, error: BaseException
) -> None:
    class Damaged(Stored):
        def batches(
            self, shards: Collection[str] | None = None, columns: Sequence[str] | None = None
        ) -> Iterator[pa.RecordBatch]:
            yield from super().batches(shards, columns)
            raise error

    path = tmp_path / "out.lance"
    with pytest.raises(type(error)) as raised:
        export_lance(reading(Damaged(ROWS)), path)
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []
    export_lance(reading(Stored(ROWS)), path)
    with pytest.raises(type(error)):
        export_lance(reading(Damaged(ROWS[:1])), path)
    assert lance.dataset(path).count_rows() == 3


def test_what_an_export_that_was_killed_has_left_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "out.lance"
    (path / "data").mkdir(parents=True)
    (path / "data" / "0123.lance").write_bytes(b"half")
    export_lance(reading(Stored(ROWS)), path)
    assert lance.dataset(path).count_rows() == 3
    export_lance(reading(Stored(ROWS)), path, optimize=True)
    assert len(list((path / "data").iterdir())) == 1


def test_what_is_no_lance_dataset_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("x")
    for name in ("file", "folder"):
        with pytest.raises(ExportError, match="is no Lance dataset: it is left as it is"):
            export_lance(reading(Stored(ROWS)), tmp_path / name)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["mine"]


def test_a_place_where_no_lance_dataset_can_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"cannot write '.*/file/out.lance'"):
        export_lance(reading(Stored(ROWS)), tmp_path / "file" / "out.lance")


def test_without_pylance_the_error_names_it_and_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(ExportError, match=r"pylance.*pip install 'caption-flow\[lance\]'"):
        export_lance(StorageContents([stored(0)]), tmp_path / "out.lance")
    assert list(tmp_path.iterdir()) == []


def test_a_store_without_rows_gives_a_lance_dataset_without_rows(tmp_path: Path) -> None:
    assert StorageExporter(reading(Stored())).to_lance(tmp_path / "out.lance") == 0
    assert lance.dataset(tmp_path / "out.lance").count_rows() == 0
