"""Which file a command reads, and what wins over it, as its user sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from caption_flow.cli.app import main
from tests.support.cli import environment

Captured = pytest.CaptureFixture[str]
PLACES = (
    "here/{}.yaml",
    "here/config/{}.yaml",
    "home/.caption-flow/{}.yaml",
    "xdg/caption-flow/{}.yaml",
    "one/caption-flow/{}.yaml",
    "two/caption-flow/{}.yaml",
    "here/configs/{}.yaml",
)
LOGGING = """
import structlog
from caption_flow.cli.logs import configure_logging
configure_logging("worker")
for level in ("debug", "info", "warning"):
    getattr(structlog.get_logger(), level)(level)
"""
COMMANDS = {
    "orchestrator": ["orchestrator"],
    "worker": ["worker"],
    "monitor": ["monitor"],
}


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", f"{tmp_path / 'one'}:{tmp_path / 'two'}")
    for name in ("LOG_LEVEL", "LOG_DIR", "WORKER_TOKEN", "ADMIN_TOKEN", "MONITOR_TOKEN"):
        monkeypatch.delenv(f"CAPTIONFLOW_{name}", raising=False)


@pytest.mark.parametrize("component", COMMANDS)
def test_a_command_reads_the_first_file_there_is(
    component: str, tmp_path: Path, capsys: Captured
) -> None:
    for place in reversed(PLACES):
        file = tmp_path / place.format(component)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{component}: {{no_such_key: 1}}")
        assert main(COMMANDS[component]) == 2
        assert f"{file}:1: no_such_key" in capsys.readouterr().err
    named = tmp_path / "named.yaml"
    named.write_text(f"{component}: {{no_such_key_either: 1}}")
    assert main([*COMMANDS[component], "--config", "../named.yaml"]) == 2
    assert "no_such_key_either" in capsys.readouterr().err


def test_flags_win_over_the_file(tmp_path: Path, capsys: Captured) -> None:
    content = {
        "host": "192.0.2.1",
        "ssl": {"cert": "no.pem", "key": "no.pem"},
        "dataset": {"type": "local", "dataset_path": "no such folder"},
        "vllm": {"model": "m", "inference_prompts": ["p"]},
        "storage": {"data_dir": "of the file"},
    }
    (tmp_path / "here" / "orchestrator.json").write_text(json.dumps(content))
    assert main(["orchestrator", "--no-ssl"]) == 2
    assert "192.0.2.1" in capsys.readouterr().err
    given = ("--host", "127.0.0.1", "--port", "0", "--data_dir", "of the flag", "--no_ssl")
    assert main(["orchestrator", *given]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert not Path("of the file").exists()


@pytest.mark.parametrize(
    ("level", "logged"),
    [(None, "info warning"), ("debug", "debug info warning"), ("WARNING", "warning")],
)
def test_the_environment_says_how_much_is_logged_and_where(
    level: str | None, logged: str, tmp_path: Path
) -> None:
    variables = {"CAPTIONFLOW_LOG_DIR": "logs/of mine"}
    if level is not None:
        variables["CAPTIONFLOW_LOG_LEVEL"] = level
    said = subprocess.run(
        [sys.executable, "-c", LOGGING],
        cwd=tmp_path,
        env=environment(tmp_path, variables),
        check=True,
        capture_output=True,
        text=True,
    )
    assert (tmp_path / "logs" / "of mine" / "worker.log").read_text() == said.stderr
    assert [line.split()[-1] for line in said.stderr.splitlines()] == logged.split()
