"""``caption-flow shutdown``, ``pause``, ``resume`` and ``reload-config``: what an admin may do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from caption_flow.cli.asking import ANSWER_SECONDS, ask
from caption_flow.cli.connecting import Where, connects
from caption_flow.cli.failures import CommandFailed, usage_error
from caption_flow.cli.folders import for_people
from caption_flow.cli.logs import configure_logging
from caption_flow.protocol.messages import (
    Done,
    ObserverMessage,
    Pause,
    Reload,
    Resume,
    Shutdown,
)


def steer(
    where: Where, request: ObserverMessage, *, seconds: float = ANSWER_SECONDS
) -> dict[str, Any]:
    """Have an orchestrator do something, and say what it says; return the facts.

    Raises:
        CommandFailed: it cannot be reached, refuses, or fails.
    """
    endpoint = where.endpoint("admin")
    answer = ask(endpoint, request, seconds=seconds)
    if not isinstance(answer, Done):
        raise CommandFailed(f"{endpoint.shown} answered with {type(answer).__name__}")
    print(for_people(answer.message))
    return answer.facts


@connects
def shutdown(
    where: Where,
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for what is in flight: others do it later.")
    ] = False,
) -> None:
    """End a run as Ctrl-C does.

    Nothing more is handed out, what is in flight is taken for a few seconds, all is flushed to
    Parquet. Starting it again goes on.
    """
    configure_logging("shutdown", quiet=True)
    steer(where, Shutdown(now))


@connects
def pause(where: Where) -> None:
    """Hand out nothing until `resume`, also after a restart. What workers have, they finish."""
    configure_logging("pause", quiet=True)
    steer(where, Pause())


@connects
def resume(where: Where) -> None:
    """Hand out again after `pause`."""
    configure_logging("resume", quiet=True)
    steer(where, Resume())


@connects
def reload_config(
    where: Where,
    new_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Configuration to go on with, until the next start. [default: the file that the "
            "orchestrator was started with, read again]",
        ),
    ] = None,
) -> None:
    """Have a run go on with a changed configuration.

    Prompts, sampling, models and engine options, portions (chunk_size, chunks_per_request,
    lease_seconds, max_attempts), checkpoints and tokens change while it goes on. If anything in it
    is wrong, or needs a restart, that is said by key and nothing is changed.
    """
    configure_logging("reload-config", quiet=True)
    facts = steer(where, Reload(None if new_config is None else _text_of(new_config)))
    for warning in facts.get("warnings", ()):
        print(f"Note: {for_people(str(warning))}")


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        usage_error(f"--new-config {path} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        usage_error(f"--new-config {path} is not UTF-8 text")
