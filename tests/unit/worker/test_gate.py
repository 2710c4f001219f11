"""Who may use an engine: the oldest first, all of its slots or none."""

from __future__ import annotations

import asyncio

from caption_flow.worker.gate import Gate, Seat


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def seated(gate: Gate, slots: int, age: int) -> Seat:
    seat = Seat(age)
    await seat.move(gate, slots)
    return seat


async def test_the_oldest_passes_first_whoever_came_first() -> None:
    gate = Gate(1)
    first = await seated(gate, 1, age=0)
    passed: list[int] = []

    async def pass_through(age: int) -> None:
        seat = await seated(gate, 1, age)
        passed.append(age)
        seat.leave()

    tasks = [asyncio.create_task(pass_through(age)) for age in (5, 2, 9)]
    await settle()
    first.leave()
    await asyncio.gather(*tasks)

    assert passed == [2, 5, 9]
    assert gate.in_use == 0


async def test_one_who_needs_more_is_not_overtaken_by_younger_ones_who_need_less() -> None:
    gate = Gate(2)
    one, other = await seated(gate, 1, age=0), await seated(gate, 1, age=1)
    large = asyncio.create_task(seated(gate, 2, age=2))
    small = asyncio.create_task(seated(gate, 1, age=3))
    await settle()

    one.leave()
    await settle()
    assert not small.done()
    other.leave()
    (await large).leave()
    (await small).leave()


async def test_moving_on_keeps_the_seat_when_it_is_large_enough() -> None:
    gate = Gate(3)
    seat = await seated(gate, 3, age=7)
    waiting = asyncio.create_task(seated(gate, 2, age=0))
    await settle()

    await asyncio.wait_for(seat.move(gate, 1), 1)
    assert gate.in_use == 3
    assert (await waiting) is not None


async def test_whoever_needs_more_gives_up_what_it_has_first() -> None:
    gate = Gate(2)
    one, other = await seated(gate, 1, age=0), await seated(gate, 1, age=1)

    growing = asyncio.gather(one.move(gate, 2), asyncio.create_task(other.move(gate, 2)))
    await settle()
    assert gate.in_use == 2, "the older one has both"
    one.leave()
    await asyncio.wait_for(growing, 1)
    other.leave()
    assert gate.in_use == 0


async def test_moving_to_another_gate_leaves_the_first_at_once() -> None:
    here, there = Gate(1), Gate(1)
    seat, blocker = await seated(here, 1, age=0), await seated(there, 1, age=1)

    moving = asyncio.create_task(seat.move(there, 1))
    await settle()
    assert here.in_use == 0
    blocker.leave()
    await moving
    assert there.in_use == 1


async def test_one_who_goes_away_while_waiting_blocks_nobody() -> None:
    gate = Gate(2)
    holder = await seated(gate, 1, age=0)
    large = asyncio.create_task(seated(gate, 2, age=1))
    small = asyncio.create_task(seated(gate, 1, age=2))
    await settle()
    assert not small.done()

    large.cancel()
    await settle()
    assert small.done()
    holder.leave()
    small.result().leave()
    assert gate.in_use == 0


async def test_one_who_goes_away_the_moment_it_is_let_in_gives_its_slots_back() -> None:
    gate = Gate(1)
    holder = await seated(gate, 1, age=0)
    late = asyncio.create_task(seated(gate, 1, age=1))
    await settle()

    holder.leave()  # late's turn has come, but it has not run yet
    late.cancel()
    await settle()
    assert late.cancelled()
    assert gate.in_use == 0


async def test_the_last_slot_is_not_given_back_by_shrinking() -> None:
    gate = Gate(3)
    seat = await seated(gate, 3, age=0)

    for _ in range(5):
        seat.shrink()
    assert gate.in_use == 1
    seat.leave()
    seat.leave()
    assert gate.in_use == 0
