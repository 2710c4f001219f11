"""Rows leave in batches, in order, and stay until acknowledged."""

from __future__ import annotations

from typing import Any

from caption_flow.protocol.messages import LeaseId
from caption_flow.worker.core.outbox import AGE_SECONDS, BATCH_BYTES, IDLE_AGE_SECONDS, Outbox

ONE, TWO = LeaseId(1), LeaseId(2)


def open_outbox(**options: int) -> Outbox[str]:
    outbox: Outbox[str] = Outbox(**options)
    outbox.open(window=100)
    return outbox


def add(outbox: Outbox[str], lease: LeaseId, *items: int, now: float = 0.0) -> None:
    for item in items:
        outbox.add(lease, item, f"row {item}", now=now)
    outbox.check()


def seqs(outbox: Outbox[str], **arguments: Any) -> list[int]:
    batches = outbox.due(**arguments)
    outbox.check()
    return [batch.seq for batch in batches]


def test_a_full_batch_leaves_at_once() -> None:
    outbox = open_outbox(batch_rows=3)
    add(outbox, ONE, 7, 8)
    assert outbox.due(now=0.0) == []

    add(outbox, ONE, 9)
    (batch,) = outbox.due(now=0.0)

    assert (batch.seq, batch.lease, batch.items) == (1, ONE, (7, 8, 9))
    assert batch.rows == ("row 7", "row 8", "row 9")


def test_rows_of_items_that_go_on_and_final_ones_travel_apart() -> None:
    outbox = open_outbox()
    for item, reached in enumerate([None, 1, None, 1]):
        outbox.add(ONE, item, f"row {item}", reached=reached, now=0.0)
    assert outbox.leases == {ONE}
    assert outbox.items(ONE) == {0, 1, 2, 3}

    batches = outbox.due(now=0.0, flush=True)
    outbox.check()

    assert [(batch.items, batch.reached) for batch in batches] == [((0, 2), None), ((1, 3), 1)]
    assert not outbox.has_unsent(ONE)


def test_a_part_of_a_batch_leaves_by_age() -> None:
    outbox = open_outbox()
    add(outbox, ONE, 0)

    assert seqs(outbox, now=AGE_SECONDS * 0.99) == []
    assert seqs(outbox, now=AGE_SECONDS) == [1]


def test_an_idle_worker_waits_less() -> None:
    outbox = open_outbox()
    add(outbox, ONE, 0)

    assert seqs(outbox, now=IDLE_AGE_SECONDS * 0.99, idle=True) == []
    assert seqs(outbox, now=IDLE_AGE_SECONDS) == []
    assert seqs(outbox, now=IDLE_AGE_SECONDS, idle=True) == [1]


def test_flush_leaves_nothing_behind() -> None:
    outbox = open_outbox(batch_rows=2)
    add(outbox, ONE, 0, 1, 2)
    add(outbox, TWO, 0)

    batches = outbox.due(now=0.0, flush=True)

    assert [(b.lease, b.items) for b in batches] == [(ONE, (0, 1)), (ONE, (2,)), (TWO, (0,))]


def test_a_batch_holds_rows_of_one_lease_and_the_oldest_leave_first() -> None:
    outbox = open_outbox()
    add(outbox, TWO, 0, now=0.0)
    add(outbox, ONE, 1, now=0.1)
    add(outbox, TWO, 2, now=0.2)

    batches = outbox.due(now=2.0)

    assert [(b.seq, b.lease, b.items) for b in batches] == [(1, TWO, (0, 2)), (2, ONE, (1,))]


def test_long_rows_make_shorter_batches() -> None:
    outbox = open_outbox()
    for item in range(4):
        outbox.add(ONE, item, "long", size_bytes=BATCH_BYTES // 2, now=0.0)

    assert [batch.items for batch in outbox.due(now=0.0)] == [(0, 1), (2, 3)]
    outbox.check()


def test_nothing_leaves_without_a_connection() -> None:
    outbox: Outbox[str] = Outbox()
    add(outbox, ONE, 0)

    assert seqs(outbox, now=9.0, flush=True) == []
    outbox.open(window=4)
    assert seqs(outbox, now=9.0) == [1]


def test_rows_stay_until_acknowledged() -> None:
    outbox = open_outbox(capacity_rows=5)
    add(outbox, ONE, 0, 1)
    outbox.due(now=1.0)
    add(outbox, TWO, 0)
    assert (outbox.rows, outbox.room, outbox.leases) == (3, 2, frozenset({ONE, TWO}))

    assert outbox.acknowledge(1) == 2
    assert (outbox.rows, outbox.room, outbox.leases) == (1, 4, frozenset({TWO}))
    outbox.check()


def test_an_acknowledgement_covers_all_before_it_and_nothing_unsent() -> None:
    outbox = open_outbox(batch_rows=1)
    add(outbox, ONE, 0, 1, 2)
    outbox.due(now=0.0)
    add(outbox, ONE, 3)

    assert outbox.acknowledge(2) == 2
    assert outbox.acknowledge(1) == 0
    assert outbox.acknowledge(99) == 1
    assert outbox.rows == 1
    outbox.check()


def test_after_a_reconnect_everything_unacknowledged_leaves_again_first() -> None:
    outbox = open_outbox(batch_rows=1)
    add(outbox, ONE, 0, 1, 2)
    outbox.due(now=0.0)
    outbox.acknowledge(1)
    outbox.close()
    add(outbox, TWO, 9)

    outbox.open(window=100)

    assert [(b.seq, b.lease, b.items) for b in outbox.due(now=0.0)] == [
        (2, ONE, (1,)),
        (3, ONE, (2,)),
        (4, TWO, (9,)),
    ]


def test_a_batch_leaves_once_per_connection() -> None:
    outbox = open_outbox(batch_rows=1)
    add(outbox, ONE, 0)

    assert seqs(outbox, now=0.0) == [1]
    assert seqs(outbox, now=9.0, flush=True) == []


def test_a_slow_orchestrator_gets_no_more_than_the_window() -> None:
    outbox = open_outbox(batch_rows=1)
    outbox.open(window=2)
    add(outbox, ONE, 0, 1, 2)

    assert seqs(outbox, now=0.0) == [1, 2]
    assert seqs(outbox, now=9.0, flush=True) == []
    outbox.acknowledge(1)
    assert seqs(outbox, now=9.0) == [3]


def test_unsent_rows_of_a_lease_are_known() -> None:
    outbox = open_outbox(batch_rows=1)
    add(outbox, ONE, 0)
    assert outbox.has_unsent(ONE)

    outbox.due(now=0.0)
    assert not outbox.has_unsent(ONE)
    outbox.open(window=1)
    assert outbox.has_unsent(ONE), "on the new connection it has not left yet"


def test_room_is_never_negative() -> None:
    outbox = open_outbox(capacity_rows=1)
    add(outbox, ONE, 0, 1)

    assert outbox.room == 0
