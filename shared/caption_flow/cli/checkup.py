"""Findings about a machine, and finding them: checks run side by side and none is waited for long.

Owns what a finding is. What is looked at is in `machine` and `engine_checks`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

PATIENCE_SECONDS: Final = 2.2
"""All checks together; with the command's own start that stays below three seconds."""


class Verdict(StrEnum):
    """What a finding means for captioning on this machine."""

    OK = "ok"
    NOTE = "note"
    """It works, but not everything, or not well."""
    BAD = "bad"
    """It does not work until this is changed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. ``command`` is what mends it, to be typed as it stands; ``facts`` are for programs.

    Nothing in it is ever secret.
    """

    about: str
    verdict: Verdict
    says: str
    command: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def line(self, width: int) -> str:
        """Return it for people, its subject padded to ``width``."""
        remedy = f": {self.command}" if self.command else ""
        return f"{self.verdict:<4}  {self.about:<{width}}  {self.says}{remedy}"

    def document(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "about": self.about,
            "verdict": str(self.verdict),
            "says": self.says,
            "command": self.command,
            "facts": dict(self.facts),
        }


Check = Callable[[], Sequence[Finding]]


def examine(
    checks: Mapping[str, Check], *, within_seconds: float = PATIENCE_SECONDS
) -> list[Finding]:
    """Run checks side by side and return their findings in the order of ``checks``.

    One that takes too long is left behind, one that fails has failed alone; each is a finding.
    """
    answers: queue.Queue[tuple[str, Sequence[Finding]]] = queue.Queue()
    for about, check in checks.items():
        # Daemons, since nothing ends a look-up of a name that nobody answers.
        threading.Thread(
            target=lambda about=about, check=check: answers.put((about, _tried(about, check))),
            daemon=True,
        ).start()
    found: dict[str, Sequence[Finding]] = {}
    deadline = time.monotonic() + within_seconds
    while len(found) < len(checks):
        try:
            about, findings = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[about] = findings
    return [one for about in checks for one in found.get(about, [_late(about, within_seconds)])]


def _tried(about: str, check: Check) -> Sequence[Finding]:
    try:
        return check()
    except Exception as error:  # noqa: BLE001  -- the thread's boundary: it becomes a finding
        return [Finding(about, Verdict.NOTE, f"cannot be told: {type(error).__name__}: {error}")]


def _late(about: str, seconds: float) -> Finding:
    return Finding(about, Verdict.NOTE, f"cannot be told: no answer within {seconds:g} s")
