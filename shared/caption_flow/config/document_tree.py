"""Reading YAML and JSON so that every value remembers the line it stands on.

Owns syntax only: what a key means is not known here. Nulls are kept; duplicate keys are not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from caption_flow.config.problems import ConfigError, ConfigProblem, key_path
from caption_flow.config.vllm import KeyPath


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says, and on which line (from 1) each key path stands."""

    source: str
    root: Mapping[Any, Any]
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def problem(
        self, path: KeyPath, message: str, *, shown: KeyPath | None = None
    ) -> ConfigProblem:
        """Return a problem at a key path; one that is not there is at the key that should hold it.

        ``shown`` is the path for people where it differs from the path in the file.
        """
        line = next((self.lines[p] for p in _and_parents(path) if p in self.lines), None)
        return ConfigProblem(self.source, message, key_path(path if shown is None else shown), line)


def parse_document(text: str, source: str, *, as_json: bool = False) -> Document:
    """Read YAML, or JSON, which is nearly YAML.

    Args:
        text: the file's contents.
        source: what to call the file in errors.
        as_json: the file says that it is JSON, so that its errors should be JSON's.

    Raises:
        ConfigError: a syntax error with line and column, duplicate keys, or no mapping at the root.
    """
    value = _parse_json(text, source, strict=as_json)
    tree = _compose(text, source, is_json=value is not None)
    if tree is not None:
        problems = list(_structure_problems(tree, source, (), ()))
        if problems:
            raise ConfigError(problems)
        if value is None:
            value = _construct(tree, source)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError([ConfigProblem(source, "must be a mapping of keys to values")])
    return Document(source, value, dict(_lines(tree, ())) if tree is not None else {})


class _Loader(yaml.SafeLoader):
    """YAML without dates, which would turn names into objects, and with JSON's numbers.

    PyYAML follows YAML 1.1, where ``1e-3`` is text; in JSON and in YAML 1.2 it is a number.
    """


_TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+\Z"),
    [*"-+0123456789"],
)


def _parse_json(text: str, source: str, *, strict: bool) -> Any:
    """Return the value if the text is JSON, else None; with ``strict`` it has to be."""
    if not strict and not text.lstrip().startswith("{"):
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if not strict:
            return None  # YAML's own braces, perhaps
        message = f"is not valid JSON: {error.msg}"
        problem = ConfigProblem(source, message, line=error.lineno, column=error.colno)
        raise ConfigError([problem]) from error


def _compose(text: str, source: str, *, is_json: bool) -> yaml.Node | None:
    try:
        # JSON allows tabs between its tokens, YAML does not; inside JSON's strings are none.
        return yaml.compose(text.replace("\t", " ") if is_json else text, _Loader)
    except yaml.YAMLError as error:
        if is_json:
            return None  # lines are a courtesy; the values are there without them
        raise _syntax_error(error, source) from error


def _construct(tree: yaml.Node, source: str) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_document(tree)
    except (yaml.YAMLError, ValueError) as error:
        raise _syntax_error(error, source) from error
    finally:
        loader.dispose()


def _syntax_error(error: Exception, source: str) -> ConfigError:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        context = f" ({error.context})" if error.context else ""
        message = f"is not valid YAML: {error.problem}{context}"
        problem = ConfigProblem(source, message, line=mark.line + 1, column=mark.column + 1)
    elif isinstance(error, yaml.reader.ReaderError):
        message = f"is not valid YAML: character #x{error.character:04x} is not allowed"
        problem = ConfigProblem(source, message)
    else:
        problem = ConfigProblem(source, f"is not valid YAML: {error}")
    return ConfigError([problem])


def _structure_problems(
    node: yaml.Node, source: str, path: KeyPath, above: tuple[yaml.Node, ...]
) -> Iterator[ConfigProblem]:
    """Yield keys that stand twice in one mapping, and anchors that contain themselves."""
    line = node.start_mark.line + 1
    if any(node is one for one in above):
        yield ConfigProblem(source, "is part of itself", key_path(path), line)
        return
    if isinstance(node, yaml.MappingNode):
        for name, line, first in _repeated_keys(node):
            message = f"stands here a second time; see line {first}"
            yield ConfigProblem(source, message, key_path((*path, name)), line)
    for step, _, child in _children(node):
        yield from _structure_problems(child, source, (*path, step), (*above, node))


def _repeated_keys(node: yaml.MappingNode) -> Iterator[tuple[str, int, int]]:
    """Yield keys that stood in the mapping before: name, line, and the line of the first."""
    first: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in first:
                yield key.value, line, first[key.value]
            first.setdefault(key.value, line)


def _lines(node: yaml.Node, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    for step, line, child in _children(node):
        yield (*path, step), line
        yield from _lines(child, (*path, step))


def _children(node: yaml.Node) -> Iterator[tuple[str | int, int, yaml.Node]]:
    """Yield a node's children: key or position, the line it stands on, and the child."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield key.value, key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield number, value.start_mark.line + 1, value


def _and_parents(path: KeyPath) -> Iterator[KeyPath]:
    for length in range(len(path), 0, -1):
        yield path[:length]
