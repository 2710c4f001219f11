"""Where log lines go and what they look like: events with fields, one a line, never buffered."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from functools import partialmethod
from pathlib import Path
from typing import Any, Final, TextIO

import structlog

from caption_flow.cli.failures import usage_error
from caption_flow.cli.folders import for_people

LEVELS: Final = {
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
}


_TRACES: Final = frozenset({"exception", "stack"})


class _Outlet:
    """Takes rendered lines: to stderr from a level on, to a file if there is one."""

    def __init__(self, file: TextIO | None, stderr_from: int) -> None:
        self._file = file
        self._stderr_from = stderr_from

    def __call__(self, *_names: object) -> _Outlet:
        """Be the logger for every name."""
        return self

    def _write(self, level: int, line: str) -> None:
        if level >= self._stderr_from:
            # Looked up each time: a progress bar stands in for it, to keep itself below the lines.
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        if self._file is not None:
            self._file.write(f"{line}\n")
            self._file.flush()

    debug = partialmethod(_write, logging.DEBUG)
    info = msg = partialmethod(_write, logging.INFO)
    warning = partialmethod(_write, logging.WARNING)
    error = exception = partialmethod(_write, logging.ERROR)
    critical = partialmethod(_write, logging.CRITICAL)


def configure_logging(component: str, *, verbose: bool = False, quiet: bool = False) -> None:
    """Set up structlog for this process.

    ``CAPTIONFLOW_LOG_LEVEL`` sets the level (``verbose`` means DEBUG), ``CAPTIONFLOW_LOG_DIR`` a
    folder for ``<component>.log`` beside what goes to stderr. ``quiet`` keeps stderr to warnings,
    for commands that draw a progress bar there.
    """
    level = _level(verbose)
    file = _file(component)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S"),
            structlog.processors.StackInfoRenderer(),
            _escape,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty() and file is None,
                exception_formatter=structlog.dev.plain_traceback,
                pad_event_to=0,
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_Outlet(file, logging.WARNING if quiet and not verbose else level),
        cache_logger_on_first_use=True,
    )


def _escape(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Show what a terminal would act on: names and reasons come from other machines.

    Only our own sentences may be of several lines.
    """
    for key, value in line.items():
        if isinstance(value, str) and not value.isprintable() and key not in _TRACES:
            lines = value.split("\n") if key == "event" else [value]
            line[key] = "\n".join(map(printable, lines))
    return line


def printable(text: str) -> str:
    r"""Return a text with ``\xNN`` and the like for what is no visible character."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def _level(verbose: bool) -> int:
    asked = os.environ.get("CAPTIONFLOW_LOG_LEVEL", "").upper()
    if asked and asked not in LEVELS:
        usage_error(f"CAPTIONFLOW_LOG_LEVEL is {asked!r}; choose one of {', '.join(LEVELS)}")
    return logging.DEBUG if verbose else LEVELS.get(asked, logging.INFO)


def _file(component: str) -> Any:
    folder = os.environ.get("CAPTIONFLOW_LOG_DIR")
    if not folder:
        return None
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        return (path / f"{component}.log").open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        usage_error(f"CAPTIONFLOW_LOG_DIR {for_people(path)} cannot be written: {error.strerror}")
