"""When frames are taken: so many times, ascending, inside the video, and what is shown then."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from caption_flow.recipe.video import frame_times
from caption_flow.worker.core.frames import choose_frames

COUNTS = st.integers(1, 200)
DURATIONS = st.fractions(min_value=Fraction(1, 1_000_000), max_value=1_000_000)


@given(COUNTS, DURATIONS)
def test_times_are_so_many_ascending_and_inside(count: int, duration: Fraction) -> None:
    times = frame_times(count, duration)
    assert len(times) == count
    assert all(earlier < later for earlier, later in pairwise(times))
    assert times[0] > 0
    assert times[-1] < duration


@given(COUNTS, DURATIONS)
def test_times_are_the_midpoints_of_equal_spans(count: int, duration: Fraction) -> None:
    span = duration / count
    times = frame_times(count, duration)
    assert times == [span * number + span / 2 for number in range(count)]


@st.composite
def videos(draw: st.DrawFn) -> tuple[list[int], int]:
    """When frames begin, spaced anyhow, and when the last one ends."""
    gaps = draw(st.lists(st.integers(1, 5000), min_size=1, max_size=60))
    starts = [draw(st.integers(-10_000, 10_000))]
    for gap in gaps[:-1]:
        starts.append(starts[-1] + gap)
    return starts, starts[-1] + gaps[-1]


@given(videos(), COUNTS)
def test_each_chosen_frame_is_the_one_shown_at_a_time(
    video: tuple[list[int], int], count: int
) -> None:
    starts, end = video
    chosen = choose_frames(starts, end, count)
    assert chosen == sorted(set(chosen)), "ascending, each once"
    ends = [*starts[1:], end]
    for time in frame_times(count, Fraction(end - starts[0])):
        shown = [at for at in chosen if starts[at] <= starts[0] + time < ends[at]]
        assert len(shown) == 1, f"nothing is shown at {time}"
    assert len(chosen) <= min(count, len(starts))


@given(st.integers(1, 60), st.integers(1, 60))
def test_with_as_many_frames_as_asked_for_or_fewer_all_are_taken(frames: int, count: int) -> None:
    starts = list(range(0, 100 * frames, 100))
    chosen = choose_frames(starts, 100 * frames, count)
    assert len(chosen) == min(count, frames)


def test_a_single_picture_is_a_video_too() -> None:
    assert choose_frames([7], 7, 8) == [0]
