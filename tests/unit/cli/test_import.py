"""`caption-flow import`, in this process: what is taken for what, and what is refused."""

from __future__ import annotations

import asyncio
import fcntl
import json
import re
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from caption_flow.cli.app import main
from caption_flow.orchestrator.sources.local import SHARD
from caption_flow.storage.partials import Credit, store_partials
from caption_flow.storage.store import RunStore
from caption_flow.storage.verify import verify
from caption_flow.storage.writes import AppendItems, CatalogEntry
from tests.support.cli import content_hash, make_image, make_images, rows_by_name, snapshot
from tests.support.tars import write_tar

TARS = """
dataset: {type: webdataset, dataset_path: set}
vllm: {model: none, inference_prompts: [Describe.]}
"""
STAGES = """
dataset: {type: local_filesystem, dataset_path: photos}
vllm:
  model: none
  stages:
    - {name: long, prompts: [describe], output_field: long}
    - {name: short, prompts: ["shorten {long}"], output_field: short, requires: [long]}
"""
RESULTS = ("--data-dir", "results")
ENDINGS = ("imported", "replaced", "kept", "unmatched", "ambiguous", "repeated", "empty", "failed")
Import = Callable[..., dict[str, Any]]


@pytest.fixture
def bring_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Import:
    monkeypatch.chdir(tmp_path)

    def bring_in(*arguments: str, code: int = 0) -> dict[str, Any]:
        found = main(["import", *arguments, *RESULTS, "--json"])
        said = capsys.readouterr()
        assert found == code, said
        report: dict[str, Any] = json.loads(said.out)
        return report

    return bring_in


def counted(report: dict[str, Any]) -> dict[str, int]:
    return {name: report[name] for name in (*ENDINGS, "refused") if report[name]}


def captions() -> dict[str, list[str]]:
    return {name: row["captions"] for name, row in rows_by_name(Path("results")).items()}


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_table_names_its_images_in_many_ways(tmp_path: Path, bring_in: Import) -> None:
    images = make_images(tmp_path / "photos", 8)
    make_image(tmp_path / "photos/a/twin.png", 20)
    make_image(tmp_path / "photos/b/twin.png", 21)
    make_image(tmp_path / "photos/a/alone.png", 22)
    long_ago = "/home/somebody/elsewhere"
    table = write_jsonl(
        tmp_path / "captions.jsonl",
        [
            {"file_name": "000.png", "text": "relative"},
            {"file_name": str(images[1]), "text": "absolute"},
            {"file_name": "photos/002.png", "text": "from where the table is"},
            {"file_name": "003", "text": "without suffix"},
            {"file_name": f"{long_ago}/004.png", "text": "where it was once"},
            {"file_name": "alone.png", "text": "only one is called so"},
            {"file_name": f"{long_ago}/a/twin.png", "text": "the twin in a"},
            {"file_name": "twin.png", "text": "two are called so"},
            {"file_name": "gone.png", "text": "of no image"},
            {"file_name": "c/alone.png", "text": "in another folder, so another image"},
            {"file_name": "005.png", "text": " "},
            {"file_name": "006.png", "text": "this"},
            {"file_name": "006.png", "text": "that"},
            {"file_name": "007.png", "text": "x" * (2**20 + 1)},
        ],
    )
    report = bring_in(table.name, "--dataset", "photos")
    assert counted(report) == {
        "imported": 7,
        "unmatched": 2,
        "ambiguous": 3,
        "empty": 1,
        "refused": 1,
    }
    assert report["examples"]["ambiguous"][0] == (
        "captions.jsonl:8 (twin.png): it may be a/twin.png or b/twin.png"
    )
    assert "a caption of 1,048,577 bytes" in report["examples"]["refused"][0]
    assert captions() == {
        "000.png": ["relative"],
        "001.png": ["absolute"],
        "002.png": ["from where the table is"],
        "003.png": ["without suffix"],
        "004.png": ["where it was once"],
        "a/alone.png": ["only one is called so"],
        "a/twin.png": ["the twin in a"],
    }


@pytest.mark.parametrize(
    ("how", "texts"), [("first", ["this"]), ("last", ["that"]), ("all", ["this", "that"])]
)
def test_it_can_be_said_which_of_several_rows_counts(
    tmp_path: Path, bring_in: Import, how: str, texts: list[str]
) -> None:
    make_images(tmp_path / "photos", 1)
    rows = [{"filename": "000.png", "caption": text} for text in ("this", "that")]
    write_jsonl(tmp_path / "t.jsonl", rows)
    report = bring_in("t.jsonl", "--dataset", "photos", "--repeated", how)
    assert counted(report) == {"imported": 1, "repeated": 1}
    assert captions() == {"000.png": texts}


def test_two_images_that_want_one_file_get_neither(tmp_path: Path, bring_in: Import) -> None:
    make_image(tmp_path / "photos/x.png", 1)
    make_image(tmp_path / "photos/x.jpg", 2, kind="JPEG")
    make_image(tmp_path / "photos/y.png", 3)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/x.txt").write_text("whose?")
    (tmp_path / "texts/y.txt").write_text("one\ntwo")
    (tmp_path / "texts/z.txt").write_bytes(b"\xff\xfea\0")
    report = bring_in("texts", "--dataset", "photos", "--lines", "whole")
    assert counted(report) == {"imported": 1, "ambiguous": 1, "refused": 1}
    assert report["examples"]["ambiguous"] == ["x.txt: it may be x.jpg or x.png"]
    assert report["examples"]["refused"] == ["z.txt: it is UTF-16: save it as UTF-8"]
    assert captions() == {"y.png": ["one\ntwo"]}


def test_a_folder_that_somebody_runs_on_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "photos", 1)
    write_jsonl(tmp_path / "t.jsonl", [{"filename": "000.png", "text": "a"}])
    (tmp_path / "results").mkdir()
    with (tmp_path / "results/owner.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["import", "t.jsonl", "--dataset", "photos", *RESULTS]) == 2
    assert "is in use by another" in capsys.readouterr().err


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one image, below the working folder."""
    monkeypatch.chdir(tmp_path)
    return make_images(tmp_path / "photos", 1)[0].parent


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.jsonl", '{"file": "a", "text": "b"}', "no column names the image.*'file', 'text'"),
        ("t.jsonl", '{"path": "a", "words": "b"}', "no column holds captions.*'path', 'words'"),
        ("t.jsonl", '{"path": "a", "text": 3}', "t.jsonl:1: column 'text' holds no text but 3"),
        ("t.jsonl", '{"path": "a"\n', "t.jsonl:1 is not JSON"),
        ("t.jsonl", '["a"]', "t.jsonl:1 is no object"),
        ("t.jsonl", "", "no column names the image.*none at all"),
        ("t.jsonl", '{"path": "a", "text": "b"}', "not one of the 1 captions is of an image"),
        ("t.csv", "path,text\na,b,c\n", "t.csv:2 has more cells than"),
        ("t.csv", "path,path\na,b\n", "two columns of one name"),
        ("t.parquet", "nonsense", "cannot be read as Parquet"),
        ("t.xlsx", "", "is no table by its name: --format"),
        ("t/a.parquet", "nonsense", "cannot be read as Parquet"),
        ("t/notes.md", "", "there is no .txt file in t or below it"),
    ],
)
def test_nonsense_is_refused_and_nothing_is_written(
    photos: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, says: str
) -> None:
    path = photos.parent / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    before = snapshot(photos)
    source = name.partition("/")[0]
    assert main(["import", source, "--dataset", "photos", *RESULTS]) in {1, 2}
    assert re.search(says, capsys.readouterr().err)
    assert snapshot(photos) == before
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("t.jsonl",), "say what the captions are for: --dataset FOLDER"),
        (("t.jsonl", "--dataset", "phtos"), "there is no folder phtos"),
        (("u.jsonl", "--dataset", "photos"), "there is no file or folder u.jsonl"),
        (("t.jsonl", "--dataset", "photos", "--caption-column", "no"), "there is no such column"),
        (("t.jsonl", "--dataset", "photos", "--filename-column", "no"), "there is no such column"),
        (("t.jsonl", "--dataset", "photos", "--field", "status"), "every row has already"),
        (("t.jsonl", "--dataset", "photos", "--field", "a", "--field", "b"), "each --field needs"),
        (("photos", "--dataset", "photos", "--caption-column", "a"), "has no columns"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(
    photos: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], says: str
) -> None:
    write_jsonl(photos.parent / "t.jsonl", [{"path": "a", "text": "b"}])
    assert main(["import", *arguments, *RESULTS]) == 2
    assert says in capsys.readouterr().err
    assert not Path("results").exists()


def test_the_columns_of_outputs_may_have_any_shape(tmp_path: Path, bring_in: Import) -> None:
    make_images(tmp_path / "photos", 5)
    shapes: list[Any] = [
        {"captions": ["an object", None, ""]},
        '{"captions": ["as JSON"]}',
        {"captions": "one text"},
        None,
        "",
    ]
    rows = [{"filename": f"{n:03}.png", "outputs": one} for n, one in enumerate(shapes)]
    write_jsonl(tmp_path / "t.jsonl", rows)
    assert counted(bring_in("t.jsonl", "--dataset", "photos")) == {"imported": 3, "empty": 2}
    assert captions() == {
        "000.png": ["an object"],
        "001.png": ["as JSON"],
        "002.png": ["one text"],
    }
    write_jsonl(tmp_path / "u.jsonl", [{"filename": "003.png", "outputs": "{"}])
    assert main(["import", "u.jsonl", "--dataset", "photos", *RESULTS]) == 2


def test_a_csv_file_is_read_as_spreadsheets_write_it(tmp_path: Path, bring_in: Import) -> None:
    make_images(tmp_path / "photos", 4)
    (tmp_path / "t.csv").write_bytes(
        b"\xef\xbb\xbffile;caption;note\r\n"
        b'000.png;"a ""quoted"" text; with more";x\r\n'
        b'001.png;"one\r\ntwo";\r\n'
        b"002.png;'=not a formula;\r\n"
        b"003.png;;\r\n"
    )
    report = bring_in("t.csv", "--dataset", "photos", "--filename-column", "file")
    assert counted(report) == {"imported": 3, "empty": 1}
    assert captions() == {
        "000.png": ['a "quoted" text; with more'],
        "001.png": ["one", "two"],
        "002.png": ["=not a formula"],
    }


def test_names_are_found_however_they_are_written(tmp_path: Path, bring_in: Import) -> None:
    decomposed, composed = "cafe\u0301.png", "caf\u00e9.png"
    make_image(tmp_path / "photos" / decomposed, 1)
    make_image(tmp_path / "photos/sub/b c.png", 2)
    make_image(tmp_path / "photos/17.png", 3)
    make_image(tmp_path / "photos/e.png", 4)
    place = (tmp_path / "photos/e.png").as_uri()
    rows: list[dict[str, Any]] = [
        {"image": composed, "text": "composed"},
        {"image": "sub\\b c.png", "text": "from Windows"},
        {"image": 17, "text": "a number is a name, and no position"},
        {"image": place, "text": "an address"},
        {"image": 1, "text": "no name"},
    ]
    write_jsonl(tmp_path / "t.jsonl", rows)
    report = bring_in("t.jsonl", "--dataset", "photos")
    assert counted(report) == {"imported": 4, "unmatched": 1}
    assert {name: texts for name, (texts,) in captions().items()} == {
        decomposed: "composed",
        "sub/b c.png": "from Windows",
        "17.png": "a number is a name, and no position",
        "e.png": "an address",
    }


def test_parts_of_a_parquet_folder_are_one_table(tmp_path: Path, bring_in: Import) -> None:
    make_images(tmp_path / "photos", 3)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number in range(2):
        image = pa.array([{"bytes": b"x", "path": f"{number:03}.png"}], kind)
        table = pa.table({"image": image, "caption": [f"text {number}"], "extra": [1]})
        (tmp_path / "set").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"set/{number}.parquet")
    models = ("--model", "a/b", "--model", "c/d")
    assert counted(bring_in("set", "--dataset", "photos", *models)) == {"imported": 2}
    assert captions() == {"000.png": ["text 0"], "001.png": ["text 1"]}
    assert {tuple(row["models"]) for row in rows_by_name(Path("results")).values()} == {
        ("a/b", "c/d")
    }


def test_lance_without_pylance_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lance", None)
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "photos", 1)
    (tmp_path / "old/captions.lance").mkdir(parents=True)
    assert main(["import", "old", "--dataset", "photos"]) == 2
    assert "pip install 'caption-flow[lance]'" in capsys.readouterr().err


def test_texts_that_cannot_be_stored_are_told_of_by_name(tmp_path: Path, bring_in: Import) -> None:
    make_images(tmp_path / "photos", 4)
    (tmp_path / "photos/000.txt").write_bytes(b"a\0b")
    (tmp_path / "photos/001.txt").write_bytes(b"x" * (16 * 2**20 + 1))
    (tmp_path / "photos/002.txt").write_bytes(b"caf\xe9")
    (tmp_path / "photos/003.txt").write_bytes(b"fine")
    report = bring_in("photos")
    assert counted(report) == {"imported": 1, "refused": 3}
    assert report["examples"]["refused"] == [
        "000.txt: it has NUL characters: that is no text",
        "001.txt: it has more than 16 MiB: that is no caption",
        "002.txt: it is not UTF-8 (byte 0xe9 at 3): save it as UTF-8",
    ]
    write_jsonl(tmp_path / "t.jsonl", [{"filename": "000.png", "text": "half \ud83d"}])
    assert counted(bring_in("t.jsonl", "--dataset", "photos", code=1)) == {"refused": 1}


def test_a_dry_run_says_what_an_import_would_and_writes_nothing(
    tmp_path: Path, bring_in: Import
) -> None:
    make_images(tmp_path / "photos", 3)
    (tmp_path / "photos/000.txt").write_text("here")
    assert counted(bring_in("photos")) == {"imported": 1}
    (tmp_path / "photos/001.txt").write_text("new")
    before = snapshot(tmp_path)
    assert counted(bring_in("photos", "--dry-run")) == {"imported": 1, "kept": 1}
    after = snapshot(tmp_path)
    # SQLite keeps two files beside a database that is open, also for reading.
    assert {name for name in after if not name.endswith((b"-wal", b"-shm"))} == set(before)
    assert counted(bring_in("photos")) == {"imported": 1, "kept": 1}


def test_a_folder_of_texts_may_be_anywhere(tmp_path: Path, bring_in: Import) -> None:
    make_image(tmp_path / "photos/a/1.png", 1)
    make_image(tmp_path / "photos/b/1.png", 2)
    make_image(tmp_path / "photos/b/2.png", 3)
    for name, text in {"default/a/1": "a1", "default/b/1": "b1", "default/1": "which?"}.items():
        (tmp_path / f"export/{name}.caption").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"export/{name}.caption").write_text(text)
    suffix = ("--text-suffix", ".caption")
    report = bring_in("export", "--dataset", "photos", *suffix)
    assert counted(report) == {"imported": 2, "unmatched": 1}
    assert captions() == {"a/1.png": ["a1"], "b/1.png": ["b1"]}
    (tmp_path / "photos/b/2.caption").write_text("b2")
    assert counted(bring_in("photos/b", "--dataset", "photos", *suffix)) == {"imported": 1}


def test_a_folder_that_is_about_another_dataset_is_refused(
    tmp_path: Path, bring_in: Import
) -> None:
    make_images(tmp_path / "photos", 2)
    make_image(tmp_path / "others/x.png", 9)
    write_jsonl(tmp_path / "t.jsonl", [{"filename": "000.png", "text": "a"}])
    write_jsonl(tmp_path / "u.jsonl", [{"filename": "x.png", "text": "a"}])
    bring_in("t.jsonl", "--dataset", "photos")
    assert main(["import", "u.jsonl", "--dataset", "others", *RESULTS]) == 2
    assert captions() == {"000.png": ["a"]}
    assert counted(bring_in("t.jsonl", "--dataset", "photos")) == {"kept": 1}


def test_a_folder_of_texts_and_tables_is_not_guessed_at(photos: Path, bring_in: Import) -> None:
    (photos / "000.txt").write_text("beside")
    pq.write_table(pa.table({"path": ["000.png"], "text": ["in a table"]}), photos / "t.parquet")
    assert main(["import", "photos", *RESULTS]) == 2
    assert counted(bring_in("photos", "--format", "txt")) == {"imported": 1}
    assert captions() == {"000.png": ["beside"]}


def test_a_phone_s_picture_is_measured_upright(photos: Path, bring_in: Import) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(photos / "turned.jpg", exif=exif)
    (photos / "no_picture.jpg").write_bytes(b"garbage")
    rows = [{"path": name, "text": "a"} for name in ("turned.jpg", "no_picture.jpg")]
    write_jsonl(photos.parent / "t.jsonl", rows)
    assert counted(bring_in("t.jsonl", "--dataset", "photos")) == {"imported": 2}
    found = rows_by_name(Path("results"))
    sizes = {n: (r["image_width"], r["image_height"], r["image_format"]) for n, r in found.items()}
    assert sizes == {"turned.jpg": (20, 30, "JPEG"), "no_picture.jpg": (None, None, None)}
    assert found["no_picture.jpg"]["content_hash"] == content_hash(photos / "no_picture.jpg")


def test_names_that_no_file_can_have_are_of_no_image(photos: Path, bring_in: Import) -> None:
    names = ("000.png\0.png", "\ud83d.png", 10**30, -1, "/", ".", "..", "../000.png", "a/" * 300)
    rows = [{"path": name, "text": "a", "shard": "\ud83d.tar"} for name in names]
    rows += [{"path": "\ud83d", "text": "", "error": "half \ud83d"}]
    write_jsonl(photos.parent / "t.jsonl", rows)
    report = bring_in("t.jsonl", "--dataset", "photos", "--dry-run")
    assert counted(report) == {"imported": 1, "unmatched": len(names) - 1, "failed": 1}
    assert report["examples"]["failed"] == ["t.jsonl:10 (\\xed\\xa0\\xbd): half \\ud83d"]


def test_files_need_not_be_read(photos: Path, bring_in: Import) -> None:
    write_jsonl(photos.parent / "t.jsonl", [{"path": "000.png", "text": "a"}])
    bring_in("t.jsonl", "--dataset", "photos", "--no-hash")
    (row,) = rows_by_name(Path("results")).values()
    assert (row["content_hash"], row["image_width"], row["captions"]) == (None, None, ["a"])


def test_it_says_what_to_do_next(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "000.txt").write_text("a")
    assert main(["import", "photos", *RESULTS]) == 0
    assert "caption-flow run photos --data-dir results" in capsys.readouterr().out


def test_a_full_temporary_folder_is_told_of(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(photos.parent / "t.jsonl", [{"path": "000.png", "text": "a" * 9000}])
    connect = sqlite3.connect

    def small(path: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(path, **options)
        if Path(path).name == "matching.sqlite3":
            connection.execute("PRAGMA max_page_count = 2")
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    assert main(["import", "t.jsonl", "--dataset", "photos", *RESULTS]) == 1
    assert "TMPDIR names another" in capsys.readouterr().err


def test_names_are_taken_within_the_tar_that_a_table_says(tmp_path: Path, bring_in: Import) -> None:
    for shard in ("a.tar", "b.tar"):
        write_tar(tmp_path / "set" / shard, [("1.png", b"x"), ("2.png", shard.encode())])
    (tmp_path / "c.yaml").write_text(TARS)
    rows = [
        {"shard": "b.tar", "filename": "1.png", "text": "b"},
        {"filename": "2.png", "text": "?"},
    ]
    write_jsonl(tmp_path / "t.jsonl", rows)
    report = bring_in("t.jsonl", "--config", "c.yaml")
    assert counted(report) == {"imported": 1, "ambiguous": 1}
    assert captions() == {"b.tar/1.png": ["b"]}


def test_only_what_there_are_texts_for_joins_the_run(tmp_path: Path, bring_in: Import) -> None:
    """Else `run --limit` would have no say any more, nor `run --existing skip`."""
    make_images(tmp_path / "photos", 5)
    write_jsonl(tmp_path / "t.jsonl", [{"path": "003.png", "text": "a"}])
    bring_in("t.jsonl", "--dataset", "photos")
    findings = verify(Path("results"))
    assert (findings.listed, findings.captioned, findings.breaches) == (1, 1, [])


def test_rows_that_failed_where_they_were_made_bring_nothing(
    tmp_path: Path, bring_in: Import
) -> None:
    make_images(tmp_path / "photos", 2)
    rows = [
        {"path": "000.png", "text": "half of it", "status": "failed", "error": "cut off"},
        {"path": "001.png", "text": "", "error": "unreadable"},
    ]
    write_jsonl(tmp_path / "t.jsonl", rows)
    report = bring_in("t.jsonl", "--dataset", "photos", code=1)
    assert counted(report) == {"failed": 2}
    assert report["examples"]["failed"] == [
        "t.jsonl:1 (000.png): cut off",
        "t.jsonl:2 (001.png): unreadable",
    ]
    assert not Path("results").exists()


def test_one_field_can_be_overwritten_and_the_others_stay(tmp_path: Path, bring_in: Import) -> None:
    make_images(tmp_path / "photos", 2)
    (tmp_path / "c.yaml").write_text(STAGES)
    rows = [{"path": f"00{n}.png", "a": f"long {n}", "b": f"short {n}"} for n in range(2)]
    write_jsonl(tmp_path / "t.jsonl", rows)
    config = ("--config", "c.yaml")

    def fields() -> dict[str, tuple[list[str], list[str]]]:
        found = rows_by_name(Path("results"))
        return {name: (row["long"], row["short"]) for name, row in found.items()}

    bring_in("t.jsonl", *config, "--caption-column", "a", "--field", "long")
    assert fields() == {"000.png": (["long 0"], []), "001.png": (["long 1"], [])}
    short = ("t.jsonl", *config, "--caption-column", "b")
    assert counted(bring_in(*short)) == {"kept": 2}
    assert counted(bring_in(*short, "--existing", "overwrite", "--dry-run")) == {"replaced": 2}
    assert counted(bring_in(*short, "--existing", "overwrite")) == {"replaced": 2}
    both = {"000.png": (["long 0"], ["short 0"]), "001.png": (["long 1"], ["short 1"])}
    assert fields() == both
    assert counted(bring_in(*short, "--existing", "overwrite")) == {"kept": 2}
    pairs = (
        "--caption-column",
        "a",
        "--field",
        "long",
        "--caption-column",
        "b",
        "--field",
        "short",
    )
    assert counted(bring_in("t.jsonl", *config, *pairs)) == {"kept": 2}
    assert verify(Path("results")).breaches == []


class Between:
    """Have an item of the run stand between two stages."""

    def prepare(self) -> None: ...

    def apply(self, connection: sqlite3.Connection) -> None:
        row = {"item_index": 1, "stage_stats": []}
        store_partials(connection, SHARD, 1, 0, [row], credit=Credit("w", "c"))


def test_an_item_between_stages_is_done_with_its_caption(photos: Path, bring_in: Import) -> None:
    path = make_image(photos / "001.png", 1)
    write_jsonl(photos.parent / "t.jsonl", [{"path": "000.png", "text": "a"}])
    bring_in("t.jsonl", "--dataset", "photos")

    async def leave_between() -> None:
        store = RunStore(Path("results"))
        store.start(lambda _trouble: None)
        facts = path.stat()
        entry = CatalogEntry(1, b"001.png", facts.st_size, facts.st_mtime_ns)
        await store.write(AppendItems(SHARD, [entry]))
        await store.write(Between())
        await store.close()

    asyncio.run(leave_between())
    assert verify(Path("results")).between == 1
    write_jsonl(photos.parent / "t.jsonl", [{"path": "001.png", "text": "b"}])
    assert counted(bring_in("t.jsonl", "--dataset", "photos")) == {"imported": 1}
    findings = verify(Path("results"))
    assert (findings.between, findings.captioned, findings.breaches) == (0, 2, [])
