"""The doorkeeper's decisions, with connections that only know whether they were cut off."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from caption_flow.orchestrator.server.budget import Budget
from caption_flow.orchestrator.server.guard import (
    Bounds,
    Doorkeeper,
    GuardedConnection,
    Seldom,
)


class Stub:
    """What the doorkeeper sees of a connection."""

    def __init__(self, address: str = "192.0.2.1") -> None:
        self.remote_address = (address, 1)
        self.loop = asyncio.new_event_loop()
        self.loop.close()
        self.aborted = False
        self.turns = 0

    def abort(self) -> None:
        self.aborted = True

    def go_on_with_large(self) -> None:
        self.turns += 1


def guarded(stub: Stub) -> GuardedConnection:
    return cast("GuardedConnection", stub)


def arrived(doorkeeper: Doorkeeper, *addresses: str) -> list[Stub]:
    stubs = [Stub(address) for address in addresses]
    for stub in stubs:
        doorkeeper.arrived(guarded(stub))
    return stubs


def admitted(doorkeeper: Doorkeeper, count: int) -> list[Stub]:
    stubs = []
    for _ in range(count):
        stubs += arrived(doorkeeper, "192.0.2.9")
        assert doorkeeper.admit(guarded(stubs[-1]))
    return stubs


def test_the_oldest_stranger_of_an_address_makes_room() -> None:
    doorkeeper = Doorkeeper(Bounds(strangers=10, strangers_of_an_address=2))
    stubs = arrived(doorkeeper, "a", "b", "a", "a")
    assert [stub.aborted for stub in stubs] == [True, False, False, False]
    assert doorkeeper.strangers == 3


def test_of_many_strangers_the_largest_crowd_makes_room() -> None:
    doorkeeper = Doorkeeper(Bounds(strangers=3, strangers_of_an_address=3))
    stubs = arrived(doorkeeper, "a", "b", "b", "c")
    assert [stub.aborted for stub in stubs] == [False, True, False, False]


def test_who_is_let_in_is_no_stranger_and_makes_room_for_nobody() -> None:
    doorkeeper = Doorkeeper(Bounds(strangers=1, strangers_of_an_address=1, sessions=2))
    first, second = admitted(doorkeeper, 2)
    (late,) = arrived(doorkeeper, "a")
    assert not doorkeeper.admit(guarded(late))
    doorkeeper.left(guarded(first))
    assert doorkeeper.admit(guarded(late))
    assert [stub.aborted for stub in (first, second, late)] == [False] * 3


def test_the_greediest_goes_and_only_as_many_as_must() -> None:
    doorkeeper = Doorkeeper(Bounds(held_bytes=100))
    small, large, larger = admitted(doorkeeper, 3)
    for stub, held in ((small, 20), (large, 40), (larger, 60)):
        doorkeeper.holds(guarded(stub), held)
    assert (small.aborted, large.aborted, larger.aborted) == (False, False, True)
    assert doorkeeper.held_bytes == 60
    doorkeeper.holds(guarded(large), 0)
    assert doorkeeper.held_bytes == 20


def test_large_messages_wait_for_their_turn_and_those_that_left_give_theirs_up() -> None:
    doorkeeper = Doorkeeper(Bounds(large=1))
    first, second, third = admitted(doorkeeper, 3)
    assert doorkeeper.begins_large(guarded(first))
    assert not doorkeeper.begins_large(guarded(second))
    assert not doorkeeper.begins_large(guarded(third))
    doorkeeper.left(guarded(second))
    doorkeeper.left(guarded(first))
    assert (second.turns, third.turns) == (0, 1)
    doorkeeper.ends_large(guarded(third))
    assert doorkeeper.begins_large(guarded(admitted(doorkeeper, 1)[0]))


@pytest.mark.parametrize("descriptors", [64, 256, 1024, 20_000, 2**20])
def test_bounds_leave_descriptors_to_the_rest_of_the_process(descriptors: int) -> None:
    bounds = Bounds().within(descriptors)
    assert bounds.sessions + bounds.strangers <= max(32, descriptors - 128)
    assert 1 <= bounds.strangers_of_an_address <= bounds.strangers


def test_what_happens_often_is_told_seldom_and_counted() -> None:
    seldom = Seldom()
    assert [seldom.due(now) for now in (0.0, 1.0, 9.9, 10.0, 11.0)] == [1, 0, 0, 3, 0]


async def test_room_is_had_in_the_order_it_was_asked_for() -> None:
    room = Budget(100)
    await room.wait(80)
    waiting = [asyncio.create_task(room.wait(size)) for size in (60, 10)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting), "the small one does not overtake"
    room.give_back(80)
    await asyncio.gather(*waiting)
    assert room.taken == 70


async def test_who_stops_waiting_for_room_takes_none() -> None:
    room = Budget(100)
    await room.wait(100)
    first, second = (asyncio.create_task(room.wait(size)) for size in (50, 40))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    room.give_back(100)
    await second
    assert room.taken == 40


async def test_what_is_larger_than_the_room_has_it_alone() -> None:
    room = Budget(100)
    await room.wait(500)
    following = asyncio.create_task(room.wait(1))
    await asyncio.sleep(0)
    assert not following.done()
    room.give_back(500)
    await following
