"""What counts as an engine's silence, and what does not."""

from __future__ import annotations

from caption_flow.worker.core.silence import Silence


def silence_after(*looks: tuple[float, int, bool], longest_gap: float = 10.0) -> float:
    """Return the silence after looks at (now, beats, busy)."""
    silence = Silence(longest_gap)
    return [silence.look(beats, busy=busy, now=now) for now, beats, busy in looks][-1]


def test_silence_adds_up_while_requests_are_in_the_engine() -> None:
    assert silence_after((0, 7, True), (4, 7, True), (9, 7, True)) == 9


def test_a_sign_of_life_ends_it() -> None:
    assert silence_after((0, 7, True), (9, 7, True), (10, 8, True)) == 0
    assert silence_after((0, 7, True), (9, 7, True), (10, 8, True), (12, 8, True)) == 2


def test_an_idle_engine_is_never_silent() -> None:
    assert silence_after((0, 7, False), (9, 7, False), (18, 7, False)) == 0
    assert silence_after((0, 7, True), (9, 7, False)) == 0


def test_silence_begins_with_the_first_look_that_finds_a_request() -> None:
    assert silence_after((0, 7, False), (9, 7, True)) == 0
    assert silence_after((0, 7, True), (5, 7, False), (9, 7, True), (10, 7, True)) == 1


def test_a_process_that_was_stopped_for_hours_does_not_blame_the_engine() -> None:
    assert silence_after((0, 7, True), (5, 7, True), (7205, 7, True)) == 15
