"""From a file to a validated configuration, or to everything that is wrong with it.

The only place that reads configuration files. Nothing is logged here: warnings come back as
sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, get_args

from pydantic import ValidationError

from caption_flow.config.discovery import Component
from caption_flow.config.document_tree import Document, parse_document
from caption_flow.config.monitor import MonitorConfig
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.config.problems import ConfigError, ConfigProblem, complaints, key_path
from caption_flow.config.section import Section
from caption_flow.config.spelling import SURELY_MEANT, unknown_keys
from caption_flow.config.vllm import KeyPath, VllmConfig
from caption_flow.config.warnings import warnings_of
from caption_flow.config.worker import WorkerConfig
from caption_flow.recipe.spelling import did_you_mean, nearest

COMPONENTS: Final[tuple[Component, ...]] = get_args(Component)
COMMAND_LINE: Final = "command line"

Overrides = Mapping[str, Any]
"""Values laid over a file's, by dotted key path (``storage.data_dir``); None takes a key away."""

ConfigT = TypeVar("ConfigT", bound=Section)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[ConfigT]):
    """A configuration, sentences about what in it has no effect, and the file it came from.

    ``written`` is what the file says, as it says it; it may hold tokens.
    """

    config: ConfigT
    warnings: tuple[str, ...]
    path: Path | None = None
    written: Mapping[Any, Any] = field(default_factory=dict, repr=False)


def load_orchestrator(
    path: Path | None, overrides: Overrides | None = None
) -> Loaded[OrchestratorConfig]:
    """Load the orchestrator's configuration; its recipe is validated, too.

    Without a path, the overrides are all there is.

    Raises:
        ConfigError: with everything that is wrong.
    """
    return _load(path, "orchestrator", OrchestratorConfig, overrides)


def load_worker(path: Path | None, overrides: Overrides | None = None) -> Loaded[WorkerConfig]:
    """Load a worker's configuration.

    Raises:
        ConfigError: with everything that is wrong.
    """
    return _load(path, "worker", WorkerConfig, overrides)


def load_monitor(path: Path | None, overrides: Overrides | None = None) -> Loaded[MonitorConfig]:
    """Load a monitor's configuration.

    Raises:
        ConfigError: with everything that is wrong.
    """
    return _load(path, "monitor", MonitorConfig, overrides)


def parse_orchestrator(
    text: str, *, source: str = "configuration", overrides: Overrides | None = None
) -> Loaded[OrchestratorConfig]:
    """Load the orchestrator's configuration from YAML or JSON text, called ``source`` in errors.

    Raises:
        ConfigError: with everything that is wrong.
    """
    document = parse_document(text, source)
    return _validate(document, "orchestrator", OrchestratorConfig, overrides)


def _load(
    path: Path | None, component: Component, model: type[ConfigT], overrides: Overrides | None
) -> Loaded[ConfigT]:
    document = Document(COMMAND_LINE, {}) if path is None else _read(path)
    return replace(_validate(document, component, model, overrides), path=path)


def _read(path: Path) -> Document:
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        problem = ConfigProblem(str(path), f"cannot be read: {error.strerror}")
        raise ConfigError([problem]) from error
    except UnicodeDecodeError as error:
        problem = ConfigProblem(str(path), f"is not UTF-8 text: byte {error.start} is invalid")
        raise ConfigError([problem]) from error
    return parse_document(text, str(path), as_json=path.suffix.lower() == ".json")


def _validate(
    document: Document, component: Component, model: type[ConfigT], overrides: Overrides | None
) -> Loaded[ConfigT]:
    place = _Place.find(document, component, model, overrides or {})
    found = list(unknown_keys(model, place.content))
    raw = without_nulls(place.content)
    config: ConfigT | None = None
    try:
        config = model.model_validate(raw)
    except ValidationError as error:
        found.extend(complaints(error))
    found.extend(_CROSS_CHECKS[component](config, raw))
    if found or config is None:
        raise ConfigError(place.problems(found))
    return Loaded(config, tuple(warnings_of(config)), written=place.written)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a document a component's content is, and what the command line changes in it."""

    document: Document
    written: Mapping[Any, Any]
    content: Mapping[Any, Any]
    prefix: KeyPath
    overridden: tuple[KeyPath, ...]

    @classmethod
    def find(
        cls, document: Document, component: Component, model: type[Section], overrides: Overrides
    ) -> _Place:
        prefix, written = _component(document, component, model)
        paths = tuple(tuple(dotted.split(".")) for dotted in overrides)
        return cls(document, written, laid_over(written, overrides), prefix, paths)

    def problems(self, found: list[tuple[KeyPath, str]]) -> list[ConfigProblem]:
        """Return the problems as people read them, each once, in the order of their lines."""
        problems = dict.fromkeys(self._problem(path, message) for path, message in found)
        return sorted(problems, key=lambda p: (p.line is None, p.line or 0))

    def _problem(self, path: KeyPath, message: str) -> ConfigProblem:
        if any(path[: len(overridden)] == overridden for overridden in self.overridden):
            return ConfigProblem(COMMAND_LINE, message, key_path(path))
        return self.document.problem((*self.prefix, *path), message, shown=path)


def _component(
    document: Document, component: Component, model: type[Section]
) -> tuple[KeyPath, dict[Any, Any]]:
    """Return where the component's keys are: under its name, or at the root."""
    root = document.root
    named = [key for key in root if key in COMPONENTS]
    strays = [key for key in root if key not in COMPONENTS]
    misspelt = [key for key in strays if _component_meant(key) and key not in model.model_fields]
    if not named and not misspelt:
        return (), dict(root)
    problems = [document.problem((key,), _stray(key, component, model)) for key in strays]
    if component not in named and not misspelt:
        have = " and ".join(f"'{key}:'" for key in named)
        problems.append(document.problem((), f"has no '{component}:' section, only {have}"))
    content = root.get(component)
    if content is not None and not isinstance(content, dict):
        problems.append(document.problem((component,), "must be a section with keys of its own"))
    if problems:
        raise ConfigError(problems)
    return (component,), dict(content or {})


def _component_meant(key: object) -> str | None:
    return nearest(key, COMPONENTS, cutoff=SURELY_MEANT) if isinstance(key, str) else None


def _stray(key: object, component: Component, model: type[Section]) -> str:
    if key in model.model_fields:
        return f"stands beside '{component}:' and belongs under it"
    return f"unknown key{did_you_mean(_component_meant(key))}"


def laid_over(content: Mapping[Any, Any], overrides: Overrides) -> dict[Any, Any]:
    """Return a component's content with values laid over it; None stays, as a key without value."""
    changed = dict(content)
    for dotted, value in overrides.items():
        changed = _overlaid(changed, dotted.split("."), value)
    return changed


def _overlaid(content: Mapping[Any, Any], steps: list[str], value: Any) -> dict[Any, Any]:
    key, rest = steps[0], steps[1:]
    if rest:
        inner = content.get(key)
        if isinstance(inner, str):
            inner = {"type": inner}  # "engine: openai" stands for a section
        value = _overlaid(inner if isinstance(inner, Mapping) else {}, rest, value)
    return {**content, key: value}


def without_nulls(value: Any) -> Any:
    """Return the value without keys that hold nothing: ``key:`` alone means the default.

    A JSON schema is left alone: its nulls mean something.
    """
    if isinstance(value, dict):
        return {
            key: one if key == "json_schema" else without_nulls(one)
            for key, one in value.items()
            if one is not None
        }
    if isinstance(value, list):
        return [without_nulls(one) for one in value]
    return value


def _check_orchestrator(
    config: Section | None, raw: Mapping[Any, Any]
) -> Iterator[tuple[KeyPath, str]]:
    """Yield what is wrong between keys; with the recipe, even when other sections are wrong."""
    if isinstance(config, OrchestratorConfig):
        yield from config.problems()
    try:
        vllm = VllmConfig.model_validate(raw.get("vllm"))
    except ValidationError:
        return  # its own keys have been complained of
    dataset = raw.get("dataset")
    mock_results = isinstance(dataset, dict) and dataset.get("mock_results") is True
    for path, message in vllm.recipe_problems(mock_results=mock_results):
        yield ("vllm", *path), message


def _check_nothing(
    _config: Section | None, _raw: Mapping[Any, Any]
) -> Iterator[tuple[KeyPath, str]]:
    yield from ()


_CrossCheck = Callable[[Section | None, Mapping[Any, Any]], Iterator[tuple[KeyPath, str]]]
_CROSS_CHECKS: Final[Mapping[Component, _CrossCheck]] = {
    "orchestrator": _check_orchestrator,
    "worker": _check_nothing,
    "monitor": _check_nothing,
}
