"""``caption-flow orchestrator``: leads a run; workers join it over WebSockets."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import ssl
from collections.abc import Awaitable
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import structlog
import typer

from caption_flow.cli.configuration import load_or_refuse
from caption_flow.cli.failures import EXIT_OK, usage_error
from caption_flow.cli.folders import for_people, refuse_unwritable
from caption_flow.cli.logs import configure_logging
from caption_flow.cli.plan import note_on_recipe
from caption_flow.config.discovery import find_config
from caption_flow.config.exposure import check_exposure
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.config.secret import SecretError

log = structlog.get_logger()

READY_LINE: Final = "Orchestrator ready for connections"
LOCAL_TOKEN_FILE: Final = "local-worker.token"  # noqa: S105  -- a file name


def orchestrator(
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Configuration, YAML or JSON; otherwise ./orchestrator.yaml and the usual places.",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="N", help="Port; 0 takes any free one.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the run: its ledger and its Parquet files."),
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate chain (PEM), for wss://.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Private key (PEM).")] = None,
    no_ssl: Annotated[
        bool, typer.Option("--no-ssl", help="Serve ws:// whatever the file says.")
    ] = False,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Allow ws:// beyond this machine: a tunnel or proxy protects the connection.",
        ),
    ] = False,
    vllm: Annotated[
        bool, typer.Option("--vllm", help="Accepted for compatibility; vLLM is what workers run.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Lead a run: hand out the dataset to workers and keep what they write.

    Ctrl-C ends it cleanly: nothing more is handed out, what is in flight is taken for a few
    seconds, everything is flushed to Parquet. A second Ctrl-C ends it at once; what was
    acknowledged is safe either way, and starting it again goes on.
    """
    del vllm
    configure_logging("orchestrator", verbose=verbose)
    path = find_config("orchestrator", config, Path.cwd(), os.environ)
    if path is None:
        usage_error(
            "no configuration: give one with --config FILE (configs/ has examples), "
            "or put orchestrator.yaml here"
        )
    if (cert is None) != (key is None):
        usage_error("--cert and --key go together")
    overrides: dict[str, Any] = {
        name: value
        for name, value in {
            "host": host,
            "port": port,
            "storage.data_dir": None if data_dir is None else str(data_dir),
        }.items()
        if value is not None
    }
    if cert is not None and key is not None:
        overrides["ssl"] = {"cert": str(cert), "key": str(key)}
    if no_ssl:
        overrides["ssl"] = None
    loaded = load_or_refuse(path, overrides)
    problems = check_exposure(loaded, insecure)
    if problems:
        usage_error("\n".join(problems))
    refuse_unwritable(loaded.storage.data_dir, "choose another folder (--data-dir)")
    raise typer.Exit(serve(loaded))


def serve(config: OrchestratorConfig) -> int:
    """Run the orchestrator until it is told to end; return the exit code."""
    import uvloop  # noqa: PLC0415  -- not on every platform, and only servers need it

    from caption_flow.cli.stores import storage_failures  # noqa: PLC0415  -- pulls in pyarrow

    with (
        storage_failures(config.storage.data_dir),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(_serve(config))


async def _serve(config: OrchestratorConfig) -> int:
    from caption_flow.orchestrator.assembly import assemble  # noqa: PLC0415  -- pulls in pyarrow
    from caption_flow.orchestrator.server.server import ServerError  # noqa: PLC0415
    from caption_flow.orchestrator.sources.base import SourceError  # noqa: PLC0415

    data_dir = config.storage.data_dir
    try:
        tokens, made = _tokens(config)
        note = note_on_recipe(config)
        leader = await _or_refuse(assemble(config, tokens, tls=_tls(config)), data_dir)
        if made is not None:
            # Not before: the folder may be another orchestrator's, and so would this file be.
            await _or_refuse(asyncio.to_thread(_write_token, data_dir, made), data_dir)
        if note is not None:
            log.warning(note)
        _install_signals(leader.drain, leader.stop)
        announcing = asyncio.create_task(_announce(leader.ready))
        try:
            await leader.run()
        finally:
            announcing.cancel()
    except (SourceError, ServerError, SecretError) as error:
        usage_error(error)
    leader.log_progress()
    return EXIT_OK


T = TypeVar("T")


async def _or_refuse(opening: Awaitable[T], data_dir: Path) -> T:
    try:
        return await opening
    except OSError as error:
        usage_error(f"{for_people(data_dir)} cannot be used: {error.strerror or error}")


async def _announce(ready: asyncio.Event) -> None:
    await ready.wait()
    print(READY_LINE, flush=True)


def _install_signals(drain: Any, stop: Any) -> None:
    """First signal drains, the second stops; also where we were started with SIGINT ignored."""
    loop = asyncio.get_running_loop()
    asked = 0

    def on_signal() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            log.info("draining: a second signal stops at once")
            drain()
        else:
            stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)


def _tls(config: OrchestratorConfig) -> ssl.SSLContext | None:
    if config.ssl is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.ssl.cert, config.ssl.key)
    except (OSError, ssl.SSLError) as error:
        usage_error(f"ssl: {config.ssl.cert} and {config.ssl.key} cannot be used: {error}")
    return context


def _tokens(config: OrchestratorConfig) -> tuple[list[tuple[str, str, str]], str | None]:
    """Return (role, name, token) of everybody who may connect, and the token if it is made now."""
    if config.auth is not None and config.has_tokens:
        entries = config.auth.entries()
        return [(role, entry.name, entry.token.reveal()) for role, entry in entries], None
    token = secrets.token_urlsafe(32)
    return [("worker", "local", token)], token


def _write_token(data_dir: Path, token: str) -> None:
    """Put a token where only this user's workers can read it."""
    path = data_dir / LOCAL_TOKEN_FILE
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
        file.write(token)
    log.info("no auth configured: workers on this machine use", token=f"file:{path}")
