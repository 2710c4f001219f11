"""Memory for images is shared: bounded, nobody stands still for others, large ones have a turn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caption_flow.orchestrator.core.turns import Ticket, Turns

BUDGET = 100
PORTION = 10


def turns() -> Turns:
    return Turns(budget=BUDGET, portion=PORTION)


def ask(turns: Turns, worker: str, *sizes: int) -> list[Ticket]:
    return [turns.ask(worker, size) for size in sizes]


def test_one_portion_is_ones_own_however_much_others_hold() -> None:
    line = turns()
    ask(line, "a", 60, 40, 40)
    assert len(line.admit()) == 2
    own, second = ask(line, "b", 10, 10)
    assert line.admit() == [own]
    line.give_back(own)
    assert line.admit() == [second]


def test_whoever_holds_least_comes_first_and_then_whoever_asked_first() -> None:
    line = turns()
    first, *_ = ask(line, "a", 50, 50)
    line.admit()
    waiting_a = ask(line, "a", 20)
    waiting_c = ask(line, "c", 20, 20)
    waiting_b = ask(line, "b", 20)
    line.give_back(first)
    admitted = line.admit()
    assert admitted == [waiting_c[0], waiting_b[0]]
    assert line.held == 90
    assert waiting_a[0] not in admitted


def test_nobody_goes_past_a_large_one_that_is_first() -> None:
    line = turns()
    held = ask(line, "a", 40, 40)
    line.admit()
    (large,) = ask(line, "b", 90)
    (small,) = ask(line, "c", 20)
    assert line.admit() == []
    line.give_back(held[0])
    assert line.admit() == []
    line.give_back(held[1])
    assert line.admit() == [large]
    line.give_back(large)
    assert line.admit() == [small]


def test_what_is_larger_than_the_budget_is_let_in_alone() -> None:
    line = turns()
    huge, second = ask(line, "a", 1000, 1000)
    (own,) = ask(line, "b", 5)
    assert line.admit() == [own, huge]
    (third,) = ask(line, "c", 11)
    assert line.admit() == []
    line.give_back(huge)
    assert line.admit() == [second]
    line.give_back(second)
    assert line.admit() == [third]


def test_what_turns_out_smaller_makes_room_and_what_is_larger_takes_it() -> None:
    line = turns()
    guessed, waiting = ask(line, "a", 80, 50)
    assert line.admit() == [guessed]
    line.shrink(guessed, 30)
    assert line.admit() == [waiting]
    line.shrink(waiting, 90)
    (later,) = ask(line, "b", 20)
    assert line.admit() == []
    line.give_back(guessed)
    assert line.admit() == []
    line.give_back(waiting)
    assert line.admit() == [later]


def test_whoever_leaves_the_line_is_not_waited_for() -> None:
    line = turns()
    held, large = ask(line, "a", 50, 90)
    (small,) = ask(line, "b", 60)
    assert line.admit() == [held]
    line.give_back(small)
    line.give_back(held)
    assert line.admit() == [large]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 150), st.integers(0, 5)), max_size=60)
)
def test_never_more_is_held_than_the_budget_and_the_portions_and_all_get_through(
    asked: list[tuple[str, int, int]],
) -> None:
    line = turns()
    open_tickets: list[Ticket] = []
    sizes: dict[Ticket, int] = {}
    for worker, size, release in asked:
        ticket = line.ask(worker, size)
        sizes[ticket] = size
        open_tickets += line.admit()
        assert line.held <= max(BUDGET, *sizes.values()) + 3 * PORTION
        if release < len(open_tickets):
            line.give_back(open_tickets.pop(release))
            open_tickets += line.admit()
    through = len(asked) - len(sizes)
    while open_tickets:
        line.give_back(open_tickets.pop(0))
        through += 1
        open_tickets += line.admit()
    assert line.held == 0
    assert line.admit() == []
    assert not line._waiting, "whoever asked has been let in"
