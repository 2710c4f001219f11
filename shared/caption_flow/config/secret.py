"""Tokens and keys that never show themselves.

A `Secret` keeps what the configuration says: the text itself, ``env:NAME`` or ``file:PATH``. Only
`Secret.reveal` reads the environment or the file, and only its answer holds the secret. Whoever has
only to recognise a secret that was written out lets it be forgotten (`Secret.forget`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_ENV: Final = "env:"
_FILE: Final = "file:"
HIDDEN: Final = "********"


class SecretError(ValueError):
    """A reference to a secret that leads nowhere; the message says what to do, never the secret."""


class Secret:
    """A token, or where to find it. Printing, logging and dumping it shows at most the latter."""

    __slots__ = ("_known_by", "_text")

    def __init__(self, text: str) -> None:
        if not text.strip():
            raise ValueError("is empty")
        for prefix in (_ENV, _FILE):
            if text.startswith(prefix) and not text.removeprefix(prefix).strip():
                raise ValueError(f"says {prefix!r} but not which")
        self._text: str | None = text
        is_reference = text.startswith((_ENV, _FILE))
        self._known_by = text if is_reference else hashlib.sha256(text.encode()).hexdigest()

    @property
    def reference(self) -> str | None:
        """``env:NAME`` or ``file:PATH``, or None for a secret that was written out."""
        return self._known_by if self._known_by.startswith((_ENV, _FILE)) else None

    def reveal(self, env: Mapping[str, str] = os.environ) -> str:
        """Return the secret itself.

        Raises:
            SecretError: the variable is not set, or the file cannot be read, or either is empty, or
                it was forgotten.
        """
        if self._text is None:
            raise SecretError("it was read and forgotten")
        if self._text.startswith(_ENV):
            return _from_environment(self._text.removeprefix(_ENV).strip(), env)
        if self._text.startswith(_FILE):
            return _from_file(Path(self._text.removeprefix(_FILE).strip()))
        return self._text

    def forget(self) -> None:
        """Keep only the SHA-256 of a secret that was written out; it still equals itself."""
        if self.reference is None:
            self._text = None

    def __repr__(self) -> str:
        return f"Secret({self})"

    def __str__(self) -> str:
        return self.reference or HIDDEN

    def __eq__(self, other: object) -> bool:
        return self._known_by == other._known_by if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._known_by)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, _source: Any, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._parse,
            serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json"),
        )

    @classmethod
    def _parse(cls, value: object) -> Secret:
        match value:
            case Secret():
                return value
            case str():
                return cls(value)
            case bool() | float():
                pass
            case int():
                return cls(str(value))
            case _:
                pass
        raise ValueError("must be text, env:NAME or file:PATH")


def _from_environment(name: str, env: Mapping[str, str]) -> str:
    value = env.get(name)
    if value is None:
        raise SecretError(f"the environment variable {name} is not set")
    if not value.strip():
        raise SecretError(f"the environment variable {name} is empty")
    return value.strip()


def _from_file(path: Path) -> str:
    try:
        value = path.expanduser().read_text("utf-8").strip()
    except OSError as error:
        raise SecretError(f"the file {path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, RuntimeError) as error:
        # Without the cause: a decoding error holds the bytes it stumbled over.
        raise SecretError(f"the file {path} does not hold a token in UTF-8") from (
            None if isinstance(error, UnicodeDecodeError) else error
        )
    if not value:
        raise SecretError(f"the file {path} is empty")
    return value
