"""What was made last, kept within bounds; who wants the same at once waits for one making."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """The values last asked for, as many as weigh ``max_weight`` together; from any thread.

    The newest is always kept, however heavy it is. What could not be made is tried anew next time.
    """

    def __init__(self, max_weight: int, weigh: Callable[[V], int]) -> None:
        self._max_weight = max_weight
        self._weigh = weigh
        self._lock = threading.Lock()
        self._values: OrderedDict[K, Future[V]] = OrderedDict()
        self._weights: dict[K, int] = {}

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the key's value, made now by ``make`` unless it is kept; raises what that does."""
        with self._lock:
            value = self._values.get(key)
            is_kept = value is not None
            if value is None:
                value = self._values[key] = Future()
            self._values.move_to_end(key)
        if not is_kept:
            self._fill(key, value, make)
        return value.result()

    def _fill(self, key: K, value: Future[V], make: Callable[[], V]) -> None:
        try:
            made = make()
        except BaseException as error:  # noqa: BLE001  -- whoever waits is to have it, too
            with self._lock:
                del self._values[key]
            value.set_exception(error)
            return
        value.set_result(made)
        with self._lock:
            self._weights[key] = self._weigh(made)
            self._shed(key)

    def _shed(self, newest: K) -> None:
        excess = sum(self._weights.values()) - self._max_weight
        for key in list(self._values):
            if excess <= 0:
                return
            if key in self._weights and key != newest:
                excess -= self._weights.pop(key)
                del self._values[key]
