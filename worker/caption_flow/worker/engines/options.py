"""What engines' options have in common: a default, and the nearest spelling for a wrong name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

DEFAULT_MAX_TOKENS: Final = 256
"""Longest answer in tokens when a stage names none: engines' own defaults cut every caption, or
none at all."""


NO_WHOLE_VIDEOS: Final = (
    "the engine openai passes videos as images alone: servers take whole ones each in its own way, "
    "if at all; set dataset.video.passed_as (--video-as) to images"
)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name closest to ``name``, or None when none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def unknown_option(where: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence that refuses the option ``name`` found in ``where``."""
    guess = nearest(name, known)
    hint = f"; did you mean '{guess}'?" if guess else ""
    return f"{where}: unknown option '{name}'{hint}"
