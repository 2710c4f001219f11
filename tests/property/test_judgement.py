"""Flags over texts nobody thought of: what is in order stays unflagged, what loops never does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caption_flow.recipe.quality import FLAGS
from caption_flow.worker.core.judgement import (
    MIN_LOOP_CHARACTERS,
    MIN_LOOP_TURNS,
    is_loop,
    is_refusal,
    judge,
)

WORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=9)
SENTENCES = st.lists(WORDS, min_size=1, max_size=12).map(" ".join)


@given(st.text(max_size=600), st.sampled_from(["stop", "length", "unknown"]))
def test_any_text_is_judged(text: str, reason: str) -> None:
    flags = judge(text, reason)
    assert flags <= set(FLAGS)
    assert ("length" in flags) == (reason == "length")
    assert ("empty" in flags) == (not text.strip())


@given(st.lists(SENTENCES, max_size=40, unique=True))
def test_sentences_that_all_differ_by_number_are_no_loop(sentences: list[str]) -> None:
    text = " ".join(f"{number}: {sentence}." for number, sentence in enumerate(sentences))
    assert not is_loop(text)


@given(SENTENCES, st.text(max_size=200), st.text(max_size=60), st.integers(0, 40))
def test_whatever_goes_on_long_enough_is_a_loop(
    unit: str, before: str, after: str, more: int
) -> None:
    turn = f"{unit}, "
    turns = max(MIN_LOOP_TURNS, MIN_LOOP_CHARACTERS // len(turn) + 1) + 40 // len(turn) + 2 + more
    assert is_loop(f"{before}{turn * turns}{after}")


@given(SENTENCES, st.integers(1, MIN_LOOP_TURNS - 1))
def test_a_sentence_said_a_few_times_is_no_loop(sentence: str, turns: int) -> None:
    # Longer than any loop's own inner repetition could make up for.
    words = [f"{word}{number}" for number, word in enumerate(sentence.split())]
    assert not is_loop(f"{' '.join(words)}. " * turns)


@given(SENTENCES, st.sampled_from(["“", '"', "A sign says: ", "The text reads "]))
def test_a_refusal_that_is_quoted_is_none(sentence: str, opening: str) -> None:
    assert not is_refusal(f"{opening}I'm sorry, but I can't assist with that. {sentence}")
