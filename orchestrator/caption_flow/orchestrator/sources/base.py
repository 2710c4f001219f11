"""The port every source implements: list items, describe them to workers, serve their bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from caption_flow.protocol.messages import ItemDescription


class SourceError(Exception):
    """The dataset cannot be read as configured; one sentence with what to do about it."""


class ItemUnavailable(Exception):
    """One item's bytes cannot be served; the sentence ends in the item's row."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A shard is known up to ``count`` items; each of them can be described."""

    shard: str
    count: int


@dataclass(frozen=True, slots=True)
class Changed:
    """These items have other content than when they were captioned: they are to be done again."""

    shard: str
    items: frozenset[int]


@dataclass(frozen=True, slots=True)
class Vanished:
    """So many listed items are no longer there; their rows stay. ``examples`` are for people."""

    shard: str
    count: int
    examples: tuple[str, ...]


Finding = Listed | Changed | Vanished


class Source(Protocol):
    """One dataset."""

    @property
    def left_out(self) -> int:
        """Items passed over so far because the caller asked for it; they are not in the run."""
        ...

    def listing(self) -> AsyncIterator[Finding]:
        """List the dataset to its end; counts only grow.

        What is yielded has been dealt with when the next finding is asked for.
        """
        ...

    def describe(self, shard: str, items: Sequence[int]) -> tuple[ItemDescription, ...]:
        """Say what a worker needs to know of some items, in ascending order; blocking."""
        ...

    def read(self, shard: str, item: int) -> bytes:
        """Return an item's bytes; blocking. Raises `ItemUnavailable`."""
        ...

    def close(self) -> None:
        """Free what was opened; idempotent."""
        ...
