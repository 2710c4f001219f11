from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from caption_flow.cli.workspace import Workspace, anchored, configuration_of, replaced
from caption_flow.config.load import load_orchestrator

RECIPE = {"model": "m", "inference_prompts": ["What?"]}
TOKENS = {"worker": "the worker's", "admin": "the admin's"}


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path / "job")


def laid_out(place: Workspace, orchestrator: Any, worker: Any) -> dict[str, Any]:
    place.begin(configuration_of(place, orchestrator, worker), TOKENS)
    said: dict[str, Any] = json.loads(place.config.read_text())
    return said


def test_what_is_written_is_what_was_said_but_for_what_the_launcher_owns(place: Workspace) -> None:
    said = {"vllm": RECIPE, "chunk_size": 5, "host": "::", "ssl": {"cert": "c", "key": "k"}}
    found = laid_out(place, {**said, "storage": {"checkpoint_interval": 3, "data_dir": "x"}}, {})
    assert found["orchestrator"] == {
        "vllm": RECIPE,
        "chunk_size": 5,
        "host": "127.0.0.1",
        "port": 0,
        "storage": {"checkpoint_interval": 3, "data_dir": str(place.data_dir)},
        "auth": {
            "worker_tokens": [{"token": f"file:{place.folder}/worker.token", "name": "local"}],
            "admin_tokens": [{"token": f"file:{place.folder}/admin.token", "name": "local"}],
        },
    }


def test_tokens_are_where_they_are_referred_to_and_nobody_else_can_read_them(
    place: Workspace,
) -> None:
    dataset = {"type": "local", "dataset_path": "."}
    laid_out(place, {"vllm": RECIPE, "dataset": dataset}, {"engine": {"api_key": "in clear"}})
    auth = load_orchestrator(place.config).config.auth
    assert auth is not None
    assert {role: entry.token.reveal() for role, entry in auth.entries()} == TOKENS
    files = [path for path in place.folder.iterdir() if path.is_file()]
    private = [path for path in files if stat.S_IMODE(path.stat().st_mode) == 0o600]
    assert {path.name for path in private} == {"worker.token", "admin.token", "api_key.token"}
    for secret in (*TOKENS.values(), "in clear"):
        assert not any(secret in path.read_text() for path in files if path not in private)


@pytest.mark.parametrize("key", ["env:KEY", "file:/somewhere"])
def test_a_reference_stays_as_it_is(place: Workspace, key: str) -> None:
    found = laid_out(place, {"vllm": RECIPE}, {"engine": {"type": "openai", "api_key": key}})
    assert found["worker"]["engine"] == {"type": "openai", "api_key": key}
    assert not (place.folder / "api_key.token").exists()


def test_of_a_worker_its_engine_stays_and_its_own_connection_does_not(place: Workspace) -> None:
    worker = {"server": "wss://a", "token": "in clear", "name": "n", "engine": "synthetic"}
    found = laid_out(place, {"vllm": RECIPE}, {**worker, "readahead_size": 3})
    token = f"file:{place.folder}/worker.token"
    assert found["worker"] == {"engine": "synthetic", "readahead_size": 3, "token": token}


def test_what_json_cannot_say_is_refused(place: Workspace) -> None:
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        configuration_of(place, {"vllm": {"a": b"bytes"}}, {})


def test_replaced_is_what_was_said_and_is_otherwise_now() -> None:
    written = {"host": "127.0.0.1", "port": 8765, "storage": {"data_dir": "x"}, "auth": None}
    overrides = {
        "host": "127.0.0.1",
        "port": 0,
        "ssl": None,
        "auth": {},
        "storage.data_dir": "y",
        "storage.checkpoint_dir": None,
        "vllm.model": "m",
    }
    assert replaced(written, {"name": None}, overrides) == ("port", "storage.data_dir")
    dataset, other = {"dataset": {"type": "local"}}, {"dataset": {"type": "webdataset"}}
    assert replaced(dataset, {"readahead_size": 1}, other) == ("dataset",)
    assert replaced(dataset, {}, {"port": 0}) == ()
    assert replaced({}, {"token": "t", "server": "ws://a"}, {}) == ("worker.server", "worker.token")


@pytest.mark.parametrize(
    ("kind", "path", "expected"),
    [
        ("local", "photos", "{here}/photos"),
        ("local", "../photos/", "{above}/photos"),
        ("local", "/photos", "/photos"),
        ("huggingface", "org/name", "org/name"),
        ("huggingface", "sets/one", "{here}/sets/one"),
        ("huggingface", "./none", "{here}/none"),
        ("webdataset", "org/name", "org/name"),
        ("webdataset", "sets/{000..123}.tar", "{here}/sets/{000..123}.tar"),
        ("webdataset", "{0..3}.tar", "{here}/{0..3}.tar"),
        ("webdataset", "s3://a/{0..3}.tar :: sets/a.tar", "s3://a/{0..3}.tar::{here}/sets/a.tar"),
        ("webdataset", "/sets/*.tar", "/sets/*.tar"),
    ],
)
def test_a_dataset_is_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, path: str, expected: str
) -> None:
    (tmp_path / "here" / "sets" / "one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    overrides = {"dataset": {"type": kind, "dataset_path": path}, "vllm": RECIPE}
    found = anchored(load_orchestrator(None, overrides).config.dataset)
    here = str(tmp_path / "here")
    assert found == expected.replace("{here}", here).replace("{above}", str(tmp_path))
