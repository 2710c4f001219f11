"""How far an export is: a bar on a terminal, once it has taken a while; nothing elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from caption_flow.cli.progress_view import rate

_LONG_SECONDS: Final = 1.0


class ExportProgress:
    """Counts the rows that passes over the store have dealt with; a `Watcher`."""

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False, emoji=False)
        self._clock = clock
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:,}/{task.total:,} rows"),
            _Rate(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            get_time=clock,
        )
        self._task: TaskID | None = None
        self._began = clock()
        self._shown = False
        self._reads_images = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shown:
            self._progress.stop()

    def writing(self, format_: str, rows: int) -> None:
        """Hear what is written now, and how many rows there are."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(format_, total=rows)
        self._reads_images = False

    def counting_images(self) -> Callable[[int], None]:
        """Return what is to be told of rows from now on: reading images takes the time, not rows.

        What passes over the store say is not heard any more, until another format is written.
        """
        self.begin_pass()
        self._reads_images = True
        return self._advance

    def begin_pass(self) -> None:
        """Start anew: some formats look at all rows before they write any."""
        if self._task is not None and not self._reads_images:
            self._progress.reset(self._task)

    def advance(self, rows: int, /) -> None:
        """Count rows, and show the bar if it is time to."""
        if not self._reads_images:
            self._advance(rows)

    def _advance(self, rows: int) -> None:
        if self._task is None:
            return
        self._progress.advance(self._task, rows)
        is_long = self._clock() - self._began >= _LONG_SECONDS
        if is_long and self._console.is_terminal and not self._shown:
            self._shown = True
            self._progress.start()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(rate(task.speed) if task.speed else "")
