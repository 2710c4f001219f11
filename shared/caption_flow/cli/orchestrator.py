"""``caption-flow orchestrator``: leads a run; workers join it over WebSockets."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import structlog
import typer

from caption_flow.cli.arrow import keep_pandas_out
from caption_flow.cli.configuration import load_or_refuse
from caption_flow.cli.failures import EXIT_OK, CommandFailed, usage_error
from caption_flow.cli.folders import for_people, refuse_unwritable
from caption_flow.cli.local_access import (
    NAME,
    Access,
    address_on_this_machine,
    remove_access,
    write_access,
    write_privately,
)
from caption_flow.cli.logs import configure_logging
from caption_flow.cli.passed_over import verdict
from caption_flow.cli.plan import note_on_recipe
from caption_flow.cli.retries import tell_of_retries
from caption_flow.config.discovery import find_config
from caption_flow.config.exposure import check_exposure
from caption_flow.config.load import load_orchestrator, parse_orchestrator
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.config.problems import ConfigError, ConfigProblem
from caption_flow.config.secret import SecretError

if TYPE_CHECKING:
    from caption_flow.orchestrator.server.certificate import ServedCertificate
    from caption_flow.orchestrator.service import Orchestrator
    from caption_flow.orchestrator.steering import Configuration

log = structlog.get_logger()

READY_LINE: Final = "Orchestrator ready for connections"
CERT_HELP: Final = (
    "Certificate chain (PEM), for wss://, as from `generate-cert`. Replaced files are taken up "
    "without a restart."
)
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
    cert: Annotated[Path | None, typer.Option(metavar="FILE", help=CERT_HELP)] = None,
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
    loaded = load_or_refuse(path, overrides).config
    problems = check_exposure(loaded, insecure)
    if problems:
        usage_error("\n".join(problems))
    refuse_unwritable(loaded.storage.data_dir, "choose another folder (--data-dir)")
    raise typer.Exit(serve(loaded, ReadAgain(path, overrides, insecure=insecure)))


def serve(config: OrchestratorConfig, read_again: ReadAgain) -> int:
    """Run the orchestrator until it is told to end; return the exit code."""
    import uvloop  # noqa: PLC0415  -- not on every platform, and only servers need it

    from caption_flow.cli.stores import storage_failures  # noqa: PLC0415  -- pulls in pyarrow

    keep_pandas_out()
    tell_of_retries()
    with (
        storage_failures(config.storage.data_dir),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(_serve(config, read_again))


class ReadAgain:
    """Reads a configuration for a run that goes on, as it was read at its start."""

    def __init__(self, path: Path, overrides: Mapping[str, Any], *, insecure: bool) -> None:
        self._path, self._overrides, self._insecure = path, overrides, insecure

    def __call__(self, text: str | None) -> Configuration:
        """Return the configuration of the file, or of a text in its place.

        Raises:
            ConfigError: it is wrong, or would let strangers in.
            SecretError: a token cannot be had.
        """
        from caption_flow.orchestrator.steering import Configuration  # noqa: PLC0415  -- heavy

        if text is None:
            loaded = load_orchestrator(self._path, self._overrides)
        else:
            loaded = parse_orchestrator(text, source="new config", overrides=self._overrides)
        problems = check_exposure(loaded.config, self._insecure)
        if problems:
            raise ConfigError([ConfigProblem(str(self._path), problem) for problem in problems])
        return Configuration(loaded.config, configured_tokens(loaded.config), loaded.warnings)


async def _serve(config: OrchestratorConfig, read_again: ReadAgain) -> int:
    from caption_flow.orchestrator.assembly import assemble  # noqa: PLC0415  -- pulls in pyarrow
    from caption_flow.orchestrator.server.server import ServerError  # noqa: PLC0415
    from caption_flow.orchestrator.sources.base import SourceError  # noqa: PLC0415

    data_dir = config.storage.data_dir
    try:
        made = _Made(config)
        note = note_on_recipe(config)
        leader = await _or_refuse(
            assemble(
                config,
                configured_tokens(config),
                tls=_certificate(config),
                own_tokens=made.tokens,
                read_again=read_again,
            ),
            data_dir,
        )
        if made.worker_token is not None:
            # Not before: the folder may be another orchestrator's, and so would this file be.
            await _or_refuse(asyncio.to_thread(_write_token, data_dir, made.worker_token), data_dir)
        if note is not None:
            log.warning(note)
        _install_signals(leader.drain, leader.stop)
        announcing = asyncio.create_task(_announce(leader, config, made.admin_token))
        try:
            await leader.run()
        finally:
            announcing.cancel()
            remove_access(data_dir, made.admin_token)
    except (SourceError, ServerError, SecretError) as error:
        usage_error(error)
    leader.log_progress()
    progress = leader.progress
    if progress.passed_over and leader.finished.is_set():
        raise CommandFailed(verdict(progress.passed_over))
    return EXIT_OK


T = TypeVar("T")


async def _or_refuse(opening: Awaitable[T], data_dir: Path) -> T:
    try:
        return await opening
    except OSError as error:
        usage_error(f"{for_people(data_dir)} cannot be used: {error.strerror or error}")


async def _announce(leader: Orchestrator, config: OrchestratorConfig, token: str) -> None:
    """Say that it can be connected to, and let the owner in who is on this machine."""
    await leader.ready.wait()
    server = address_on_this_machine(config.host, leader.port or 0, tls=config.ssl is not None)
    # The certificate is of another name than this machine's inside, if the owner's at all.
    access = Access(server, token, verify_ssl=False)
    try:
        await asyncio.to_thread(write_access, config.storage.data_dir, access)
    except OSError as error:
        log.warning("`--data-dir` will not find this orchestrator", reason=str(error))
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


def _certificate(config: OrchestratorConfig) -> ServedCertificate | None:
    if config.ssl is None:
        return None
    # Only where there is TLS: the library of certificates takes a while to import.
    from caption_flow.certificates.describe import CertificateError  # noqa: PLC0415
    from caption_flow.orchestrator.server.certificate import ServedCertificate  # noqa: PLC0415

    try:
        return ServedCertificate(config.ssl.cert, config.ssl.key)
    except CertificateError as error:
        usage_error(f"ssl: {error}")


def configured_tokens(config: OrchestratorConfig) -> list[tuple[str, str, str]]:
    """Return (role, name, token) of everybody who may connect; raises `SecretError`.

    What is recognised by its digest need not be known: the configuration forgets it.
    """
    entries = [] if config.auth is None else list(config.auth.entries())
    tokens = [(str(role), entry.name, entry.token.reveal()) for role, entry in entries]
    for _role, entry in entries:
        entry.token.forget()
    return tokens


class _Made:
    """The tokens that an orchestrator makes for this machine, anew at each start.

    Its owner's, and a worker's if the configuration has none.
    """

    def __init__(self, config: OrchestratorConfig) -> None:
        self.admin_token = secrets.token_urlsafe(32)
        self.worker_token = None if config.has_tokens else secrets.token_urlsafe(32)

    @property
    def tokens(self) -> list[tuple[str, str, str]]:
        """Return them as (role, name, token)."""
        worker = [] if self.worker_token is None else [("worker", NAME, self.worker_token)]
        return [*worker, ("admin", NAME, self.admin_token)]


def _write_token(data_dir: Path, token: str) -> None:
    """Put a token where only this user's workers can read it."""
    path = data_dir / LOCAL_TOKEN_FILE
    write_privately(path, token)
    log.info("no auth configured: workers on this machine use", token=f"file:{path}")
