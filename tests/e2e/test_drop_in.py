"""A program that already calls a captioning system finds ours in its place; see `support.client`.

The engine is the synthetic one, which the recipe asks for through the same flags, so that each text
proves which picture it was made from.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version

from caption_flow.storage import StorageManager
from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exporter import ExportError, StorageExporter
from tests.support import parquet
from tests.support.cli import caption_of, make_image, make_images, snapshot, text_beside
from tests.support.client import (
    KILL_SECONDS,
    READY_BYTES,
    READY_LINE,
    Client,
    JobFailed,
    client,
    wait_for,
)

NAMES = (
    "root.png",
    "sub folder/one.jpg",
    "other/one.jpg",
    "写真/夜 🐱.png",
    "two\nlines.png",
    "%41#?&'\";[]{}.png",
)
BROKEN = "other/broken.jpg"
ODD_NAME = 'SimpleTuner "写真"\n%#?&\';[]{} 😀'
KEPT = "what somebody wrote before"
MANY = 600
A_WHILE = 60.0
SLOW_WORKERS = "worker: {engine: {type: synthetic, latency_ms: 150, requests_in_flight: 4}}\n"
"""In the working folder: the owner of a worker decides how fast its made-up engine is."""


# --------------------------------------------------------------------------- a whole job


def test_we_are_found_where_the_client_looks() -> None:
    assert importlib.util.find_spec("caption_flow") is not None
    assert Version(metadata.version("caption-flow")) >= Version("0.5.2")


@dataclass
class Job:
    """One job from its first command to its last file, with two workers."""

    client: Client
    images: dict[str, Path]
    contents: StorageContents
    progress: list[tuple[int, int]] = field(default_factory=list)
    left: dict[int, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    home = tmp_path_factory.mktemp("drop in")
    dataset = {"name": f"images of {ODD_NAME}"}
    with client(home, worker_name=ODD_NAME, orchestrator={"dataset": dataset}) as ours:
        images = {}
        for number, name in enumerate(NAMES):
            kind = "JPEG" if name.endswith(".jpg") else "PNG"
            images[name] = make_image(ours.dataset / name, number, kind=kind)
        (ours.dataset / BROKEN).write_bytes(images["other/one.jpg"].read_bytes()[:300])
        (ours.dataset / BROKEN).with_suffix(".txt").write_text(KEPT)
        ours.caption(workers=2)
        left, progress = ours.left(), ours.progress()
        contents = ours.contents()
        yield Job(ours, images, contents, [progress] if progress else [], left)


def test_every_command_exits_with_0_and_leaves_nothing(job: Job) -> None:
    assert job.client.leader is not None
    everybody = [job.client.leader, *job.client.workers]
    assert [one.process.returncode for one in everybody] == [0, 0, 0]
    assert job.left == {}


def test_the_ready_line_is_said_once_and_is_not_buried(job: Job) -> None:
    assert job.client.leader is not None
    said = job.client.leader.said
    assert said.splitlines().count(READY_LINE) == 1
    assert len(said.encode()) < READY_BYTES


def test_the_last_of_the_newest_log_says_how_far_the_job_is(job: Job) -> None:
    items = len(NAMES) + 1
    assert job.progress == [(items, items)]
    for one in (job.client.leader, *job.client.workers):
        assert one is not None
        assert re.search(rf"\bstep \d+/{items}\b", one.said.splitlines()[-1]), one.said


def test_the_storage_says_what_there_is(job: Job) -> None:
    contents = job.contents
    assert contents.output_fields == ["captions"]
    assert contents.total_rows == len(contents.rows) == len(NAMES) + 1
    assert "error" not in contents.metadata
    rows = {row["filename"]: row for row in contents.rows}
    for name, image in job.images.items():
        assert rows[name]["captions"] == [caption_of(image)]
        assert rows[name]["contributor"] == ODD_NAME
        assert rows[name]["worker"] in {f"{ODD_NAME} 0", f"{ODD_NAME} 1"}
    assert rows[BROKEN]["status"] == "failed"


def test_the_right_text_is_beside_each_image(job: Job) -> None:
    written = StorageExporter(job.contents).to_txt(
        job.client.dataset, filename_column="filename", export_column="captions"
    )
    assert written == len(NAMES)
    for image in job.images.values():
        assert text_beside(image) == caption_of(image)
    assert text_beside(job.client.dataset / BROKEN) == KEPT
    texts = [path for path in job.client.home.rglob("*.txt") if path.is_file()]
    assert len(texts) == len(NAMES) + 1, "a text somewhere else"


def test_the_rows_are_a_file_of_json_lines(job: Job) -> None:
    output = job.client.home / job.client.workspace / "exports" / "captions.jsonl"
    assert StorageExporter(job.contents).to_jsonl(output) == len(NAMES) + 1
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    said = {row["filename"]: row["captions"] for row in rows if row["status"] == "captioned"}
    assert said == {name: [caption_of(image)] for name, image in job.images.items()}


def test_nothing_is_written_but_the_workspace_and_the_texts(job: Job) -> None:
    here = {path.name for path in job.client.home.iterdir()}
    assert here == {"datasets", "jobs", "no cv2"}
    made = {path.name for path in (job.client.home / job.client.workspace).iterdir()}
    assert made <= {"orchestrator.json", "logs", "caption_data", "exports"}


def test_the_same_job_again_has_nothing_to_do_and_waits_for_no_engine(job: Job) -> None:
    with client(job.client.home, token=job.client.token, mock_results=False) as again:
        again.prepare()
        again.lay_out_endless_vllm()
        again.caption()
        assert again.contents().total_rows == len(NAMES) + 1
        assert "finished, step 0/7" in again.workers[0].said


def test_rows_of_a_hub_dataset_are_lines_of_json_and_no_files_beside_it(tmp_path: Path) -> None:
    dataset = {
        "type": "huggingface",
        "processor_type": "huggingface_datasets",
        "dataset_path": "datasets/pictures",
        "split": "train",
        "dataset_image_column": "image",
        "dataset_url_column": "",
    }
    vllm = {"inference_prompts": ["Describe {column:title}."]}
    with client(tmp_path, orchestrator={"dataset": dataset, "vllm": vllm}) as ours:
        folder = parquet.dataset(tmp_path / "datasets" / "pictures", shards=2, rows=5)
        before = snapshot(folder)
        ours.caption()
        contents = ours.contents()
        assert contents.total_rows == 10, "both shards"
        output = tmp_path / ours.workspace / "exports" / "captions.jsonl"
        assert StorageExporter(contents).to_jsonl(output) == 10
        said = [json.loads(line)["captions"] for line in output.read_text("utf-8").splitlines()]
        assert sorted(said) == sorted(
            [parquet.caption(parquet.png(number), f"Describe title {number}.")]
            for number in range(10)
        )
        assert snapshot(folder) == before


# --------------------------------------------------------------------------- what survives


def test_additions_to_the_environment_reach_every_process_and_no_pandas_is_loaded(
    tmp_path: Path,
) -> None:
    """A second of importing, on the event loop, is a second in which nothing is written."""
    with client(tmp_path) as ours:
        (tmp_path / "worker.yaml").write_text(SLOW_WORKERS)
        make_images(ours.dataset, 200)
        ours.begin(workers=2)
        wait_for(lambda: stored(ours), lambda: ours.said, A_WHILE)
        family = ours.left()
        assert len(family) == 3, family
        ours.check_paths()
        for pid in family:
            assert "/pandas/" not in Path(f"/proc/{pid}/maps").read_text(), family[pid]
        assert ours.cancel()


@pytest.mark.parametrize("moment", ["loading", "under way", "done"])
def test_a_cancelled_job_keeps_all_that_was_finished_and_leaves_no_process(
    tmp_path: Path, moment: str
) -> None:
    with client(tmp_path) as ours:
        images = make_images(ours.dataset, 40 if moment == "done" else MANY)
        if moment != "done":
            (tmp_path / "worker.yaml").write_text(SLOW_WORKERS)
        ours.begin(workers=2)
        acknowledged = 0
        if moment == "under way":
            wait_for(lambda: is_under_way(ours), lambda: ours.said, A_WHILE)
            acknowledged = stored(ours)
        elif moment == "done":
            ours.wait_for_workers()
            acknowledged = len(images)
        assert ours.cancel(), ours.said
        assert ours.left() == {}
        if not acknowledged and not stored(ours):
            return
        contents = ours.contents()
        done = {row["filename"]: row["captions"] for row in contents.rows}
        assert len(done) == contents.total_rows >= acknowledged
        assert StorageExporter(contents).to_txt(ours.dataset) == len(done)
        for image in images:
            expected = [caption_of(image)] if image.name in done else None
            assert done.get(image.name) == expected
            assert text_beside(image) == (expected and expected[0])


def test_what_was_acknowledged_survives_a_job_that_is_killed_without_a_word(
    tmp_path: Path,
) -> None:
    with client(tmp_path) as ours:
        (tmp_path / "worker.yaml").write_text(SLOW_WORKERS)
        images = make_images(ours.dataset, MANY)
        ours.begin(workers=2)
        wait_for(lambda: stored(ours) >= 20, lambda: ours.said, A_WHILE)
        acknowledged = stored(ours)
        assert ours.leader is not None
        os.killpg(ours.leader.process.pid, signal.SIGKILL)
        for one in (ours.leader, *ours.workers):
            one.process.wait(KILL_SECONDS)
        wait_for(lambda: not ours.left(), lambda: str(ours.left()), KILL_SECONDS)
        contents = ours.contents()
        assert contents.total_rows >= acknowledged
        named = {image.name: image for image in images}
        for row in contents.rows:
            assert row["captions"] == [caption_of(named[row["filename"]])]


def is_under_way(ours: Client) -> bool:
    """Tell whether the end of the newest log says so: no bar that stands still, or is too long."""
    step, total = ours.progress() or (0, MANY)
    assert total == MANY, ours.said
    return 0 < step < total


def stored(ours: Client) -> int:
    """Count the rows that are durable, as another process sees them."""
    counted = asyncio.run(StorageManager(ours.data_dir).get_caption_stats())
    return int(counted["total_rows"])


# --------------------------------------------------------------------------- how it fails


def failed(ours: Client, *, token: str | None = None) -> str:
    """Run a job that cannot succeed; return the one line that its people are shown."""
    with pytest.raises(JobFailed) as caught:
        ours.caption(token=token)
    (line,) = str(caught.value).splitlines()
    assert "Traceback" not in ours.said
    return line


def test_a_recipe_that_cannot_be_is_refused_with_its_place(tmp_path: Path) -> None:
    with client(tmp_path, orchestrator={"vllm": {"inference_prompts": ["{captoin}"]}}) as ours:
        make_images(ours.dataset, 1)
        line = failed(ours)
        assert line.startswith("Error: ")
        assert "orchestrator.json" in line
        assert "captoin" in line


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with client(tmp_path) as ours:
        line = failed(ours)
        assert line.startswith("Error: ")
        assert ours.images in line


def test_a_folder_without_images_ends_the_job_at_once_with_the_reason(tmp_path: Path) -> None:
    with client(tmp_path) as ours:
        ours.dataset.mkdir(parents=True)
        (ours.dataset / "notes.md").write_text("nothing to see")
        line = failed(ours)
        assert ours.images in line
        assert "no image" in line


def test_a_wrong_token_is_said_to_be_wrong(tmp_path: Path) -> None:
    with client(tmp_path) as ours:
        make_images(ours.dataset, 1)
        line = failed(ours, token="another token")
        assert "Error: " in line
        assert "token" in line


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with client(tmp_path, port=taken.getsockname()[1]) as ours:
            make_images(ours.dataset, 1)
            line = failed(ours)
            assert line.startswith("Error: ")
            assert str(ours.port) in line


def test_a_run_that_is_led_already_is_refused_with_who_leads_it(tmp_path: Path) -> None:
    storage = {"data_dir": "jobs/caption job 1/caption_data"}
    with (
        client(tmp_path) as first,
        client(tmp_path, job="job 2", orchestrator={"storage": storage}) as second,
    ):
        make_images(first.dataset, 1)
        first.prepare()
        first.start_orchestrator()
        first.wait_until_ready()
        assert first.leader is not None
        line = failed(second)
        assert line.startswith("Error: ")
        assert str(first.leader.process.pid) in line


def test_an_output_field_that_there_is_not_is_named_with_those_there_are(job: Job) -> None:
    with pytest.raises(ExportError, match=r"captoins.*captions"):
        StorageExporter(job.contents).to_txt(job.client.dataset, export_column="captoins")
