"""Fingerprints: what makes one stage's output the same as another's.

Pure. A fingerprint changes exactly when captions made before would no longer be what the stage
gives now, so it leaves out what only moves work about: names, memory, parallelism.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

FINGERPRINT_CHARS: Final = 16
"""Hexadecimal digits kept of the SHA-256: plenty among the recipes one data folder ever sees."""


def stage_fingerprint(
    *,
    prompts: Sequence[str],
    model: str,
    revision: str | None,
    sampling: Mapping[str, Any],
    output_field: str,
    upstream: Iterable[str],
    structure: Mapping[str, Any] | None = None,
    retry: Mapping[str, Any] | None = None,
) -> str:
    """Return a stage's fingerprint; ``upstream`` holds those of the stages it depends on."""
    facts = {
        "prompts": list(prompts),
        "model": model,
        "revision": revision,
        "sampling": dict(sampling),
        "output_field": output_field,
        "upstream": list(upstream),
    }
    # Only where there is one: stages without keep the fingerprint they had before there were any.
    if structure:
        facts["structure"] = dict(structure)
    if retry:
        facts["retry"] = dict(retry)
    return _digest(facts)


def recipe_fingerprint(stages: Iterable[str]) -> str:
    """Return a recipe's fingerprint from its stages', in their order."""
    return _digest({"stages": list(stages)})


def video_fingerprint(recipe: str, frames: int, passed_as: str) -> str:
    """Return a recipe's fingerprint for videos, which other frames give other captions."""
    return _digest({"recipe": recipe, "frames": frames, "passed_as": passed_as})


def _digest(value: Any) -> str:
    canonical = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:FINGERPRINT_CHARS]


def _canonical(value: Any) -> Any:
    """Return the value as JSON has it, so that ``0`` and ``0.0``, lists and tuples are one."""
    match value:
        case bool() | int() | str() | None:
            return value
        case float():
            return int(value) if value.is_integer() else value
        case Mapping():
            return {str(key): _canonical(one) for key, one in value.items()}
        case list() | tuple():
            return [_canonical(one) for one in value]
        case _:
            return str(value)
