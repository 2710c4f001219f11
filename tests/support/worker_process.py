"""A worker as a process of its own: ``python -m tests.support.worker_process URL TOKEN [K=V ...]``.

Answers with the synthetic engine; ``K=V`` set `WorkerSettings` (and ``latency_ms`` the engine).
"""

from __future__ import annotations

import asyncio
import sys

import structlog

from caption_flow.worker.service import WorkerSettings, run_worker


def main(url: str, token: str, *options: str) -> int:
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()],
        logger_factory=structlog.PrintLoggerFactory(),
    )
    given = dict(option.split("=", 1) for option in options)
    latency_ms = float(given.pop("latency_ms", "0"))
    settings = WorkerSettings(
        server=url,
        token=token,
        name="a worker's process",
        engine="synthetic",
        engine_settings={"latency_ms": latency_ms, "requests_in_flight": 2},
        when_finished=given.get("when_finished", "shutdown"),  # type: ignore[arg-type]  # a test's
        exit_with_parent=given.get("exit_with_parent") == "yes",
    )
    return asyncio.run(run_worker(settings))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
