"""Loading configurations for commands: warnings are logged, mistakes end the command."""

from __future__ import annotations

from collections.abc import Mapping
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


def worker_section(path: Path | None, engine: str | None) -> WorkerConfig | None:
    """Return what a run's file says of its workers, or None if it has no section about them."""
    if path is None:
        return None
    try:
        root = parse_document(path.read_text("utf-8-sig"), str(path)).root
    except (OSError, UnicodeDecodeError, ConfigError):
        return None  # whoever loads the rest of the file says what is wrong with it
    if "worker" not in root:
        return None
    overrides = {"server": _SOMEWHERE, "when_finished": "shutdown"}
    if engine is not None:
        overrides["engine.type"] = engine
    return load_worker_or_refuse(path, overrides)
