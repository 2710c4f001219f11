"""How rows may have ended, as `--status` says it."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """How a row may have ended."""

    OK = "ok"
    FLAGGED = "flagged"
    FAILED = "failed"
