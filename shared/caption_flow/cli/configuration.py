"""Loading configurations for commands: warnings are logged, mistakes end the command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from caption_flow.cli.failures import usage_error
from caption_flow.config.document_tree import parse_document
from caption_flow.config.load import load_orchestrator, load_worker
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.config.problems import ConfigError
from caption_flow.config.worker import WorkerConfig

log = structlog.get_logger()

_SOMEWHERE: Final = "ws://127.0.0.1:1"
"""An address for a section that is looked at before anybody listens."""


def load_or_refuse(path: Path | None, overrides: Mapping[str, Any]) -> OrchestratorConfig:
    """Load an orchestrator's configuration, log its warnings, or end the command."""
    try:
        loaded = load_orchestrator(path, overrides)
    except ConfigError as error:
        usage_error(error)
    for warning in loaded.warnings:
        log.warning(warning)
    return loaded.config


def load_worker_or_refuse(path: Path | None, overrides: Mapping[str, Any]) -> WorkerConfig:
    """Load a worker's configuration, log its warnings, or end the command."""
    try:
        loaded = load_worker(path, overrides)
    except ConfigError as error:
        usage_error(error)
    for warning in loaded.warnings:
        log.warning(warning)
    return loaded.config


@dataclass(frozen=True, slots=True)
class WorkersOfRun:
    """What a run's workers are told; ``path`` is the file with a section about them, if any."""

    config: WorkerConfig
    path: Path | None


def workers_of_run(path: Path | None, flags: Mapping[str, Any]) -> WorkersOfRun:
    """Load what a run's file and its command line say of its workers."""
    overrides = {"server": _SOMEWHERE, "when_finished": "shutdown", **flags}
    with_section = path if path is not None and _has_worker_section(path) else None
    return WorkersOfRun(load_worker_or_refuse(with_section, overrides), with_section)


def _has_worker_section(path: Path) -> bool:
    try:
        return "worker" in parse_document(path.read_text("utf-8-sig"), str(path)).root
    except (OSError, UnicodeDecodeError, ConfigError):
        return False  # whoever loads the rest of the file says what is wrong with it
