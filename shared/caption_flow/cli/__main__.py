"""The ``caption-flow`` command, also as ``python -m caption_flow.cli``."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command line and return the process's exit code."""
    try:
        # Not before: Ctrl-C may come while this is imported.
        from caption_flow.cli.app import main as run  # noqa: PLC0415

        return run()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
