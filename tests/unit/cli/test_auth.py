"""`caption-flow auth` where no orchestrator runs: tokens made, files changed, mistakes answered."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from caption_flow.cli.app import main
from caption_flow.config.load import load_orchestrator
from tests.support.fleet import free_port


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "orchestrator.yaml"
    path.write_text(
        f"port: {free_port()}  # nobody listens there\n"
        f"dataset: {{type: local_filesystem, dataset_path: {tmp_path}}}\n"
        "vllm: {model: m, inference_prompts: [Describe.]}\n"
        f"storage: {{data_dir: {tmp_path / 'run'}}}\n"
        "auth:\n"
        "  admin_tokens:\n"
        "    - {token: the-owners-own-token, name: owner}\n"
    )
    return path


def run(config: Path, *arguments: str) -> int:
    return main(["auth", "--config", str(config), *arguments])


def test_with_nobody_there_the_file_is_changed_and_the_token_is_printed_alone(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ("--max-workers", "2", "--max-items", "9", "--expires", "7d", "--trust", "low")
    assert run(config, "add", "worker", "ada", *limits) == 0
    said = capsys.readouterr()
    assert said.out == f"{said.out.strip()}\n"
    assert len(said.out.strip()) == 43
    assert "is changed" in said.err
    assert said.out.strip() not in said.err
    auth = load_orchestrator(config).config.auth
    assert auth is not None
    (entry,) = auth.worker_tokens
    assert entry.token.reveal() == said.out.strip()
    found = entry.limits
    assert (found.max_workers, found.max_items, found.trust) == (2, 9, "low")
    assert abs((found.expires or 0) - time.time() - 7 * 86_400) < 60
    assert "# nobody listens there" in config.read_text()


def test_a_token_of_ones_own_is_not_printed_and_stays_a_reference(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAS", "a token of sixteen characters")
    assert run(config, "add", "worker", "ada", "--token-value", "env:ADAS") == 0
    assert capsys.readouterr().out == ""
    assert "token: env:ADAS" in config.read_text()
    assert "sixteen" not in config.read_text()


def test_what_was_added_can_be_listed_and_removed(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = config.read_text()
    assert run(config, "add", "monitor", "wall", "--no-reload") == 0
    token = capsys.readouterr().out.strip()
    assert run(config, "list") == 0
    listed = capsys.readouterr().out
    assert listed == "monitor  wall\nadmin    owner\n"
    assert token not in listed
    assert run(config, "remove", "wall") == 0
    assert run(config, "list") == 0
    assert "wall" not in capsys.readouterr().out.splitlines()[-1]
    assert config.read_text().replace("  monitor_tokens: []\n", "") == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("add", "worker", "owner"), "has a admin's token of 'owner' already"),
        (("add", "worker", "x", "--token-value", "short"), "at least 16 characters"),
        (("add", "worker", "x", "--token-value", "env:NOT_SET_ANYWHERE"), "is not set"),
        (
            ("add", "worker", "x", "--token-value", "the-owners-own-token"),
            "each role needs its own",
        ),
        (("add", "worker", "x", "--expires", "soon"), "--expires must be a day or a moment"),
        (("add", "boss", "x"), "boss"),
        (("remove", "nobody"), "has no token of 'nobody'; there are 'owner'"),
    ],
)
def test_mistakes_are_answered_with_a_sentence_and_change_nothing(
    config: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    reason: str,
) -> None:
    before = config.read_text()
    assert run(config, *arguments) == 2
    said = capsys.readouterr()
    assert reason.replace("a admin", "an admin") in said.err
    assert said.out == ""
    assert config.read_text() == before


def test_a_file_is_changed_where_a_link_points(config: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.yaml"
    link.symlink_to(config)
    config.chmod(0o600)
    assert run(link, "add", "worker", "ada") == 0
    assert link.is_symlink()
    assert "ada" in config.read_text()
    assert config.stat().st_mode & 0o777 == 0o600


def test_without_a_file_an_orchestrator_that_is_not_there_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = ("--server", f"ws://127.0.0.1:{free_port()}", "--token", "an admin's token or so")
    assert main(["auth", *server, "add", "worker", "ada"]) == 1
    said = capsys.readouterr()
    assert "no connection" in said.err
    assert said.out == "", "a token that nobody knows is worth nothing"


@pytest.mark.parametrize(("length", "count"), [("16", "1"), ("64", "5")])
def test_tokens_are_generated_as_many_and_as_long_as_asked(
    capsys: pytest.CaptureFixture[str], length: str, count: str
) -> None:
    assert main(["auth", "generate", "--length", length, "--count", count]) == 0
    made = capsys.readouterr().out.split()
    assert len(set(made)) == int(count)
    assert {len(token) for token in made} == {int(length)}
    assert all(token.isascii() and token.isalnum() for token in made)
