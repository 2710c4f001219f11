"""Where log lines go and what they look like: events with fields, one a line, never buffered."""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
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


_KEPT_LINES: Final = 10_000
_TRACES: Final = frozenset({"exception", "stack"})


class _Outlet:
    """Takes rendered lines: to stderr from a level on, to a file if there is one.

    With ``file_follows``, lines are kept for a file that is named later.
    """

    def __init__(self, file: TextIO | None, stderr_from: int, *, file_follows: bool) -> None:
        self._files = [] if file is None else [file]
        self._stderr_from = stderr_from
        self._kept: deque[str] | None = deque(maxlen=_KEPT_LINES) if file_follows else None

    def __call__(self, *_names: object) -> _Outlet:
        """Be the logger for every name."""
        return self

    def _write(self, level: int, line: str) -> None:
        if level >= self._stderr_from:
            # Looked up each time: a progress bar stands in for it, to keep itself below the lines.
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        self.write_to_files(line)

    def write_to_files(self, line: str) -> None:
        """Write a line where nobody waits for it, and keep it for a file that follows."""
        if self._kept is not None:
            self._kept.append(line)
        for file in self._files:
            file.write(f"{line}\n")
            file.flush()

    def add_file(self, file: TextIO) -> None:
        """Write what was kept, and all that comes, to a file, too."""
        kept, self._kept = self._kept or (), None
        file.writelines(f"{line}\n" for line in kept)
        file.flush()
        self._files.append(file)

    debug = partialmethod(_write, logging.DEBUG)
    info = msg = partialmethod(_write, logging.INFO)
    warning = partialmethod(_write, logging.WARNING)
    error = exception = partialmethod(_write, logging.ERROR)
    critical = partialmethod(_write, logging.CRITICAL)


def configure_logging(
    component: str, *, verbose: bool = False, quiet: bool = False, file_follows: bool = False
) -> None:
    """Set up structlog for this process.

    ``CAPTIONFLOW_LOG_LEVEL`` sets the level (``verbose`` means DEBUG), ``CAPTIONFLOW_LOG_DIR`` a
    folder for ``<component>.log`` beside what goes to stderr. ``quiet`` keeps stderr to warnings,
    for commands that draw a progress bar there. With ``file_follows``, `log_to` names another file.
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
                colors=sys.stderr.isatty() and file is None and not file_follows,
                exception_formatter=structlog.dev.plain_traceback,
                pad_event_to=0,
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_Outlet(
            file, logging.WARNING if quiet and not verbose else level, file_follows=file_follows
        ),
        cache_logger_on_first_use=True,
    )


def log_to(path: Path) -> None:
    """Have a file, too, get what this process logs and has logged so far; raises `OSError`."""
    if isinstance(outlet := structlog.get_config()["logger_factory"], _Outlet):
        outlet.add_file(path.open("a", encoding="utf-8", errors="backslashreplace"))


def say_in_log(sentence: str, *, level: str = "info") -> None:
    """Put a sentence that people were told into this process's log files only."""
    if isinstance(outlet := structlog.get_config()["logger_factory"], _Outlet):
        now = datetime.now(UTC)  # as structlog's own stamps
        for line in sentence.splitlines():
            outlet.write_to_files(f"{now:%Y-%m-%d %H:%M:%S} [{level}] {printable(line)}")


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
