"""Showing the state of a run again and again: drawn on a terminal, as lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live

from caption_flow.cli.asking import Lost, watch
from caption_flow.cli.failures import EXIT_OK, CommandFailed
from caption_flow.cli.folders import for_people
from caption_flow.cli.status_view import History, Shown, headline, view
from caption_flow.dialing.dial import Endpoint
from caption_flow.protocol.report import Report, from_wire

_COLUMNS_ELSEWHERE = 140
"""Width of tables where there is no terminal to ask."""


def console() -> Console:
    """Return where states are drawn: the standard output."""
    made = Console(highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made = Console(highlight=False, markup=False, emoji=False, width=_COLUMNS_ELSEWHERE)
    return made


def report_of(wire: dict[str, Any]) -> Report:
    """Return a report as it was sent; raises `CommandFailed` if it is none."""
    try:
        return from_wire(wire)
    except ValueError as error:
        raise CommandFailed(f"the orchestrator's answer is no state of a run: {error}") from error


def as_line(wire: dict[str, Any]) -> str:
    """Return a report as JSON on one line, with nothing in it but ASCII."""
    return json.dumps(wire, allow_nan=False)


def watch_run(
    find: Callable[[], Endpoint],
    *,
    every_seconds: float,
    shown: Shown,
    as_json: bool = False,
) -> int:
    """Show the run until its orchestrator ends, or Ctrl-C; return the exit code.

    Raises:
        CommandFailed: it cannot be reached, or refuses the token.
    """
    terminal = console()
    with contextlib.suppress(KeyboardInterrupt):  # the usual way to stop looking
        if as_json or not terminal.is_terminal:
            asyncio.run(_print(find, every_seconds, as_json))
        else:
            asyncio.run(_draw(find, every_seconds, shown, terminal))
    return EXIT_OK


async def _draw(
    find: Callable[[], Endpoint], every_seconds: float, shown: Shown, terminal: Console
) -> None:
    history, report = History(shown), Report()
    with Live(console=terminal, screen=True, auto_refresh=False, transient=True) as live:
        async for state in watch(find, every_seconds=every_seconds):
            at = time.strftime("%H:%M:%S")
            if isinstance(state, Lost):
                history.lost(state.why, at=at)
            else:
                report = report_of(state)
                history.note(report, at=at)
            live.update(view(report, shown, history), refresh=True)
    terminal.print(view(report, shown))


async def _print(find: Callable[[], Endpoint], every_seconds: float, as_json: bool) -> None:
    async for state in watch(find, every_seconds=every_seconds):
        if isinstance(state, Lost):
            print(for_people(state.why), file=sys.stderr, flush=True)
        else:
            print(as_line(state) if as_json else headline(report_of(state)), flush=True)
