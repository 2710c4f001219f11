"""What is wrong with a configuration, said so that a person can put it right. Pure.

Values are shown only where they cannot be secrets: `ConfigProblem` never holds a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from caption_flow.config.vllm import KeyPath
from caption_flow.recipe.spelling import did_you_mean, nearest


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong: the file (or other source), where in it, and a sentence."""

    source: str
    message: str
    path: str = ""
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        where = ":".join(str(p) for p in (self.source, self.line, self.column) if p is not None)
        return ": ".join(part for part in (where, self.path, self.message) if part)


class ConfigError(ValueError):
    """A configuration that cannot be used; ``problems`` holds every reason found."""

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        super().__init__(*problems)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def key_path(path: Iterable[str | int]) -> str:
    """Return a key path as people write it: ``vllm.stages[1].requires``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def complaints(error: ValidationError) -> list[tuple[KeyPath, str]]:
    """Return what pydantic found, by key path, but for unknown keys: `spelling` has those."""
    return [
        (_steps(details), _sentence(details))
        for details in error.errors(include_url=False)
        if details["type"] not in {"extra_forbidden", "invalid_key"}
    ]


def _steps(details: ErrorDetails) -> KeyPath:
    return tuple(details["loc"])


# What pydantic says is about Python; people write YAML.
_SENTENCES: Final[Mapping[str, str]] = {
    "missing": "is missing",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "is empty",
    "string_too_long": "is longer than {max_length} characters",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a section with keys of its own",
    "model_type": "must be a section with keys of its own",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "value_error": "{error}",
}


def _sentence(details: ErrorDetails) -> str:
    template = _SENTENCES.get(details["type"])
    message = details["msg"] if template is None else template.format(**details.get("ctx", {}))
    return message + _got(details) + _nearest_choice(details)


def _got(details: ErrorDetails) -> str:
    """Return the value that was found, where showing it helps and cannot give away a token."""
    if details["type"] in {"missing", "value_error", "string_too_short"} or _is_private(details):
        return ""
    shown = _shown(details["input"])
    return f" (got {shown})" if shown else ""


def _shown(value: object) -> str:
    match value:
        case None:
            text = "nothing"
        case bool():
            text = str(value).lower()
        case str() if len(value) > 60:
            text = repr(f"{value[:57]}...")
        case str() | int() | float():
            text = repr(value)
        case dict():
            text = "a section"
        case list() | tuple():
            text = "a list"
        case _:
            text = ""
    return text


def _is_private(details: ErrorDetails) -> bool:
    words = {"auth", "token", "api_key"}
    return any(isinstance(step, str) and step in words for step in details["loc"])


def _nearest_choice(details: ErrorDetails) -> str:
    value = details["input"]
    if details["type"] != "literal_error" or not isinstance(value, str):
        return ""
    choices = [word.strip("'") for word in _choices(details.get("ctx", {}))]
    return did_you_mean(nearest(value, choices))


def _choices(context: Mapping[str, Any]) -> list[str]:
    return str(context.get("expected", "")).replace(" or ", ", ").split(", ")
