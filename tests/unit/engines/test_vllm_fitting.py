"""How far a picture shrinks so that it and its prompt fit into a model's context."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from caption_flow.worker.engines.vllm_fitting import (
    MAX_TRIES,
    MIN_FITTED_PIXELS,
    Rendered,
    Size,
    room_wanted,
    smaller,
)


def fitted(size: Size, budget: int, text: int, *, cap: int = 10**9) -> tuple[Size, int]:
    """Shrink for a model that spends a token on 28 x 28 pixels, of at most ``cap`` pixels."""

    def rendered(at: Size) -> Rendered:
        image = math.ceil(min(at[0] * at[1], cap) / 784)
        return Rendered(text + image, image)

    for _ in range(MAX_TRIES):
        if rendered(size).tokens <= budget:
            break
        target = smaller(size, rendered(size), budget)
        if target is None:
            break
        size = target
    return size, rendered(size).tokens


@given(st.integers(100, 2000), st.integers(100, 2000), st.integers(20, 3000), st.integers(0, 3000))
def test_it_fits_wherever_the_smallest_picture_would(
    width: int, height: int, budget: int, text: int
) -> None:
    size, tokens = fitted((width, height), budget, text)
    least = text + math.ceil(MIN_FITTED_PIXELS / 784) + 1
    assert tokens <= budget or least > budget
    assert size[0] <= width
    assert size[1] <= height
    assert size[0] * size[1] >= min(width * height, MIN_FITTED_PIXELS) * 0.9


def test_detail_is_not_given_away() -> None:
    size, tokens = fitted((1400, 1120), budget=1500, text=100)
    assert 1200 < tokens <= 1500
    assert abs(size[0] / size[1] - 1400 / 1120) < 0.02


def test_a_model_that_shrinks_pictures_itself_is_found_out() -> None:
    _, tokens = fitted((2000, 2000), budget=150, text=100, cap=100_000)
    assert tokens <= 150


def test_a_picture_is_never_shrunk_to_nothing() -> None:
    assert smaller((64, 64), Rendered(900, 4), 100) is None
    assert smaller((640, 640), Rendered(900, 500), 100) == (64, 64)


def test_an_answer_is_made_room_for_but_not_at_any_price() -> None:
    assert room_wanted(max_tokens=100, max_model_len=4096) == 100
    assert room_wanted(max_tokens=4096, max_model_len=4096) == 1024
    assert room_wanted(max_tokens=1, max_model_len=2) == 1
