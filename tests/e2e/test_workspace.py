"""``caption-flow run --workspace``: a job is a folder, whatever becomes of it.

Everything in processes of its own, with the synthetic engine, whose texts prove of which picture
they are.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from caption_flow.config.load import load_orchestrator
from tests.support import parquet
from tests.support.cli import (
    Finished,
    caption_flow,
    caption_of,
    make_images,
    rows,
    running,
    snapshot,
    text_beside,
)
from tests.support.hub import Hub, Repository
from tests.support.hub_runs import files_in

SYNTHETIC = ("--engine", "synthetic")
MANY = 200
LAYOUT = {
    "orchestrator.json",
    "report.json",
    "caption_data",
    "logs",
    "exports",
    "worker.token",
    "admin.token",
}


def report_of(job: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job / "report.json").read_bytes())
    return found


def config_of(job: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job / "orchestrator.json").read_bytes())
    return found


def as_it_is(folder: Path) -> dict[bytes, tuple[int, int]]:
    """A snapshot, but for what SQLite's readers share."""
    found = snapshot(folder)
    return {path: facts for path, facts in found.items() if not path.endswith((b"-shm", b"-wal"))}


def written_config(home: Path, content: Any, name: str = "raw.yaml") -> Path:
    path = home / name
    dump = json.dumps if name.endswith(".json") else yaml.safe_dump
    path.write_text(dump(content))
    return path


# --------------------------------------------------------------------------- one job, looked at


@dataclass(frozen=True)
class Job:
    home: Path
    images: list[Path]
    folder: Path
    first: Finished
    began: dict[str, Any]
    again: Finished


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    home = tmp_path_factory.mktemp("job")
    images = make_images(home / "photos", 5)
    (home / "photos" / "broken.png").write_bytes(b"")
    first = caption_flow("run", "photos", *SYNTHETIC, "--workspace", "jobs/one", cwd=home)
    assert first.code == 0, first.said
    began = report_of(home / "jobs" / "one")
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    # From another folder, and with no other word: all else is in the workspace.
    again = caption_flow("run", "--workspace", "../jobs/one", cwd=elsewhere)
    return Job(home, images, home / "jobs" / "one", first, began, again)


def test_all_of_a_job_is_in_its_folder_and_nothing_is_elsewhere(job: Job) -> None:
    assert {path.name for path in job.folder.iterdir()} == LAYOUT
    assert {path.name for path in (job.folder / "logs").iterdir()} == {
        "orchestrator.log",
        "worker-0.log",
    }
    assert {path.name for path in job.home.iterdir()} == {"photos", "jobs", "elsewhere"}
    assert len(rows(job.folder / "caption_data")) == 6


def test_a_folder_gets_its_texts_beside_its_images(job: Job) -> None:
    assert [text_beside(image) for image in job.images] == [caption_of(i) for i in job.images]
    assert not list((job.folder / "exports").iterdir())


def test_each_process_has_its_own_log(job: Job) -> None:
    orchestrators = (job.folder / "logs" / "orchestrator.log").read_text()
    assert "worker joined" in orchestrators
    assert re.search(r"^\S+ \S+ \[info +\] step 6/6 ", orchestrators, re.MULTILINE)
    assert "Captioning photos with the synthetic engine" in orchestrators
    assert "connected" in (job.folder / "logs" / "worker-0.log").read_text()


def test_the_report_says_what_has_become_of_the_job(job: Job) -> None:
    said = job.began
    assert (said["report"], said["state"], said["exit_code"], said["error"]) == (
        1,
        "finished",
        0,
        None,
    )
    assert said["counts"] == {
        "total": 6,
        "listed": True,
        "captioned": 5,
        "failed": 1,
        "before": 0,
        "flagged": 0,
        "left_out": 0,
        "videos_left_out": 0,
    }
    assert said["failures"] == {
        "by_kind": {"image_empty": 1},
        "first": [
            {
                "item": "broken.png",
                "filename": "broken.png",
                "kind": "image_empty",
                "reason": "the file is empty (0 bytes)",
            }
        ],
    }
    (texts,) = said["exports"]
    assert texts["format"] == "txt"
    assert texts["destination"] == str(job.home / "photos")
    assert (texts["written"], texts["skipped"]) == (5, {"failed": 1})
    assert said["started_at"] < said["ended_at"] == said["updated_at"]
    assert 0 < said["loading_seconds"] < said["seconds"] < said["ended_at"] - said["started_at"] + 5
    assert said["rate"] > 0
    assert (said["engine"], said["models"], said["workers"]) == ("synthetic", ["synthetic"], 1)
    assert said["dataset"]["path"] == str(job.home / "photos")
    assert set(said["versions"]) == {"caption_flow", "vllm", "python"}
    assert said["process"]["host"] == socket.gethostname()


def test_the_summary_names_the_report(job: Job) -> None:
    assert re.search(r"^  report +jobs/one/report\.json$", job.first.out, re.MULTILINE)
    assert re.search(r"^  logs +jobs/one/logs$", job.first.out, re.MULTILINE)


def test_the_workspace_alone_is_enough_to_go_on(job: Job) -> None:
    assert job.again.code == 0, job.again.said
    assert job.again.out.startswith("Nothing to do: all 6 images were done already.")
    now = report_of(job.folder)
    assert now["state"] == "finished"
    assert now["counts"] == {**job.began["counts"], "before": 6}
    assert now["recipe"] == job.began["recipe"]
    assert now["started_at"] > job.began["ended_at"]


def test_another_dataset_is_refused_and_the_job_stays_as_it_was(job: Job) -> None:
    make_images(job.home / "elsewhere" / "others", 2)
    before = as_it_is(job.folder)
    done = caption_flow(
        "run", "elsewhere/others", *SYNTHETIC, "--workspace", "jobs/one", cwd=job.home
    )
    assert done.code == 2, done.said
    assert re.search(r"holds the captions of .*/photos, and .*others is another", done.errors[0])
    assert as_it_is(job.folder) == before


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (
            ("photos", "--workspace", "jobs/one", "--engine", "vllm"),
            r"jobs/one are a rehearsal's, made up, and those of the vllm engine do not belong",
        ),
        (("--workspace", "jobs/two"), r"jobs/two holds no job yet \(no orchestrator\.json\)"),
        (
            ("photos", "--workspace", "jobs/one", "--data-dir", "x", *SYNTHETIC),
            r"--workspace keeps the results in DIR/caption_data: drop --data-dir",
        ),
        (
            ("photos", "--dataset", "m.json#x", "--workspace", "jobs/one", *SYNTHETIC),
            r"FOLDER and --dataset both say what to caption: drop one",
        ),
        (
            ("photos", "--workspace", "photos/000.png", *SYNTHETIC),
            r"photos/000.png is a file, where a folder has to be; --workspace DIR puts",
        ),
    ],
)
def test_mistakes_are_refused_and_change_nothing(
    job: Job, arguments: tuple[str, ...], why: str
) -> None:
    before = as_it_is(job.home)
    done = caption_flow("run", *arguments, cwd=job.home)
    assert done.code == 2, done.said
    assert re.search(why, done.errors[0]), done.said
    assert as_it_is(job.home) == before


# --------------------------------------------------------------------------- raw configurations

EVERYTHING: dict[str, Any] = {
    "host": "192.0.2.1",
    "port": 9999,
    "ssl": {"cert": "no/cert.pem", "key": "no/key.pem"},
    "chunk_size": 3,
    "chunks_per_request": 1,
    "chunk_buffer_multiplier": 2,
    "min_chunk_buffer": 5,
    "backpressure_threshold": 7,
    "cache_dir": "cache",
    "shard_cache_gb": 1.5,
    "buffer_size": 100,
    "max_file_size": 1000,
    "lease_seconds": 60,
    "max_attempts": 2,
    "dataset": {"type": "huggingface", "dataset_path": "org/name", "split": "test"},
    "vllm": {
        "model": "some/model",
        "tensor_parallel_size": 1,
        "max_model_len": 4096,
        "dtype": "float16",
        "gpu_memory_utilization": 0.5,
        "enforce_eager": True,
        "disable_mm_preprocessor_cache": True,
        "mm_processor_cache_gb": 0,
        "mm_processor_cache_type": "lru",
        "mm_shm_cache_max_object_size_mb": 64,
        "limit_mm_per_prompt": {"image": 1},
        "batch_size": 8,
        "an_engine_option": {"of": ["somebody's", 1, None, True]},
        "sampling": {
            "temperature": 0.1,
            "top_p": 0.5,
            "max_tokens": 64,
            "repetition_penalty": 1.1,
            "skip_special_tokens": True,
            "stop": ["<|end|>", "\n\n"],
            "presence_penalty": 0.25,
        },
        "inference_prompts": ["Ünïcode {column:title}?"],
        "stages": [
            {
                "name": "look",
                "model": "some/model",
                "prompts": ["What is it?"],
                "output_field": "detailed",
                "requires": [],
                "sampling": {"temperature": 0},
                "tensor_parallel_size": 1,
                "max_model_len": 2048,
                "dtype": "bfloat16",
                "gpu_memory_utilization": 0.4,
            },
            {"name": "short", "prompts": ["Shorten: {detailed}"], "output_field": "caption"},
        ],
    },
    "storage": {
        "data_dir": "somewhere/else",
        "checkpoint_dir": "checkpoints",
        "checkpoint_interval": 30,
        "caption_buffer_size": 50,
        "job_buffer_size": 10,
        "contributor_buffer_size": 11,
    },
    "auth": {
        "worker_tokens": [{"token": "a secret of the worker's", "name": "w"}],
        "monitor_tokens": ["a secret of the monitor's"],
        "admin_tokens": [{"token": "a secret of the admin's", "name": "a"}],
    },
    "spot_checks": {"share": 0.5},
}
WORKER = {
    "server": "wss://far.example.org:8765",
    "token": "a secret of the file's",
    "engine": {
        "type": "synthetic",
        "latency_ms": 1,
    },
    "vllm": {"gpu_memory_utilization": 0.3},
    "readahead_size": 4,
}


def leaves(content: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    """Every value of a configuration by its key path."""
    if isinstance(content, dict) and content:
        found: dict[tuple[Any, ...], Any] = {}
        for key, value in content.items():
            found |= leaves(value, (*path, key))
        return found
    return {path: content}


@pytest.mark.parametrize("name", ["whole.yaml", "object.json"])
def test_a_raw_configuration_keeps_every_key_but_the_launchers(tmp_path: Path, name: str) -> None:
    images = make_images(tmp_path / "photos", 3)
    is_whole = name == "whole.yaml"
    content = {"orchestrator": EVERYTHING, "worker": WORKER} if is_whole else EVERYTHING
    config = written_config(tmp_path, content, name)
    options = () if is_whole else SYNTHETIC
    done = caption_flow(
        "run", "photos", "--config", config, "--workspace", "job", *options, cwd=tmp_path
    )
    assert done.code == 0, done.said
    expected = leaves(EVERYTHING)
    owned = ("host", "port", "ssl", "dataset", "auth")
    data = ("data_dir", "checkpoint_dir")
    kept = {
        path: value
        for path, value in expected.items()
        if path[0] not in owned and not (path[0] == "storage" and path[1] in data)
    }
    said = config_of(tmp_path / "job")
    found = leaves(said["orchestrator"])
    assert {path: found.get(path, "missing") for path in kept} == kept
    job = tmp_path / "job"
    assert {path: value for path, value in found.items() if path not in kept} == {
        ("host",): "127.0.0.1",
        ("port",): 0,
        ("dataset", "type"): "local_filesystem",
        ("dataset", "dataset_path"): str(tmp_path / "photos"),
        ("storage", "data_dir"): str(job / "caption_data"),
        ("auth", "worker_tokens"): [{"token": f"file:{job / 'worker.token'}", "name": "local"}],
        ("auth", "admin_tokens"): [{"token": f"file:{job / 'admin.token'}", "name": "local"}],
    }
    replaced = ["host", "port", "ssl", "dataset", *(f"storage.{key}" for key in data), "auth"]
    replaced += ["worker.server", "worker.token"] if is_whole else []
    assert report_of(job)["replaced"] == replaced
    line = f"From your configuration, replaced by the launcher: {', '.join(replaced)}"
    assert line in done.err
    assert line in (job / "logs" / "orchestrator.log").read_text()
    if is_whole:
        kept_of_worker = {key: WORKER[key] for key in ("engine", "vllm", "readahead_size")}
        assert said["worker"] == {**kept_of_worker, "token": f"file:{job / 'worker.token'}"}
    assert [text_beside(image) for image in images] == [
        caption_of(image, f"Shorten: {caption_of(image, 'What is it?')}") for image in images
    ]
    secrets = [
        b"a secret of",
        (job / "worker.token").read_bytes(),
        (job / "admin.token").read_bytes(),
    ]
    check_no_secret(job, secrets)
    assert not (tmp_path / "somewhere").exists()


def check_no_secret(job: Path, secrets: list[bytes]) -> None:
    """Tokens are in the files that are for them, which nobody else can read, and in no other."""
    for path in job.rglob("*"):
        if path.name.endswith(".token"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        elif path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path


def test_a_key_that_is_written_out_goes_into_a_file_of_its_own(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 1)
    engine: dict[str, Any] = {"type": "openai", "base_url": "http://127.0.0.1:9/v1"}
    engine |= {"api_key": "sk-in-clear", "start_seconds": 1, "patience_seconds": 1}
    recipe = {"model": "m", "inference_prompts": ["What?"]}
    content = {"orchestrator": {"vllm": recipe}, "worker": {"engine": engine}}
    config = written_config(tmp_path, content)
    done = caption_flow("run", "photos", "--config", config, "--workspace", "job", cwd=tmp_path)
    assert done.code == 1, done.said  # nobody serves there
    job = tmp_path / "job"
    key = job / "api_key.token"
    assert config_of(job)["worker"]["engine"] == {**engine, "api_key": f"file:{key}"}
    assert key.read_text() == "sk-in-clear"
    check_no_secret(job, [b"sk-in-clear"])
    said = report_of(job)
    assert (said["state"], said["exit_code"], said["error"]) == ("failed", 1, done.errors[0])
    log = (job / "logs" / "orchestrator.log").read_text()
    assert log.rstrip().endswith(f"Error: {done.errors[0]}")


def test_nobody_is_told_of_a_dataset_that_was_replaced_by_none(tmp_path: Path) -> None:
    """The configuration's own dataset counts where the command line names none."""
    make_images(tmp_path / "photos", 1)
    dataset = {"type": "local", "dataset_path": "photos", "recursive": False}
    config = written_config(
        tmp_path,
        {"dataset": dataset, "vllm": {"model": "m", "inference_prompts": ["What?"]}, "port": 8765},
    )
    ask = ("run", "--config", config, *SYNTHETIC, "--workspace", "job")
    done = caption_flow(*ask, cwd=tmp_path)
    assert done.code == 0, done.said
    assert report_of(tmp_path / "job")["replaced"] == ["port"]
    found = config_of(tmp_path / "job")["orchestrator"]["dataset"]
    assert found == {**dataset, "dataset_path": str(tmp_path / "photos")}


# --------------------------------------------------------------------------- other datasets


def check_table(job: Path, pictures: int, prompt: str) -> None:
    lines = (job / "exports" / "captions.jsonl").read_text().splitlines()
    found = {row["item_key"]: row["captions"] for row in map(json.loads, lines)}
    assert len(found) == len(lines) == pictures
    assert sorted(found.values()) == sorted(
        [parquet.caption(parquet.png(n), prompt.format(n=n))] for n in range(pictures)
    )
    (table,) = report_of(job)["exports"]
    assert table["format"] == "jsonl"
    assert table["destination"] == str(job / "exports" / "captions.jsonl")
    assert table["written"] == pictures


async def test_a_hub_dataset_gets_a_table_and_nothing_is_written_back(
    tmp_path: Path, beside_the_hub: pytest.MonkeyPatch
) -> None:
    """Named by an entry of a trainer's file, with prompts of a raw configuration."""
    files = files_in(parquet.dataset(tmp_path / "set", 2, 4))
    entry = {"id": "my set", "type": "huggingface", "dataset_name": "org/pictures"}
    (tmp_path / "m.json").write_text(json.dumps([{"id": "t", "dataset_type": "audio"}, entry]))
    config = written_config(
        tmp_path,
        {"vllm": {"model": "m", "inference_prompts": ["Describe {column:title}."]}},
        "raw.json",
    )
    ask = ("run", "--dataset", "m.json#my set", "--config", config, "--workspace", "job")
    async with Hub(pictures=Repository({"main": files})) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        done = await asyncio.to_thread(caption_flow, *ask, *SYNTHETIC, cwd=tmp_path, env=env)
        assert done.code == 0, done.said
        before = {name: dict(found.branches) for name, found in hub.repositories.items()}
        assert all(re.match(r"GET |POST .*/paths-info/", line) for line in hub.asked), hub.asked
        again = await asyncio.to_thread(
            caption_flow, "run", "--workspace", "job", cwd=tmp_path, env=env
        )
        assert again.out.startswith("Nothing to do: all 8 images"), again.said
        assert {name: found.branches for name, found in hub.repositories.items()} == before
    check_table(tmp_path / "job", 8, "Describe title {n}.")
    assert report_of(tmp_path / "job")["dataset"] == {
        "kind": "huggingface_datasets",
        "path": "org/pictures",
        "name": "my set",
    }
    refused = caption_flow("run", "--dataset", "m.json#t", "--workspace", "job", cwd=tmp_path)
    assert refused.errors == [
        "--dataset: m.json: entry 't': dataset_type audio cannot be captioned: it holds sound, and "
        "a captioner of images has nothing to look at"
    ]
    make_images(tmp_path / "photos", 1)
    mixed = caption_flow("run", "photos", "--workspace", "job", cwd=tmp_path)
    assert mixed.code == 2
    assert "is another dataset" in mixed.errors[0]


def test_paths_may_hold_spaces_line_breaks_and_bytes_that_are_no_utf_8(tmp_path: Path) -> None:
    home = tmp_path / os.fsdecode(b"caf\xe9 two\nlines")
    images = make_images(home / os.fsdecode(b"ph\xfftos"), 2)
    parquet.dataset(home / "set", 1, 3)
    entries = [
        {"id": "a #1", "instance_data_dir": os.fsdecode(b"ph\xfftos")},
        {"id": "hub", "type": "huggingface", "dataset_name": "./set", "split": "train"},
    ]
    (home / "multi#1.json").write_text(json.dumps(entries))
    job = os.fsdecode(b"my j\xf6b\n1")
    ask = ("run", "--dataset", "multi#1.json#a #1", "--workspace", job, *SYNTHETIC)
    done = caption_flow(*ask, cwd=home)
    assert done.code == 0, done.said
    assert [text_beside(image) for image in images] == [caption_of(image) for image in images]
    again = caption_flow("run", "--workspace", home / job, cwd=tmp_path)
    assert again.out.startswith("Nothing to do: all 2 images"), again.said
    assert {path.name for path in (home / job).iterdir()} == LAYOUT
    said = report_of(home / job)
    assert said["state"] == "finished"
    assert said["dataset"]["path"].endswith(r"caf\xe9 two" + "\n" + r"lines/ph\xfftos")
    table = caption_flow(
        *("run", "--dataset", "multi#1.json#hub", "--workspace", f"{job} table", *SYNTHETIC),
        cwd=home,
    )
    assert table.code == 0, table.said
    lines = (home / f"{job} table" / "exports" / "captions.jsonl").read_text().splitlines()
    assert len(lines) == 3


# --------------------------------------------------------------------------- jobs that are stopped


def slow(home: Path, **engine: Any) -> Path:
    images = {"type": "local_filesystem", "dataset_path": "photos"}
    return written_config(
        home,
        {
            "orchestrator": {
                "dataset": images,
                "vllm": {"model": "m", "inference_prompts": ["What?"]},
                "chunk_size": 5,
            },
            "worker": {"engine": {"type": "synthetic", "requests_in_flight": 2, **engine}},
        },
    )


def test_a_job_that_is_stopped_says_so_and_exports_all_that_was_finished(tmp_path: Path) -> None:
    """Then it is killed, which leaves what was true a moment before, then brought to its end by an
    orchestrator and a worker that are told nothing but the workspace's configuration."""
    images = make_images(tmp_path / "photos", MANY)
    job = tmp_path / "job"
    ask = ("run", "--config", slow(tmp_path, latency_ms=100), "--workspace", "job")
    with running(*ask, cwd=tmp_path) as process:
        process.says(rf"^step [1-9]\d*/{MANY} ")
        assert report_of(job)["state"] == "running"
        assert report_of(job)["process"]["pid"] == process.process.pid
        process.interrupt()
        stopped = process.ends(seconds=20)
    assert stopped.code == 0, stopped.said
    said = report_of(job)
    done = {row["filename"]: row["captions"] for row in rows(job / "caption_data")}
    assert (said["state"], said["exit_code"], said["error"]) == ("stopped", 0, None)
    assert 0 < said["counts"]["captioned"] == len(done) < MANY
    assert said["counts"]["total"] == MANY
    assert said["exports"][0]["written"] == len(done)
    texts = {image.name: text_beside(image) for image in images}
    assert {name: text for name, text in texts.items() if text is not None} == {
        name: captions[0] for name, captions in done.items()
    }

    with running("run", "--workspace", "job", cwd=tmp_path) as process:
        process.says(rf"^step (?!{len(done)}/)\d+/{MANY} ")
        process.kill()
        process.ends()
        process.leaves_nothing(seconds=8)
    said = report_of(job)
    assert (said["state"], said["exit_code"], said["ended_at"]) == ("running", None, None)
    assert len(done) <= said["counts"]["captioned"] < MANY

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    config = ("--config", job / "orchestrator.json")
    with running("orchestrator", *config, "--port", port, cwd=tmp_path) as leader:
        leader.says("^Orchestrator ready for connections")
        server = ("--server", f"ws://127.0.0.1:{port}", "--when-finished", "shutdown")
        worker = caption_flow("worker", *config, *server, cwd=tmp_path)
        assert worker.code == 0, worker.said
        leader.interrupt()
        assert leader.ends().code == 0
    assert len(rows(job / "caption_data")) == MANY
    # Not yet beside the images: only a run exports.
    last = caption_flow("run", "--workspace", "job", cwd=tmp_path)
    assert last.out.startswith(f"Nothing to do: all {MANY} images"), last.said
    assert [text_beside(image) for image in images] == [caption_of(i, "What?") for i in images]
    assert report_of(job)["state"] == "finished"


def test_a_job_that_is_stopped_at_once_says_so(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 3)
    ask = ("run", "--config", slow(tmp_path, latency_ms=60_000), "--workspace", "job")
    with running(*ask, cwd=tmp_path) as process:
        process.says("loading the model")
        process.interrupt()
        process.says("Stopping")
        process.interrupt()
        done = process.ends(seconds=10)
    assert done.code == 130, done.said
    said = report_of(tmp_path / "job")
    assert (said["state"], said["exit_code"], said["exports"]) == ("stopped", 130, [])
    assert said["error"] == done.errors[0]


def test_a_job_in_which_nothing_could_be_captioned_has_failed(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(120):
        (tmp_path / "photos" / f"{number:03}.png").write_bytes(b"x" * (number % 2))
    done = caption_flow("run", "photos", *SYNTHETIC, "--workspace", "job", cwd=tmp_path)
    assert done.code == 1, done.said
    said = report_of(tmp_path / "job")
    assert (said["state"], said["exit_code"], said["error"]) == ("failed", 1, done.errors[0])
    assert said["failures"]["by_kind"] == {"image_empty": 60, "image_unrecognised": 60}
    assert len(said["failures"]["first"]) == 100
    assert {one["kind"] for one in said["failures"]["first"]} == set(said["failures"]["by_kind"])


def test_a_workspace_that_is_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 3)
    ask = ("run", "--config", slow(tmp_path, latency_ms=60_000), "--workspace", "job")
    job = tmp_path / "job"
    with running(*ask, cwd=tmp_path) as process:
        process.says("loading the model")
        kept = [(job / name).read_bytes() for name in ("worker.token", "orchestrator.json")]
        log = (job / "logs" / "orchestrator.log").read_bytes()
        second = caption_flow("run", "--workspace", "job", "--prompt", "Else?", cwd=tmp_path)
        assert second.code == 2, second.said
        assert "is in use by another orchestrator" in second.errors[0]
        assert kept == [(job / name).read_bytes() for name in ("worker.token", "orchestrator.json")]
        assert (job / "logs" / "orchestrator.log").read_bytes().startswith(log)
        assert report_of(job)["process"]["pid"] == process.process.pid
        process.interrupt()
        process.ends()


def test_what_the_command_line_says_is_laid_over_the_job_and_stays_in_it(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 4)
    ask = ("run", "photos", "--workspace", "job", *SYNTHETIC)
    assert caption_flow(*ask, "--limit", "2", "--prompt", "First?", cwd=tmp_path).code == 0
    more = caption_flow("run", "--workspace", "job", "--prompt", "Second?", cwd=tmp_path)
    assert more.code == 0, more.said
    job = tmp_path / "job"
    recipe = load_orchestrator(job / "orchestrator.json").config.vllm
    assert recipe.inference_prompts == ("Second?",)
    prompts = {
        row["filename"]: row["captions"] == [caption_of(tmp_path / "photos" / row["filename"], p)]
        for row, p in zip(
            sorted(rows(job / "caption_data"), key=lambda row: str(row["filename"])),
            ("First?", "First?", "Second?", "Second?"),
            strict=True,
        )
    }
    assert all(prompts.values()), prompts
    assert "have changed since the last run" in report_of(job)["notes"][0]
    assert "another --workspace captions them anew" in more.out
