"""The state of a run as people see it. Pure: reports in, what is to be drawn out.

Whatever comes from workers is shown with control characters written out: a name must not move the
cursor, nor look like ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from caption_flow.cli.folders import for_people
from caption_flow.cli.progress_view import duration, rate
from caption_flow.protocol.report import Contributor, Report, WorkerReport

_BARS: Final = "▁▂▃▄▅▆▇█"
_GRAPH_COLUMNS: Final = 60
_SHARDS_SHOWN: Final = 5
_TEXTS_OF_WORKERS: Final = frozenset({"worker", "token", "version", "engine", "address"})
_LEAST_WANTED: Final = ("version", "address", "leases", "items", "engine", "token", "starved")
"""Columns about workers, in the order in which they make room in narrow terminals."""
_ANY_WIDTH: Final = 10_000
_STATE_COLOURS: Final[Mapping[str, str]] = {
    "running": "green",
    "finished": "green",
    "paused": "yellow",
    "draining": "yellow",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown beside how far the run is."""

    contributors: bool = True
    quality: bool = True
    progress: bool = True
    queues: bool = True
    graph: bool = False
    activity: int = 0
    """Lines of recent activity."""


class History:
    """What a watcher remembers: rates, and what has happened from one report to the next."""

    def __init__(self, shown: Shown) -> None:
        self.rates: deque[float] = deque(maxlen=_GRAPH_COLUMNS)
        self.activity: deque[str] = deque(maxlen=shown.activity)
        self._last: Report | None = None

    def note(self, report: Report, *, at: str) -> None:
        """Take in the next report; ``at`` is the time of the day, for people."""
        self.rates.append(report.rate)
        if self._last is not None:
            self.activity.extend(f"{at} {what}" for what in _news(self._last, report))
        self._last = report

    def lost(self, why: str, *, at: str) -> None:
        """Take in that there is no connection; said once."""
        line = f"{at} {for_people(why)}"
        if not self.activity or self.activity[-1].partition(" ")[2] != line.partition(" ")[2]:
            self.activity.append(line)


def headline(report: Report) -> str:
    """Return how far the run is, in one line."""
    done = report.captioned + sum(report.failed.values())
    total = f"{report.total:,}{'' if report.listed else '+'}"
    share = f" ({done / report.total:.1%})" if report.total and report.listed else ""
    parts = [f"{for_people(report.state)} {done:,}/{total}{share}"]
    if report.rate > 0:
        parts.append(f"{rate(report.rate)} now")
    if report.rate_average > 0:
        parts.append(f"{rate(report.rate_average)} on average")
    if report.eta_seconds is not None and done < report.total:
        parts.append(f"{duration(report.eta_seconds)} left")
    here = sum(worker.connected for worker in report.workers)
    parts.append(f"{here} worker{'' if here == 1 else 's'}")
    return ", ".join(parts)


def view(report: Report, shown: Shown, history: History | None = None) -> RenderableType:
    """Return everything there is to see."""
    parts: list[RenderableType] = [
        Text(headline(report), style=f"bold {_STATE_COLOURS.get(report.state, 'white')}"),
        _facts(report, shown),
    ]
    if report.trouble is not None:
        parts.append(Text(f"Trouble: {for_people(report.trouble)}", style="bold red"))
    parts += [
        Text(
            f"{items:,} items wait for the stage {for_people(stage)}, which no worker runs",
            style="yellow",
        )
        for stage, items in report.unserved.items()
    ]
    parts += [
        Text(f"Not all of {for_people(shard)} could be read: {for_people(why)}", style="yellow")
        for shard, why in sorted(report.passed_over.items())[:_SHARDS_SHOWN]
    ]
    if len(report.passed_over) > _SHARDS_SHOWN:
        more = len(report.passed_over) - _SHARDS_SHOWN
        parts.append(Text(f"and {more:,} shards more (--json has them all)", style="yellow"))
    if report.workers:
        parts.append(_Workers(report.workers, shown))
    if shown.contributors and report.contributors:
        parts.append(_contributors(report))
    if history is not None and shown.graph and history.rates:
        parts.append(Text(f"{graph(history.rates)}  {rate(max(history.rates))} at most"))
    if history is not None:
        parts += [Text(line, style="dim", no_wrap=True) for line in history.activity]
    return Group(*parts)


def graph(rates: Sequence[float]) -> str:
    """Return rates as a row of bars, the highest as high as can be."""
    most = max(rates, default=0.0)
    if most <= 0:
        return _BARS[0] * len(rates)
    return "".join(_BARS[round(one / most * (len(_BARS) - 1))] for one in rates)


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _facts(report: Report, shown: Shown) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(report, shown):
        table.add_row(Text(name), Text(value))
    return table


def _lines(report: Report, shown: Shown) -> Iterator[tuple[str, str]]:
    yield "dataset", for_people(report.dataset)
    yield "captioned", f"{report.captioned:,}"
    failed = sum(report.failed.values())
    yield "failed", f"{failed:,}{_by_kind(report.failed) if shown.quality and failed else ''}"
    if shown.quality and report.flagged:
        yield "flagged", _by_kind(report.flagged).removeprefix(": ")
    if shown.progress:
        yield "pending", f"{report.pending:,}"
        committing = f", {report.committing:,} on the way to disk" if report.committing else ""
        yield "leased", f"{report.leased:,}{committing}"
    tokens = report.tokens
    yield (
        "tokens",
        f"{tokens.total_in:,} in ({tokens.in_per_second:,.0f}/s), "
        f"{tokens.total_out:,} out ({tokens.out_per_second:,.0f}/s)",
    )
    yield "storage", _storage(report)


def _storage(report: Report) -> str:
    stored = report.storage
    text = f"{stored.parts:,} parts with {stored.rows:,} rows, {size(stored.bytes)}"
    if stored.buffered_rows:
        text += f"; {stored.buffered_rows:,} rows in the ledger"
    if stored.last_checkpoint_at is not None:
        ago = max(0.0, report.time - stored.last_checkpoint_at)
        text += f"; last checkpoint {duration(ago)} ago"
    return text


def _by_kind(counts: Mapping[str, int]) -> str:
    kinds = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return ": " + ", ".join(f"{for_people(kind)} {number:,}" for kind, number in kinds)


class _Workers:
    """A table of workers that leaves out what is least wanted where there is no room for all."""

    def __init__(self, workers: Sequence[WorkerReport], shown: Shown) -> None:
        self._rows = [(_cells(worker), worker.connected) for worker in workers]
        self._hidden = () if shown.queues else ("leases", "items")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unbounded = options.update(max_width=_ANY_WIDTH)
        table = self._without(())
        for count in range(1, len(_LEAST_WANTED) + 1):
            if console.measure(table, options=unbounded).maximum <= options.max_width:
                break
            table = self._without(_LEAST_WANTED[:count])
        yield table

    def _without(self, left_out: Sequence[str]) -> Table:
        names = [n for n in self._rows[0][0] if n not in left_out and n not in self._hidden]
        table = _table()
        for name in names:
            is_number = name not in _TEXTS_OF_WORKERS
            table.add_column(
                name, no_wrap=True, overflow="ellipsis", justify="right" if is_number else "left"
            )
        for cells, connected in self._rows:
            style = "" if connected else "yellow"
            table.add_row(*(Text(cells[name], style=style) for name in names))
        return table


def _cells(worker: WorkerReport) -> dict[str, str]:
    """Return what is shown of a worker, by column and in their order."""
    return {
        "worker": for_people(worker.name),
        "token": for_people(worker.contributor),
        "version": for_people(worker.version),
        "engine": for_people(" ".join(filter(None, (worker.engine, worker.device)))),
        "address": for_people(worker.address),
        "leases": f"{worker.leases:,}",
        "items": f"{worker.items:,}",
        "done": f"{worker.done:,}",
        "rate": rate(worker.rate),
        "starved": duration(worker.starved_seconds),
        "seen": f"{duration(worker.last_seen_seconds)} ago" if worker.connected else "lost",
    }


def _contributors(report: Report) -> Table:
    table = _table("contributor")
    for name in ("rows", "captioned", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("agreement", justify="right", no_wrap=True)
    for one in sorted(report.contributors, key=lambda one: -one.rows):
        counts = (f"{number:,}" for number in (one.rows, one.captioned, one.failed))
        cells = (for_people(one.name), *counts, _agreement(one))
        table.add_row(*(Text(cell, style="red" if one.flagged else "") for cell in cells))
    return table


def _agreement(one: Contributor) -> str:
    if one.agreement is None:
        return ""
    return f"{one.agreement:.2f} of {one.checks:,}{', flagged' if one.flagged else ''}"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    return table


def _news(before: Report, now: Report) -> Iterator[str]:
    if before.state != now.state:
        yield f"the run is {for_people(now.state)}"
    names = [
        {(one.name, one.address) for one in of.workers if one.connected} for of in (before, now)
    ]
    for name, address in sorted(names[1] - names[0]):
        yield f"worker {for_people(name)} joined from {for_people(address)}"
    for name, _ in sorted(names[0] - names[1]):
        yield f"worker {for_people(name)} left"
    for kind, number in now.failed.items():
        more = number - before.failed.get(kind, 0)
        if more > 0:
            yield f"{more:,} failed: {for_people(kind)}"
    moved = now.storage.rows - before.storage.rows
    if moved > 0:
        yield f"checkpoint: {moved:,} rows"
    if now.trouble is not None and before.trouble is None:
        yield f"trouble: {for_people(now.trouble)}"
