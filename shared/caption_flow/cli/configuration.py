"""Loading configurations for commands: warnings are logged, mistakes end the command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from caption_flow.cli.failures import usage_error
from caption_flow.config.document_tree import parse_document
from caption_flow.config.load import ConfigT, Loaded, Overrides, load_orchestrator, load_worker
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.config.problems import ConfigError
from caption_flow.config.worker import WorkerConfig

log = structlog.get_logger()

_SOMEWHERE: Final = "ws://127.0.0.1:1"
"""An address for a section that is looked at before anybody listens."""


def load_or_refuse(path: Path | None, overrides: Overrides) -> Loaded[OrchestratorConfig]:
    """Load an orchestrator's configuration, log its warnings, or end the command."""
    return _or_refuse(load_orchestrator, path, overrides)


def load_worker_or_refuse(path: Path | None, overrides: Overrides) -> Loaded[WorkerConfig]:
    """Load a worker's configuration, log its warnings, or end the command."""
    return _or_refuse(load_worker, path, overrides)


def _or_refuse(
    load: Callable[[Path | None, Overrides], Loaded[ConfigT]],
    path: Path | None,
    overrides: Overrides,
) -> Loaded[ConfigT]:
    try:
        loaded = load(path, overrides)
    except ConfigError as error:
        usage_error(error)
    for warning in loaded.warnings:
        log.warning(warning)
    return loaded


@dataclass(frozen=True, slots=True)
class WorkersOfRun:
    """What a run's workers are told; ``path`` is the file with a section about them, if any.

    ``written`` is what that section says, as it says it.
    """

    config: WorkerConfig
    path: Path | None
    written: Mapping[Any, Any] = field(default_factory=dict, repr=False)


def workers_of_run(path: Path | None, flags: Mapping[str, Any]) -> WorkersOfRun:
    """Load what a run's file and its command line say of its workers."""
    overrides = {"server": _SOMEWHERE, "when_finished": "shutdown", **flags}
    with_section = path if path is not None and _has_worker_section(path) else None
    loaded = load_worker_or_refuse(with_section, overrides)
    return WorkersOfRun(loaded.config, with_section, loaded.written)


def _has_worker_section(path: Path) -> bool:
    try:
        return "worker" in parse_document(path.read_text("utf-8-sig"), str(path)).root
    except (OSError, UnicodeDecodeError, ConfigError):
        return False  # whoever loads the rest of the file says what is wrong with it
