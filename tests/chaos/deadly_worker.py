"""A worker whose process dies with certain pictures: ``… URL TOKEN NAME HASH-PREFIX[,…] [MS]``.

The synthetic engine dies alone, and its worker notices; this one takes the worker with it, as a
driver that crashes or a machine that runs out of memory does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from caption_flow.worker.engines.base import Completion, Request
from caption_flow.worker.engines.synthetic import SyntheticEngine
from caption_flow.worker.service import WorkerSettings, run_worker


class DeadlyEngine(SyntheticEngine):
    """Kills its own process, without a word, when it meets one of the pictures."""

    def __init__(self, model: str, options: Mapping[str, Any], deadly: tuple[str, ...]) -> None:
        super().__init__(model, options)
        self._deadly = deadly

    async def generate(self, request: Request) -> Completion:
        completion = await super().generate(request)
        if request.subject.content_hash.startswith(self._deadly):
            os.kill(os.getpid(), signal.SIGKILL)
        return completion


def main(url: str, token: str, name: str, deadly: str, latency_ms: str = "5") -> int:
    options = {"latency_ms": float(latency_ms), "requests_in_flight": 4}
    settings = WorkerSettings(url, token, name, engine="synthetic", when_finished="shutdown")
    return asyncio.run(
        run_worker(
            settings, build=lambda model, *_: DeadlyEngine(model, options, tuple(deadly.split(",")))
        )
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
