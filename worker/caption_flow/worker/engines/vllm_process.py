"""What runs within the engine's own processes: the one thing of ours that is in them.

vLLM loads its logging configuration first of all in each process it starts. Ours names `join` as
the maker of a log handler (see `vllm_environment`), which is how it gets there.
"""

from __future__ import annotations

import contextlib
import logging
import os

from caption_flow.worker.engines.guard import MARK_VARIABLE


def join(filename: str) -> logging.Handler:
    """Return the handler that records failures in ``filename``; leave the worker's process group.

    Ctrl-C in a terminal, and whoever ends a job by its group, reaches every process of the group at
    once. The worker then drains, so the engine has to finish what is in it, and stay until the
    worker ends it. Should the worker be killed, its watchman (see `guard`) ends the engine.
    """
    mark = os.environ.get(MARK_VARIABLE)
    if mark is not None and not mark.startswith(f"{os.getpid()}-"):
        with contextlib.suppress(OSError):  # it leads a session, so it has a group of its own
            os.setpgid(0, 0)
    return logging.FileHandler(filename, delay=True, encoding="utf-8")
