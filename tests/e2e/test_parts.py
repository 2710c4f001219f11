"""Orchestrator, workers and exports on their own, as other programs start them."""

from __future__ import annotations

import asyncio
import csv
import json
import re
import signal
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from caption_flow.storage import StorageManager
from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exporter import StorageExporter
from tests.support.cli import (
    Finished,
    caption_flow,
    caption_of,
    make_image,
    rows_by_name,
    running,
    text_for,
)

READY = "Orchestrator ready for connections"
TOKEN = "T0ken_with-dashes"
PROMPT = "Describe this image."


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Job:
    """A job as a trainer runs it: one orchestrator, two workers, then the results are read."""

    workspace: Path
    dataset: Path
    images: list[Path]
    storage: Path
    orchestrator: Finished
    workers: list[Finished]
    beside: dict[str, Finished] = field(default_factory=dict)
    stdout_when_ready: str = ""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    workspace = tmp_path_factory.mktemp("job")
    dataset = workspace / "my data"
    names = ["1.png", "a/1.png", "b/1.png", "b/deep/Ü ñ.png", "c d/#1.png", *"efghijkl"]
    images = [make_image(dataset / name, number) for number, name in enumerate(names)]
    (dataset / "broken.png").write_bytes(b"")
    storage = workspace / "storage"
    port = _free_port()
    config = workspace / "orchestrator.json"
    config.write_text(json.dumps({"orchestrator": _trainers_config(port, dataset, storage)}))
    # SIGINT ignored, as children of a program that handles Ctrl-C itself may be started.
    with running(
        *("orchestrator", "--config", config, "--no-ssl", "--vllm"),
        cwd=workspace,
        ignore_sigint=True,
    ) as leader:
        leader.says(rf"^{READY}$")
        ready = leader.out
        beside = {
            "wrong token": caption_flow(
                *("worker", "--server", f"ws://127.0.0.1:{port}", "--token", "wrong"),
                cwd=workspace,
            ),
            "same folder": caption_flow(
                *("orchestrator", "--config", config, "--port", "0"), cwd=workspace
            ),
        }
        workers = _work(workspace, port)
        beside["same port"] = caption_flow(
            *("orchestrator", "--config", config, "--data_dir", "elsewhere"), cwd=workspace
        )
        # Exports see what is in no part yet: with 13 rows no checkpoint was due.
        beside["export"] = caption_flow(
            *("export", "--data_dir", storage, "--format", "jsonl", "--output", "meanwhile"),
            cwd=workspace,
        )
        leader.interrupt()
        ended = leader.ends(seconds=30)
    return Job(workspace, dataset, images, storage, ended, workers, beside, ready)


def _trainers_config(port: int, dataset: Path, storage: Path) -> dict[str, Any]:
    return {
        "host": "127.0.0.1",
        "port": port,
        "ssl": None,
        "chunk_size": 2,
        "chunks_per_request": 1,
        "dataset": {
            "type": "local_filesystem",
            "processor_type": "local_filesystem",
            "dataset_path": str(dataset),
            "name": 'a dataset\'s name, ünd "more"',
        },
        "vllm": {
            "model": "Qwen/Qwen2.5-VL-3B-Instruct",
            "dtype": "float16",
            "max_model_len": 16384,
            "gpu_memory_utilization": 0.92,
            "batch_size": 8,
            "mock_results": True,
            "sampling": {"temperature": 0.7, "top_p": 0.95, "max_tokens": 256},
            "inference_prompts": [PROMPT],
        },
        "storage": {"data_dir": str(storage), "checkpoint_dir": str(storage / "checkpoints")},
        "auth": {"worker_tokens": [{"token": TOKEN, "name": "a trainer's workers"}]},
    }


def _work(workspace: Path, port: int) -> list[Finished]:
    def arguments(number: int) -> list[str]:
        return [
            *("worker", "--server", f"ws://127.0.0.1:{port}", "--token", TOKEN),
            *("--name", f"SimpleTuner caption worker {number}", "--vllm", "--gpu-id", str(number)),
            *("--when_finished", "shutdown", "--no-verify-ssl"),
        ]

    with (
        running(*arguments(1), cwd=workspace) as one,
        running(*arguments(2), cwd=workspace) as two,
    ):
        return [worker.ends() for worker in (one, two)]


# --------------------------------------------------------------------------- how they behave


def test_the_ready_line_is_there_at_once_and_alone_on_standard_output(job: Job) -> None:
    assert job.stdout_when_ready == f"{READY}\n"
    assert job.orchestrator.out == f"{READY}\n"


def test_workers_exit_with_0_when_every_item_of_the_run_is_terminal(job: Job) -> None:
    assert [worker.code for worker in job.workers] == [0, 0], job.workers
    for worker in job.workers:
        assert re.search(r"finished, step \d+/\d+$", worker.err.strip()), worker.err


def test_an_interrupted_orchestrator_flushes_to_parquet_and_exits_with_0(job: Job) -> None:
    assert job.orchestrator.code == 0, job.orchestrator.said
    named = rows_by_name(job.storage)
    assert len(named) == len(job.images) + 1
    for image in job.images:
        assert named[str(image.relative_to(job.dataset))]["captions"] == [caption_of(image, PROMPT)]
    assert named["broken.png"]["status"] == "failed"


def test_both_logs_end_with_how_far_it_got(job: Job) -> None:
    total = len(job.images) + 1
    assert f"step {total}/{total}" in job.orchestrator.err.splitlines()[-1]
    assert all("step " in worker.err.splitlines()[-1] for worker in job.workers)


def test_rows_name_the_worker_and_whose_token_it_had(job: Job) -> None:
    named = rows_by_name(job.storage)
    assert {row["contributor"] for row in named.values()} == {"a trainer's workers"}
    assert {re.sub(r"\d$", "N", row["worker"]) for row in named.values()} == {
        "SimpleTuner caption worker N"
    }


def test_a_worker_with_a_wrong_token_fails_at_once_and_says_so(job: Job) -> None:
    refused = job.beside["wrong token"]
    assert refused.code == 1
    assert re.search(r"Error: the orchestrator at ws://\S+ refused the token$", refused.err.strip())
    assert "wrong" not in refused.said.replace("refused the token", ""), "tokens are never shown"
    assert "Traceback" not in refused.said


def test_a_second_orchestrator_on_a_folder_is_told_whose_it_is(job: Job) -> None:
    refused = job.beside["same folder"]
    assert refused.code == 2, refused.said
    (error,) = refused.errors
    assert re.search(rf"{re.escape(str(job.storage))} is in use .*pid \d+ on ", error)
    assert socket.gethostname() in error


def test_a_second_orchestrator_on_a_port_is_told_that_it_is_taken(job: Job) -> None:
    refused = job.beside["same port"]
    assert refused.code == 2, refused.said
    (error,) = refused.errors
    assert re.search(r"port \d+ on 127\.0\.0\.1 is in use", error)


# --------------------------------------------------------------------------- reading the results


def _contents(job: Job) -> StorageContents:
    """Open the storage as a trainer does: in an event loop of its own, each time."""

    async def read() -> StorageContents:
        storage = StorageManager(job.storage)
        await storage.initialize()
        try:
            return await storage.get_shard_contents("default")
        finally:
            await storage.close()

    return asyncio.run(read())


def test_the_storage_is_read_again_and_again_in_fresh_event_loops(job: Job) -> None:
    first, second = _contents(job), _contents(job)
    assert first.columns
    assert first.rows == second.rows
    assert first.output_fields == ["captions"]
    assert first.total_rows == len(job.images) + 1
    assert "error" not in first.metadata


def test_texts_go_beside_their_images(job: Job) -> None:
    exporter = StorageExporter(_contents(job))
    count = exporter.to_txt(job.dataset, filename_column="filename", export_column="captions")
    assert count == len(job.images)
    for image in job.images:
        assert text_for(image, image.parent) == caption_of(image, PROMPT)
    assert not (job.dataset / "broken.txt").exists()


def test_jsonl_has_every_row(job: Job, tmp_path: Path) -> None:
    assert (
        StorageExporter(_contents(job)).to_jsonl(tmp_path / "x" / "captions.jsonl")
        == len(job.images) + 1
    )
    lines = (tmp_path / "x" / "captions.jsonl").read_text("utf-8").splitlines()
    assert sorted(json.loads(line)["filename"] for line in lines) == sorted(
        rows_by_name(job.storage)
    )


def _exported(job: Job, tmp_path: Path, format_: str, *more: str) -> Finished:
    ask = ("export", "--data_dir", job.storage, "--format", format_, "--output", "out")
    done = caption_flow(*ask, *more, cwd=tmp_path)
    assert done.code == 0, done.said
    assert done.err == ""
    return done


def test_an_export_beside_a_running_orchestrator_has_what_is_in_no_part_yet(job: Job) -> None:
    assert job.beside["export"].code == 0, job.beside["export"].said
    lines = (job.workspace / "meanwhile" / "default.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == len(job.images) + 1


def test_exports_to_txt_keep_the_folders_of_the_dataset(job: Job, tmp_path: Path) -> None:
    done = _exported(job, tmp_path, "txt")
    for image in job.images:
        folder = tmp_path / "out" / "default" / image.parent.relative_to(job.dataset)
        assert text_for(image, folder) == caption_of(image, PROMPT)
    assert f"{len(job.images)} written, 1 skipped (failed)" in done.out


def test_exports_to_txt_in_the_datasets_own_folder_go_beside_the_images(job: Job) -> None:
    for text in job.dataset.rglob("*.txt"):
        text.unlink()
    done = caption_flow(
        *("export", "--data-dir", job.storage, "--format", "txt", "--output", job.dataset),
        cwd=job.workspace,
    )
    assert done.code == 0, done.said
    assert [text_for(image, image.parent) for image in job.images] == [
        caption_of(image, PROMPT) for image in job.images
    ]


def test_exports_to_json_are_a_file_an_image(job: Job, tmp_path: Path) -> None:
    _exported(job, tmp_path, "json")
    read = json.loads((tmp_path / "out" / "default" / "b" / "deep" / "Ü ñ.json").read_text("utf-8"))
    assert read["captions"] == [caption_of(job.images[3], PROMPT)]


@pytest.mark.parametrize("format_", ["jsonl", "csv", "parquet"])
def test_exports_to_one_file_have_each_row_once(job: Job, tmp_path: Path, format_: str) -> None:
    _exported(job, tmp_path, format_)
    path = tmp_path / "out" / f"default.{format_}"
    found: list[dict[str, Any]]
    if format_ == "jsonl":
        found = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    elif format_ == "csv":
        with path.open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
    else:
        found = pq.read_table(path).to_pylist()
    assert sorted(row["filename"] for row in found) == sorted(rows_by_name(job.storage))
    for row in found:
        if row["filename"] == "c d/#1.png":
            assert caption_of(job.images[4], PROMPT) in str(row["captions"])


# --------------------------------------------------------------------------- found and made


@pytest.fixture
def quiet_folder(tmp_path: Path) -> Path:
    """A working folder with configurations in it, and no tokens in those."""
    make_image(tmp_path / "photos" / "only.png", 1)
    leader = {
        "port": _free_port(),
        "dataset": {"type": "local", "dataset_path": "photos"},
        "vllm": {"model": "m", "inference_prompts": [PROMPT]},
    }
    (tmp_path / "orchestrator.yaml").write_text(yaml.safe_dump(leader))
    worker = {
        "server": f"ws://127.0.0.1:{leader['port']}",
        "token": "file:caption_data/local-worker.token",
        "engine": {"type": "synthetic"},
    }
    (tmp_path / "worker.yaml").write_text(yaml.safe_dump({"worker": worker}))
    return tmp_path


def test_configurations_in_the_working_folder_are_found_and_a_token_is_made(
    quiet_folder: Path,
) -> None:
    """A worker that stays connected stays, until it is told to go."""
    with running("orchestrator", cwd=quiet_folder) as leader:
        leader.says(READY)
        token = quiet_folder / "caption_data" / "local-worker.token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        made = token.read_text()
        assert made not in leader.said
        # One that is refused must not take the running one's token away.
        assert caption_flow("orchestrator", "--port", "0", cwd=quiet_folder).code == 2
        assert token.read_text() == made
        with running("worker", cwd=quiet_folder) as worker:
            worker.says("the run is finished")
            leader.says("step 1/1")
            worker.process.send_signal(signal.SIGTERM)
            assert worker.ends(seconds=10).code == 0
        leader.process.send_signal(signal.SIGTERM)
        assert leader.ends(seconds=10).code == 0
    (row,) = rows_by_name(quiet_folder / "caption_data").values()
    assert row["captions"] == [caption_of(quiet_folder / "photos" / "only.png", PROMPT)]


def test_a_worker_without_an_orchestrator_says_that_it_waits_and_then_gives_up(
    tmp_path: Path,
) -> None:
    server = f"ws://127.0.0.1:{_free_port()}"
    done = caption_flow(
        *("worker", "--server", server, "--token", "t", "--connect-seconds", "1"), cwd=tmp_path
    )
    assert done.code == 1
    assert "no connection, trying again" in done.err
    assert f"Error: no connection to {server} for 1 s: " in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_a_worker_that_outlives_its_orchestrators_restart_goes_on(quiet_folder: Path) -> None:
    with running("worker", "--token", TOKEN, cwd=quiet_folder) as worker:
        worker.says("no connection, trying again")
        config = yaml.safe_load((quiet_folder / "orchestrator.yaml").read_text())
        config["auth"] = {"worker_tokens": [TOKEN]}
        (quiet_folder / "orchestrator.yaml").write_text(yaml.safe_dump(config))
        with running("orchestrator", cwd=quiet_folder) as leader:
            worker.says("the run is finished")
            leader.kill()
            leader.ends()
        with running("orchestrator", cwd=quiet_folder) as leader:
            worker.says("(?s)connected.*connected")
            leader.says("step 1/1")
            assert worker.process.poll() is None, "it left"
