"""What the scenes promise: pictures one can check, and texts that follow from them exactly."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.tiny_vlm import scenes
from tests.tiny_vlm.scenes import COLORS, PALETTE, SHAPES, Figure, Scene

ONE = Scene("white", (Figure("circle", "red", 0.5, 0.5, 0.3),))
TWO = Scene(
    "blue",
    (
        Figure("cross", "orange", 0.25, 0.5, 0.2),
        Figure("triangle", "yellow", 0.75, 0.5, 0.2),
    ),
)


def some_scenes(count: int) -> list[Scene]:
    rng = random.Random(7)
    return [scenes.random_scene(rng) for _ in range(count)]


# --- Texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (ONE, "a red circle on a white background"),
        (TWO, "an orange cross and a yellow triangle on a blue background"),
    ],
)
def test_the_short_caption_names_figures_from_left_to_right_then_the_background(
    scene: Scene, caption: str
) -> None:
    assert scenes.short_caption(scene) == caption


def test_the_detailed_caption_of_one_figure() -> None:
    assert scenes.detailed_caption(ONE) == (
        "The image shows a single red circle. The circle is solid red with crisp edges, "
        "and it stands out clearly against a plain white background."
    )


def test_the_detailed_caption_of_two_figures_says_which_is_on_which_side() -> None:
    assert scenes.detailed_caption(TWO) == (
        "The image shows two shapes side by side. On the left there is an orange cross, "
        "and on the right there is a yellow triangle. "
        "Both stand out clearly against a plain blue background."
    )


@pytest.mark.parametrize(
    ("answer", "one", "two"),
    [
        (
            scenes.condensed_caption,
            "red circle, white background",
            "orange cross, yellow triangle, blue background",
        ),
        (
            scenes.tags,
            "red_circle, white_background",
            "orange_cross, yellow_triangle, blue_background",
        ),
        (scenes.background_answer, "white", "blue"),
        (scenes.count_answer, "one", "two"),
    ],
)
def test_every_other_answer_follows_from_the_scene(
    answer: Callable[[Scene], str], one: str, two: str
) -> None:
    assert (answer(ONE), answer(TWO)) == (one, two)


@pytest.mark.parametrize(
    "caption",
    [scenes.short_caption, scenes.detailed_caption, scenes.condensed_caption, scenes.tags],
)
def test_scenes_that_look_different_never_share_a_caption(caption: Callable[[Scene], str]) -> None:
    looks = {(s.background, *((f.color, f.shape) for f in s.figures)): s for s in some_scenes(400)}
    assert len({caption(scene) for scene in looks.values()}) == len(looks)


def test_only_prompts_that_quote_a_caption_have_a_place_for_one() -> None:
    quoting = (*scenes.CONDENSE_PROMPTS, *scenes.TAG_PROMPTS)
    looking = (
        *scenes.SHORT_PROMPTS,
        *scenes.DETAILED_PROMPTS,
        *scenes.KEY_ELEMENTS_PROMPTS,
        *scenes.BACKGROUND_PROMPTS,
        *scenes.COUNT_PROMPTS,
    )
    assert [prompt.count("{caption}") for prompt in quoting] == [1] * len(quoting)
    assert not [prompt for prompt in looking if "{" in prompt]


def test_no_prompt_asks_for_two_different_answers() -> None:
    groups = (
        scenes.SHORT_PROMPTS,
        scenes.DETAILED_PROMPTS,
        scenes.CONDENSE_PROMPTS,
        scenes.TAG_PROMPTS,
        scenes.KEY_ELEMENTS_PROMPTS,
        scenes.BACKGROUND_PROMPTS,
        scenes.COUNT_PROMPTS,
    )
    prompts = [prompt for group in groups for prompt in group]
    assert len(set(prompts)) == len(prompts)


# --- Random scenes --------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_scenes() -> None:
    assert some_scenes(20) == some_scenes(20)


def test_no_two_things_in_a_scene_have_one_colour() -> None:
    for scene in some_scenes(200):
        colors = [scene.background, *(figure.color for figure in scene.figures)]
        assert len(set(colors)) == len(colors)


def test_every_shape_occurs_in_every_colour_on_either_side_and_alone() -> None:
    seen = {
        (len(scene.figures), place, figure.shape, figure.color)
        for scene in some_scenes(1500)
        for place, figure in enumerate(scene.figures)
    }
    assert len(seen) == 3 * len(SHAPES) * len(COLORS)


def test_figures_stay_clear_of_the_edge_and_of_each_other() -> None:
    for scene in some_scenes(200):
        for figure in scene.figures:
            assert figure.radius < figure.x < 1 - figure.radius
            assert figure.radius < figure.y < 1 - figure.radius
        for left, right in zip(scene.figures, scene.figures[1:], strict=False):
            assert left.x + left.radius < right.x - right.radius


def test_recolouring_keeps_the_geometry() -> None:
    repainted = scenes.recolored(TWO, random.Random(1))
    assert [(f.shape, f.x, f.y, f.radius) for f in repainted.figures] == [
        (f.shape, f.x, f.y, f.radius) for f in TWO.figures
    ]
    assert repainted != TWO


# --- Pictures -------------------------------------------------------------------------------------


def test_a_picture_has_the_size_asked_for() -> None:
    assert scenes.render(ONE, 84, 112).size == (84, 112)


def test_figures_are_drawn_where_and_as_the_scene_says() -> None:
    picture = scenes.render(TWO, 200, 100)
    assert picture.getpixel((50, 50)) == PALETTE["orange"]
    assert picture.getpixel((150, 50)) == PALETTE["yellow"]
    assert picture.getpixel((100, 50)) == PALETTE["blue"]


def test_the_radius_is_measured_along_the_shorter_side() -> None:
    box = scenes.figure_mask(ONE.figures[0], 300, 100).getbbox()
    assert box == (120, 20, 181, 81)


# Points that tell the shapes apart, for a figure of radius 40 in the middle of 100 x 100 pixels.
PROBES = {
    "middle": (50, 50),
    "far left": (12, 50),
    "diagonal": (24, 24),
    "top left corner": (18, 18),
    "bottom left corner": (18, 78),
}
COVERED = {
    "circle": {"middle", "far left", "diagonal"},
    "square": {"middle", "diagonal", "top left corner", "bottom left corner"},
    "triangle": {"middle", "bottom left corner"},
    "cross": {"middle", "far left"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_what_makes_it_that_shape(shape: str) -> None:
    mask = scenes.figure_mask(Figure(shape, "red", 0.5, 0.5, 0.4), 100, 100)
    covered = {name for name, point in PROBES.items() if mask.getpixel(point) == 255}
    assert covered == COVERED[shape]


def test_an_unknown_shape_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'heptagon'; known: circle, square, triangle, cross"):
        scenes.figure_mask(Figure("heptagon", "red", 0.5, 0.5, 0.4), 28, 28)


@pytest.mark.parametrize("levels", [5, 60])
def test_a_jittered_palette_stays_within_its_levels_and_within_a_byte(levels: int) -> None:
    for name, color in scenes.jittered_palette(random.Random(3), levels).items():
        for moved, channel in zip(color, PALETTE[name], strict=True):
            assert abs(moved - channel) <= levels
            assert 0 <= moved <= 255


def test_jitter_moves_colours_and_no_jitter_leaves_them() -> None:
    assert scenes.jittered_palette(random.Random(3), 12) != PALETTE
    assert scenes.jittered_palette(random.Random(3), 0) == PALETTE


def test_a_picture_is_painted_from_the_palette_it_is_given() -> None:
    palette = dict(PALETTE) | {"white": (1, 2, 3), "red": (4, 5, 6)}
    picture = scenes.render(ONE, 28, 28, palette=palette)
    assert picture.getpixel((0, 0)) == (1, 2, 3)
    assert picture.getpixel((14, 14)) == (4, 5, 6)
