"""What to say of columns that prompts name and a dataset does not have. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from caption_flow.recipe.spelling import did_you_mean, nearest

_NAMES_TOLD: Final = 20


def asked_for(missing: Iterable[str]) -> str:
    """Return the placeholders as prompts have them."""
    return " and ".join(f"{{column:{name}}}" for name in sorted(missing))


def suggested(missing: Iterable[str], there: Collection[str]) -> str:
    """Return the end of a sentence: names that may have been meant, and those there are."""
    meant = [name for name in (nearest(one, there) for one in sorted(missing)) if name]
    names = ", ".join(repr(name) for name in sorted(there)[:_NAMES_TOLD]) or "none at all"
    more = f" and {len(there) - _NAMES_TOLD} more" if len(there) > _NAMES_TOLD else ""
    offered = did_you_mean(" and ".join(map(repr, meant)) or None)
    return f"{offered}{' There' if offered else '; there'} are {names}{more}"
