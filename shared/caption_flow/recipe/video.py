"""What a model is shown of a video: how many frames, of when, and in which form. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

Form = Literal["images", "video"]
IMAGES: Final[Form] = "images"
VIDEO: Final[Form] = "video"

DEFAULT_FRAMES: Final = 8
MOST_FRAMES: Final = 128
DEFAULT_MAX_BYTES: Final = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Video:
    """How videos are shown: at most so many ``frames``, ``passed_as`` images or as one video.

    A file of more than ``max_bytes`` is not looked at.
    """

    frames: int = DEFAULT_FRAMES
    passed_as: Form = IMAGES
    max_bytes: int = DEFAULT_MAX_BYTES


def frame_times(count: int, duration: Fraction) -> list[Fraction]:
    """Return when to look at a video of ``duration``: the midpoints of ``count`` equal spans.

    With N frames, number k (from 0) is at duration * (2k + 1) / 2N. The units are the caller's.
    """
    return [duration * (2 * number + 1) / (2 * count) for number in range(count)]
