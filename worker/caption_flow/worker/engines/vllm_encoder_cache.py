"""How much of the encoder's output vLLM keeps, where requests come back to a picture later. Pure.

vLLM keeps as many embeddings as a batch may have tokens: ten pictures or so, far fewer than are in
flight. The prefix cache does not make up for it. It shares whole blocks, so the end of a picture is
in one that its next prompt does not find, and for that alone the encoder runs again. So room is
made for the pictures of all requests in flight, as far as memory can be spared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CPU_BYTES: Final = 256 * 2**20
"""What is spared of main memory on a machine without a GPU."""
_DEVICE_SHARE: Final = 1 / 32
"""What is spared of an engine's share of a device: some 70 pictures of a model that fills 24 GB."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """``embeddings`` to keep, and the ``extra_bytes`` that takes beyond what vLLM reckons with."""

    embeddings: int
    extra_bytes: int


def keeping(
    default: int, *, useful: int, bytes_each: int, device_bytes: float | None = None
) -> Keeping:
    """Return how many embeddings to keep.

    ``default`` is vLLM's own number, ``useful`` what all requests in flight could have,
    ``device_bytes`` the engine's share of its device, None without one.
    """
    spared = CPU_BYTES if device_bytes is None else int(device_bytes * _DEVICE_SHARE)
    extra = max(0, min(useful - default, spared // max(1, bytes_each)))
    return Keeping(default + extra, extra * bytes_each)
