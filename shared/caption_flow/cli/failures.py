"""How commands fail: one sentence a person can act on, and an exit code a script can trust.

0 is success, 1 a run that failed, 2 a mistake of the caller, 130 a second Ctrl-C.
"""

from __future__ import annotations

import sys
from typing import Final, NoReturn

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


class CommandFailed(Exception):
    """Ends the command with a sentence and an exit code."""

    def __init__(self, sentence: str, code: int = EXIT_FAILED) -> None:
        super().__init__(sentence)
        self.code = code


def usage_error(sentence: object) -> NoReturn:
    """End the command: the caller asked for something that cannot be."""
    raise CommandFailed(str(sentence), EXIT_USAGE)


def print_failure(sentence: str) -> None:
    """Print a failure as the last thing: programs look for the last line with ``Error:``."""
    sys.stdout.flush()
    for line in sentence.splitlines():
        print(f"Error: {line}", file=sys.stderr, flush=True)
