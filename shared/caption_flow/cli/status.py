"""``caption-flow status``: how a running run is."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from caption_flow.cli.asking import ask
from caption_flow.cli.connecting import Where, connects
from caption_flow.cli.failures import CommandFailed
from caption_flow.cli.logs import configure_logging
from caption_flow.cli.status_view import Shown, view
from caption_flow.cli.watching import as_line, console, report_of, watch_run
from caption_flow.protocol.messages import Status, StatusRequest


@connects
def status(
    where: Where,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object; its keys are in docs/status.md.")
    ] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Go on until Ctrl-C; with --json, one object a line."),
    ] = False,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Between two looks, with --watch.")
    ] = 2.0,
) -> None:
    """Show how a run is: items, rates, tokens, workers, storage, contributors.

    A monitor's token is enough.

    - `caption-flow status --data-dir caption_data`
    - `caption-flow status --server wss://captions.example.org:8765 --token env:MONITOR --json`
    """
    configure_logging("status", quiet=True)
    if watch:
        find = partial(where.endpoint, "monitor")
        raise typer.Exit(watch_run(find, every_seconds=interval, shown=Shown(), as_json=as_json))
    endpoint = where.endpoint("monitor")
    answer = ask(endpoint, StatusRequest())
    if not isinstance(answer, Status):
        raise CommandFailed(f"{endpoint.shown} answered with {type(answer).__name__}")
    if as_json:
        print(as_line(answer.report))
    else:
        console().print(view(report_of(answer.report), Shown()))
