"""What a run would find in a dataset."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

SHOWN: Final = 10
"""So many of the items that would be captioned are named."""


@dataclass(slots=True)
class Outlook:
    """What a run would find: images to caption, done ones, and those that have a ``.txt``.

    ``shards`` counts those of a dataset that is no folder of images; ``passed_over`` says why some
    cannot be read, or not wholly. ``videos`` counts those that would be skipped.
    """

    wanted: int = 0
    done: int = 0
    left_out: int = 0
    beyond_limit: int = 0
    first: list[str] = field(default_factory=list)
    shards: int = 0
    passed_over: dict[str, str] = field(default_factory=dict)
    videos: int = 0

    @property
    def total(self) -> int:
        """Every image there is."""
        return self.wanted + self.done + self.left_out + self.beyond_limit
