"""The owner watches and steers a run from the command line, with real processes."""

from __future__ import annotations

import contextlib
import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from caption_flow.cli.local_access import ACCESS_FILE
from tests.support.cli import (
    Finished,
    Running,
    caption_flow,
    caption_of,
    eventually,
    make_images,
    rows_by_name,
    running,
)

READY = "Orchestrator ready for connections"
OLD, NEW = "Describe this.", "Say more."
IMAGES = 1000
MONITOR = "a monitor's token"
EVERYTHING_ELSE = [["shutdown", "--now"], ["pause"], ["reload-config"], ["retry-failed"]]


def write_configuration(folder: Path, *, prompt: str = OLD, port: int = 0, **more: Any) -> Path:
    content = {
        "port": port,
        "chunk_size": 20,
        "dataset": {"type": "local_filesystem", "dataset_path": "photos"},
        "vllm": {"model": "synthetic", "inference_prompts": [prompt]},
        "storage": {"data_dir": "run"},
        **more,
    }
    path = folder / "orchestrator.yaml"
    path.write_text(json.dumps({"orchestrator": content}))
    return path


def write_worker(folder: Path, **engine: Any) -> Path:
    path = folder / "worker.yaml"
    path.write_text(json.dumps({"worker": {"engine": {"type": "synthetic", **engine}}}))
    return path


SLOW = {"latency_ms": 200, "requests_in_flight": 4}
"""Twenty images a second; the worker holds what takes it ten seconds."""


@contextlib.contextmanager
def orchestrator(folder: Path, *options: str) -> Iterator[Running]:
    with running("orchestrator", *options, cwd=folder) as process:
        process.says(READY)
        yield process


@contextlib.contextmanager
def worker(folder: Path, *options: str) -> Iterator[Running]:
    access = json.loads((folder / "run" / ACCESS_FILE).read_text())
    arguments = ["worker", "--server", access["server"], "--name", "ada\x1b[2J", *options]
    if "--token" not in options:
        arguments += ["--token", "file:run/local-worker.token"]
    with running(*arguments, cwd=folder) as process:
        yield process


def state(folder: Path, *options: str) -> dict[str, Any]:
    shown = caption_flow("status", "--json", *options, cwd=folder)
    assert shown.code == 0, shown.said
    report: dict[str, Any] = json.loads(shown.out)
    return report


def until(folder: Path, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Ask for the state until it is as wanted."""
    seen: list[dict[str, Any]] = []

    def is_so() -> bool:
        seen.append(state(folder))
        return condition(seen[-1])

    eventually(is_so, lambda: f"never so, but {seen[-1]}", seconds=60.0)
    return seen[-1]


def says(folder: Path, *arguments: str) -> Finished:
    finished = caption_flow(*arguments, cwd=folder)
    assert finished.code == 0, finished.said
    return finished


def test_the_owner_pauses_resumes_reloads_and_shuts_down_with_nothing_configured(
    tmp_path: Path,
) -> None:
    images = make_images(tmp_path / "photos", IMAGES)
    write_configuration(tmp_path)
    write_worker(tmp_path, **SLOW)
    with orchestrator(tmp_path) as leading, worker(tmp_path):
        until(tmp_path, lambda now: now["captioned"] > 0)
        assert "paused" in says(tmp_path, "pause").out
        # What was handed out is finished; nothing more is.
        quiet = until(tmp_path, lambda now: now["leased"] == now["committing"] == 0)
        assert quiet["state"] == "paused"
        assert 0 < quiet["pending"] < IMAGES
        (one,) = quiet["workers"]
        assert (one["engine"], one["contributor"], one["leases"]) == ("synthetic", "local", 0)
        assert quiet["contributors"][0]["captioned"] == quiet["captioned"]

        write_configuration(tmp_path, prompt=NEW)
        reloaded = says(tmp_path, "reload-config")
        assert reloaded.out.strip() == "in force: vllm.inference_prompts"
        before = quiet["captioned"]
        assert "resumed" in says(tmp_path, "resume").out
        write_worker(tmp_path)  # another one, which is fast
        with worker(tmp_path):
            until(tmp_path, lambda now: now["state"] == "finished")
        done = until(tmp_path, lambda now: now["state"] == "finished")
        assert (done["captioned"], done["pending"]) == (IMAGES, 0)
        assert done["recipe"] != quiet["recipe"]

        shown = says(tmp_path, "status")
        assert "\x1b" not in shown.out, "a name moved the cursor"
        assert "ada\\x1b[2J" in shown.out
        assert says(tmp_path, "shutdown").out.startswith("the orchestrator drains")
        assert leading.ends().code == 0
    assert not (tmp_path / "run" / ACCESS_FILE).exists()

    rows = rows_by_name(tmp_path / "run")
    assert Counter(row["recipe"] for row in rows.values()) == {
        quiet["recipe"]: before,
        done["recipe"]: IMAGES - before,
    }
    prompts = {quiet["recipe"]: OLD, done["recipe"]: NEW}
    for image in images:
        row = rows[image.name]
        assert row["captions"] == [caption_of(image, prompts[row["recipe"]])]


def test_a_configuration_that_is_wrong_or_needs_a_restart_changes_nothing(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 4)
    write_configuration(tmp_path)
    with orchestrator(tmp_path):
        before = state(tmp_path)
        write_configuration(tmp_path, prompt=NEW, chunk_siz=3)
        wrong = caption_flow("reload-config", cwd=tmp_path, env={})
        # The orchestrator's own file is where the command looks for its address, too.
        assert wrong.code == 2
        assert "did you mean chunk_size?" in wrong.err
        refused = caption_flow("reload-config", "--data-dir", "run", cwd=tmp_path)
        assert refused.code == 1
        assert refused.errors[0] == "nothing was changed:"
        assert "chunk_siz: unknown key; did you mean chunk_size?" in refused.errors[1]
        write_configuration(tmp_path, prompt=NEW, cache_dir="elsewhere", max_attempts=7)
        refused = caption_flow("reload-config", cwd=tmp_path)
        assert refused.code == 1
        assert refused.errors == ["nothing was changed:", "cache_dir: needs a restart"]
        (tmp_path / "other.yaml").write_text(write_configuration(tmp_path, prompt=NEW).read_text())
        write_configuration(tmp_path)
        assert state(tmp_path)["recipe"] == before["recipe"]
        sent = says(tmp_path, "reload-config", "--new-config", "other.yaml")
        assert sent.out.strip() == "in force: vllm.inference_prompts"
        assert state(tmp_path)["recipe"] != before["recipe"]


def test_a_monitor_s_token_shows_the_state_and_does_nothing_else(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 4)
    auth = {"monitor_tokens": [{"token": MONITOR, "name": "somebody"}], "worker_tokens": ["w"]}
    write_configuration(tmp_path, auth=auth)
    with orchestrator(tmp_path) as leading:
        server = json.loads((tmp_path / "run" / ACCESS_FILE).read_text())["server"]
        as_monitor = ["--server", server, "--token", MONITOR]
        assert state(tmp_path, *as_monitor)["state"] == "running"
        for arguments in EVERYTHING_ELSE:
            refused = caption_flow(*arguments, *as_monitor, cwd=tmp_path)
            assert refused.code == 1, refused.said
            assert refused.errors == ["a monitor token may not do this: it takes an admin's"]
        for token in ("w", "nobody's"):
            refused = caption_flow("status", "--server", server, "--token", token, cwd=tmp_path)
            assert refused.code in {1, 2}, refused.said
            assert "Traceback" not in refused.err
        assert state(tmp_path)["state"] == "running"
        assert leading.process.poll() is None
        for log in (leading.out, leading.err):
            assert MONITOR not in log


def test_failed_items_are_put_back_while_the_run_goes_on_and_offline(tmp_path: Path) -> None:
    images = make_images(tmp_path / "photos", 5)
    images[0].write_bytes(b"no image")
    write_configuration(tmp_path)
    write_worker(tmp_path)
    with orchestrator(tmp_path) as leading, worker(tmp_path):
        until(tmp_path, lambda now: now["state"] == "finished")
        offline = caption_flow("retry-failed", "--data-dir", "run", cwd=tmp_path)
        assert offline.code == 1
        how = offline.errors[0].partition("caption-flow retry-failed ")[2].split()
        make_images(tmp_path / "photos", 1)
        asked = says(tmp_path, "retry-failed", *how)
        assert asked.out.strip() == "1 items are tried again"
        done = until(tmp_path, lambda now: now["state"] == "finished" and not now["pending"])
        # The file is another one now, so that it is none of those that were listed.
        assert done["captioned"] + sum(done["failed"].values()) == 5
        assert done["failed"].get("corrupt_image", 0) == 0
        leading.interrupt()
        assert leading.ends().code == 0
    assert says(tmp_path, "retry-failed", "--data-dir", "run").out.startswith("0 items put back")


@pytest.mark.parametrize("how", ["a token", "the folder"])
def test_watching_goes_on_over_a_restart_and_ends_with_the_orchestrator(
    tmp_path: Path, how: str
) -> None:
    make_images(tmp_path / "photos", 4)
    tokens = {"monitor_tokens": [MONITOR], "admin_tokens": ["a"]}
    with contextlib.ExitStack() as stack:
        write_configuration(tmp_path, auth=tokens)
        leading = stack.enter_context(orchestrator(tmp_path))
        server = json.loads((tmp_path / "run" / ACCESS_FILE).read_text())["server"]
        port = int(server.rpartition(":")[2])
        by_token = ["--server", server, "--token", MONITOR]
        where = by_token if how == "a token" else ["--data-dir", "run"]
        arguments = ["status", "--watch", "--json", "--interval", "0.1", *where]
        watching = stack.enter_context(running(*arguments, cwd=tmp_path))
        watching.says(r'"state": "running".*\n.*"state": "running"')
        leading.kill()
        leading.ends()
        watching.says("no connection to")
        # Who knows the folder finds it also on another port.
        write_configuration(tmp_path, auth=tokens, port=port if how == "a token" else 0)
        again = stack.enter_context(orchestrator(tmp_path))
        seen = watching.out.count("\n")
        eventually(lambda: watching.out.count("\n") > seen, lambda: watching.said, seconds=60.0)
        again.interrupt()
        assert watching.ends().code == 0
        for line in watching.out.splitlines():
            assert json.loads(line)["total"] == 4


def test_a_monitor_on_a_terminal_draws_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 4)
    write_configuration(tmp_path)
    with orchestrator(tmp_path), worker(tmp_path):
        with running("monitor", "--data-dir", "run", cwd=tmp_path, columns=120) as watching:
            watching.says("running|finished")
            watching.says("worker")
            watching.process.send_signal(signal.SIGINT)
            assert watching.ends().code == 0
        assert "ada\x1b[2J" not in watching.said


def test_a_run_of_one_command_can_be_watched_and_ended_from_elsewhere(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 400)
    config = write_worker(tmp_path, **SLOW)
    content = json.loads(config.read_text())
    content["orchestrator"] = {
        "dataset": {"type": "local_filesystem", "dataset_path": "photos"},
        "vllm": {"model": "synthetic", "inference_prompts": [OLD]},
    }
    (tmp_path / "both.yaml").write_text(json.dumps(content))
    config.unlink()
    arguments = ["run", "photos", "--config", "both.yaml", "--data-dir", "run"]
    with running(*arguments, cwd=tmp_path) as run:
        eventually((tmp_path / "run" / ACCESS_FILE).exists, lambda: run.said, seconds=60.0)
        shown = ["--data-dir", "run"]
        eventually(lambda: state(tmp_path, *shown)["captioned"] > 0, lambda: run.said, seconds=60.0)
        refused = caption_flow("reload-config", *shown, cwd=tmp_path)
        assert refused.errors == ["this run has no configuration that could be reloaded"]
        says(tmp_path, "pause", *shown)
        says(tmp_path, "shutdown", *shown)
        ended = run.ends()
        assert ended.code == 0, ended.said
    assert not (tmp_path / "run" / ACCESS_FILE).exists()
    # Whoever starts it again wants it to go on.
    content["worker"]["engine"] = "synthetic"
    (tmp_path / "both.yaml").write_text(json.dumps(content))
    again = caption_flow(*arguments, cwd=tmp_path)
    assert again.code == 0
    assert len(rows_by_name(tmp_path / "run")) == 400


@pytest.mark.parametrize("command", ["status", "shutdown", "pause", "monitor"])
def test_where_nobody_is_the_exit_code_says_so(tmp_path: Path, command: str) -> None:
    nobody = ["--server", "ws://127.0.0.1:9", "--token", "t"]
    asked = caption_flow(command, *nobody, cwd=tmp_path)
    assert asked.code == 1
    assert asked.errors[0].startswith("no connection to ws://127.0.0.1:9")
    untold = caption_flow(command, cwd=tmp_path)
    assert untold.code == 2
    assert "token is needed" in untold.errors[0]
