"""The composition root of a worker process: settings in, exit code out.

Signals, the exit code, the hook at the end and the last word in the log are decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Final, Literal

import structlog

from caption_flow.certificates.fingerprint import Fingerprint
from caption_flow.protocol.messages import Hello
from caption_flow.worker import processes
from caption_flow.worker.client import Address
from caption_flow.worker.core.events import Leave, Outcome
from caption_flow.worker.core.placement import takes_device
from caption_flow.worker.engines.base import Engine, EngineUnavailable
from caption_flow.worker.engines.factory import build_engine
from caption_flow.worker.pipeline import LOOK_AHEAD_BYTES
from caption_flow.worker.runtime import BuildEngine, Capacity, Runtime
from caption_flow.worker.supervision import MAX_RESTARTS, STALL_SECONDS

log = structlog.get_logger()

WhenFinished = Literal["stay_connected", "shutdown", "post_exec_hook"]

STOP_ENGINES_SECONDS: Final = 0.5
"""Nothing is left to do, so an engine that takes longer to tidy up is killed."""
MAX_NAME_CHARACTERS: Final = 200

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What the worker's owner decides; everything else comes from the orchestrator.

    ``engine_settings`` are the engine's own options, laid over the recipe's; by ``vllm_options``,
    which are vLLM's, other engines only settle what is loaded together. ``model`` replaces
    the recipe's model, if it names only one; ``batch_size`` limits the requests in flight,
    ``look_ahead_items`` and ``look_ahead_bytes`` what is prepared ahead of the engine. ``stages``
    names those to run, none for all. ``gpus`` is what its owner chose, for people. For
    ``verify_ssl``, ``fingerprints`` and ``insecure`` see `Endpoint`.
    ``exit_with_parent`` ends the worker with the process that started it.
    """

    server: str
    token: str = field(repr=False)
    name: str
    engine: str = "vllm"
    engine_settings: Mapping[str, Any] = field(default_factory=dict)
    vllm_options: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    batch_size: int | None = None
    gpus: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    trust_remote_code: bool = False
    verify_ssl: bool = True
    fingerprints: tuple[Fingerprint, ...] = ()
    insecure: bool = False
    when_finished: WhenFinished = "stay_connected"
    post_exec_hook: str | None = None
    connect_seconds: float = 60.0
    reconnect_seconds: float = 600.0
    look_ahead_items: int | None = None
    look_ahead_bytes: int = LOOK_AHEAD_BYTES
    restart_backoff_seconds: float = 1.0
    engine_stall_seconds: float = STALL_SECONDS
    max_engine_restarts: int = MAX_RESTARTS
    exit_with_parent: bool = False


async def run_worker(settings: WorkerSettings, *, build: BuildEngine | None = None) -> int:
    """Work until there is nothing more to do, and return the process's exit code.

    0: finished, drained, or asked to stop; 1: failed, and the last log line says why; 130: stopped
    at once by a second signal; otherwise the hook's own. ``build`` is for engines that
    `caption_flow.worker.engines.factory` does not know.
    """
    strangers = processes.descendants()
    runtime = Runtime(
        Address(
            settings.server,
            settings.token,
            verify_ssl=settings.verify_ssl,
            fingerprints=settings.fingerprints,
            insecure=settings.insecure,
            connect_seconds=settings.connect_seconds,
            reconnect_seconds=settings.reconnect_seconds,
        ),
        _hello(settings),
        build or _builder(settings),
        leaves_when_finished=settings.when_finished != "stay_connected",
        capacity=_capacity(settings),
    )
    stop = _Stop(runtime)
    with _signals(stop):
        try:
            leave = await _run(runtime, settings)
        finally:
            await _stop_engines(runtime, strangers)
    code = stop.exit_code if stop.exit_code is not None else _exit_code(leave)
    if leave.outcome is Outcome.FINISHED and settings.when_finished == "post_exec_hook":
        code = await _run_hook(settings.post_exec_hook, runtime)
    _last_word(runtime, leave, code)
    return code


async def _run(runtime: Runtime, settings: WorkerSettings) -> Leave:
    watching = asyncio.create_task(_watch_parent(runtime)) if settings.exit_with_parent else None
    try:
        return await runtime.run()
    except Exception as error:
        # The process's boundary: whatever nobody expected becomes a traceback and a last line.
        log.exception("the worker failed unexpectedly")
        return Leave(Outcome.FAILED, _sentence(error))
    finally:
        if watching is not None:
            watching.cancel()


def _sentence(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _exit_code(leave: Leave) -> int:
    return EXIT_FAILED if leave.outcome is Outcome.FAILED else EXIT_OK


def _last_word(runtime: Runtime, leave: Leave, code: int) -> None:
    """Log the line that programs look for: how far it got, or what went wrong."""
    for sentence in (runtime.starvation(), runtime.ways()):
        if sentence:
            log.info(sentence)
    if leave.outcome is Outcome.FAILED:
        line = f"Error: {' '.join(leave.sentence.split())}"
    elif code != EXIT_OK:
        line = f"Error: the command to run at the end failed with exit code {code}"
    else:
        line = f"{leave.outcome.value}, {runtime.progress()}"
    if code == EXIT_OK:
        log.info(line)
    else:
        log.error(line)


# --------------------------------------------------------------------------- made of the settings


def _hello(settings: WorkerSettings) -> Hello:
    try:
        version = metadata.version("caption-flow")
    except metadata.PackageNotFoundError:
        version = ""
    # Names come from command lines: surrogates stand for bytes that are not valid UTF-8.
    name = settings.name.encode("utf-8", "replace").decode()[:MAX_NAME_CHARACTERS]
    return Hello(
        name=name,
        session=secrets.token_hex(16),
        version=version,
        engine=settings.engine,
        device=f"gpu {','.join(settings.gpus)}"[:MAX_NAME_CHARACTERS] if settings.gpus else "",
        stages=settings.stages,
    )


def _capacity(settings: WorkerSettings) -> Capacity:
    return Capacity(
        max_requests=settings.batch_size,
        look_ahead_items=settings.look_ahead_items,
        look_ahead_bytes=settings.look_ahead_bytes,
        restart_backoff_seconds=settings.restart_backoff_seconds,
        engine_stall_seconds=settings.engine_stall_seconds,
        max_engine_restarts=settings.max_engine_restarts,
        on_device=takes_device(settings.engine),
        owner_options={**settings.engine_settings, **settings.vllm_options},
    )


def _builder(settings: WorkerSettings) -> BuildEngine:
    replaced: set[str] = set()

    def build(model: str, options: Mapping[str, Any], mock_results: bool) -> Engine:
        # The owner's settings are for the owner's engine; mocking replaces it.
        mocked = mock_results and settings.engine != "synthetic"
        if settings.model is not None:
            replaced.add(model)
            if len(replaced) > 1:
                raise EngineUnavailable(
                    f"the recipe names several models ({', '.join(sorted(replaced))}), "
                    f"so --model {settings.model} cannot stand for one of them"
                )
        return build_engine(
            "synthetic" if mocked else settings.engine,
            settings.model or model,
            engine_options=options,
            engine_settings={} if mocked else settings.engine_settings,
            trust_remote_code=settings.trust_remote_code,
        )

    return build


# --------------------------------------------------------------------------- signals and the end


class _Stop:
    """First signal: drain. Second: stop at once."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._asked = False
        self.exit_code: int | None = None

    def __call__(self) -> None:
        if self._asked:
            self.exit_code = EXIT_INTERRUPTED
            self._runtime.abort("stopped at once by a second signal")
            return
        self._asked = True
        log.info("stopping: finishing what has begun; a second signal stops at once")
        self._runtime.stop()


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM, also where they were ignored when the process was started."""
    loop = asyncio.get_running_loop()
    handled = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in handled}
    for number in handled:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
            if before[number] is not None:
                signal.signal(number, before[number])


async def _watch_parent(runtime: Runtime) -> None:
    parent = os.getppid()
    while True:
        await asyncio.sleep(1.0)
        if os.getppid() != parent:
            runtime.abort("the process that started this worker is gone")
            return


async def _stop_engines(runtime: Runtime, strangers: frozenset[int]) -> None:
    """Stop the engines, and kill what they leave behind: the device must be free."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_ENGINES_SECONDS):
            await runtime.stop_engines()
    processes.kill(processes.descendants() - strangers)


async def _run_hook(command: str | None, runtime: Runtime) -> int:
    """Run the owner's command; its exit code is the worker's."""
    if not command:
        log.warning("no command to run at the end: post_exec_hook is empty")
        return EXIT_OK
    finished = runtime.finished
    counts = (
        {}
        if finished is None
        else {
            "CAPTION_FLOW_CAPTIONED": str(finished.captioned),
            "CAPTION_FLOW_FAILED": str(finished.failed),
        }
    )
    log.info("running the command at the end")
    process = await asyncio.create_subprocess_shell(command, env={**os.environ, **counts})
    code = await process.wait()
    return code if code >= 0 else 128 - code
