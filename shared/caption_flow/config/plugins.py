"""Sources that other packages bring, by the entry points they have declared."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Final

GROUP: Final = "caption_flow.sources"


def plugged_in(kind: str) -> EntryPoint | None:
    """Return the entry point of an installed source of this kind, if there is one."""
    found = entry_points(group=GROUP, name=kind)
    return next(iter(found), None)


def plugged_in_kinds() -> list[str]:
    """Return the kinds that installed packages bring."""
    return sorted(entry_points(group=GROUP).names)
