"""Tokens in a configuration's file: what is changed, and all that is not."""

from __future__ import annotations

import json

import pytest

from caption_flow.config.edit import EditError, TokensFile

YAML = """\
# The run of the whole house.
orchestrator:
  port: 8765  # as ever
  dataset: {type: local_filesystem, dataset_path: "pictures"}

  auth:
    worker_tokens:
      # Ada has two machines.
      - token: "env:ADA"
        name: ada   # since spring
      - a-token-that-stands-alone
    admin_tokens:
      - {token: file:admin.token, name: owner}
worker:
  server: ws://127.0.0.1:8765
"""
FLAT = """\
auth:
    worker_tokens:
    - token: one
      name: ada
port: 1
"""


def lines_changed(before: str, after: str) -> tuple[list[str], list[str]]:
    old, new = before.splitlines(), after.splitlines()
    return [one for one in old if one not in new], [one for one in new if one not in old]


def test_a_token_is_added_and_nothing_else_is_touched() -> None:
    file = TokensFile(YAML)
    file.add("worker", "bob", "env:BOB", {"max_workers": 2, "expires": "2026-12-31"})
    gone, new = lines_changed(YAML, file.text())
    assert gone == []
    assert new == [
        "      - token: env:BOB",
        "        name: bob",
        "        max_workers: 2",
        "        expires: '2026-12-31'",
    ]


def test_a_token_is_removed_and_nothing_else_is_touched() -> None:
    file = TokensFile(YAML)
    assert file.remove("owner") == 1
    gone, new = lines_changed(YAML, file.text())
    assert gone == ["    admin_tokens:", "      - {token: file:admin.token, name: owner}"]
    assert new == ["    admin_tokens: []"]


def test_a_token_without_a_name_has_the_one_that_people_see() -> None:
    file = TokensFile(YAML)
    assert [(role, name) for role, name, _ in file.entries()] == [
        ("worker", "ada"),
        ("worker", "worker 2"),
        ("admin", "owner"),
    ]
    file.remove("worker 2")
    assert "a-token-that-stands-alone" not in file.text()


def test_a_files_own_indentation_is_kept() -> None:
    file = TokensFile(FLAT)
    file.add("worker", "bob", "two", {})
    assert file.text() == FLAT.replace(
        "      name: ada\n", "      name: ada\n    - token: two\n      name: bob\n"
    )


@pytest.mark.parametrize("text", ["port: 1\n", "port: 1\nauth:\n", "auth:\n  admin_tokens:\n"])
def test_what_is_not_there_is_made(text: str) -> None:
    file = TokensFile(text)
    file.add("admin", "owner", "env:OWNER", {})
    assert [(role, name) for role, name, _ in TokensFile(file.text()).entries()] == [
        ("admin", "owner")
    ]


def test_json_stays_json_with_its_indentation() -> None:
    before = json.dumps(
        {"orchestrator": {"port": 1, "host": "näher"}}, indent=4, ensure_ascii=False
    )
    file = TokensFile(before)
    file.add("worker", "ada", "env:ADA", {})
    after = file.text()
    entry = {"token": "env:ADA", "name": "ada"}
    assert json.loads(after)["orchestrator"]["auth"] == {"worker_tokens": [entry]}
    assert after.startswith(before[: before.index("näher")])


@pytest.mark.parametrize("role", ["worker", "monitor", "admin"])
def test_a_name_that_is_taken_in_any_role_is_refused(role: str) -> None:
    file = TokensFile(YAML)
    with pytest.raises(EditError, match="has a worker's token of 'ada' already"):
        file.add(role, "ada", "x", {})  # type: ignore[arg-type]
    assert file.text() == YAML


def test_a_name_that_is_not_there_cannot_be_removed() -> None:
    with pytest.raises(EditError, match="no token of 'eve'; there are 'ada', 'worker 2', 'owner'"):
        TokensFile(YAML).remove("eve")


@pytest.mark.parametrize("text", ["- a list", "a: [", "text"])
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(EditError):
        TokensFile(text)
