"""`caption-flow import`: what was captioned elsewhere is not captioned again, nor lost.

The synthetic engine's texts name the picture and the prompt they were made from, so that rows tell
what was captioned here and what was brought in.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import parquet
from tests.support.cli import (
    Finished,
    caption_flow,
    caption_of,
    content_hash,
    eventually,
    make_image,
    make_images,
    rows_by_name,
    running,
    snapshot,
    text_beside,
)
from tests.support.tars import write_shards

RESULTS = ("--data-dir", "results")
STAGES = """
orchestrator:
  dataset: {{type: {type}, dataset_path: {path}}}
  vllm:
    mock_results: true
    stages:
      - {{name: long, prompts: [describe], output_field: long}}
      - {{name: short, prompts: ["shorten {{long}}"], output_field: short, requires: [long]}}
"""


def bring_in(here: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    finished = caption_flow("import", *arguments, *RESULTS, "--json", cwd=here)
    assert finished.code == code, finished.said
    report: dict[str, Any] = json.loads(finished.out)
    return report


def run(here: Path, *arguments: str) -> Finished:
    finished = caption_flow("run", *arguments, "--engine", "synthetic", *RESULTS, cwd=here)
    assert finished.code == 0, finished.said
    return finished


def verify(here: Path) -> dict[str, Any]:
    finished = caption_flow("verify", *RESULTS, "--json", cwd=here)
    assert finished.code == 0, finished.said
    findings: dict[str, Any] = json.loads(finished.out)
    return findings


def counted(report: dict[str, Any]) -> dict[str, int]:
    endings = (
        *("imported", "replaced", "kept", "unmatched", "ambiguous", "repeated"),
        *("empty", "failed", "refused"),
    )
    return {name: report[name] for name in endings if report[name]}


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_texts_beside_images_are_done_and_the_rest_is_captioned(tmp_path: Path) -> None:
    images = make_images(tmp_path / "photos", 6) + make_images(tmp_path / "photos/sub", 2)
    first, second, below = images[0], images[1], images[6]
    first.with_suffix(".txt").write_text("by hand")
    second.with_suffix(".txt").write_text("one\r\n\r\n two \r\n")
    below.with_suffix(".txt").write_bytes(b"\xef\xbb\xbfbelow \xe2\x9c\x93")
    (tmp_path / "photos/README.txt").write_text("about these photos")
    before = snapshot(tmp_path / "photos")

    report = bring_in(tmp_path, "photos")
    assert counted(report) == {"imported": 3, "unmatched": 1}
    assert report["examples"]["unmatched"] == ["README.txt"]
    assert snapshot(tmp_path / "photos") == before
    assert verify(tmp_path)["listed"] == 3, "only what has a text is in the run so far"

    assert counted(bring_in(tmp_path, "photos")) == {"kept": 3, "unmatched": 1}

    finished = run(tmp_path, "photos")
    assert "Done: 5 images" in finished.out
    assert "captioned  8  (3 of them imported)" in finished.out
    assert "another model" not in finished.out
    assert verify(tmp_path)["captioned"] == 8
    found = rows_by_name(tmp_path / "results")
    assert {name: row["captions"] for name, row in found.items() if row["worker"] == "import"} == {
        "000.png": ["by hand"],
        "001.png": ["one", "two"],
        "sub/000.png": ["below ✓"],
    }
    assert found["000.png"]["content_hash"] == content_hash(first)
    facts = ("image_width", "image_height", "image_format", "file_size")
    assert [found["000.png"][name] for name in facts] == [16, 12, "PNG", first.stat().st_size]
    assert (found["000.png"]["models"], found["000.png"]["recipe"]) == ([], None)
    for image in (*images[2:6], images[7]):
        assert text_beside(image) == caption_of(image)
    assert first.with_suffix(".txt").read_text() == "by hand"
    assert second.with_suffix(".txt").read_bytes() == b"one\r\n\r\n two \r\n"


def test_exports_come_back_as_they_were(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 3)
    (tmp_path / "photos/broken.jpg").write_bytes(b"")
    (tmp_path / "c.yaml").write_text(STAGES.format(type="local_filesystem", path="photos"))
    config = ("--config", "c.yaml")
    run(tmp_path, *config, "--output", "out")
    for name in ("jsonl", "csv", "parquet", "lance"):
        arguments = ("--format", name, "--output", "out", *RESULTS)
        assert caption_flow("export", *arguments, cwd=tmp_path).code == 0
    texts = ("filename", "long", "short")
    before = rows_by_name(tmp_path / "results")
    wanted = {name: [row[one] for one in texts] for name, row in before.items() if row["short"]}
    assert len(wanted) == 3
    for name in ("jsonl", "csv", "parquet", "lance"):
        here = ("--data-dir", f"again-{name}")
        arguments = (f"out/default.{name}", *config, *here, "--json")
        finished = caption_flow("import", *arguments, cwd=tmp_path)
        assert finished.code == 0, finished.said
        assert counted(json.loads(finished.out)) == {"imported": 3, "failed": 1}, name
        found = rows_by_name(tmp_path / f"again-{name}")
        assert {name: [row[one] for one in texts] for name, row in found.items()} == wanted


def test_the_older_layout_is_taken_over(tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    make_images(tmp_path / "photos", 5)
    (tmp_path / "c.yaml").write_text(STAGES.format(type="local_filesystem", path="photos"))
    pairs = pa.map_(pa.string(), pa.list_(pa.string()))
    outputs = [
        [("long", ["a long one"]), ("short", ["short"])],
        [("short", ["only short"]), ("other", ["of no field"])],
        [],
        None,
    ]
    table = pa.table(
        {
            "job_id": [f"j{number}" for number in range(4)],
            "dataset": ["photos"] * 4,
            "shard": ["default"] * 4,
            "item_key": [f"default_{number}" for number in range(4)],
            "captions": [["a long one", "short"], None, ["from captions", "and another"], []],
            "outputs": pa.array(outputs, pairs),
            "filename": [f"{number:03}.png" for number in range(4)],
            "url": pa.nulls(4, pa.string()),
        }
    )
    lance.write_dataset(table, str(tmp_path / "old/caption_data/captions.lance"))
    report = bring_in(tmp_path, "old/caption_data", "--config", "c.yaml")
    assert counted(report) == {"imported": 3, "empty": 1}
    run(tmp_path, "--config", "c.yaml", "--output", "out")
    found = rows_by_name(tmp_path / "results")
    assert {n: (r["long"], r["short"]) for n, r in found.items() if r["worker"] == "import"} == {
        "000.png": (["a long one"], ["short"]),
        "001.png": ([], ["only short"]),
        "002.png": ([], ["from captions", "and another"]),
    }
    assert {found[name]["worker"] for name in ("003.png", "004.png")}.isdisjoint({"import"})
    assert verify(tmp_path)["captioned"] == 5


def test_rows_of_a_hub_dataset_are_found_by_key_and_by_number(tmp_path: Path) -> None:
    parquet.dataset(tmp_path / "set", 2, 5)
    (tmp_path / "c.yaml").write_text(STAGES.format(type="huggingface", path="set"))
    keys = write_jsonl(
        tmp_path / "keys.jsonl",
        [
            {"item_key": "data/train-00001-of-00002.parquet#3", "short": ["by key"]},
            {"item_key": "data/train-00001-of-00002.parquet#9", "short": ["of no row"]},
        ],
    )
    numbers = write_jsonl(
        tmp_path / "numbers.jsonl", [{"row": 6, "short": "by number"}, {"row": 10, "short": "no"}]
    )
    config = ("--config", "c.yaml")
    before = snapshot(tmp_path)
    dry = bring_in(tmp_path, keys.name, *config, "--dry-run")
    assert snapshot(tmp_path) == before
    assert counted(dry) == {"imported": 1, "unmatched": 1}
    assert counted(bring_in(tmp_path, keys.name, *config)) == {"imported": 1, "unmatched": 1}
    by_number = (numbers.name, *config, "--filename-column", "row")
    assert counted(bring_in(tmp_path, *by_number)) == {"imported": 1, "unmatched": 1}
    assert counted(bring_in(tmp_path, keys.name, *config)) == {"kept": 1, "unmatched": 1}
    finished = run(tmp_path, *config)
    assert "Done: 8 images" in finished.out
    assert verify(tmp_path)["captioned"] == 10
    lines = (tmp_path / "results/exports/captions.jsonl").read_text().splitlines()
    found = {row["item_key"]: row["short"] for row in map(json.loads, lines)}
    assert found["data/train-00001-of-00002.parquet#3"] == ["by key"]
    assert found["data/train-00001-of-00002.parquet#1"] == ["by number"]
    assert len(found) == 10


def test_samples_of_tars_are_found_by_key_and_file(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", 2, 4)
    (tmp_path / "c.yaml").write_text(STAGES.format(type="webdataset", path="set"))
    table = write_jsonl(
        tmp_path / "t.jsonl",
        [
            {"__key__": "000001", "caption": "by the sample's own key"},
            {"__key__": "shard-000001.tar/000006", "caption": "with its tar"},
            {"__key__": "shard-000001.tar/000007.bmp", "caption": "by its file"},
            {"__key__": "000009", "caption": "of no sample"},
        ],
    )
    config = ("--config", "c.yaml")
    assert counted(bring_in(tmp_path, table.name, *config)) == {"imported": 3, "unmatched": 1}
    run(tmp_path, *config)
    assert verify(tmp_path)["captioned"] == 8
    found = rows_by_name(tmp_path / "results")
    assert {name: row["short"] for name, row in found.items() if row["worker"] == "import"} == {
        "shard-000000.tar/000001.bmp": ["by the sample's own key"],
        "shard-000001.tar/000006.bmp": ["with its tar"],
        "shard-000001.tar/000007.bmp": ["by its file"],
    }


def test_what_is_captioned_stays_unless_it_shall_not(tmp_path: Path) -> None:
    images = make_images(tmp_path / "photos", 2)
    (tmp_path / "photos/002.png").write_bytes(b"garbage")
    (tmp_path / "c.yaml").write_text(STAGES.format(type="local_filesystem", path="photos"))
    config = ("--config", "c.yaml")
    run(tmp_path, *config, "--output", "out")
    before = rows_by_name(tmp_path / "results")
    rows = [{"filename": f"{n:03}.png", "short": f"new {n}"} for n in (0, 2)]
    write_jsonl(tmp_path / "t.jsonl", rows)
    assert counted(bring_in(tmp_path, "t.jsonl", *config)) == {"kept": 1, "replaced": 1}
    found = rows_by_name(tmp_path / "results")
    assert found["000.png"] == before["000.png"]
    assert (before["002.png"]["status"], found["002.png"]["short"]) == ("failed", ["new 2"])
    overwrite = ("t.jsonl", *config, "--existing", "overwrite")
    assert counted(bring_in(tmp_path, *overwrite)) == {"kept": 1, "replaced": 1}
    found = rows_by_name(tmp_path / "results")
    assert found["000.png"]["short"] == ["new 0"]
    assert found["000.png"]["long"] == before["000.png"]["long"]
    assert found["001.png"] == before["001.png"]
    assert counted(bring_in(tmp_path, *overwrite)) == {"kept": 2}
    assert verify(tmp_path)["captioned"] == len(images) + 1


def test_an_imported_image_that_changes_is_captioned_anew_and_one_that_is_copied_is_not(
    tmp_path: Path,
) -> None:
    images = make_images(tmp_path / "photos", 2)
    write_jsonl(tmp_path / "t.jsonl", [{"path": one.name, "text": "there"} for one in images])
    bring_in(tmp_path, "t.jsonl", "--dataset", "photos")
    make_image(images[0], 99)
    os.utime(images[1], (1, 1))
    run(tmp_path, "photos")
    assert text_beside(images[0]) == caption_of(images[0])
    assert text_beside(images[1]) == "there"


def test_names_that_are_no_utf8_are_found(tmp_path: Path) -> None:
    name = b"caf\xe9"
    image = make_image(tmp_path / "photos/a.png", 1)
    image.rename(os.fsdecode(os.fsencode(tmp_path / "photos") + b"/" + name + b".png"))
    Path(os.fsdecode(os.fsencode(tmp_path / "photos") + b"/" + name + b".txt")).write_text("here")
    assert counted(bring_in(tmp_path, "photos")) == {"imported": 1}
    run(tmp_path, "photos")
    arguments = ("export", "--format", "jsonl", "--output", "out", *RESULTS)
    assert caption_flow(*arguments, cwd=tmp_path).code == 0
    again = ("import", "out/default.jsonl", "--dataset", "photos", "--data-dir", "again", "--json")
    finished = caption_flow(*again, cwd=tmp_path)
    assert counted(json.loads(finished.out)) == {"imported": 1}, finished.said


def rows_on_disk(data_dir: Path) -> int:
    """How many batches of rows the ledger has, beside whoever writes it."""
    with contextlib.suppress(sqlite3.OperationalError):
        uri = f"{(data_dir / 'ledger.sqlite3').as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as ledger:
            return int(ledger.execute("SELECT COUNT(*) FROM batches").fetchone()[0])
    return 0


def test_interrupted_killed_and_given_again_it_is_whole(tmp_path: Path) -> None:
    count = 6000
    (tmp_path / "photos").mkdir()
    for number in range(count):  # no picture is decoded
        (tmp_path / f"photos/{number:05}.png").write_bytes(number.to_bytes(4, "big"))
    rows = [{"filename": f"{n:05}.png", "caption": f"text {n}"} for n in range(count)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    arguments = ("import", "t.parquet", "--dataset", "photos", *RESULTS)
    results = tmp_path / "results"
    with running(*arguments, cwd=tmp_path) as process:
        eventually(lambda: rows_on_disk(results) > 0, lambda: process.said, seconds=60)
        process.interrupt()
        interrupted = process.ends()
    assert interrupted.code == 130
    assert "the same command goes on from here" in interrupted.errors[-1]
    before = rows_on_disk(results)
    with running(*arguments, cwd=tmp_path) as process:
        eventually(lambda: rows_on_disk(results) > before, lambda: process.said, seconds=60)
        process.kill()
        assert process.ends().code == -9
    partly = verify(tmp_path)
    assert 0 < partly["captioned"] < count
    report = bring_in(tmp_path, "t.parquet", "--dataset", "photos")
    assert report["imported"] + report["kept"] == count
    assert report["kept"] == partly["captioned"]
    assert verify(tmp_path)["captioned"] == count
    found = rows_by_name(tmp_path / "results")
    assert len(found) == count
    assert all(row["captions"] == [f"text {int(name[:5])}"] for name, row in found.items())
