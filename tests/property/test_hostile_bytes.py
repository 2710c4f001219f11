"""Bytes from strangers: what fuzzing begins with, changed in a few places, does no harm."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import ROWS, honest, seeds
from tests.fuzz.targets import TARGETS, rows

READERS = sorted(set(TARGETS) - {"image"})  # images have a test of their own


@functools.cache
def seeds_of(target: str) -> list[bytes]:
    return seeds(target)


@st.composite
def changed(draw: st.DrawFn, target: str) -> bytes:
    """A seed with some bytes set, put in, taken out or repeated, or its end missing."""
    data = bytearray(draw(st.sampled_from(seeds_of(target))))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["set", "insert", "delete", "cut", "fill", "repeat"])):
            case "set":
                data[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del data[place : place + draw(st.integers(1, 32))]
            case "cut":
                del data[place:]
            case "fill":
                some = [b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\xff" * 8]
                filling = draw(st.sampled_from(some))
                data[place : place + len(filling)] = filling
            case "repeat":
                data[place:place] = data[place : place + 64]
    return bytes(data)


@pytest.mark.parametrize("target", READERS)
def test_what_fuzzing_begins_with_and_once_found_does_no_harm(target: str) -> None:
    assert len(seeds_of(target)) >= 2
    for data in seeds_of(target):
        TARGETS[target](data)


def test_the_kept_seeds_are_what_honest_peers_say_today() -> None:
    for target, data in honest():
        assert data in seeds_of(target), "run: python -m tests.fuzz.seeds"


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_changed_bytes_are_understood_or_refused(data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(READERS))
    TARGETS[target](data.draw(changed(target)))


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(READERS), st.binary(max_size=300))
def test_any_bytes_are_understood_or_refused(target: str, data: bytes) -> None:
    TARGETS[target](data)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, len(ROWS) - 8), st.binary(min_size=1, max_size=8))
def test_rows_with_a_number_changed_anywhere_are_stored_right_or_refused(
    place: int, number: bytes
) -> None:
    rows(ROWS[:place] + number + ROWS[place + len(number) :])
