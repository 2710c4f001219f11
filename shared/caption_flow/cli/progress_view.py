"""How a run looks while it goes on: a bar on a terminal, ``step N/M`` lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from caption_flow.orchestrator.core.progress import Progress as RunProgress

_DRAW_SECONDS: Final = 0.2
_LINE_SECONDS: Final = 2.0
_LATER_LINE_SECONDS: Final = 10.0
_EARLY_SECONDS: Final = 60.0
_SIGN_OF_LIFE_SECONDS: Final = 30.0
_BAR_COLUMNS: Final = 24


@dataclass(frozen=True, slots=True)
class Moment:
    """What is shown of a run at one time; ``trouble``: results cannot be stored at present."""

    progress: RunProgress
    seconds: float
    trouble: bool = False
    stopping: bool = False
    paused: bool = False
    """By its owner; see `caption-flow pause`."""


@contextlib.asynccontextmanager
async def progress_shown(console: Console, look: Callable[[], Moment]) -> AsyncIterator[None]:
    """Show how far a run is until the context ends; ``look`` is asked again and again."""
    if console.is_terminal:
        async with _bar_drawn(console, look):
            yield
    else:
        async with _lines_printed(console, look):
            yield


def step(moment: Moment) -> str:
    """Return the line for logs; programs look for its form, ``step N/M``."""
    now = moment.progress
    total = f"{now.total}" if now.listed else f"{now.total}+"
    return f"step {now.done}/{total} {', '.join(_state(moment))}"


def duration(seconds: float) -> str:
    """Return a time for people."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    if whole >= 600:
        return f"{whole // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def rate(per_second: float) -> str:
    """Return a rate for people."""
    if per_second >= 10:
        return f"{per_second:,.0f}/s"
    return f"{per_second:.1f}/s" if per_second >= 0.5 else f"{per_second * 60:.1f}/min"


def _state(moment: Moment) -> list[str]:
    now = moment.progress
    if moment.trouble:
        return ["waiting: results cannot be stored"]
    if moment.paused and not now.leased and not moment.stopping:
        return ["paused: `caption-flow resume` lets it go on"]
    if now.done == now.before and not moment.stopping:
        doing = "loading the model" if now.workers else "starting"
        return [f"{doing}, {duration(moment.seconds)}" if moment.seconds >= 1 else doing]
    state = [rate(now.rate)] if now.rate > 0 else []
    state.append(f"{now.failed:,} failed")
    if moment.stopping:
        state.append("stopping")
    elif now.eta_seconds is not None and now.done < now.total:
        state.append(f"{duration(now.eta_seconds)} left")
    return state


def _bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(finished_text="[green]✔[/]"),
        BarColumn(_BAR_COLUMNS),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[state]}", markup=False),
        console=console,
        refresh_per_second=1 / _DRAW_SECONDS,
    )


def _update(bar: Progress, task: TaskID, moment: Moment) -> None:
    now = moment.progress
    bar.update(
        task,
        total=now.total if now.listed else None,
        completed=now.done,
        count=f"{now.done:,}/{now.total:,}{'' if now.listed else '+'}",
        state=" · ".join(_state(moment)),
    )


@contextlib.asynccontextmanager
async def _bar_drawn(console: Console, look: Callable[[], Moment]) -> AsyncIterator[None]:
    with _bar(console) as bar:
        task = bar.add_task("", total=None, count="", state="")

        async def draw() -> None:
            while True:
                _update(bar, task, look())
                await asyncio.sleep(_DRAW_SECONDS)

        drawing = asyncio.create_task(draw())
        try:
            yield
        finally:
            drawing.cancel()
            _update(bar, task, look())


@contextlib.asynccontextmanager
async def _lines_printed(console: Console, look: Callable[[], Moment]) -> AsyncIterator[None]:
    """Print a line when something has changed, often at first, and a sign of life now and then."""
    began = said_at = time.monotonic()
    said = ""

    async def keep_saying() -> None:
        nonlocal said, said_at
        while True:
            moment, now = look(), time.monotonic()
            news = _news(moment)
            if news != said or now - said_at >= _SIGN_OF_LIFE_SECONDS:
                console.print(step(moment), soft_wrap=True)
                said, said_at = news, now
            early = now - began < _EARLY_SECONDS
            await asyncio.sleep(_LINE_SECONDS if early else _LATER_LINE_SECONDS)

    saying = asyncio.create_task(keep_saying())
    try:
        yield
    finally:
        saying.cancel()
        last = look()
        if last.progress.done and _news(last) != said:
            console.print(step(last), soft_wrap=True)


def _news(moment: Moment) -> str:
    """Return what makes a line worth printing again: counts, and what is waited for at first."""
    now = moment.progress
    waiting = "" if now.done > now.before else f"{bool(now.workers)}"
    return f"{now.done}/{now.total} {waiting}"
