"""Tokens are found where the configuration says, and never shown."""

import pickle
from pathlib import Path

import pytest

from caption_flow.config.load import load_worker, parse_orchestrator
from caption_flow.config.orchestrator import AuthConfig, TokenEntry
from caption_flow.config.problems import ConfigError
from caption_flow.config.secret import Secret, SecretError

LITERAL = "hunter2-is-secret"


def test_a_literal_secret_is_never_shown() -> None:
    secret = Secret(LITERAL)
    entry = TokenEntry(token=secret, name="Ann")
    auth = AuthConfig(worker_tokens=(entry,))
    shown = [repr(secret), str(secret), f"{secret}", repr(entry), str(entry), repr(auth)]
    shown += [auth.model_dump_json(), str(auth.model_dump()), str(auth.model_dump(mode="json"))]
    assert not [text for text in shown if LITERAL in text]
    assert secret.reveal() == LITERAL


def test_a_reference_may_be_shown_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    assert str(Secret("env:TOKEN")) == "env:TOKEN"
    assert Secret("env:TOKEN").reveal({"TOKEN": f" {LITERAL}\n"}) == LITERAL
    file = tmp_path / "token"
    file.write_text(f"{LITERAL}\n")
    secret = Secret(f"file:{file}")
    assert secret.reveal() == LITERAL
    assert LITERAL not in repr(secret)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env:ABSENT", "the environment variable ABSENT is not set"),
        ("env:EMPTY", "the environment variable EMPTY is empty"),
        ("file:{tmp}/absent", "the file {tmp}/absent cannot be read: No such file or directory"),
        ("file:{tmp}", "the file {tmp} cannot be read: Is a directory"),
        ("file:{tmp}/empty", "the file {tmp}/empty is empty"),
        ("file:{tmp}/binary", "the file {tmp}/binary does not hold a token in UTF-8"),
    ],
)
def test_a_reference_that_leads_nowhere_says_so(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(SecretError) as caught:
        Secret(text.format(tmp=tmp_path)).reveal({"EMPTY": " "})
    assert str(caught.value) == message.format(tmp=tmp_path)


@pytest.mark.parametrize("text", ["", "  ", "env:", "file: "])
def test_an_empty_secret_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is empty|but not which"):
        Secret(text)


def test_secrets_are_equal_when_they_say_the_same() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1
    assert Secret("a") != "a"
    assert pickle.loads(pickle.dumps(Secret("a"))) == Secret("a")  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    "auth",
    [
        f"{{worker_tokens: {LITERAL}}}",
        f"{{worker_tokens: {{token: {LITERAL}}}}}",
        f"{{worker_tokens: [[{LITERAL}]]}}",
        f"{{worker_tokens: [{{token: [{LITERAL}]}}]}}",
        f"{{worker_tokens: [{{token: {{a: {LITERAL}}}}}]}}",
        f"{{worker_tokens: [{{name: [1], token: {LITERAL}}}]}}",
        f"{{worker_token: {LITERAL}}}",
        f"[{LITERAL}]",
        LITERAL,
        f"{{worker_tokens: [{LITERAL}], admin_tokens: [{LITERAL}]}}",
    ],
)
def test_no_error_shows_a_token(auth: str) -> None:
    text = f"""
dataset: {{type: local, dataset_path: x}}
vllm: {{model: m, inference_prompts: [x]}}
auth: {auth}
"""
    with pytest.raises(ConfigError) as caught:
        parse_orchestrator(text)
    assert LITERAL not in str(caught.value)
    assert LITERAL not in repr(caught.value)


def test_no_error_of_a_worker_shows_a_token() -> None:
    with pytest.raises(ConfigError) as caught:
        load_worker(
            None, {"server": "ws://h", "token": [LITERAL], "engine.api_key": {"a": LITERAL}}
        )
    assert LITERAL not in str(caught.value)
    assert [problem.path for problem in caught.value.problems] == ["token", "engine.api_key"]


def test_entries_may_be_tokens_alone_and_have_names_all_the_same() -> None:
    auth = AuthConfig.model_validate(
        {
            "worker_tokens": ["abc", {"token": "env:X", "name": "Ann's GPU"}, {"token": 42}],
            "admin_tokens": ["def"],
        }
    )
    assert [(role, entry.name, entry.token) for role, entry in auth.entries()] == [
        ("worker", "worker 1", Secret("abc")),
        ("worker", "Ann's GPU", Secret("env:X")),
        ("worker", "worker 3", Secret("42")),
        ("admin", "admin 1", Secret("def")),
    ]


def test_a_secret_that_was_forgotten_can_only_be_recognised() -> None:
    secret = Secret(LITERAL)
    secret.forget()
    assert secret == Secret(LITERAL) != Secret("another")
    assert hash(secret) == hash(Secret(LITERAL))
    assert str(secret) == str(Secret(LITERAL))
    assert LITERAL.encode() not in pickle.dumps(secret)
    with pytest.raises(SecretError, match="was read and forgotten"):
        secret.reveal()


def test_a_reference_is_never_forgotten() -> None:
    secret = Secret("env:TOKEN")
    secret.forget()
    assert secret.reveal({"TOKEN": LITERAL}) == LITERAL
