"""``caption-flow worker``: joins an orchestrator and captions what it is handed."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import structlog
import typer

from caption_flow.cli.arrow import keep_pandas_out
from caption_flow.cli.configuration import load_worker_or_refuse
from caption_flow.cli.crew import PARENT_VARIABLE
from caption_flow.cli.dialling import (
    INSECURE_HELP,
    NO_VERIFY_SSL_HELP,
    TLS_FINGERPRINT_HELP,
    refuse_unsafe,
)
from caption_flow.cli.engines import check_engine
from caption_flow.cli.failures import CommandFailed, usage_error
from caption_flow.cli.gpus import show_only
from caption_flow.cli.logs import configure_logging
from caption_flow.cli.retries import tell_of_retries
from caption_flow.config.discovery import find_config
from caption_flow.config.secret import SecretError
from caption_flow.config.worker import WorkerConfig
from caption_flow.dialing.endpoint import Endpoint

if TYPE_CHECKING:
    from caption_flow.worker.service import WorkerSettings

log = structlog.get_logger()


def worker(
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Configuration, YAML or JSON; otherwise ./worker.yaml and the usual places.",
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The orchestrator: ws://HOST:PORT or wss://HOST:PORT. Needed, here or in the "
            "file.",
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="What the orchestrator knows this worker by: the token itself, env:NAME or "
            "file:PATH. Needed, here, in the file or in the environment.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What people see of it, in logs and rows. [default: the machine's name]",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Most requests in the engine at once. [default: what keeps it full]",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="ENGINE",
            help="What generates the texts: vllm, openai (any server with that API), or synthetic "
            "(made-up texts, to try things out). [default: vllm]",
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The server of the openai engine: http://HOST:PORT/v1."),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(metavar="REF", help="Its key, if any: env:NAME or file:PATH.")
    ] = None,
    tls_fingerprint: Annotated[
        list[str] | None, typer.Option(metavar="SHA256", help=TLS_FINGERPRINT_HELP)
    ] = None,
    no_verify_ssl: Annotated[
        bool, typer.Option("--no-verify-ssl", help=NO_VERIFY_SSL_HELP)
    ] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help=INSECURE_HELP)] = False,
    vllm: Annotated[
        bool, typer.Option("--vllm", help="Accepted for compatibility; vLLM is the default.")
    ] = False,
    gpu_id: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="The GPU to use, such as 0, or several for tensor_parallel_size, such as 0,1. "
            "Where CUDA_VISIBLE_DEVICES is set, they count its entries. [default: all visible]",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="Number format of the model's weights: auto, float16, bfloat16 or float32. "
            "[default: the recipe's]",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model to use in place of the recipe's.")
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="The recipe's stages to run, separated by commas; all, unless given. Other "
            "workers run the others.",
        ),
    ] = None,
    engine_stall_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Restart an engine that has requests and gives no token for so long. "
            "[default: 600]",
        ),
    ] = None,
    max_engine_restarts: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Restarts without an answer in between before the worker gives up. [default: 3]",
        ),
    ] = None,
    when_finished: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="What to do when every item of the run is done or failed: "
            "stay_connected, shutdown or post_exec_hook. [default: stay_connected]",
        ),
    ] = None,
    post_exec_hook: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND", help="Command to run then, with --when-finished post_exec_hook."
        ),
    ] = None,
    connect_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, help="How long to try to reach an orchestrator at the start."
        ),
    ] = 60.0,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Let models run their own code on this machine."),
    ] = False,
    no_config: Annotated[
        bool,
        typer.Option("--no-config", help="Look for no configuration in the usual places."),
    ] = False,
    exit_with_parent: Annotated[
        bool,
        typer.Option("--exit-with-parent", help="End when the process that started this ends."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Join an orchestrator and caption what it hands out.

    - `caption-flow worker --server ws://127.0.0.1:8765 --token file:worker.token`
    - `caption-flow worker --server wss://HOST:8765 --token file:worker.token --tls-fingerprint …`

    What is asked, and of which model, the orchestrator says. Options here win over the file. The
    token may also be in the environment, as CAPTIONFLOW_WORKER_TOKEN. Ctrl-C finishes what the
    engine works on, gives the rest back and exits; a second one exits at once.
    """
    del vllm
    configure_logging("worker", verbose=verbose)
    path = config if no_config else find_config("worker", config, Path.cwd(), os.environ)
    overrides: dict[str, Any] = {
        key: value
        for key, value in {
            "server": server,
            "token": token or _token_from_environment(path),
            "name": name,
            "gpu_id": gpu_id,
            "stages": stages,
            "engine.type": engine,
            "engine.base_url": base_url,
            "engine.api_key": api_key,
            "engine_stall_seconds": engine_stall_seconds,
            "max_engine_restarts": max_engine_restarts,
            "verify_ssl": False if no_verify_ssl else None,
            "tls_fingerprint": tls_fingerprint,
            "when_finished": None if when_finished is None else when_finished.replace("-", "_"),
            "post_exec_hook": post_exec_hook,
            "vllm.dtype": precision,
        }.items()
        if value is not None
    }
    loaded = load_worker_or_refuse(path, overrides).config
    check_engine(loaded.engine, base_url=base_url, api_key=api_key)
    start(
        loaded,
        model=model or loaded.vllm.model,
        batch_size=batch_size,
        connect_seconds=connect_seconds,
        trust_remote_code=trust_remote_code or loaded.vllm.trust_remote_code,
        insecure=insecure,
        exit_with_parent=exit_with_parent,
    )


def _token_from_environment(path: Path | None) -> str | None:
    variable = "CAPTIONFLOW_WORKER_TOKEN"
    return f"env:{variable}" if path is None and os.environ.get(variable) else None


def start(
    config: WorkerConfig,
    *,
    model: str | None,
    batch_size: int | None,
    connect_seconds: float,
    trust_remote_code: bool,
    insecure: bool,
    exit_with_parent: bool,
) -> NoReturn:
    """Run a worker in this process until it is done, and end the process with its exit code."""
    if config.token is None:
        usage_error(
            "a token is needed: --token TOKEN, --token file:PATH, --token env:NAME, "
            "or CAPTIONFLOW_WORKER_TOKEN in the environment"
        )
    try:
        token = config.token.reveal()
    except SecretError as error:
        usage_error(f"the token: {error}")
    refuse_unsafe(
        Endpoint(config.server, token, config.verify_ssl, config.tls_fingerprint, insecure)
    )
    gpus = () if config.gpu_id is None else show_only(config.gpu_id)

    # Only now: whatever imports CUDA reads CUDA_VISIBLE_DEVICES once.
    import uvloop  # noqa: PLC0415

    keep_pandas_out()
    tell_of_retries()
    settings = settings_from(
        config,
        token=token,
        gpus=gpus,
        model=model,
        batch_size=batch_size,
        connect_seconds=connect_seconds,
        trust_remote_code=trust_remote_code,
        insecure=insecure,
        exit_with_parent=exit_with_parent,
    )
    if exit_with_parent and _is_orphan():
        raise CommandFailed("the process that started this worker is gone")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_work_and_leave(settings))
    raise AssertionError("unreachable: the process has ended")


async def _work_and_leave(settings: WorkerSettings) -> NoReturn:
    """Run a worker and end the process with its exit code, at once.

    Everything is acknowledged and every engine is gone. The event loop would wait for threads, such
    as one that imports vLLM for a run that is cancelled, and the interpreter take a second or more
    to tidy up, for torch and vLLM, what the end of the process frees anyway.
    """
    from caption_flow.worker.service import run_worker  # noqa: PLC0415  -- see `start`

    code = await run_worker(settings)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def settings_from(
    config: WorkerConfig,
    *,
    token: str,
    gpus: Sequence[str] = (),
    model: str | None,
    batch_size: int | None,
    connect_seconds: float,
    trust_remote_code: bool,
    insecure: bool = False,
    exit_with_parent: bool,
) -> WorkerSettings:
    """Return what the worker is to do, of its configuration and the command line's options."""
    from caption_flow.worker.service import WorkerSettings  # noqa: PLC0415 - see `start`

    return WorkerSettings(
        server=config.server,
        token=token,
        name=config.name or socket.gethostname(),
        engine=config.engine.type,
        engine_settings=(
            config.vllm.engine_keys() if config.engine.type == "vllm" else config.engine.options
        ),
        vllm_options=config.vllm.engine_keys(),
        model=model,
        batch_size=batch_size,
        look_ahead_items=config.readahead_size,
        engine_stall_seconds=config.engine_stall_seconds,
        max_engine_restarts=config.max_engine_restarts,
        gpus=tuple(gpus),
        stages=config.stages,
        connect_seconds=connect_seconds,
        trust_remote_code=trust_remote_code,
        verify_ssl=config.verify_ssl,
        fingerprints=config.tls_fingerprint,
        insecure=insecure,
        when_finished=config.when_finished,
        post_exec_hook=config.post_exec_hook,
        exit_with_parent=exit_with_parent,
    )


def _is_orphan() -> bool:
    """Tell whether whoever started this has ended while it was being imported."""
    parent = os.environ.get(PARENT_VARIABLE)
    return parent is not None and parent != str(os.getppid())
