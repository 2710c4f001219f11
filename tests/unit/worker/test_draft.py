"""What becomes of an answer: a text of the row, or the reason why there is none."""

from __future__ import annotations

import pytest

from caption_flow.protocol.rows import MAX_TEXT_BYTES
from caption_flow.recipe.stages import Stage, build_recipe
from caption_flow.worker.draft import Answer, Draft, ItemError
from caption_flow.worker.engines.base import Completion

RECIPE = build_recipe([Stage("one", "m", ("a",), "captions")])


def answered(text: str) -> Draft:
    draft = Draft(0, RECIPE)
    draft.add(RECIPE.stages[0], [Answer(Completion(text, 1, 1, "stop"))], model="m", seconds=1.0)
    return draft


def test_white_space_around_an_answer_is_none_of_its_text() -> None:
    assert answered("\n \t A cat.\n\nAnd a dog. \n").captioned().outputs == {
        "captions": ["A cat.\n\nAnd a dog."]
    }


@pytest.mark.parametrize("letter", ["x", "é", "🐙"])
def test_the_longest_text_that_orchestrators_take_is_a_caption(letter: str) -> None:
    text = letter * (MAX_TEXT_BYTES // len(letter.encode()))
    assert list(answered(text).captioned().outputs["captions"]) == [text]


@pytest.mark.parametrize("letter", ["x", "é", "🐙"])
def test_a_longer_one_is_the_items_failure_and_not_the_sessions_end(letter: str) -> None:
    with pytest.raises(ItemError, match="lower max_tokens") as caught:
        answered(letter * (MAX_TEXT_BYTES // len(letter.encode()) + 1))
    assert caught.value.kind == "text_too_long"
