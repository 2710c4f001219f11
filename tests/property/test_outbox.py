"""Whatever happens, and in whatever order, the outbox forgets no row that was not acknowledged."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from caption_flow.protocol.messages import LeaseId
from caption_flow.worker.core.outbox import Batch, Outbox


class OutboxMachine(RuleBasedStateMachine):
    """A worker's outbox against an orchestrator that keeps what it gets and may go away."""

    @initialize(batch_rows=st.integers(1, 4), capacity=st.integers(1, 10))
    def begin(self, batch_rows: int, capacity: int) -> None:
        self.outbox: Outbox[tuple[int, int]] = Outbox(capacity_rows=capacity, batch_rows=batch_rows)
        self.batch_rows, self.capacity = batch_rows, capacity
        self.now = 0.0
        self.next_item = 0
        self.reached: dict[int, int | None] = {}
        self.added: list[tuple[int, int]] = []
        self.window: int | None = None
        self.wire: list[Batch[tuple[int, int]]] = []  # sent on this connection
        self.batches: dict[int, Batch[tuple[int, int]]] = {}  # every one ever seen, by seq
        self.durable = 0

    @rule(
        lease=st.integers(1, 3),
        size=st.sampled_from([0, 3 * 2**20]),
        reached=st.sampled_from([None, None, 1]),
    )
    def add(self, lease: int, size: int, reached: int | None) -> None:
        row = (lease, self.next_item)
        self.reached[self.next_item] = reached
        self.outbox.add(
            LeaseId(lease), self.next_item, row, size_bytes=size, reached=reached, now=self.now
        )
        self.added.append(row)
        self.next_item += 1

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.2, 1.0, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(window=st.integers(0, 4))
    def connect(self, window: int) -> None:
        self.outbox.close()
        self.outbox.open(window=window)
        self.window = max(1, window)
        self.wire = []

    @rule()
    def lose_the_connection(self) -> None:
        self.outbox.close()
        self.window = None

    @rule(idle=st.booleans(), flush=st.booleans())
    def send(self, idle: bool, flush: bool) -> None:
        unacknowledged = [seq for seq in self.batches if seq > self.durable]
        sent_before = {batch.seq for batch in self.wire}
        leaving = self.outbox.due(now=self.now, idle=idle, flush=flush)
        if self.window is None:
            assert leaving == []
            return
        self.wire += leaving
        for batch in leaving:
            assert {self.reached[item] for item in batch.items} == {batch.reached}
            assert batch == self.batches.setdefault(batch.seq, batch), "a number was used twice"
            assert {lease for lease, _ in batch.rows} == {batch.lease}
            assert tuple(item for _, item in batch.rows) == batch.items
            assert 1 <= len(batch.rows) <= self.batch_rows
        again = [seq for seq in unacknowledged if seq not in sent_before]
        assert [batch.seq for batch in leaving][: len(again)] == again, "old ones leave first"
        if len(leaving) > len(again):
            pending = [seq for seq in self.batches if seq > self.durable]
            assert len(pending) <= self.window, "new ones only within the window"

    @rule(back=st.integers(0, 3))
    def acknowledge(self, back: int) -> None:
        if self.wire:
            seq = max(0, self.wire[-1].seq - back)
            self.durable = max(self.durable, seq)
            self.outbox.acknowledge(seq)

    @rule(beyond=st.integers(1, 3))
    def acknowledge_what_was_never_sent(self, beyond: int) -> None:
        if not self.wire:
            self.outbox.acknowledge(self.durable)
            return
        self.durable = max(self.durable, self.wire[-1].seq)
        self.outbox.acknowledge(self.durable + beyond)

    @invariant()
    def numbers_leave_in_order_without_gaps(self) -> None:
        numbers = [batch.seq for batch in self.wire]
        assert numbers == sorted(set(numbers))
        assert sorted(self.batches) == list(range(1, len(self.batches) + 1))

    @invariant()
    def every_row_is_acknowledged_or_kept(self) -> None:
        self.outbox.check()
        acknowledged = sum(
            len(batch.rows) for seq, batch in self.batches.items() if seq <= self.durable
        )
        assert self.outbox.rows == len(self.added) - acknowledged
        assert self.outbox.room == max(0, self.capacity - self.outbox.rows)

    def teardown(self) -> None:
        """Whatever happened before: with one good connection, every row arrives, in one batch."""
        if not hasattr(self, "outbox"):
            return
        self.connect(2)
        for _ in range(len(self.added) + 1):
            self.send(idle=False, flush=True)
            self.acknowledge(0)
        arrived = [row for batch in self.batches.values() for row in batch.rows]
        assert sorted(arrived) == sorted(self.added)
        assert self.outbox.rows == 0


OutboxMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestOutbox = OutboxMachine.TestCase
