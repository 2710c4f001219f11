"""Made-up answers of a given structure, so that recipes with structured output can be rehearsed.

Pure: the same structure and text give the same answer. Covers the JSON schemas people write for
captions, and most regexes; whether what comes out fits is for whoever asked to check, as with any
engine.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, Final

import rstr

_MAX_DEPTH: Final = 12
_PLAIN: Final = string.ascii_letters + string.digits + " "
"""What a dot stands for."""
_ATTEMPTS: Final = 50
"""At a regex; what looks ahead or behind is matched by chance."""


def structured_answer(structure: Mapping[str, Any], text: str, number: int) -> str | None:
    """Return an answer of this structure (vLLM's ``structured_outputs``), None if there is none.

    ``text`` is what a free answer would have been, and ``number`` chooses where there is a choice.
    """
    if choices := structure.get("choice"):
        return str(choices[number % len(choices)])
    schema = structure.get("json")
    if isinstance(schema, str):
        schema = json.loads(schema)
    if isinstance(schema, Mapping):
        return json.dumps(_Writer(schema, text, number).value(schema, 0), ensure_ascii=False)
    if regex := structure.get("regex"):
        return _matching(str(regex), text)
    return None


class _Repeatable(random.Random):
    """Chance that a seed decides on any machine, also where a set of letters has no order."""

    def choice(self, seq: Any) -> Any:
        return super().choice(sorted(seq) if isinstance(seq[0], str) else seq)


def _matching(regex: str, seed: str) -> str | None:
    """Return a text that matches without space around it, as answers are stored, or None."""
    for attempt in range(_ATTEMPTS):
        chance = _Repeatable(f"{seed} {attempt}")
        try:
            text = rstr.Rstr(chance, printable=_PLAIN).xeger(regex).strip()
        except (LookupError, ValueError):  # what it does not know: atomic groups, long repeats
            return None
        if text and re.fullmatch(regex, text):
            return text
    return None


class _Writer:
    def __init__(self, root: Mapping[str, Any], text: str, number: int) -> None:
        self._root = root
        self._text = text
        self._number = number

    def value(self, schema: Any, depth: int) -> Any:
        """Return a value that fits the schema."""
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return self._text
        if "const" in schema:
            return schema["const"]
        if choices := schema.get("enum"):
            return choices[self._number % len(choices)]
        if "$ref" in schema:
            return self.value(self._referred(str(schema["$ref"])), depth + 1)
        for several in ("anyOf", "oneOf", "allOf"):
            if options := schema.get(several):
                return self.value({**schema, several: None, **options[0]}, depth + 1)
        return self._of_type(schema, depth)

    def _of_type(self, schema: Mapping[str, Any], depth: int) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "string")
        match kind[0] if isinstance(kind, Sequence) and not isinstance(kind, str) else kind:
            case "object":
                parts = schema.get("properties", {})
                return {name: self.value(part, depth + 1) for name, part in parts.items()}
            case "array":
                return self._list(schema, depth)
            case "integer" | "number":
                return self._number_within(schema)
            case "boolean":
                return self._number % 2 == 0
            case "null":
                return None
            case _:
                return self._string(schema)

    def _list(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        length = min(max(2, schema.get("minItems", 0)), schema.get("maxItems", 2))
        begun = self._number
        values = []
        for self._number in range(begun, begun + length):
            values.append(self.value(schema.get("items", {}), depth + 1))
        self._number = begun
        return values

    def _number_within(self, schema: Mapping[str, Any]) -> Any:
        lowest = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
        return min(lowest, schema.get("maximum", lowest))

    def _string(self, schema: Mapping[str, Any]) -> str:
        padded = self._text.ljust(schema.get("minLength", 0), ".")
        return padded[: schema.get("maxLength", len(padded))]

    def _referred(self, reference: str) -> Any:
        found: Any = self._root
        for step in reference.removeprefix("#").strip("/").split("/"):
            found = found.get(step, {}) if isinstance(found, Mapping) else {}
        return found
