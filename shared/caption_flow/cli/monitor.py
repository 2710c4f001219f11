"""``caption-flow monitor``: a running run, live."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from caption_flow.cli.connecting import Where, connects
from caption_flow.cli.logs import configure_logging
from caption_flow.cli.status_view import Shown
from caption_flow.cli.watching import watch_run
from caption_flow.config.monitor import MonitorConfig


@connects
def monitor(
    where: Where,
    debug: Annotated[bool, typer.Option("--debug", help="Log more.")] = False,
) -> None:
    """Watch a run until Ctrl-C: all that `status` shows, the rate over time, and what happens.

    A monitor's token is enough. What is shown, and how often, stands in `monitor.yaml`, or in the
    `monitor` section of --config.
    """
    configure_logging("monitor", verbose=debug, quiet=True)
    config = where.monitor()
    find = partial(where.endpoint, "monitor")
    raise typer.Exit(watch_run(find, every_seconds=config.refresh_rate, shown=shown_by(config)))


def shown_by(config: MonitorConfig) -> Shown:
    """Return what a configuration wants to be shown."""
    return Shown(
        contributors=config.show_contributors,
        quality=config.show_quality_metrics,
        progress=config.show_chunk_progress,
        queues=config.show_worker_queues,
        graph=config.show_throughput_graph,
        activity=config.max_activity_items,
    )
