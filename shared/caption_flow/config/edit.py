"""Changing the tokens of a configuration's file: everything else in it stays, comments too.

Pure but for the libraries: texts go in and come out; who writes files is the caller's business.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from caption_flow.config.orchestrator import ROLES, Role

_LINE_CHARACTERS: Final = 4096
"""Lines are not broken anew."""
_BELOW: Final = r"^([ ]*)[^\s#-][^\n]*:[ \t]*(?:#[^\n]*)?\n(?:[ \t]*(?:#[^\n]*)?\n)*"
_LIST: Final = re.compile(rf"{_BELOW}([ ]*)- ", re.MULTILINE)
_MAPPING: Final = re.compile(rf"{_BELOW}([ ]+)[^\s#-]", re.MULTILINE)


class EditError(ValueError):
    """A file that cannot be changed as asked; ``str()`` is one sentence."""


class TokensFile:
    """The text of a configuration, YAML or JSON, and the tokens in it."""

    def __init__(self, text: str) -> None:
        """Read the text. Raises `EditError` if it is neither YAML nor JSON, or no mapping."""
        self._before = text
        self._root = _read_json(text)
        self._yaml = None if self._root is not None else _yaml(text)
        if self._yaml is not None:
            try:
                self._root = self._yaml.load(text)
            except YAMLError as error:
                raise EditError(f"is not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(self._root, dict):
            raise EditError("must be a mapping of keys to values")

    def entries(self) -> Iterator[tuple[Role, str, Any]]:
        """Yield role, name and entry of each token, as they stand."""
        auth = self._section().get("auth") or {}
        for role in ROLES:
            for number, entry in enumerate(auth.get(f"{role}_tokens") or [], start=1):
                named = entry.get("name") if isinstance(entry, dict) else None
                yield role, str(named) if named else f"{role} {number}", entry

    def add(self, role: Role, name: str, token: str, limits: Mapping[str, Any]) -> None:
        """Add a token. Raises `EditError` if the name is taken."""
        for other, known, _ in self.entries():
            if known == name:
                whose = "an admin's" if other == "admin" else f"a {other}'s"
                raise EditError(f"has {whose} token of {name!r} already; remove it first")
        section = self._section()
        if section.get("auth") is None:
            section["auth"] = {}
        key = f"{role}_tokens"
        if section["auth"].get(key) is None:
            section["auth"][key] = []
        section["auth"][key].append({"token": token, "name": name, **limits})

    def remove(self, name: str) -> int:
        """Remove the tokens of a name; return how many there were. Raises `EditError` at none."""
        gone = [(role, entry) for role, known, entry in self.entries() if known == name]
        if not gone:
            names = ", ".join(repr(known) for _, known, _ in self.entries()) or "none"
            raise EditError(f"has no token of {name!r}; there are {names}")
        for role, entry in gone:
            entries = self._section()["auth"][f"{role}_tokens"]
            del entries[next(at for at, one in enumerate(entries) if one is entry)]
        return len(gone)

    def text(self) -> str:
        """Return the text with all changes."""
        if self._yaml is None:
            indent = re.search(r"\n([ \t]+)", self._before)
            width = indent.group(1) if indent else None
            return f"{json.dumps(self._root, indent=width, ensure_ascii=False)}\n"
        sink = io.StringIO()
        self._yaml.dump(self._root, sink)
        return sink.getvalue()

    def _section(self) -> dict[str, Any]:
        root: dict[str, Any] = self._root
        inner = root.get("orchestrator")
        return inner if isinstance(inner, dict) else root


def _read_json(text: str) -> Any:
    if not text.lstrip().startswith("{"):
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None  # YAML's own braces, perhaps


def _yaml(text: str) -> YAML:
    """Return what reads YAML and writes it again, indented as a text is."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = _LINE_CHARACTERS
    offset = _deeper(_LIST, text, 2)
    yaml.indent(mapping=_deeper(_MAPPING, text, 2), sequence=offset + 2, offset=offset)
    return yaml


def _deeper(pattern: re.Pattern[str], text: str, usual: int) -> int:
    found = pattern.search(text)
    return usual if found is None else max(0, len(found.group(2)) - len(found.group(1)))
