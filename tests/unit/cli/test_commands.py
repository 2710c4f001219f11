from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from importlib import import_module
from typing import Any, Final

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from caption_flow.cli.app import COMMANDS, app, load, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_is_listed_is_there_and_documented(name: str) -> None:
    command = COMMANDS[name]
    function = getattr(import_module(f"caption_flow.cli.{command.module}"), command.function)
    assert inspect.getdoc(function)
    assert load(name).name == name


def test_the_list_of_commands_has_all_of_them() -> None:
    listed = CliRunner().invoke(app, ["--help"]).output
    for name in COMMANDS:
        assert name in listed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_words_for_people(name: str) -> None:
    for parameter in load(name).params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name}"


@pytest.mark.parametrize("name", [[], ["worker"]])
def test_help_shows_no_type_beside_what_takes_no_value(name: list[str]) -> None:
    shown = CliRunner().invoke(app, [*name, "--help"]).output
    assert "--help" in shown
    assert "bool" not in shown.lower()


@pytest.mark.parametrize("option", ["--data-dir", "--data_dir"])
@pytest.mark.parametrize("command", ["retry-failed", "retry_failed"])
def test_words_are_joined_by_dashes_or_underscores(
    capsys: pytest.CaptureFixture[str], command: str, option: str
) -> None:
    assert main([command, option, "no_such-folder"]) == 2
    assert "no_such-folder holds no run" in capsys.readouterr().err


def test_a_value_that_looks_like_an_option_is_left_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Tokens are random: some begin with dashes."""
    assert main(["export", "--data-dir", "--a_b"]) == 2
    assert "there is no folder --a_b" in capsys.readouterr().err


PROMISED: Final[Mapping[str, str]] = {
    "orchestrator": "--config= --host= --port= --data-dir= --cert= --key= --no-ssl --vllm "
    "--verbose",
    "worker": "--config= --server= --token= --name= --batch-size= --no-verify-ssl --vllm --gpu-id= "
    "--precision= --model= --when-finished= --post-exec-hook= --verbose "
    "--engine= --base-url= --api-key=",
    "run": "--engine= --base-url= --api-key=",
    "monitor": "--config= --server= --token= --no-verify-ssl --debug",
    "export": "--data-dir= --format= --output= --limit= --columns= --export-column= "
    "--filename-column= --shard= --shards= --include-empty --stats-only --optimize --hf-dataset= "
    "--license= --private --nsfw --tags= --verbose",
    "view": "--data-dir= --refresh-rate= --no-images",
    "import": "",
    "auth": "--config= --server= --token= --no-verify-ssl",
    "auth add": "--token-value= --no-reload",
    "auth remove": "--no-reload",
    "auth list": "",
    "auth generate": "--length= --count=",
    "reload-config": "--new-config=",
    "scan-chunks": "--data-dir= --checkpoint-dir= --fix --verbose",
    "generate-cert": "--self-signed --domain= --email= --staging --output-dir=",
    "inspect-cert": "",
    "status": "--server= --token= --json --watch",
    "shutdown": "--server= --token= --now",
    "retry-failed": "--server= --token=",
    "verify": "",
    "doctor": "",
}
"""What other programs and people's scripts write, by command; ``=`` marks what takes a value."""

VALUES: Final[Mapping[str, str]] = {
    "--port": "1",
    "--batch-size": "8",
    "--limit": "3",
    "--format": "jsonl",
    "--length": "32",
    "--count": "2",
    "--engine": "synthetic",
    "--refresh-rate": "2.5",
}
"""Those that are no text; any other is given one with both signs in it."""
ARGUMENTS: Final[Mapping[str, list[str]]] = {
    "auth add": ["worker", "a name"],
    "auth remove": ["a name"],
    "inspect-cert": ["cert_of-mine.pem"],
    "import": ["my_old-captions"],
}


def spelled(name: str, sign: str) -> str:
    """Return a command's or an option's name with its words joined by one of the two signs."""
    dashes = len(name) - len(name.lstrip("-"))
    return name[:dashes] + name[dashes:].replace("-", sign)


def reached(words: Sequence[str], sign: str, rest: Sequence[str]) -> Mapping[str, Any]:
    """Return what a command would be called with, without calling it."""
    root = typer.main.get_command(app)
    context = root.make_context("caption-flow", [*(spelled(word, sign) for word in words), *rest])
    for _ in words:
        assert isinstance(context.command, TyperGroup)
        given = [*context._protected_args, *context.args]
        name, command, left = context.command.resolve_command(context, given)
        assert command is not None
        context = command.make_context(name, left, parent=context)
    found: Mapping[str, Any] = context.params
    return found


@pytest.mark.parametrize("sign", ["-", "_"])
@pytest.mark.parametrize(
    ("command", "option"),
    [(name, option) for name, options in PROMISED.items() for option in options.split() or [""]],
)
def test_what_scripts_already_say_is_understood(command: str, option: str, sign: str) -> None:
    name, takes_value, _ = option.partition("=")
    value = VALUES.get(name, "of_mine-or not")
    if command == "auth" and option:
        words, rest = ["auth"], [spelled(name, sign), *([value] if takes_value else []), "list"]
    else:
        words = command.split()
        rest = [spelled(name, sign)] if name else []
        rest += [value] if takes_value else []
        rest += ARGUMENTS.get(command, [])
    given = reached(words, sign, rest)
    if not option:
        return
    wanted = value if takes_value else "True"
    found = given.get(name.removeprefix("--").replace("-", "_"), MISSING)
    if found is MISSING:  # a word of Python's, or another name of the same option
        found = next(one for one in given.values() if one == [value] or str(one) == wanted)
    assert str(found[0] if isinstance(found, list) else found) == wanted
