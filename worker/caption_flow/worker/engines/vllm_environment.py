"""The environment vLLM is imported and started in: quiet, and with its failures on record.

vLLM takes these settings from environment variables, some while it is imported, so `prepare` comes
before the first import. What the worker's owner has set is never changed.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

_DEFAULTS: Final = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    # A worker reports to its orchestrator and to nobody else.
    "VLLM_NO_USAGE_STATS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
_FOR_PROCESSES: Final = {"PYTHONWARNINGS": "ignore"}
"""Defaults for the engine's processes alone: deprecations within vLLM are not the user's."""


class FailureLog:
    """The errors vLLM's processes log: what they tell their parent is only to "see above"."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def size(self) -> int:
        """Return how many bytes there are, to read on from there with `since`."""
        with contextlib.suppress(OSError):
            return self._path.stat().st_size if self._path else 0
        return 0

    def since(self, size: int) -> str:
        """Return what was logged after there were ``size`` bytes."""
        with contextlib.suppress(OSError):
            return self._path.read_bytes()[size:].decode(errors="replace") if self._path else ""
        return ""


@functools.cache
def prepare() -> FailureLog:
    """Set what is unset; return the log of failures, an empty one if logging is the owner's own."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # Forking a process with threads (decoding, event loop) can deadlock the child; and only a
    # process that was started anew shows its mark (see `guard`) in /proc.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    if {"VLLM_LOGGING_CONFIG_PATH", "VLLM_CONFIGURE_LOGGING"} & os.environ.keys():
        return FailureLog(None)
    folder = Path(tempfile.mkdtemp(prefix="caption-flow-vllm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    configuration = folder / "logging.json"
    failures = folder / "failures.log"
    configuration.write_text(json.dumps(_logging_configuration(failures)), encoding="utf-8")
    os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(configuration)
    return FailureLog(failures)


def _logging_configuration(failures: Path) -> dict[str, object]:
    """Return a `logging.config.dictConfig`: to the terminal as ever, errors to a file as well."""
    level = os.environ["VLLM_LOGGING_LEVEL"].upper()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {"format": "vLLM %(levelname)s %(processName)s [%(module)s] %(message)s"}
        },
        "handlers": {
            "terminal": {
                "class": "logging.StreamHandler",
                "formatter": "line",
                "level": level,
                "stream": "ext://sys.stderr",
            },
            "failures": {
                "()": "caption_flow.worker.engines.vllm_process.join",
                "formatter": "line",
                "level": "ERROR",
                "filename": str(failures),
            },
        },
        "loggers": {
            "vllm": {"handlers": ["terminal", "failures"], "level": level, "propagate": False}
        },
    }


@contextlib.contextmanager
def for_processes(variables: Mapping[str, str]) -> Iterator[None]:
    """Add variables for the processes started within; only one thread at a time may be here."""
    before = dict(os.environ)
    os.environ.update({name: os.environ.get(name, value) for name, value in _FOR_PROCESSES.items()})
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in {*_FOR_PROCESSES, *variables}:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)
