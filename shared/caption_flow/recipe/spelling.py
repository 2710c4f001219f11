"""The nearest valid spelling of a name somebody mistyped. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

LIKELY: Final = 0.6
"""How alike (0 to 1) a name must be to be offered when the given one is wrong anyway."""


def nearest(word: str, candidates: Iterable[str], *, cutoff: float = LIKELY) -> str | None:
    """Return the candidate most like the word, capitals aside, or None; never the word itself."""
    by_folded = {candidate.casefold(): candidate for candidate in candidates if candidate != word}
    found = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=cutoff)
    return by_folded[found[0]] if found else None


def did_you_mean(suggestion: str | None) -> str:
    """Return the end of a sentence that offers the suggestion, or nothing."""
    return "" if suggestion is None else f"; did you mean {suggestion}?"
