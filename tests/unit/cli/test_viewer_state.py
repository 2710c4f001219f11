"""What keys do, without a terminal: events in, effects out."""

from __future__ import annotations

from typing import Any

import pytest

from caption_flow.cli.viewer.state import (
    Counted,
    Effect,
    Found,
    Leave,
    Load,
    Loaded,
    Look,
    LookForNews,
    Pressed,
    Progressed,
    StopLooking,
    Suspend,
    Troubled,
    Viewer,
)

FIELDS = ("long", "short")


def viewer(total: int = 10, **settings: Any) -> Viewer:
    made = Viewer(**settings)
    made.handle(Counted(total, FIELDS))
    return made


def press(made: Viewer, *keys: str) -> list[Effect]:
    return [effect for key in keys for effect in made.handle(Pressed(key))]


def look(effects: list[Effect]) -> Look:
    (effect,) = effects
    assert isinstance(effect, Look)
    return effect


@pytest.mark.parametrize("key", ["j", "n", "down", "right", " "])
def test_next_goes_on_by_one_and_stops_at_the_end(key: str) -> None:
    made = viewer(2)
    assert press(made, key) == [Load(1)]
    assert press(made, key) == []
    assert (made.position, made.message) == (1, "this is the last item")


@pytest.mark.parametrize("key", ["k", "p", "up", "left"])
def test_previous_goes_back_by_one_and_stops_at_the_beginning(key: str) -> None:
    made = viewer()
    press(made, "j", "j")
    assert press(made, key) == [Load(1)]
    press(made, key)
    assert press(made, key) == []
    assert (made.position, made.message) == (0, "this is the first item")


def test_first_last_and_any_number_are_one_step_away() -> None:
    made = viewer()
    assert press(made, "G") == [Load(9)]
    assert press(made, "g") == [Load(0)]
    assert press(made, *":7", "enter") == [Load(6)]
    assert press(made, *":1,000", "enter") == [Load(9)]
    assert press(made, *":0", "enter") == [Load(0)]
    assert press(made, *":x", "enter") == []
    assert made.message == "'x' is no number of an item"


def test_new_rows_leave_the_item_on_the_screen_where_it_is() -> None:
    made = viewer()
    press(made, "j", "j")
    assert made.handle(Counted(20, FIELDS, position=5)) == [Load(5)]
    assert (made.position, made.total) == (5, 20)
    # What was taken back has no position any more; there may be fewer rows than before.
    assert made.handle(Counted(3, FIELDS, position=None)) == [Load(2)]
    assert made.handle(Counted(0, FIELDS)) == []
    assert made.row is None
    assert made.handle(Counted(1, FIELDS)) == [Load(0)]


def test_a_row_that_comes_late_is_not_taken_for_another_one() -> None:
    made = viewer()
    press(made, "j")
    made.handle(Loaded(0, {"item_index": 0}))
    assert made.row is None
    made.handle(Loaded(1, {"item_index": 1}))
    assert made.row == {"item_index": 1}
    assert made.handle(Loaded(1, None)) == [LookForNews()]


def test_a_search_begins_at_this_item_and_n_goes_on_behind_it() -> None:
    made = viewer()
    press(made, "j")
    asked = look(press(made, *"/a dog", "enter"))
    assert (asked.start, asked.backward, asked.text) == (1, False, "a dog")
    assert made.handle(Found(asked.number, 4)) == [Load(4)]
    onward = look(press(made, "n"))
    assert (onward.start, onward.backward) == (5, False)
    made.handle(Found(onward.number, None))
    assert (made.position, made.message) == (4, "'a dog' is not below; N looks above")
    back = look(press(made, "N"))
    assert (back.start, back.backward) == (3, True)
    made.handle(Found(back.number, None))
    assert made.message == "'a dog' is not above; n looks below"
    assert press(made, "j") == [Load(5)]
    press(made, "/", "enter")
    assert press(made, "n") == [Load(6)]


def test_a_search_can_be_stopped_and_its_late_answer_changes_nothing() -> None:
    made = viewer()
    asked = look(press(made, *"/dog", "enter"))
    made.handle(Progressed(asked.number, 5000))
    assert made.looking is not None
    assert made.looking.rows == 5000
    assert press(made, "j") == []
    assert press(made, "escape") == [StopLooking()]
    assert made.looking is None
    assert made.message == "stopped"
    assert made.handle(Found(asked.number, 7)) == []
    again = look(press(made, *"/cat", "enter"))
    assert made.handle(Found(asked.number, 7)) == []
    assert made.position == 0
    assert made.handle(Found(again.number, 5)) == [Load(5)]


def test_keys_typed_during_a_look_count_after_it() -> None:
    made = viewer(ending="ok")
    first = look([Look(1, 0, False, "ok", "")])
    assert press(made, "j", "j") == []
    effects = made.handle(Found(first.number, 2))
    assert effects[0] == Load(2)
    second = look(effects[1:])
    assert second.start == 3
    effects = made.handle(Found(second.number, 6))
    assert look(effects[1:]).start == 7


def test_a_filter_shows_the_nearest_item_that_is_left() -> None:
    made = viewer()
    press(made, *":6", "enter")
    asked = look(press(made, "f"))
    assert (asked.start, asked.backward, asked.ending) == (5, False, "ok")
    above = look(made.handle(Found(asked.number, None)))
    assert (above.start, above.backward) == (4, True)
    assert made.handle(Found(above.number, 3)) == [Load(3)]
    assert look(press(made, "G")) == Look(3, 9, backward=True, ending="ok", text="")


def test_a_filter_that_leaves_nothing_is_said_and_passed_over() -> None:
    made = viewer()
    asked = look(press(made, "f"))
    asked = look(made.handle(Found(asked.number, None)))
    assert (asked.ending, made.message) == ("flagged", "no item is ok")
    asked = look(made.handle(Found(asked.number, None)))
    assert made.handle(Found(asked.number, None)) == []
    assert (made.ending, made.message, made.position) == (None, "no item is failed", 0)


def test_with_a_filter_from_the_start_the_view_waits_for_its_first_item() -> None:
    made = Viewer(ending="failed")
    asked = look(made.handle(Counted(3, FIELDS)))
    assert (asked.start, asked.ending) == (0, "failed")
    made.handle(Found(asked.number, None))
    assert made.position is None
    again = look(made.handle(Counted(4, FIELDS)))
    assert made.handle(Found(again.number, 3)) == [Load(3)]
    assert press(made, "j") == []


def test_a_search_from_the_start_that_finds_nothing_shows_what_there_is() -> None:
    made = Viewer(search="dog")
    asked = look(made.handle(Counted(3, FIELDS)))
    assert asked.text == "dog"
    assert made.handle(Found(asked.number, None)) == [Load(0)]
    assert made.message == "'dog' is nowhere so far"


def test_a_condition_of_the_command_line_is_looked_for_as_a_filter_is() -> None:
    made = Viewer(is_conditioned=True)
    asked = look(made.handle(Counted(3, FIELDS)))
    made.handle(Found(asked.number, 1))
    assert look(press(made, "k")).backward


def test_fields_are_shown_together_then_each_alone() -> None:
    made = viewer()
    seen = []
    for _ in range(3):
        press(made, "t")
        seen.append(made.shown)
    assert seen == [("long",), ("short",), ()]
    chosen, seen = viewer(shown=("short",)), []
    for _ in range(3):
        press(chosen, "t")
        seen.append(chosen.shown)
    assert seen == [(), ("long",), ("short",)]


def test_space_shows_more_of_a_long_text_before_it_goes_on() -> None:
    made = viewer()
    made.note_layout(lines=25, height=10)
    assert press(made, " ") == []
    assert made.scroll == 9
    press(made, " ")
    assert made.scroll == 15
    assert press(made, " ") == [Load(1)]
    assert made.scroll == 0
    made.note_layout(lines=25, height=10)
    press(made, "page-down", "u", "u")
    assert made.scroll == 0


def test_a_prompt_is_edited_and_given_up() -> None:
    made = viewer()
    press(made, *"/dgo", "backspace", "backspace", *"og", "up")
    assert made.prompt is not None
    assert made.prompt.text == "dog"
    press(made, "ctrl-u", *"cat")
    assert press(made, "escape", "j") == [Load(1)]
    assert made.search == ""
    press(made, "/", "backspace")
    assert made.prompt is None
    assert press(made, "/", "q", "ctrl-c") == []


@pytest.mark.parametrize("key", ["q", "ctrl-c", "ctrl-d"])
def test_leaving(key: str) -> None:
    assert press(viewer(), key) == [Leave()]
    assert press(Viewer(), key) == [Leave()]


def test_help_goes_away_with_any_key_and_q_leaves_from_it_and_from_a_look() -> None:
    made = viewer()
    assert press(made, "?", "j") == []
    assert not made.is_helping
    assert press(made, "?", "q") == [Leave()]
    assert press(made, *"/dog", "enter")
    assert press(made, "q") == [Leave()]


def test_other_keys() -> None:
    made = viewer()
    assert press(made, "r") == [LookForNews()]
    assert press(made, "ctrl-z") == [Suspend()]
    assert press(made, "i", "x", "tab") == []
    assert not made.pictures
    made.handle(Troubled("the part cannot be read"))
    assert made.message == "the part cannot be read"


def test_nothing_goes_wrong_where_there_is_nothing() -> None:
    made = Viewer()
    made.handle(Counted(0))
    for key in ("j", "k", "n", "N", "g", "G", "f", "f", "f", "f", "t", " ", "d", "u"):
        assert press(made, key) == [], key
    assert press(made, *"/dog", "enter") == []
    assert press(made, *":4", "enter") == []
