"""Flags: what they notice, and the ordinary captions they leave alone."""

from __future__ import annotations

import time

import pytest

from caption_flow.worker.core.judgement import (
    DUPLICATE_IMAGES,
    Judge,
    SeenTexts,
    is_loop,
    is_refusal,
    judge,
)

ORDINARY = [
    "A red car parked beside a wooden fence under an overcast sky.",
    "A person holds a cardboard sign that reads: “I cannot assist with that.”",
    '"I cannot help you", says the speech bubble above a robot with an apologetic face.',
    "I cannot make out the writing on the wall, but the street is wet and two dogs are playing.",
    "I can't see any people; a beach stretches to the horizon.",
    "Sorry-looking flowers droop in a vase. I'd call the mood melancholic.",
    "The image shows a letter which begins with the words I'm sorry, but I can't come home.",
    "As an aerial photograph, this shows a river delta with many arms.",
    "As an AI-generated image, it has six fingers on one hand.",
    "Unfortunately for the fisherman, the net is torn; three gulls wait behind him.",
    "A chessboard: black, white, black, white, black, white, in perfect order.",
    "No, no, no, no! says the caption of the comic.",
    "A very, very, very, very small bird on a very, very large hand.",
    "Row after row after row of seats, seats, and more seats fill the stadium.",
    "Ha ha ha ha ha ha! The clown laughs.",
    "red, blue, red, blue, red, green, red, yellow, blue, red, green, blue, yellow, red, white",
    "1. A cup. 2. A plate. 3. A fork. 4. A knife. 5. A spoon. 6. A glass. 7. A bowl. 8. A jug.",
    "Ich sehe einen Hund. Er tut mir leid, denn er ist nass.",
    "",
    "...",
    "猫が窓辺で眠っている。外は雨。",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_an_ordinary_caption_has_no_flag(text: str) -> None:
    assert judge(text or "x", "stop") == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I\u2019m sorry, I cannot describe this image.",
        "Sorry, I can't help with that request.",
        "I apologize, but I am unable to process this picture.",
        "I cannot assist with this request.",
        "I'm unable to view images.",
        "I am not able to provide a description of this content.",
        "I can't describe this image.",
        "As an AI language model, I cannot view images.",
        "Unfortunately, I won't be able to do this.",
        "I must decline to caption this.",
        "抱歉\uff0c我无法描述这张图片。",
        "对不起\uff0c我不能提供帮助。",
        "Es tut mir leid, aber ich kann dabei nicht helfen.",
        "Je suis désolé, mais je ne peux pas répondre.",
        "Lo siento, pero no puedo ayudar con eso.",
        "  i'm SORRY, but  i CAN'T help.",
    ],
)
def test_a_refusal_is_flagged(text: str) -> None:
    assert is_refusal(text)


def test_a_long_description_is_no_refusal_whatever_it_begins_with() -> None:
    text = "I'm sorry, but I can't identify the people. " + "Two men walk along a canal. " * 3
    assert is_refusal(text)
    told = "".join(f"Boat number {number} is moored by the quay. " for number in range(12))
    assert not is_refusal(text + told)


@pytest.mark.parametrize(
    "text",
    [
        "!" * 200,
        "A cat. " + "The cat sits on the mat. " * 10,
        "word " * 60,
        "A list: " + "red car, blue car, " * 12 + "and that is all there is to say about it.",
        "The sky\nis blue.\n" * 12,
        "天空是蓝色的" * 40,
        "the cat and the dog and the cat and the bird. " * 5,
        "A " + "Very Very VERY very " * 12,
        "x" * 39 + " " + ("A sentence of some length that a model has got stuck in, over " * 6),
    ],
)
def test_a_loop_is_flagged_wherever_it_is(text: str) -> None:
    assert is_loop(text)


def test_a_loop_is_seen_through_what_repeats_within_one_turn() -> None:
    twice = "the quick brown fox jumps over the dog, " * 2
    assert is_loop((twice + "a lazy cat; ") * 4 + "the")
    assert not is_loop((twice + "a lazy cat; ") * 3)


def test_judging_takes_linear_time() -> None:
    def seconds(text: str) -> float:
        began = time.perf_counter()
        judge(text, "stop")
        return time.perf_counter() - began

    words = " ".join(f"{number * 7919 % 1000:03d}" for number in range(100_000))
    assert seconds(words) < 2.0
    assert seconds("ab" * 50 + "c" + "a" * 79 + "d" * 79) < 0.1


def test_the_finish_reason_and_an_empty_text_are_flags() -> None:
    assert judge("A cat on", "length") == {"length"}
    assert judge(" \n", "stop") == {"empty"}


# --------------------------------------------------------------------------- beside others

SAME = "A white page with nothing on it at all."


def test_a_text_that_many_other_pictures_have_is_flagged() -> None:
    seen = SeenTexts()
    common = [seen.is_common("s", SAME, f"image {number}") for number in range(8)]
    assert common == [False] * DUPLICATE_IMAGES + [True] * (8 - DUPLICATE_IMAGES)
    assert not seen.is_common("other stage", SAME, "image 9")
    assert not seen.is_common("s", SAME + " Or so.", "image 9")


def test_copies_of_one_picture_may_have_one_text() -> None:
    seen = SeenTexts()
    assert not any(seen.is_common("s", SAME, "the same image") for _ in range(50))


def test_a_picture_is_not_among_the_others_it_is_compared_with() -> None:
    seen = SeenTexts()
    for number in range(DUPLICATE_IMAGES):
        seen.is_common("s", SAME, f"image {number}")
    assert not seen.is_common("s", SAME, "image 0"), "four others had it"


def test_short_texts_may_come_again_and_again() -> None:
    seen = SeenTexts()
    assert not any(seen.is_common("s", "A small red car.", f"{n}") for n in range(50))
    assert len(seen) == 0


def test_memory_is_bounded_by_texts_and_what_comes_again_is_kept() -> None:
    seen = SeenTexts(max_texts=10)
    for number in range(500):
        seen.is_common("s", f"{SAME} {number}", f"image {number}")
        if number < DUPLICATE_IMAGES:
            seen.is_common("s", SAME, f"image {number}")
        else:
            assert seen.is_common("s", SAME, f"image {number}")
    assert len(seen) == 10
    assert all(len(images) <= DUPLICATE_IMAGES + 1 for images in seen._images.values())


def test_where_the_recipe_sets_the_texts_neither_sameness_nor_wording_is_a_flag() -> None:
    judge_of = Judge()
    text = "I'm sorry, but I can't assist with that."
    for number in range(9):
        image = f"image {number}"
        found = judge_of.flags(text, "stop", stage="s", image=image, is_free=False)
        assert found == frozenset()
    free = [judge_of.flags(text, "length", stage="s", image=f"{n}", is_free=True) for n in range(9)]
    assert free[0] == {"length", "refusal"}
    assert free[-1] == {"length", "refusal", "duplicate"}
