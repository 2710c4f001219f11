"""How commands find an orchestrator and a token for it."""

from __future__ import annotations

import inspect
import stat
from pathlib import Path

import pytest

from caption_flow.cli.connecting import DEFAULT_SERVER, Where, connects
from caption_flow.cli.failures import CommandFailed
from caption_flow.cli.local_access import (
    ACCESS_FILE,
    Access,
    address_on_this_machine,
    read_access,
    remove_access,
    write_access,
)

ORCHESTRATOR = """
orchestrator:
  host: 0.0.0.0
  port: 9000
  ssl: {{cert: c.pem, key: k.pem}}
  auth:
    worker_tokens: [w]
    monitor_tokens: [{{token: m, name: m}}]
    {admins}
  dataset: {{type: local_filesystem, dataset_path: photos}}
  vllm: {{model: m, inference_prompts: [p]}}
"""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    for name in ("XDG_CONFIG_HOME", "CAPTIONFLOW_ADMIN_TOKEN", "CAPTIONFLOW_MONITOR_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_DIRS", "/nowhere")


def orchestrator_yaml(path: Path, admins: str = "admin_tokens: [first, second]") -> Path:
    path.write_text(ORCHESTRATOR.format(admins=admins))
    return path


def test_a_server_and_a_token_on_the_command_line_are_enough(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("the token\n")
    found = Where(server="wss://h:1", token="file:t", no_verify_ssl=True).endpoint("admin")
    assert (found.url, found.token, found.verify_ssl) == ("wss://h:1", "the token", False)


def test_without_anything_it_is_the_usual_place_and_a_token_is_asked_for() -> None:
    assert Where(token="t").endpoint("admin").url == DEFAULT_SERVER
    with pytest.raises(CommandFailed, match="an admin's token is needed") as caught:
        Where().endpoint("admin")
    assert caught.value.code == 2


def test_the_environment_has_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTIONFLOW_ADMIN_TOKEN", "a")
    assert Where().endpoint("admin").token == "a"
    assert Where().endpoint("monitor").token == "a"
    monkeypatch.setenv("CAPTIONFLOW_MONITOR_TOKEN", "m")
    assert Where().endpoint("monitor").token == "m"
    assert Where().endpoint("admin").token == "a", "a monitor's token may not do it"
    assert Where(token="t").endpoint("admin").token == "t"


def test_the_orchestrator_s_own_file_says_where_it_is_and_has_its_tokens(tmp_path: Path) -> None:
    orchestrator_yaml(tmp_path / "orchestrator.yaml")
    found = Where().endpoint("admin")
    assert (found.url, found.token) == ("wss://127.0.0.1:9000", "first")
    orchestrator_yaml(tmp_path / "orchestrator.yaml", admins="")
    assert Where().endpoint("monitor").token == "m"
    with pytest.raises(CommandFailed, match="no orchestrator of yours runs on caption_data"):
        Where().endpoint("admin")


def test_a_monitor_s_file_is_for_looking(tmp_path: Path) -> None:
    orchestrator_yaml(tmp_path / "orchestrator.yaml")
    (tmp_path / "monitor.yaml").write_text(
        "monitor: {server: 'ws://h:2', token: mt, refresh_rate: 7, verify_ssl: false}"
    )
    found = Where().endpoint("monitor")
    assert (found.url, found.token, found.verify_ssl) == ("ws://h:2", "mt", False)
    assert Where().endpoint("admin").url == "wss://127.0.0.1:9000"
    assert Where().monitor().refresh_rate == 7
    assert Where(config=tmp_path / "orchestrator.yaml").monitor().refresh_rate == 1.0


def test_a_token_that_happens_to_lie_about_is_sent_to_no_other_server(tmp_path: Path) -> None:
    orchestrator_yaml(tmp_path / "orchestrator.yaml")
    with pytest.raises(CommandFailed, match="token is needed"):
        Where(server="wss://elsewhere:1").endpoint("admin")
    named = Where(server="wss://elsewhere:1", config=tmp_path / "orchestrator.yaml")
    assert named.endpoint("admin").token == "first", "this one is asked for"


def test_the_folder_of_a_run_on_this_machine_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTIONFLOW_ADMIN_TOKEN", "of another run")
    write_access(tmp_path, Access("ws://127.0.0.1:4321", "left here", verify_ssl=False))
    found = Where(data_dir=tmp_path).endpoint("admin")
    assert (found.url, found.token) == ("ws://127.0.0.1:4321", "left here")
    with pytest.raises(CommandFailed, match="no orchestrator of yours runs on") as caught:
        Where(data_dir=tmp_path / "other").endpoint("admin")
    assert caught.value.code == 1


def test_a_file_finds_the_orchestrator_that_runs_from_it(tmp_path: Path) -> None:
    orchestrator_yaml(tmp_path / "orchestrator.yaml")
    (tmp_path / "caption_data").mkdir()
    write_access(tmp_path / "caption_data", Access("wss://127.0.0.1:7", "left here"))
    assert Where().endpoint("admin").url == "wss://127.0.0.1:7", "it may listen on another port"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (Where(token="env:NOT_SET"), "NOT_SET is not set"),
        (Where(token="file:"), "says 'file:' but not which"),
        (Where(config=Path("missing.yaml")), "missing.yaml: cannot be read"),
        (Where(config=Path("bad.yaml"), token="t"), "nonsense"),
    ],
    ids=str,
)
def test_what_is_named_and_is_not_there_is_a_mistake(
    tmp_path: Path, where: Where, said: str
) -> None:
    (tmp_path / "bad.yaml").write_text("orchestrator: {nonsense: 1}")
    with pytest.raises(CommandFailed, match=said) as caught:
        where.endpoint("admin")
    assert caught.value.code == 2


def test_what_an_orchestrator_leaves_can_be_read_by_its_user_only(tmp_path: Path) -> None:
    access = Access("ws://127.0.0.1:1", "secret")
    write_access(tmp_path, access)
    path = tmp_path / ACCESS_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == [ACCESS_FILE]
    assert "secret" not in repr(access)
    path.chmod(0o644)
    write_access(tmp_path, access)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_orchestrator_takes_away_what_it_left_and_nothing_else(tmp_path: Path) -> None:
    remove_access(tmp_path, "ours")
    write_access(tmp_path, Access("ws://127.0.0.1:1", "of the next one"))
    remove_access(tmp_path, "ours")
    assert read_access(tmp_path) is not None
    remove_access(tmp_path, "of the next one")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"server": "x"}', "\ud800"])
def test_a_file_that_says_nothing_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / ACCESS_FILE).write_text(text, "utf-8", errors="surrogatepass")
    assert read_access(tmp_path) is None


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "ws://127.0.0.1:5"),  # noqa: S104  -- read, not bound
        ("::", "ws://[::1]:5"),
        ("[::1]", "ws://[::1]:5"),
        ("10.0.0.1", "ws://10.0.0.1:5"),
        ("localhost", "ws://localhost:5"),
    ],
)
def test_a_server_is_reached_from_its_own_machine(host: str, url: str) -> None:
    assert address_on_this_machine(host, 5, tls=False) == url


def test_a_command_has_its_own_options_and_those_for_connecting() -> None:
    told: list[tuple[Where, int]] = []

    @connects
    def command(where: Where, number: int = 3) -> None:
        told.append((where, number))

    assert list(inspect.signature(command).parameters) == [
        "number",
        "server",
        "token",
        "data_dir",
        "config",
        "no_verify_ssl",
    ]
    command(number=4, server="ws://h:1", token=None, no_verify_ssl=True)
    assert told == [(Where(server="ws://h:1", no_verify_ssl=True), 4)]
