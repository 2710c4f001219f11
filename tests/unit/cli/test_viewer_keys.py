"""A terminal's bytes become the same keys in whatever pieces they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_flow.cli.viewer.keys import Answer, Key, KeyDecoder

BYTES = (
    "n\x1b[A\x1bOB\x1b[5~\x1b[6;5~\x1b[H/déjà 日本\r\x7f\x03\x15\x1b[1;2C".encode()
    + b"\x1b_Gi=31;OK\x1b\\\x1b[6;20;10t\x1b[?62;4;22c\x1b]11;rgb:0/0/0\x07\x1bP1+r\x1b\\q"
)
KEYS = [
    *map(Key, ("n", "up", "down", "page-up", "page-down", "home", "/", *"déjà 日本")),
    *map(Key, ("enter", "backspace", "ctrl-c", "ctrl-u", "right")),
    Answer("kitty"),
    Answer("cell", (10, 20)),
    Answer("sixel"),
    Key("q"),
]


@given(st.lists(st.integers(1, 9)))
def test_pieces_make_no_difference(lengths: list[int]) -> None:
    decoder, found, at = KeyDecoder(), [], 0
    for length in lengths:
        found += decoder.feed(BYTES[at : at + length])
        at += length
    found += decoder.feed(BYTES[at:])
    assert found == KEYS
    assert not decoder.is_waiting


def test_escape_is_a_key_when_nothing_follows() -> None:
    decoder = KeyDecoder()
    assert decoder.feed(b"\x1b") == []
    assert decoder.is_waiting
    assert decoder.give_up_waiting() == [Key("escape")]
    assert decoder.feed(b"j") == [Key("j")]
    assert decoder.feed(b"\x1bj") == [Key("escape"), Key("j")]
    assert decoder.feed(b"\x1b[") == decoder.give_up_waiting() == []


@pytest.mark.parametrize(
    "answer",
    [b"\x1b_Gi=31;ENOTSUPPORTED\x1b\\", b"\x1b[?62;22c", b"\x1b[>4;1c", b"\x1b[6;0;10t"],
)
def test_what_a_terminal_cannot_do_is_not_believed(answer: bytes) -> None:
    assert KeyDecoder().feed(answer) == []


@given(st.binary(max_size=200))
def test_any_bytes_are_taken(data: bytes) -> None:
    decoder = KeyDecoder()
    found = decoder.feed(data) + decoder.give_up_waiting()
    assert all(len(one.name) > 1 or one.name.isprintable() for one in found if isinstance(one, Key))


def test_a_sequence_that_never_ends_is_not_kept() -> None:
    decoder = KeyDecoder()
    decoder.feed(b"\x1b_" + b"x" * 10_000)
    assert not decoder.is_waiting
