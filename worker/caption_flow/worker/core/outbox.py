"""Finished rows on their way out: batched, numbered, and kept until they are acknowledged.

Pure: the shell owns the socket and the clock. The rules, which `Outbox.check` asserts:

- A row is in the outbox from `add` until the `acknowledge` of its batch. Nothing else removes it.
- Batches are numbered 1, 2, 3 … in the order they are first sent, and hold rows of one lease and
  kind: final ones, or those of items that have all reached the same stage.
- On each connection batches leave in the order of their numbers, and every unacknowledged one
  leaves again before any new one is made.
- At most ``window`` batches are unacknowledged, so a slow orchestrator fills the outbox, not the
  socket; `room` then tells the pipeline to pause.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, Generic, TypeVar

from caption_flow.protocol.messages import LeaseId

R = TypeVar("R")
_Kind = tuple[LeaseId, int | None]
"""A lease, and the stage that the items of its rows have reached, None for final rows."""

CAPACITY_ROWS: Final = 4096
BATCH_ROWS: Final = 64
BATCH_BYTES: Final = 4 * 2**20
"""Long captions make shorter batches: no frame comes near the protocol's limit."""
AGE_SECONDS: Final = 1.0
IDLE_AGE_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Batch(Generic[R]):
    """Rows of one lease that leave together; ``items`` names each row's item index.

    They are final, or their items have all ``reached`` one stage.
    """

    seq: int
    lease: LeaseId
    items: tuple[int, ...]
    rows: tuple[R, ...]
    reached: int | None = None


@dataclass(slots=True)
class _Waiting(Generic[R]):
    item: int
    row: R
    size_bytes: int
    added_at: float


@dataclass(slots=True)
class _Pile(Generic[R]):
    """Rows of one lease and kind that are in no batch yet, oldest first."""

    rows: deque[_Waiting[R]] = field(default_factory=deque)
    size_bytes: int = 0


class Outbox(Generic[R]):
    """See the module's docstring for its rules."""

    def __init__(self, *, capacity_rows: int = CAPACITY_ROWS, batch_rows: int = BATCH_ROWS) -> None:
        self._capacity_rows = capacity_rows
        self._batch_rows = batch_rows
        self._piles: dict[_Kind, _Pile[R]] = {}
        self._batches: deque[Batch[R]] = deque()
        self._window = 0
        self._sealed = 0
        self._sent = 0
        self._acknowledged = 0
        self._rows = 0

    @property
    def rows(self) -> int:
        """Rows that are not acknowledged."""
        return self._rows

    @property
    def room(self) -> int:
        """How many more rows fit."""
        return max(0, self._capacity_rows - self._rows)

    @property
    def leases(self) -> frozenset[LeaseId]:
        """The leases that unacknowledged rows belong to."""
        piled = frozenset(lease for lease, _ in self._piles)
        return piled | {batch.lease for batch in self._batches}

    def items(self, lease: LeaseId) -> frozenset[int]:
        """Return the items of a lease whose rows are not acknowledged."""
        piles = (pile for (of_lease, _), pile in self._piles.items() if of_lease == lease)
        piled = (one.item for pile in piles for one in pile.rows)
        sealed = (item for batch in self._batches if batch.lease == lease for item in batch.items)
        return frozenset((*piled, *sealed))

    def has_unsent(self, lease: LeaseId) -> bool:
        """Whether rows of the lease have not left on this connection."""
        return any(of_lease == lease for of_lease, _ in self._piles) or any(
            batch.lease == lease for batch in self._batches if batch.seq > self._sent
        )

    def add(
        self,
        lease: LeaseId,
        item: int,
        row: R,
        *,
        size_bytes: int = 0,
        reached: int | None = None,
        now: float,
    ) -> None:
        """Take a finished row in. Never refused: whoever begins items looks at `room` before."""
        pile = self._piles.setdefault((lease, reached), _Pile())
        pile.rows.append(_Waiting(item, row, size_bytes, now))
        pile.size_bytes += size_bytes
        self._rows += 1

    def open(self, *, window: int) -> None:
        """Note that a connection is there: everything unacknowledged leaves again."""
        self._window = max(1, window)
        self._sent = self._acknowledged

    def close(self) -> None:
        """Note that the connection is gone: nothing leaves until `open`."""
        self._window = 0

    def due(self, *, now: float, idle: bool = False, flush: bool = False) -> list[Batch[R]]:
        """Return the batches to send now, in order.

        ``idle``: nothing else is being worked on, so waiting longer gathers little.
        ``flush``: everything leaves, whatever its age.
        """
        if not self._window:
            return []
        leaving = [batch for batch in self._batches if batch.seq > self._sent]
        age = 0.0 if flush else IDLE_AGE_SECONDS if idle else AGE_SECONDS
        while len(self._batches) < self._window and (kind := self._ripe(now - age)) is not None:
            leaving.append(self._seal(kind))
        self._sent = self._sealed
        return leaving

    def acknowledge(self, seq: int) -> int:
        """Forget every batch up to ``seq``; return how many rows that were."""
        forgotten = 0
        # A number that was never sent acknowledges nothing beyond what was.
        while self._batches and self._batches[0].seq <= min(seq, self._sent):
            forgotten += len(self._batches.popleft().rows)
            self._acknowledged += 1
        self._rows -= forgotten
        return forgotten

    def _ripe(self, added_before: float) -> _Kind | None:
        """Return the lease and kind whose rows have waited longest, among those to be sent."""
        ripe = [
            (pile.rows[0].added_at, kind)
            for kind, pile in self._piles.items()
            if len(pile.rows) >= self._batch_rows
            or pile.size_bytes >= BATCH_BYTES
            or pile.rows[0].added_at <= added_before
        ]
        return min(ripe, key=itemgetter(0))[1] if ripe else None

    def _seal(self, kind: _Kind) -> Batch[R]:
        pile = self._piles[kind]
        taken: list[_Waiting[R]] = []
        size_bytes = 0
        while pile.rows and len(taken) < self._batch_rows and size_bytes < BATCH_BYTES:
            taken.append(pile.rows.popleft())
            size_bytes += taken[-1].size_bytes
        pile.size_bytes -= size_bytes
        if not pile.rows:
            del self._piles[kind]
        self._sealed += 1
        items, rows = tuple(one.item for one in taken), tuple(one.row for one in taken)
        lease, reached = kind
        batch = Batch(self._sealed, lease, items, rows, reached)
        self._batches.append(batch)
        return batch

    def check(self) -> None:
        """Assert the invariants; the `AssertionError` names the broken one."""
        numbers = [batch.seq for batch in self._batches]
        assert numbers == list(range(self._acknowledged + 1, self._sealed + 1)), "numbers have gaps"
        assert self._acknowledged <= self._sent <= self._sealed, "sent out of order"
        piled = sum(len(pile.rows) for pile in self._piles.values())
        assert self._rows == piled + sum(len(batch.rows) for batch in self._batches), "rows lost"
        for (lease, _), pile in self._piles.items():
            assert pile.rows, f"lease {lease} has an empty pile"
            assert pile.size_bytes == sum(one.size_bytes for one in pile.rows), "bytes miscounted"
