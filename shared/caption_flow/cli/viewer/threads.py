"""Blocking work beside the event loop, in threads that nobody waits for at the end.

Whoever quits while a large picture is decoded, or a part is searched, is not to wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Return what blocking work returns, or raise what it raises."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # T may be None itself

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:  # noqa: BLE001  -- whoever waits has it
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=run, daemon=True).start()
    return await done


class Newest(Generic[T]):
    """Does one thing at a time, and of what is asked for meanwhile only the last."""

    def __init__(self, do: Callable[[T], Awaitable[None]], tasks: asyncio.TaskGroup) -> None:
        self._do = do
        self._tasks = tasks
        self._asked: list[T] = []
        self._is_busy = False

    def ask(self, what: T) -> None:
        """Have it done, now or after what is being done."""
        self._asked = [what]
        if not self._is_busy:
            self._is_busy = True
            self._tasks.create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._asked:
                await self._do(self._asked.pop())
        finally:
            self._is_busy = False
