"""``caption-flow run --engine openai`` as its users meet it: against a server made for tests, and
against vLLM's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.cli import (
    REPOSITORY,
    ROOTS,
    caption_flow,
    eventually,
    rows_by_name,
    running,
    snapshot,
)
from tests.support.openai_server import MODEL, Asked, says, serving
from tests.support.pictures import SCENES, caption, picture
from tests.tiny_vlm.make_samples import IMAGES_FOLDER, truths
from tests.tiny_vlm.serving import MODEL_FOLDER

KEY = "sk-open-sesame-0123456789"
LOAD_SECONDS = 300.0


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in SCENES:
        picture(name).pixels.save(folder / f"{name}.png")
    return folder


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in folder.glob("*.txt")}


def without_vllm(folder: Path) -> dict[str, str]:
    """Return an environment, also for workers, in which importing vLLM or torch fails."""
    for name in ("vllm", "torch"):
        (folder / "broken" / name).mkdir(parents=True)
        (folder / "broken" / name / "__init__.py").write_text(f"raise ImportError('{name}')")
    return {"PYTHONPATH": os.pathsep.join([str(folder / "broken"), *ROOTS])}


def test_a_run_needs_nothing_but_a_server(photos: Path, tmp_path: Path) -> None:
    with serving() as server:
        done = caption_flow(
            *("run", "photos", "--engine", "openai", "--base-url", server.base_url),
            *("--model", MODEL),
            cwd=tmp_path,
            env=without_vllm(tmp_path),
        )
        workers = {asked.http.headers["User-Agent"] for asked in server.asked}
    assert done.code == 0, done.said
    assert texts(photos) == {name: caption(name) for name in SCENES}
    assert f"with {MODEL}: 1 worker, {server.base_url}" in done.err
    assert workers == {"caption-flow"}
    for name, row in rows_by_name(tmp_path / ".caption-flow" / "photos").items():
        assert row["models"] == [MODEL]
        (stats,) = row["stage_stats"]
        assert stats["tokens_out"] == len(caption(Path(name).stem).split())


@pytest.mark.parametrize("how", ["literal", "variable", "file", "configuration"])
def test_a_key_reaches_the_server_and_nothing_else(photos: Path, tmp_path: Path, how: str) -> None:
    (tmp_path / "key").write_text(KEY)
    config = tmp_path / "c.yaml"
    engine: dict[str, Any] = {"type": "openai"}
    arguments: tuple[Any, ...] = ("--engine", "openai", "--model", MODEL)
    env = {}
    match how:
        case "literal":
            arguments += ("--api-key", KEY)
        case "variable":
            arguments += ("--api-key", "env:MY_KEY")
            env = {"MY_KEY": KEY}
        case "file":
            arguments += ("--api-key", "file:key")
        case _:
            engine |= {"api_key": "file:key", "requests_in_flight": 2}
            recipe = {"model": MODEL, "inference_prompts": ["What?"]}
            content = {"worker": {"engine": engine}, "orchestrator": {"vllm": recipe}}
            content["orchestrator"]["dataset"] = {"type": "local", "dataset_path": "photos"}
            config.write_text(yaml.safe_dump(content))
            arguments = ("--config", "c.yaml")

    lines: list[str] = []

    with serving(key=KEY) as server:
        arrived, go_on = threading.Event(), threading.Event()

        async def hold(asked: Asked) -> None:
            if asked.prompt != "Describe the picture.":  # not the greeting
                arrived.set()
                await asyncio.to_thread(go_on.wait, 30)

        server.rule = hold
        with running(
            *("run", "photos", *arguments, "--base-url", server.base_url, "--verbose"),
            cwd=tmp_path,
            env=env,
        ) as process:
            assert arrived.wait(30), process.said
            lines = [line for pid, line in process.family().items() if pid != process.process.pid]
            go_on.set()
            done = process.ends()
    assert done.code == 0, done.said
    assert set(texts(photos)) == set(SCENES)
    assert len(lines) == 1
    assert "caption_flow.cli worker" in lines[0]
    assert KEY not in lines[0]
    assert KEY not in done.said
    for path in (tmp_path / ".caption-flow").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_a_dry_run_asks_the_server_nothing(photos: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    with serving() as server:
        done = caption_flow(
            *("run", "photos", "--engine", "openai", "--base-url", server.base_url, "--dry-run"),
            cwd=tmp_path,
        )
        assert server.asked == []
    assert done.code == 0, done.said
    assert f"Engine   openai, 1 worker, {server.base_url}" in done.out
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--model", "other"), rf"has no model 'other' \(.*\); it has {MODEL}"),
        (("--model", MODEL, "--api-key", "env:BAD"), r"refuses the key env:\w+ \(it answered 401"),
    ],
    ids=["model", "key"],
)
def test_a_run_that_the_server_does_not_serve_ends_with_its_reason(
    photos: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    with serving(key="right" if "env:BAD" in arguments else None) as server:
        done = caption_flow(
            *("run", "photos", "--engine", "openai", "--base-url", server.base_url, *arguments),
            cwd=tmp_path,
            env={"BAD": KEY},
        )
    assert done.code == 1, done.said
    (error,) = done.errors
    assert re.search(told, error), error
    assert KEY not in done.said


def test_a_server_that_is_busy_for_too_long_ends_the_run_and_blames_no_image(
    photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump(
            {
                "worker": {
                    "engine": {"type": "openai", "patience_seconds": 0.2, "start_seconds": 0.2}
                },
                "orchestrator": {
                    "dataset": {"type": "local", "dataset_path": "photos"},
                    "vllm": {"model": MODEL, "inference_prompts": ["What?"]},
                },
            }
        )
    )
    run = ("run", "photos", "--config", "c.yaml", "--base-url")
    with serving() as server:

        async def greet_only(asked: Asked) -> Any:
            return await says(503)(asked) if asked.prompt == "What?" else None

        server.rule = greet_only
        done = caption_flow(*run, server.base_url, cwd=tmp_path)
        assert done.code == 1, done.said
        assert "answered 503" in done.errors[-1]
        assert texts(photos) == {}
        server.rule = None
        again = caption_flow(*run, server.base_url, cwd=tmp_path)
    assert again.code == 0, again.said
    assert texts(photos) == {name: caption(name) for name in SCENES}


# --------------------------------------------------------------------------- vLLM's own server


@contextlib.contextmanager
def vllm_serve(log: Path) -> Iterator[str]:
    """Serve the tiny model with ``vllm serve``; return its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                # What `vllm serve` runs; that itself does not start from the CPU build.
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
                *("--model", MODEL_FOLDER),
                *("--host", "127.0.0.1", "--port", str(port), "--api-key", KEY),
                *("--served-model-name", MODEL, "--max-model-len", "1024", "--enforce-eager"),
                *("--dtype", "bfloat16", "--max-num-seqs", "32"),
            ],
            stdout=output,
            stderr=output,
            env={
                **os.environ,
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "HF_HUB_OFFLINE": "1",
                "VLLM_NO_USAGE_STATS": "1",
            },
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            eventually(
                lambda: process.poll() is not None or _is_up(f"{url}/health"),
                lambda: log.read_text()[-3000:],
                seconds=LOAD_SECONDS,
            )
            assert process.poll() is None, log.read_text()[-3000:]
            yield f"{url}/v1"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_serve(tmp_path_factory.mktemp("serve") / "vllm.log") as address:
        yield address


def about_vllm(test: Any) -> Any:
    """Mark a test that needs vLLM."""
    missing = importlib.util.find_spec("vllm") is None
    test = pytest.mark.skipif(missing, reason="vLLM is not installed")(test)
    return pytest.mark.vllm(test)


@about_vllm
def test_vllms_own_server_captions_the_sample_truthfully(vllm_server: str, tmp_path: Path) -> None:
    shutil.copytree(IMAGES_FOLDER, tmp_path / "sample")
    run = (
        *("run", tmp_path / "sample", "--config", REPOSITORY / "configs" / "sample.yaml"),
        *("--engine", "openai", "--base-url", vllm_server, "--api-key", "env:KEY"),
    )
    done = caption_flow(*run, "--model", MODEL, cwd=tmp_path, env={"KEY": KEY}, seconds=120)
    assert done.code == 0, done.said
    named = rows_by_name(tmp_path / ".caption-flow" / "sample")
    assert {name: (row["detailed"], row["caption"]) for name, row in named.items()} == {
        name: ([truth["detailed"]], [truth["condensed"]]) for name, truth in truths().items()
    }
    for row in named.values():
        assert [stats["finish_reasons"] for stats in row["stage_stats"]] == [["stop"], ["stop"]]
        for stats in row["stage_stats"]:
            assert stats["tokens_in"] > 0
            assert stats["tokens_out"] > 0


@about_vllm
@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("other", KEY), rf"has no model 'other' \(.*\); it has {MODEL}$"),
        ((MODEL, "wrong"), r"refuses the key env:\w+ \(it answered 401"),
    ],
    ids=["model", "key"],
)
def test_what_vllms_own_server_refuses_is_told(
    vllm_server: str, photos: Path, tmp_path: Path, asked: tuple[str, str], told: str
) -> None:
    model, key = asked
    done = caption_flow(
        *("run", photos, "--engine", "openai", "--base-url", vllm_server, "--model", model),
        *("--api-key", "env:KEY"),
        cwd=tmp_path,
        env={"KEY": key},
    )
    assert done.code == 1, done.said
    (error,) = done.errors
    assert re.search(told, error), error


@about_vllm
def test_a_prompt_too_long_for_vllms_own_server_is_a_row_of_that_kind(
    vllm_server: str, photos: Path, tmp_path: Path
) -> None:
    done = caption_flow(
        *("run", photos, "--engine", "openai", "--base-url", vllm_server, "--model", MODEL),
        *("--api-key", "env:KEY", "--prompt", "word " * 2000),
        cwd=tmp_path,
        env={"KEY": KEY},
    )
    assert done.code == 1, done.said
    kinds = {row["error_kind"] for row in rows_by_name(tmp_path / ".caption-flow/photos").values()}
    assert kinds == {"prompt_too_long"}
