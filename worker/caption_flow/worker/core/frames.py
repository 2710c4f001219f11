"""Which frames of a video are looked at. Pure: times of frames in, positions out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction

from caption_flow.recipe.video import frame_times


def choose_frames(starts: Sequence[int], end: int, count: int) -> list[int]:
    """Return the positions of the frames shown at `frame_times`, ascending, each once.

    ``starts`` says, ascending, when each frame begins to be shown, ``end`` when the last one ceases
    to be; in any unit. There are fewer than ``count`` where one frame is shown at several times.
    """
    first = starts[0]
    times = frame_times(count, Fraction(max(end, starts[-1]) - first))
    return list(dict.fromkeys(bisect_right(starts, first + time) - 1 for time in times))
