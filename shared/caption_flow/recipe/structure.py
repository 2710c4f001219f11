"""Structured output: what an answer must look like, checked before the run and in each answer.

Pure. `Structure` is what a stage's ``json_schema``, ``choice`` or ``regex`` come to. The engine is
told of it and keeps to it while it writes; what it wrote is checked again all the same, since an
answer may be cut off, and not every engine obeys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from caption_flow.recipe.spelling import did_you_mean, nearest

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

STRUCTURED_OUTPUTS: Final = "structured_outputs"
"""The sampling parameter that tells vLLM, and servers like it, of a structure."""


class StructureBroken(Exception):
    """An answer is not what it had to be; ``str()`` says in which way."""


@dataclass(frozen=True, slots=True)
class Structure:
    """Exactly one of a JSON schema, a choice of texts, and a regular expression.

    ``columns`` are top-level keys of the schema that become output fields of their own.
    """

    json_schema: Mapping[str, Any] | None = None
    choice: tuple[str, ...] = ()
    regex: str | None = None
    columns: tuple[str, ...] = ()

    def sampling(self) -> dict[str, Any]:
        """Return the sampling parameter that tells the engine."""
        if self.json_schema is not None:
            return {STRUCTURED_OUTPUTS: {"json": dict(self.json_schema)}}
        if self.choice:
            return {STRUCTURED_OUTPUTS: {"choice": list(self.choice)}}
        return {STRUCTURED_OUTPUTS: {"regex": self.regex}}

    def as_written(self) -> dict[str, Any]:
        """Return what is set, by its key in the configuration."""
        parts = {
            "json_schema": None if self.json_schema is None else dict(self.json_schema),
            "choice": self.choice,
            "regex": self.regex,
            "columns": self.columns,
        }
        return {key: value for key, value in parts.items() if value not in (None, ())}

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what makes this impossible: the key, and a sentence."""
        kinds = [key for key in self.as_written() if key != "columns"]
        if len(kinds) > 1:
            yield kinds[1], f"cannot be had together with {kinds[0]}: an answer has one structure"
        yield from self._choice_problems()
        if self.regex is not None and (message := _regex_problem(self.regex)):
            yield "regex", message
        if self.json_schema is not None and (message := _schema_problem(self.json_schema)):
            yield "json_schema", message
        yield from self._column_problems()

    def read(self, text: str) -> Mapping[str, tuple[str, ...]]:
        """Return what an answer says: for each column asked for, its texts.

        Raises:
            StructureBroken: it does not have this structure.

        """
        if self.json_schema is not None:
            return _read_json(text, self.json_schema, self.columns)
        if self.choice and text not in self.choice:
            raise StructureBroken("is not one of the choices")
        if self.regex is not None and re.fullmatch(self.regex, text) is None:
            raise StructureBroken("does not match the regex")
        return {}

    def _choice_problems(self) -> Iterator[tuple[str, str]]:
        for number, one in enumerate(self.choice):
            if not one.strip():
                yield f"choice[{number}]", "is empty: an empty answer is a failure"
            elif one != one.strip():
                yield f"choice[{number}]", "begins or ends with a space, which answers never do"
            elif self.choice.index(one) != number:
                yield f"choice[{number}]", f"{one!r} stands there twice"

    def _column_problems(self) -> Iterator[tuple[str, str]]:
        if not self.columns:
            return
        if self.json_schema is None:
            yield "columns", "need a json_schema whose top-level keys they are"
            return
        properties = self.json_schema.get("properties")
        known = list(properties) if isinstance(properties, Mapping) else []
        for number, name in enumerate(self.columns):
            if self.columns.index(name) != number:
                yield f"columns[{number}]", f"{name!r} stands there twice"
            elif name not in known:
                guess = nearest(name, known)
                offer = did_you_mean(None if guess is None else repr(guess))
                yield (
                    f"columns[{number}]",
                    f"json_schema has no top-level key {name!r} under 'properties'{offer}",
                )


def _regex_problem(regex: str) -> str | None:
    try:
        re.compile(regex)
    except (re.error, OverflowError, RecursionError) as error:
        return f"is not a regular expression: {error}"
    return None


def _schema_problem(schema: Mapping[str, Any]) -> str | None:
    if not schema:
        return "is empty, and would allow anything"
    kind = _kind_of(schema)
    if problem := _first_error(kind(kind.META_SCHEMA), schema):
        return f"is not a JSON schema: {problem}"
    for reference in _references(schema):
        # Also so that no schema makes a worker fetch an address.
        if not _resolves(schema, reference):
            return f"has a $ref that leads nowhere within it: {reference!r}"
    return None


def _references(schema: Any) -> Iterator[str]:
    match schema:
        case Mapping():
            for key, value in schema.items():
                if key in {"$ref", "$dynamicRef"} and isinstance(value, str):
                    yield value
                else:
                    yield from _references(value)
        case list():
            for one in schema:
                yield from _references(one)


def _resolves(schema: Any, reference: str) -> bool:
    """Tell whether a reference is a path within the schema (RFC 6901) that exists."""
    if reference != "#" and not reference.startswith("#/"):
        return False
    for step in reference.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(schema, Mapping) or name not in schema:
            return False
        schema = schema[name]
    return True


def _kind_of(schema: Mapping[str, Any]) -> type[Validator]:
    from jsonschema.validators import Draft202012Validator, validator_for  # noqa: PLC0415 - slow

    return validator_for(schema, default=Draft202012Validator)


def _first_error(validator: Validator, value: Any) -> str | None:
    """Return where in the value the most telling error is, and what it is."""
    from jsonschema.exceptions import best_match  # noqa: PLC0415 - slow to import

    error = best_match(validator.iter_errors(value))
    if error is None:
        return None
    where = error.json_path.removeprefix("$").lstrip(".")
    return f"{where}: {error.message}" if where else error.message


def _read_json(
    text: str, schema: Mapping[str, Any], columns: tuple[str, ...]
) -> Mapping[str, tuple[str, ...]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StructureBroken(f"is not valid JSON ({error})") from error
    if problem := _first_error(_kind_of(schema)(schema), value):
        raise StructureBroken(f"does not fit the json_schema: {problem}")
    found = value if isinstance(value, dict) else {}
    return {name: _texts(found.get(name)) for name in columns}


def _texts(value: Any) -> tuple[str, ...]:
    """Return a JSON value as texts: a list as several, null as none, what is no text as JSON."""
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple(text for one in value for text in _texts(one))
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return (text.strip(),) if text.strip() else ()
