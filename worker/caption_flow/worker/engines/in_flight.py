"""The requests that an engine has not answered yet, for engines that end with some in them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from caption_flow.worker.engines.base import Completion, EngineDied


class InFlight:
    """Each request is a task of its own, so that stopping an engine reaches all of them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Completion]] = set()

    async def answer(
        self, work: Coroutine[Any, Any, Completion], *, when_stopped: str
    ) -> Completion:
        """Return what the work gives; cancelling the caller cancels it.

        Raises:
            EngineDied: it was given up; says ``when_stopped``.

        """
        task = asyncio.create_task(work)
        self._tasks.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if _is_cancelled_from_outside():
                raise
            raise EngineDied(when_stopped) from None
        finally:
            self._tasks.discard(task)

    async def give_up(self, *, within_seconds: float | None = None) -> None:
        """Cancel all of it, and wait until it has let go."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_seconds)


def _is_cancelled_from_outside() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
