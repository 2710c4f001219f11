"""``caption-flow run`` from end to end, in processes of its own, with the synthetic engine.

The engine's texts name the picture and the prompt they were made from, so that a right text beside
an image proves that this image, and no other, was asked this very question.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from caption_flow.storage.reader import StorageReader
from tests.support.cli import (
    ROOTS,
    Finished,
    as_a_user,
    caption_flow,
    caption_of,
    make_image,
    make_images,
    rows,
    rows_by_name,
    running,
    snapshot,
    text_beside,
    text_for,
)

SYNTHETIC = ("--engine", "synthetic")
PROMPTS = ("List the objects.", "Name the art style.")
LONG = "n" * 251  # with .png and .txt alike, 255 bytes

NAMES: dict[str, bytes] = {
    "in the root": b"root.png",
    "in a folder": b"sub/first.jpg",
    "in a folder's folder, with a namesake in the root": b"sub/deep/root.png",
    "with a namesake in another folder": b"other/first.jpg",
    "with spaces": b" a  b /c d .png",
    "in Chinese and Japanese": "写真/東京の夜.jpg".encode(),
    "with an emoji": "🐱/👩‍👩‍👧.png".encode(),
    "with a decomposed accent": "cafe\u0301.png".encode(),
    "with a line break": b"two\nlines.png",
    "with a tab and an escape": b"tab\there\x1b[31m.png",
    "with what URLs and shells mind": b"%41#?&'\";[]{}$(x)`y`\\.png",
    "with bytes that are no UTF-8": b"latin-\xe9\xff/caf\xe9.png",
    "as long as names may be": f"{LONG}.png".encode(),
    "without a suffix": b"no-suffix",
    "with dots": b"v1.2.final.png",
    "with an upper-case suffix": b"SHOUTED.PNG",
    "with a leading dash": b"-rf.png",
}
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "empty"),
    "cut off.jpg": (b"", "ends too early"),  # filled in from a real picture
    "prose.jpg": (b"Once upon a time", "not a picture"),
    # Root that cannot give its rights up reads it, and finds nothing in it.
    "closed.png": (b"", "cannot be read: Permission denied" if as_a_user() else "empty"),
    "cl\x1b[2Jear.png": (b"", "empty"),
    "damaged.png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 60, "ends too early"),
}


# --------------------------------------------------------------------------- one run, looked at


@dataclass(frozen=True)
class Captioned:
    """A folder that was captioned, and what was said meanwhile."""

    folder: Path
    data_dir: Path
    images: dict[str, Path]
    first: Finished
    again: Finished
    before: dict[bytes, tuple[int, int]]
    after: dict[bytes, tuple[int, int]]


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Captioned:
    home = tmp_path_factory.mktemp("captioned")
    folder = home / "photos"
    images = {}
    for number, (what, raw) in enumerate(NAMES.items()):
        path = folder / os.fsdecode(raw)
        images[what] = make_image(path, number, kind="JPEG" if raw.endswith(b".jpg") else "PNG")
    make_image(folder / "twin.jpg", 100, kind="JPEG")
    make_image(folder / "twin.png", 101)
    make_image(folder / "cut off.jpg", 102, kind="JPEG")
    for name, (data, _) in BROKEN.items():
        whole = folder / name
        whole.write_bytes(data or (whole.read_bytes()[:300] if whole.exists() else b""))
    (folder / "notes.md").write_text("not an image, whatever the suffix")
    (folder / ".hidden.png").write_bytes(b"hidden")

    (folder / "closed.png").chmod(0o000)

    def run() -> Finished:
        questions = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
        python = as_a_user() or (sys.executable,)
        return caption_flow("run", "photos", *SYNTHETIC, *questions, cwd=home, python=python)

    first = run()
    assert first.code == 0, first.said
    before = snapshot(home)
    again = run()
    data_dir = home / ".caption-flow" / "photos.synthetic"
    return Captioned(folder, data_dir, images, first, again, before, snapshot(home))


@pytest.mark.parametrize("what", NAMES)
def test_an_image_gets_its_own_captions_in_the_file_beside_it(
    captioned: Captioned, what: str
) -> None:
    image = captioned.images[what]
    assert text_beside(image) == "\n".join(caption_of(image, prompt) for prompt in PROMPTS)


def test_every_image_is_one_row_with_the_hash_of_its_own_bytes(captioned: Captioned) -> None:
    named = rows_by_name(captioned.data_dir)
    assert len(named) == len(NAMES) + len(BROKEN) + len(("twin.jpg", "twin.png"))
    for image in captioned.images.values():
        name = os.fsencode(image.relative_to(captioned.folder)).decode("utf-8", "backslashreplace")
        row = named[name]
        assert row["captions"] == [caption_of(image, prompt) for prompt in PROMPTS]
        assert row["status"] == "captioned"


def test_a_row_tells_the_true_name_where_it_is_not_utf_8(captioned: Captioned) -> None:
    raw = NAMES["with bytes that are no UTF-8"]
    assert raw in [row["filename_raw"] for row in rows(captioned.data_dir)]


def test_a_row_names_no_model_that_never_saw_the_image(captioned: Captioned) -> None:
    captioned_rows = [r for r in rows(captioned.data_dir) if r["status"] == "captioned"]
    assert {tuple(row["models"]) for row in captioned_rows} == {("synthetic",)}


def test_of_two_images_that_want_one_file_one_gets_it_and_the_other_is_named(
    captioned: Captioned,
) -> None:
    jpg, png = captioned.folder / "twin.jpg", captioned.folder / "twin.png"
    assert text_beside(jpg) == "\n".join(caption_of(jpg, prompt) for prompt in PROMPTS)
    assert "twin.png" in captioned.first.out
    assert rows_by_name(captioned.data_dir)["twin.png"]["captions"] == [
        caption_of(png, prompt) for prompt in PROMPTS
    ]


@pytest.mark.parametrize(("name", "why"), [(name, why) for name, (_, why) in BROKEN.items()])
def test_a_broken_image_is_a_failed_row_with_its_reason_and_no_file(
    captioned: Captioned, name: str, why: str
) -> None:
    row = rows_by_name(captioned.data_dir)[name]
    assert row["status"] == "failed"
    assert row["error_kind"].startswith("image_")
    assert why in row["error"]
    assert not (captioned.folder / name).with_suffix(".txt").exists()


def test_the_summary_names_each_failed_image_and_the_run_counts_as_done(
    captioned: Captioned,
) -> None:
    said = captioned.first.out
    count = len(NAMES) + len(("twin.jpg", "twin.png"))
    assert re.search(rf"^Done: {count + len(BROKEN)} images in ", said, re.MULTILINE)
    assert re.search(rf"^  captioned +{count}$", said, re.MULTILINE)
    assert re.search(rf"^  failed +{len(BROKEN)} ", said, re.MULTILINE)
    for name, (_, why) in BROKEN.items():
        shown = re.escape(name.replace("\x1b", r"\x1b"))
        assert re.search(rf"^  {shown} .*{why}", said, re.MULTILINE)
    assert captioned.first.code == 0


def test_the_summary_says_where_everything_is(captioned: Captioned) -> None:
    assert re.search(r"^  texts +photos ", captioned.first.out, re.MULTILINE)
    assert re.search(
        r"^  results +\.caption-flow/photos\.synthetic", captioned.first.out, re.MULTILINE
    )
    assert re.search(
        r"^  logs +\.caption-flow/photos\.synthetic/logs$", captioned.first.out, re.MULTILINE
    )


def test_names_cannot_reach_the_terminal_as_commands(captioned: Captioned) -> None:
    assert "\x1b" not in captioned.first.out + captioned.first.err


def test_without_a_terminal_progress_is_lines_that_programs_can_read(captioned: Captioned) -> None:
    steps = re.findall(r"^step (\d+)/(\d+)", captioned.first.err, re.MULTILINE)
    total = str(len(NAMES) + len(BROKEN) + 2)
    assert steps[0][0] == "0"
    assert steps[-1] == (total, total)
    assert len(steps) == len(set(steps)) or steps.count((total, total)) == 1


def test_a_second_run_says_that_everything_is_done(captioned: Captioned) -> None:
    assert captioned.again.code == 0
    assert captioned.again.out.startswith("Nothing to do: all 25 images were done already.")
    assert "prose.jpg" in captioned.again.out, "what failed is named again"


def test_a_second_run_starts_no_worker_and_is_quick(captioned: Captioned) -> None:
    assert captioned.again.err == "", "nobody was started, so nothing was said of workers"
    log = captioned.data_dir / "logs" / "worker-0.log"
    assert log.read_text().count("connected") == 1
    # Processor time: what else this machine is busy with is not the command's fault. Loading vLLM
    # or torch would take three times as much.
    assert captioned.again.cpu_seconds < 4.0


def test_no_process_of_a_run_or_an_export_takes_the_time_to_import_pandas(tmp_path: Path) -> None:
    """Where it is installed pyarrow would, before it makes its first array."""
    make_image(tmp_path / "photos/one.png", 1)
    spy = tmp_path / "spy/pandas.py"
    spy.parent.mkdir()
    spy.write_text("import os, sys\nos.write(2, b'pandas was imported')\nsys.exit(7)\n")
    env = {"PYTHONPATH": str(spy.parent)}
    run = caption_flow("run", "photos", *SYNTHETIC, cwd=tmp_path, env=env)
    assert run.code == 0, run.said
    data_dir = tmp_path / ".caption-flow/photos.synthetic"
    log = (data_dir / "logs/worker-0.log").read_text()
    export = caption_flow(
        *("export", "--data-dir", data_dir, "--format", "parquet", "--output", "out.parquet"),
        cwd=tmp_path,
        env=env,
    )
    assert export.code == 0, export.said
    assert "pandas was imported" not in run.said + log + export.said


def test_a_second_run_touches_nothing(captioned: Captioned) -> None:
    own = os.fsencode(captioned.data_dir)
    books = {own, own + b"/owner.lock"}
    for book in (b"/ledger.sqlite3", b"/exports.sqlite3"):
        books |= {own + book + ending for ending in (b"", b"-wal", b"-shm")}

    def without_books(files: dict[bytes, tuple[int, int]]) -> dict[bytes, tuple[int, int]]:
        return {path: facts for path, facts in files.items() if path not in books}

    assert without_books(captioned.after) == without_books(captioned.before)


# --------------------------------------------------------------------------- what a run is asked


def test_a_run_is_widened_step_by_step_and_what_is_done_stays_as_it_is(tmp_path: Path) -> None:
    """First by a limit, then by a larger one, then by none and by new images; then nothing is left.

    Texts go to another folder, with the sub-folders of the dataset.
    """
    images = [make_image(tmp_path / "in" / f"{n % 2}" / f"{n}.png", n) for n in range(4)]
    data_dir = tmp_path / ".caption-flow" / "in.synthetic"
    ask = ("run", "in", *SYNTHETIC, "--output", "out/texts")

    def texts() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.txt")}

    assert caption_flow(*ask, "--limit", "2", cwd=tmp_path).code == 0
    first = texts()
    assert len(first) == len(rows(data_dir)) == 2

    with running(*ask, "--limit", "3", cwd=tmp_path, columns=100) as process:
        on_a_terminal = process.ends()
    second = texts()
    assert len(second) == len(rows(data_dir)) == 3
    assert first.items() <= second.items(), "what was there was written again"
    # What a person in front of a terminal sees of it.
    assert re.search(r"━+.* 3/3 .*\d/(s|min) · 0 failed", on_a_terminal.out), on_a_terminal.said
    assert "step " not in on_a_terminal.out

    # Before, between and after the old ones, so that no item could be told by its place.
    for number, name in enumerate(("0/!.png", "0/1.png", "1/z.png")):
        images.append(make_image(tmp_path / "in" / name, 50 + number))
    # A picture that is another one now gets other words; words that somebody chose are kept.
    make_image(images[2], 90)
    by_hand = tmp_path / "out" / "texts" / "1" / "1.txt"
    by_hand.write_text("better words")
    rows_before = rows_by_name(data_dir)
    kept = {path: time for path, time in texts().items() if path.name != "2.txt"}
    done = caption_flow(*ask, cwd=tmp_path)
    assert done.out.startswith("Done: 5 images in "), done.said
    third = texts()
    assert kept.items() <= third.items(), "what was there was written again"
    named = rows_by_name(data_dir)
    del rows_before["0/2.png"]
    assert {name: named[name] for name in rows_before} == rows_before
    for image in images:
        words = text_for(image, tmp_path / "out" / "texts" / image.parent.name)
        assert words == ("better words" if image == images[1] else caption_of(image))
    assert not list((tmp_path / "in").rglob("*.txt")), "texts go to --output only"

    gone = tmp_path / "out" / "texts" / "0" / "0.txt"
    gone.unlink()
    images[0].unlink()
    other = caption_flow(*ask, "--prompt", "Otherwise?", cwd=tmp_path)
    assert texts().keys() == third.keys() - {gone}, "a text came back for an image that is gone"
    assert texts().items() <= third.items()
    assert "changed since the last run" in other.err
    assert "Note: 7 of these were asked for with another model, other prompts" in other.out


def test_texts_of_others_are_kept_replaced_or_added_to(tmp_path: Path) -> None:
    images = make_images(tmp_path / "photos", 3)
    mine = images[0].with_suffix(".txt")
    mine.write_text("mine")

    skipped = caption_flow("run", "photos", *SYNTHETIC, cwd=tmp_path)
    assert mine.read_text() == "mine"
    assert re.search(r"^  left out +1 have a \.txt already", skipped.out, re.MULTILINE)
    assert [text_beside(image) for image in images[1:]] == [caption_of(i) for i in images[1:]]

    added = caption_flow("run", "photos", *SYNTHETIC, "--existing", "append", cwd=tmp_path)
    assert added.code == 0, added.said
    assert mine.read_text() == f"mine\n{caption_of(images[0])}"
    assert text_beside(images[1]) == caption_of(images[1]), "ours is there already"

    before = snapshot(tmp_path / "photos")
    caption_flow("run", "photos", *SYNTHETIC, "--existing", "append", cwd=tmp_path)
    assert snapshot(tmp_path / "photos") == before, "adding twice adds once"

    caption_flow("run", "photos", *SYNTHETIC, "--existing", "overwrite", cwd=tmp_path)
    assert [text_beside(image) for image in images] == [caption_of(image) for image in images]


STAGES = {
    "model": "some/model",
    "stages": [
        {"name": "look", "prompts": ["What is it?", "Where is it?"], "output_field": "detailed"},
        {"name": "condense", "prompts": ["Shorten: {detailed}"], "output_field": "short"},
    ],
}


def test_a_dry_run_shows_what_would_be_asked_and_writes_nothing(tmp_path: Path) -> None:
    images = make_images(tmp_path / "photos", 12)
    images[0].with_suffix(".txt").write_text("mine")
    config = _config(tmp_path, {"orchestrator": {"vllm": STAGES, "dataset": LOCAL}})
    before = snapshot(tmp_path)
    done = caption_flow(
        "run", "photos", "--config", config, "--limit", "11", "--dry-run", cwd=tmp_path
    )
    assert snapshot(tmp_path) == before
    assert done.code == 0, done.said
    assert "Would caption 11 of the 12 images in photos:" in done.out
    assert "  001.png\n" in done.out
    assert "… and 1 more" in done.out
    assert "1 has a .txt already" in done.out
    assert "  Where is it?\n" in done.out
    assert "  Shorten: [what look says], [what look says]\n" in done.out
    assert "some/model" in done.out
    assert done.err == ""


def test_a_dry_run_says_what_answers_have_to_be_and_what_is_done_about_bad_ones(
    tmp_path: Path,
) -> None:
    make_images(tmp_path / "photos", 1)
    properties = {"title": {"type": "string"}, "tags": {"type": "array"}}
    retry = {"attempts": 2, "flags": ["length", "refusal"], "sampling": {"temperature": 1.0}}
    stages: list[dict[str, Any]] = [
        {"name": "kind", "choice": ["photo", "drawing"], "prompts": ["What?"]},
        {"name": "code", "regex": "[A-Z]{3}", "prompts": ["Code?"]},
        {
            "name": "facts",
            "json_schema": {"type": "object", "properties": properties},
            "columns": ["title"],
            "prompts": ["List."],
            "quality": {"retry": retry},
        },
        {"name": "caption", "prompts": ["Mind {title}, a {kind}."], "quality": {"flags": []}},
    ]
    vllm = {"model": "m", "stages": [{**stage, "output_field": stage["name"]} for stage in stages]}
    config = _config(tmp_path, {"orchestrator": {"vllm": vllm, "dataset": LOCAL}})
    done = caption_flow("run", "photos", "--config", config, "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.said
    assert (
        """
Stage 1 of 4, kind, asks m; the answers are the column kind:
  What?
  (answers are one of photo, drawing)
Stage 2 of 4, code, asks m; the answers are the column code:
  Code?
  (answers match [A-Z]{3})
Stage 3 of 4, facts, asks m; the answers are the columns facts, title:
  List.
  (answers are JSON with tags, title; asked again up to 2 times after length, refusal, with """
        """temperature 1.0)
Stage 4 of 4, caption, asks m; the answers are the column caption:
  Mind [title from facts], a [what kind says].
  (flagged for nothing)
"""
    ) in done.out


def test_a_dry_run_says_how_several_models_share_the_device(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 1)
    stages = [
        {"name": "look", "model": "a/one", "prompts": ["What is it?"], "output_field": "detailed"},
        {"name": "condense", "model": "a/two", "prompts": ["Shorten: {detailed}"]},
    ]
    vllm = {"stages": stages, "gpu_memory_utilization": 0.6}
    content: dict[str, Any] = {"orchestrator": {"vllm": vllm, "dataset": LOCAL}}
    ask = ("run", "photos", "--config", _config(tmp_path, content), "--dry-run")

    in_turn = caption_flow(*ask, cwd=tmp_path)
    content["worker"] = {"vllm": {"gpu_memory_utilization": 0.3}}
    _config(tmp_path, content)
    together = caption_flow(*ask, cwd=tmp_path)

    assert (
        "\nModels   a/one and a/two do not fit on the device together (gpu_memory_utilization "
        "0.6 + 0.6, more than 0.95) and are loaded in turn: a/one, then a/two, for 256 items at a "
        "time at first, then as many as keep loading under 5% of the time (at most 50,000)\n"
    ) in in_turn.out, in_turn.said
    assert (
        "\nModels   a/one and a/two are loaded together (gpu_memory_utilization 0.3 + 0.3, "
        "at most 0.95)\n"
    ) in together.out, together.said


# --------------------------------------------------------------------------- a hard life

LOCAL: dict[str, Any] = {"type": "local_filesystem", "dataset_path": "photos"}
MANY = 150
LOOK, CONDENSE = "What is it?", "Shorten: {detailed}"
STEP = r"^step [1-9]\d*/"
"""Something is done, and so durable: only acknowledged rows are counted."""


def _config(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _slow(folder: Path, **options: Any) -> Path:
    """Write a configuration whose engine takes its time."""
    engine = {"type": "synthetic", "latency_ms": 400, "requests_in_flight": 5, **options}
    stages = [
        {"name": "look", "prompts": [LOOK], "output_field": "detailed"},
        {"name": "condense", "prompts": [CONDENSE], "output_field": "short"},
    ]
    return _config(
        folder,
        {
            "orchestrator": {
                "chunk_size": 7,
                "dataset": LOCAL,
                "vllm": {"model": "m", "stages": stages},
                "storage": {"data_dir": "results"},
            },
            "worker": {"engine": engine},
        },
    )


Committed = dict[str, Any]


def _durable(data_dir: Path) -> Committed:
    """Return when each item was committed, parts and buffer alike."""
    reader = StorageReader(data_dir)
    try:
        found: Committed = {}
        for batch in reader.batches(None, ["item_key", "committed_at"]) if reader.columns else ():
            for row in batch.to_pylist():
                assert row["item_key"] not in found, "an item is there twice"
                found[row["item_key"]] = row["committed_at"]
        return found
    finally:
        reader.close()


@dataclass(frozen=True)
class HardLife:
    """One folder, captioned by runs that were stopped, killed and robbed of their worker."""

    images: list[Path]
    data_dir: Path
    interrupted: Finished
    after_interrupt: Committed
    shown_before_kill: int
    after_kill: Committed
    robbed: Finished
    at_the_end: Committed


@pytest.fixture(scope="module", autouse=True)
def _hard_life_beside(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Future[HardLife] | None]:
    """Live it while other tests run, since it is mostly waiting; if anybody asks for it."""
    asked = any("hard_life" in getattr(item, "fixturenames", ()) for item in request.session.items)
    with ThreadPoolExecutor(1) as pool:
        home = tmp_path_factory.mktemp("hard_life")
        yield pool.submit(_live_hard, home) if asked else None


@pytest.fixture(scope="module")
def hard_life(_hard_life_beside: Future[HardLife] | None) -> HardLife:
    assert _hard_life_beside is not None
    return _hard_life_beside.result()


def _live_hard(home: Path) -> HardLife:
    images = make_images(home / "photos", MANY)
    ask = ("run", "--config", _slow(home))
    data_dir = home / "results"

    with running(*ask, cwd=home) as process:
        process.says(STEP)
        process.interrupt()
        interrupted = process.ends(seconds=15)
        process.leaves_nothing(seconds=1)
    after_interrupt = _durable(data_dir)

    with running(*ask, cwd=home) as process:
        done_before = len(after_interrupt)
        process.says(rf"^step (?!{done_before}/)\d+/{MANY} ")
        shown = int(re.findall(STEP.replace("[1-9]\\d*", "(\\d+)"), process.err, re.MULTILINE)[-1])
        process.kill()
        process.ends()
        process.leaves_nothing(seconds=8)
    after_kill = _durable(data_dir)

    with running(*ask, cwd=home) as process:
        process.says(rf"^step (?!{len(after_kill)}/)\d+/{MANY} ")
        (worker,) = process.workers()
        os.kill(worker, signal.SIGKILL)
        robbed = process.ends()
        process.leaves_nothing(seconds=1)
    return HardLife(
        images,
        data_dir,
        interrupted,
        after_interrupt,
        shown,
        after_kill,
        robbed,
        _durable(data_dir),
    )


def test_ctrl_c_ends_a_run_cleanly_and_it_says_how_to_go_on(hard_life: HardLife) -> None:
    assert hard_life.interrupted.code == 0, hard_life.interrupted.said
    assert "Stopping: finishing what is in flight" in hard_life.interrupted.err
    assert "the same command goes on from here" in hard_life.interrupted.out
    assert 0 < len(hard_life.after_interrupt) < MANY
    assert f" with {len(hard_life.after_interrupt)} of {MANY} images" in hard_life.interrupted.out


def test_what_was_finished_before_ctrl_c_is_in_parquet_and_beside_its_image(
    hard_life: HardLife,
) -> None:
    assert f"{len(hard_life.after_interrupt)} written" in hard_life.interrupted.out


def test_nothing_that_was_counted_as_done_is_lost_when_a_run_is_killed(
    hard_life: HardLife,
) -> None:
    assert hard_life.after_interrupt.items() <= hard_life.after_kill.items()
    assert hard_life.shown_before_kill <= len(hard_life.after_kill) < MANY


def test_nothing_is_done_again_after_a_kill(hard_life: HardLife) -> None:
    assert hard_life.after_kill.items() <= hard_life.at_the_end.items()


def test_a_killed_worker_is_started_again_and_the_run_completes(hard_life: HardLife) -> None:
    assert hard_life.robbed.code == 0, hard_life.robbed.said
    assert "Worker 0 was killed by signal 9; it is started again." in hard_life.robbed.err
    assert hard_life.robbed.out.startswith("Done: "), hard_life.robbed.said


def test_every_item_is_in_parquet_exactly_once_after_all_that(hard_life: HardLife) -> None:
    named = rows_by_name(hard_life.data_dir)
    assert sorted(named) == [image.name for image in hard_life.images]


def test_the_second_stage_is_asked_with_what_the_first_one_said(hard_life: HardLife) -> None:
    named = rows_by_name(hard_life.data_dir)
    for image in hard_life.images:
        detailed = caption_of(image, LOOK)
        short = caption_of(image, CONDENSE.replace("{detailed}", detailed))
        assert named[image.name]["detailed"] == [detailed]
        assert named[image.name]["short"] == [short]
        assert text_beside(image) == short, "the last stage's text is what people want"


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 5)
    with running("run", "--config", _slow(tmp_path, latency_ms=60_000), cwd=tmp_path) as process:
        process.says("loading the model")
        process.interrupt()
        process.says("Stopping")
        process.interrupt()
        done = process.ends(seconds=10)
        process.leaves_nothing(seconds=1)
    assert done.code == 130, done.said
    assert done.errors == ["stopped at once; the same command goes on from what is safe"]


def test_ctrl_c_while_a_model_loads_takes_no_longer_than_otherwise(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 5)
    with running("run", "--config", _slow(tmp_path, load_seconds=300), cwd=tmp_path) as process:
        process.says("loading the model")
        process.interrupt()
        done = process.ends(seconds=10)
        process.leaves_nothing(seconds=1)
    assert done.code == 0, done.said
    assert "with 0 of 5 images done" in done.out


def test_a_run_killed_while_its_worker_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 1)
    with running("run", "photos", *SYNTHETIC, cwd=tmp_path) as process:
        process.says("^step 0/")
        process.kill()
        process.ends()
        process.leaves_nothing(seconds=8)


WORKERS_CRASH_AT_EXIT = """
import atexit, os, sys
if "worker" in sys.orig_argv:
    atexit.register(os.abort)
"""


def test_a_library_that_crashes_when_python_ends_makes_no_worker_fail(tmp_path: Path) -> None:
    # As seen of vLLM 0.20 and 0.24 beside torch 2.11, once a model had been loaded.
    make_images(tmp_path / "photos", 2)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WORKERS_CRASH_AT_EXIT)
    path = os.pathsep.join([str(tmp_path / "site"), *ROOTS])
    done = caption_flow("run", "photos", *SYNTHETIC, cwd=tmp_path, env={"PYTHONPATH": path})
    assert done.code == 0, done.said
    assert "killed by signal" not in done.said
    assert text_beside(tmp_path / "photos" / "001.png")


# --------------------------------------------------------------------------- runs that fail


def test_a_worker_that_cannot_start_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 2)
    done = caption_flow("run", "--config", _slow(tmp_path, latencyms=3), cwd=tmp_path)
    assert done.code == 1, done.said
    (error,) = done.errors
    assert "unknown option 'latencyms'; did you mean 'latency_ms'?" in error
    assert done.err.rstrip().endswith(error)
    assert "Traceback" not in done.said


def test_a_run_that_captions_not_one_image_has_failed(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    done = caption_flow("run", "photos", *SYNTHETIC, cwd=tmp_path)
    assert done.code == 1, done.said
    assert done.errors == [
        "not one of the 1 images could be captioned; a.png: the file is empty (0 bytes)"
    ]
    assert rows(tmp_path / ".caption-flow" / "photos.synthetic")[0]["status"] == "failed"


TURNS = (
    "org/large and org/small do not fit on the device together (gpu_memory_utilization 0.92 + "
    "0.92, more than 0.95) and are loaded in turn: org/large, then org/small, for "
)


def test_a_rehearsal_of_models_in_turn_swaps_as_the_real_run_would(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 4)
    look = {"name": "a", "model": "org/large", "prompts": ["Look."], "output_field": "seen"}
    short = {"name": "b", "model": "org/small", "prompts": ["Short: {seen}"]}
    vllm = {"stages": [look, {**short, "output_field": "caption"}]}
    dataset = {"type": "local_filesystem", "dataset_path": "photos"}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"orchestrator": {"dataset": dataset, "vllm": vllm}}))
    run = ("run", "photos", "--config", config)
    real, rehearsed = (
        re.findall(
            "^Models .*$", caption_flow(*run, *how, "--dry-run", cwd=tmp_path).out, re.MULTILINE
        )
        for how in ((), SYNTHETIC)
    )
    assert real == rehearsed
    assert TURNS in real[0]
    done = caption_flow(*run, *SYNTHETIC, cwd=tmp_path)
    assert done.code == 0, done.said
    data_dir = tmp_path / ".caption-flow" / "photos.synthetic"
    models = ("synthetic:org/large", "synthetic:org/small")
    assert {tuple(row["models"]) for row in rows(data_dir)} == {models}
    log = (data_dir / "logs" / "worker-0.log").read_text()
    assert re.findall(r"(?:un)?loading.* models?=(\S+)", log) == [models[0], *models]
