"""The command line: one module a command, each imported only when it is the one asked for.

Commands and options of several words are accepted with ``-`` and with ``_``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from caption_flow.cli.commands import OfSeveral, OneCommand
from caption_flow.cli.failures import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    CommandFailed,
    print_failure,
)


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command is, and what the list of commands says of it."""

    module: str
    function: str
    summary: str


COMMANDS: Final[dict[str, Command]] = {
    "run": Command("run", "run", "Caption a folder of images, everything on this machine."),
    "orchestrator": Command(
        "orchestrator",
        "orchestrator",
        "Lead a run: hand out the dataset to workers and keep what they write.",
    ),
    "worker": Command("worker", "worker", "Join an orchestrator and caption what it hands out."),
    "doctor": Command("doctor", "doctor", "Say what this machine can run, and what to install."),
    "status": Command("status", "status", "Show how a running run is."),
    "monitor": Command("monitor", "monitor", "Watch a running run."),
    "pause": Command("steering", "pause", "Have a running run hand out nothing more for now."),
    "resume": Command("steering", "resume", "Have a paused run go on."),
    "reload-config": Command(
        "steering", "reload_config", "Have a running run go on with a changed configuration."
    ),
    "shutdown": Command("steering", "shutdown", "End a running run."),
    "export": Command(
        "export", "export", "Write a run's captions as txt, json, jsonl, csv or parquet."
    ),
    "import": Command(
        "import_captions", "import_captions", "Bring in captions that were made elsewhere."
    ),
    "view": Command("view", "view", "Look through a run's images and captions in the terminal."),
    "verify": Command("verify", "verify", "Check every promise on what lies on disk."),
    "scan-chunks": Command("verify", "scan_chunks", "The older name of `verify`."),
    "auth": Command("auth", "auth", "Let people into a run, and out again, while it goes on."),
    "retry-failed": Command(
        "retry_failed", "retry_failed", "Put failed items back, so that they are tried again."
    ),
    "generate-cert": Command(
        "generate_cert", "generate_cert", "Make a certificate for wss://, and say how to trust it."
    ),
    "inspect-cert": Command(
        "inspect_cert", "inspect_cert", "Say what a certificate says, and its fingerprint."
    ),
}
"""In the order in which people meet them."""

_SETTINGS: Final[dict[str, Any]] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda name: name.replace("_", "-"),
}
_LOOKS: Final[dict[str, Any]] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "markdown",
}


def load(name: str) -> TyperCommand | TyperGroup:
    """Import a command and return it as the option parser takes it."""
    command = COMMANDS[name]
    module = import_module(f"caption_flow.cli.{command.module}")
    found = getattr(module, command.function)
    if isinstance(found, typer.Typer):
        return _of_several(name, found)
    alone = typer.Typer(**_LOOKS)
    alone.command(name, cls=OneCommand, context_settings=_SETTINGS)(found)
    loaded = typer.main.get_command(alone)
    assert isinstance(loaded, TyperCommand)  # noqa: S101  -- a program of one command is a command
    return loaded


def _of_several(name: str, group: typer.Typer) -> TyperGroup:
    """Return a command that has commands of its own."""
    loaded = typer.main.get_group(group)
    loaded.name = name
    for one in (loaded, *loaded.commands.values()):
        one.context_settings = {**_SETTINGS, **one.context_settings}
    return loaded


class _Commands(OfSeveral):
    """Knows every command by name and summary, and imports the one that is run.

    Together they take seconds to import; help and mistakes should be answered at once.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.commands = {
            name: TyperCommand(name, help=command.summary) for name, command in COMMANDS.items()
        }

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, known, rest = super().resolve_command(ctx, args)
        return name, known if name is None else load(name), rest


app = typer.Typer(
    cls=_Commands,
    help="Caption image datasets with vision-language models.",
    context_settings=_SETTINGS,
    **_LOOKS,
)


def _print_version(asked: bool) -> None:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  -- rarely asked

    if asked:
        try:
            print(f"caption-flow {version('caption-flow')}")
        except PackageNotFoundError:
            print("caption-flow (not installed, running from a checkout)")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Caption image datasets with vision-language models.

    `caption-flow run FOLDER` does everything on this machine; `caption-flow COMMAND --help` tells
    more.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; see `failures` for what codes mean."""
    # Names of files may hold what the terminal's encoding lacks; that is no reason to fail.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(args=given or ["--help"], prog_name="caption-flow", standalone_mode=False)
    except CommandFailed as failure:
        print_failure(str(failure))
        return failure.code
    except KeyboardInterrupt:
        print_failure("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone: nothing is wrong, and nobody is there to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:  # noqa: BLE001  -- what is no usage error is raised again
        return _usage_code(error)
    return code if isinstance(code, int) else EXIT_OK


def _usage_code(error: Exception) -> int:
    """Print what the option parser complains about; anything else is a defect and is raised."""
    describe = getattr(error, "format_message", None)
    if describe is None:
        raise error
    possibilities = getattr(error, "possibilities", None)
    if possibilities:
        sentence = f"{getattr(error, 'message', error)}; did you mean {' or '.join(possibilities)}?"
    else:
        sentence = str(describe()).replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    where = f" ({context.command_path} --help tells more)" if context is not None else ""
    print_failure(f"{sentence}{where}")
    return int(getattr(error, "exit_code", EXIT_USAGE))
