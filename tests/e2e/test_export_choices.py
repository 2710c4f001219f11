"""`caption-flow export` as people use it: which rows, which words, and nothing destroyed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.support.cli import Finished, caption_flow, make_images

CONFIG = """
orchestrator:
  dataset: {type: local_filesystem, dataset_path: photos}
  vllm:
    mock_results: true
    stages:
      - {name: long, prompts: [describe], output_field: long}
      - {name: short, prompts: ["shorten {long}"], output_field: short, requires: [long]}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `photos` of four images and a broken one, captioned into `results`."""
    folder = tmp_path_factory.mktemp("done")
    make_images(folder / "photos", 4)
    (folder / "photos" / "broken.jpg").write_bytes(b"")
    (folder / "run.yaml").write_text(CONFIG)
    arguments = ("run", "photos", "--config", "run.yaml", "--data-dir", "results")
    ran = caption_flow(*arguments, "--output", "elsewhere", cwd=folder)
    assert ran.code == 0, ran.said
    return folder


@pytest.fixture
def here(done: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(done, tmp_path / "copy"))


def export(here: Path, *arguments: str) -> Finished:
    finished = caption_flow("export", "--data-dir", "results", *arguments, cwd=here)
    assert finished.code == 0, finished.said
    return finished


def to_txt(here: Path, *arguments: str) -> Finished:
    return export(here, "--format", "txt", "--output", "photos", *arguments)


def texts(here: Path, ending: str = ".txt") -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((here / "photos").glob(f"*{ending}"))}


def test_texts_are_made_of_what_is_asked_for(here: Path) -> None:
    to_txt(here, "--export-column", "short,long", "--prefix", "ohwx, ")
    both = texts(here)
    assert len(both) == 4
    assert all(text.startswith("ohwx, ") and text.count("\nohwx, ") == 1 for text in both.values())

    to_txt(here, "--export-column", "short,long", "--per-field")
    short, long = texts(here, ".short.txt"), texts(here, ".long.txt")
    assert len(short) == len(long) == 4

    to_txt(here, "--template", "{short} / {filename}")
    for name, text in texts(here).items():
        if name.count(".") == 1:
            stem = name.removesuffix(".txt")
            assert text == f"{short[f'{stem}.short.txt']} / {stem}.png"


def test_rows_are_chosen_and_counted_for_scripts(here: Path) -> None:
    done = export(here, "--status", "failed", "--output", "out", "--json")
    (report,) = json.loads(done.out)
    assert (report["written"], report["skipped"]) == (1, {"not chosen": 4})
    rows = [json.loads(line) for line in (here / "out/default.jsonl").read_text().splitlines()]
    assert [row["filename"] for row in rows] == ["broken.jpg"]

    condition = "filename < '0002' AND status = 'captioned'"
    export(here, "--filter", condition, "--output", "out", "--columns", "filename,short")
    rows = [json.loads(line) for line in (here / "out/default.jsonl").read_text().splitlines()]
    assert rows
    assert all(row["filename"] < "0002" and set(row) == {"filename", "short"} for row in rows)


def test_what_was_there_can_be_kept_and_put_back(here: Path) -> None:
    by_hand = min((here / "photos").glob("*.png")).with_suffix(".txt")
    by_hand.write_text("by hand")
    done = to_txt(here, "--export-column", "short", "--existing", "backup")
    assert "1 backed up" in done.out
    assert by_hand.with_name(f"{by_hand.name}.bak").read_text() == "by hand"
    assert by_hand.read_text() != "by hand"
    undone = export(here, "--undo")
    assert undone.out.startswith("1 file put back")
    assert by_hand.read_text() == "by hand"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--filter", "widht > 3"), "--filter: .*widht"),
        (("--template", "{short}"), "--template means nothing with --format jsonl"),
        (("--optimize", "--format", "csv"), "--optimize means nothing with --format csv"),
        (("--per-field", "--format", "all"), "--per-field means nothing with --format all"),
        (("--format", "webshart", "--export-column", "short"), "there is no webshart metadata"),
        (("--format", "txt", "--template", "{no}", "--output", "photos"), "no column named 'no'"),
        (("--format", "txt", "--export-column", "shrt"), "did you mean 'short'"),
        (
            ("--format", "txt", "--export-column", "short", "--template", "{short}"),
            "drop --export-column",
        ),
    ],
)
def test_a_mistake_changes_nothing(here: Path, arguments: tuple[str, ...], says: str) -> None:
    before = sorted(here.rglob("*"))
    finished = caption_flow("export", "--data-dir", "results", *arguments, cwd=here)
    assert finished.code != 0
    (error,) = finished.errors
    assert re.search(says, error)
    assert sorted(here.rglob("*")) == before


def test_all_formats_are_made_at_once_and_what_cannot_be_made_is_named(here: Path) -> None:
    done = export(here, "--format", "all", "--output", "photos", "--export-column", "short")
    written = {path.relative_to(here / "photos").as_posix() for path in (here / "photos").iterdir()}
    tables = {f"default.{suffix}" for suffix in ("jsonl", "csv", "parquet", "lance")}
    assert written >= tables | {"metadata.json", "metadata.jsonl", "captions.parquet"}
    assert len(texts(here)) == 4
    assert len(list((here / "photos").glob("0*.json"))) == 4
    assert "Note: webshart was left out: there is no webshart metadata" in done.out
    again = export(here, "--format", "all", "--output", "photos", "--export-column", "short")
    assert "backed up" not in again.out
    assert not list((here / "photos").glob("*.bak*"))


def test_a_choice_that_suits_no_text_stops_all_formats_before_the_first(here: Path) -> None:
    before = sorted(here.rglob("*"))
    arguments = ("export", "--data-dir", "results", "--format", "all", "--output", "photos")
    finished = caption_flow(*arguments, "--export-column", "shrot", cwd=here)
    assert finished.code == 2
    assert "--export-column" in finished.errors[0]
    assert sorted(here.rglob("*")) == before


def test_without_a_choice_texts_are_what_the_last_stage_gave(here: Path) -> None:
    to_txt(here)
    found = texts(here)
    to_txt(here, "--export-column", "short")
    assert texts(here) == found
    to_txt(here, "--export-column", "long")
    assert texts(here) != found


def test_lists_for_trainers_have_the_words_that_are_asked_for(here: Path) -> None:
    words = ("--export-column", "short", "--prefix", "ohwx, ", "--output", "photos")
    to_txt(here, "--export-column", "short", "--prefix", "ohwx, ")
    expected = {Path(name).stem: text for name, text in texts(here).items()}
    export(here, "--format", "kohya", *words)
    kohya = json.loads((here / "photos/metadata.json").read_text())
    assert {Path(key).stem: entry["caption"] for key, entry in kohya.items()} == expected
    assert all(Path(key).is_file() for key in kohya), "by absolute paths, beside the images"
    export(here, "--format", "imagefolder", *words)
    lines = (here / "photos/metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {Path(row["file_name"]).stem: row["text"] for row in rows} == expected


def test_somebody_elses_metadata_is_kept_beside_ours_and_ours_is_replaced(here: Path) -> None:
    theirs = '{"file_name": "0000.png", "licence": "mine"}\n'
    (here / "photos/metadata.jsonl").write_text(theirs)
    arguments = ("--format", "imagefolder", "--output", "photos")
    left = export(here, *arguments, "--export-column", "short", "--existing", "skip")
    assert "1 skipped (existing)" in left.out
    assert (here / "photos/metadata.jsonl").read_text() == theirs
    first = export(here, *arguments, "--export-column", "short")
    assert "1 backed up (.bak)" in first.out
    assert (here / "photos/metadata.jsonl.bak").read_text() == theirs
    second = export(here, *arguments, "--export-column", "long")
    assert "backed up" not in second.out
    assert len(list((here / "photos").glob("metadata.jsonl*"))) == 2
