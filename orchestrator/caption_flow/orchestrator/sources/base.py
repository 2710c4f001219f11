"""The port every source implements: list items, and say where each of them is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from caption_flow.config.dataset import DatasetConfig
from caption_flow.places.base import MISSING
from caption_flow.protocol.places import Place
from caption_flow.storage.contents import displayed
from caption_flow.storage.opening import KnownShard
from caption_flow.storage.writer import Write

UNREADABLE: Final = "shard_unreadable"
"""The ``error_kind`` of items whose shard was listed, and could no longer be read."""


KEEP_APART: Final = (
    "another folder keeps them apart (--data-dir or --workspace of `run`, storage.data_dir)"
)
"""What to do about a run's folder that another dataset was captioned into."""


class SourceError(Exception):
    """The dataset cannot be read as configured; one sentence with what to do about it."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A shard is known up to ``count`` items; each of them can be described.

    ``facts`` is whatever the source wants to find again in `RunFolder.shards` when the run goes on.
    """

    shard: str
    count: int
    facts: str = ""


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


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A shard cannot be read, or ``partly``, its rest. ``reason`` is half a sentence.

    The run goes on without it, says so at its end, and the next one tries it again.
    """

    shard: str
    reason: str
    partly: bool = False


Finding = Listed | Changed | Vanished | PassedOver


@dataclass(frozen=True, slots=True)
class Item:
    """What a source knows of one item.

    ``key`` is its stable identity in the dataset, ``path`` its file within it, as bytes; an item
    without a key goes by its path. ``place`` is None if only the source's machine could read it
    and cannot; ``reason`` says why, and ``kind`` is the ``error_kind`` of its row. ``columns`` are
    values of the dataset's own columns.
    """

    index: int
    place: Place | None
    key: str | None = None
    path: bytes | None = None
    url: str | None = None
    columns: Mapping[str, Any] | None = None
    reason: str = ""
    kind: str = MISSING
    is_video: bool = False


class ShardError(Exception):
    """A shard cannot be read, its own fault; half a sentence that says why.

    ``is_passing`` if it may well be read later. ``items`` are those that were asked for, with what
    is known of them nevertheless, and without places.
    """

    def __init__(
        self, reason: str, *, is_passing: bool = False, items: Sequence[Item] = ()
    ) -> None:
        super().__init__(reason)
        self.is_passing = is_passing
        self.items = items


@dataclass(frozen=True, slots=True)
class RunFolder:
    """What a source may know and use of the run that it is opened for.

    ``shards`` are those listed before; ``columns`` the dataset's columns that prompts name.
    ``limit`` and ``skip`` narrow a folder of files (see `LocalSource`): all other sources are
    narrowed by whoever lists them. Where ``only_reads``, nothing is listed or captioned: what has
    changed since is no reason to refuse, only the items concerned cannot be read.
    """

    data_dir: Path
    write: Callable[[Write], Awaitable[None]]
    shards: Mapping[str, KnownShard] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    limit: int | None = None
    skip: Callable[[bytes], bool] | None = None
    only_reads: bool = False


class Source(ABC):
    """One dataset; a kind of dataset is one subclass (see ``docs/sources.md``)."""

    catalogued: ClassVar[bool] = False
    """Whether the source itself keeps its items in the ledger's catalog, for good. For others, what
    `describe` says is kept there from an item's lease until its row is in a part."""

    left_out: int = 0
    """Items passed over so far because the caller asked for it; they are not in the run."""

    videos_left_out: int = 0
    """Videos passed over so far because nobody asked for them; they are not in the run."""

    @classmethod
    @abstractmethod
    def check(cls, dataset: DatasetConfig) -> None:
        """Find out whether there is anything to caption; blocking. Raises `SourceError`."""

    @classmethod
    @abstractmethod
    def open(cls, dataset: DatasetConfig, folder: RunFolder) -> Self:
        """Open a dataset for a run; blocking. Raises `SourceError`."""

    @classmethod
    def name_of(cls, dataset: DatasetConfig) -> str:
        """Return what a run's folder remembers of the dataset it is about."""
        return f"{dataset.processor_type}:{displayed(dataset.dataset_path)}"

    @classmethod
    def check_same(cls, dataset: DatasetConfig, remembered: str, data_dir: Path) -> None:
        """Raise `SourceError` if a run's folder is about another dataset; blocking."""
        if remembered != cls.name_of(dataset):
            raise SourceError(
                f"{data_dir} holds the captions of {remembered}, and {cls.name_of(dataset)} is "
                f"another dataset: {KEEP_APART}"
            )

    @abstractmethod
    def listing(self) -> AsyncIterator[Finding]:
        """List the dataset to its end; counts only grow.

        What is yielded has been dealt with when the next finding is asked for. Raises
        `SourceError`, which ends the run.
        """

    @abstractmethod
    def describe(self, shard: str, items: Sequence[int]) -> Sequence[Item]:
        """Say what is known of some items, in ascending order; blocking, in any thread.

        Raises `ShardError`: these items wait a while if it is passing, and fail otherwise, while
        everything else goes on. Raises `SourceError`: the run ends with it.
        """

    def locate(self, shard: str, item: int) -> Item | None:
        """Describe one item, perhaps without its columns; otherwise as `describe`."""
        return next(iter(self.describe(shard, [item])), None)

    def close(self) -> None:  # noqa: B027  -- most have nothing to free
        """Free what was opened; idempotent."""
