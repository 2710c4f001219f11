"""What an export did, in numbers and, where an item did not get its file, in sentences."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from caption_flow.storage.contents import displayed

MAX_PROBLEMS: Final = 20
"""Sentences kept; the numbers count every case."""


class Skip(StrEnum):
    """Why an item got no file."""

    EXISTING = "existing"
    """There is a file already and the export was asked to leave those alone."""
    FAILED = "failed"
    """The item has no result."""
    EMPTY = "empty"
    """The item has a result without any text."""
    CONFLICT = "conflict"
    """Another item's file, or something that is no file, has the name."""
    NOT_CHOSEN = "not chosen"
    """The status or the filter that was asked for is another."""
    BAD_NAME = "bad name"
    """The item's name is missing, leads out of the folder, or is none this disk can hold."""
    UNREADABLE = "unreadable"
    """The item's image cannot be read now."""
    CHANGED = "changed"
    """The item's image has become another since it was captioned."""


@dataclass(slots=True)
class ExportReport:
    """What one export did: files for one-file-per-item formats, rows for the others.

    ``replaced`` and ``appended`` count those of ``written`` whose file had other text before, and
    ``backed_up`` the copies that were kept of it.
    ``problems`` holds at most `MAX_PROBLEMS` sentences.
    """

    destination: Path
    written: int = 0
    unchanged: int = 0
    replaced: int = 0
    appended: int = 0
    backed_up: int = 0
    skipped: Counter[Skip] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    address: str | None = None
    """Where it went, if that is no path; ``destination`` is then what it went through."""

    @property
    def shown(self) -> Path | str:
        """Where it went, for people."""
        return self.address or self.destination

    @property
    def delivered(self) -> int:
        """What now holds its item's caption: written by this export or already so before it."""
        return self.written + self.unchanged

    def skip(self, reason: Skip, problem: str | None = None) -> None:
        """Count an item that got nothing, and keep the sentence about it while there is room."""
        self.skipped[reason] += 1
        if problem is not None:
            self.tell(problem)

    def tell(self, problem: str) -> None:
        """Keep a sentence while there is room."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    @property
    def without_image(self) -> int:
        """How many captioned items are not there since their images could not be had."""
        return self.skipped[Skip.UNREADABLE] + self.skipped[Skip.CHANGED]

    def facts(self) -> dict[str, object]:
        """Return the report for scripts."""
        return {
            "destination": displayed(str(self.shown)),
            "written": self.written,
            "unchanged": self.unchanged,
            "replaced": self.replaced,
            "appended": self.appended,
            "backed_up": self.backed_up,
            "skipped": {str(reason): count for reason, count in sorted(self.skipped.items())},
            "problems": self.problems,
        }

    def summary(self) -> str:
        """Return one line for people: what was written, changed and skipped."""
        counts = [f"{self.written} written"]
        if self.replaced:
            counts.append(f"{self.replaced} of them in place of other text")
        if self.backed_up:
            counts.append(f"{self.backed_up} backed up (.bak)")
        if self.appended:
            counts.append(f"{self.appended} of them after existing text")
        if self.unchanged:
            counts.append(f"{self.unchanged} unchanged")
        counts += [f"{count} skipped ({reason})" for reason, count in sorted(self.skipped.items())]
        return ", ".join(counts)
