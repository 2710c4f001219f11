from __future__ import annotations

import inspect
from importlib import import_module

import pytest
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
