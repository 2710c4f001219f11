"""How commands find the orchestrator they ask, and the token to show it.

The only place that knows the options for it: `Where` holds them, and `connects` gives them to a
command, after the command's own. What the command line says wins over the environment, and that
over files.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_type_hints

import typer

from caption_flow.cli.failures import CommandFailed, usage_error
from caption_flow.cli.folders import for_people
from caption_flow.cli.local_access import address_on_this_machine, read_access
from caption_flow.config.discovery import Component, find_config
from caption_flow.config.document_tree import parse_document
from caption_flow.config.load import load_monitor, load_orchestrator
from caption_flow.config.monitor import MonitorConfig
from caption_flow.config.orchestrator import AuthConfig, OrchestratorConfig
from caption_flow.config.problems import ConfigError
from caption_flow.config.secret import Secret, SecretError
from caption_flow.dialing.dial import Endpoint

Rights = Literal["monitor", "admin"]
"""What a command has to be allowed: to look, or to act."""

DEFAULT_SERVER: Final = "ws://127.0.0.1:8765"
_VARIABLES: Final[dict[Rights, tuple[str, ...]]] = {
    "monitor": ("CAPTIONFLOW_MONITOR_TOKEN", "CAPTIONFLOW_ADMIN_TOKEN"),
    "admin": ("CAPTIONFLOW_ADMIN_TOKEN",),
}


@dataclass(frozen=True, slots=True)
class Found:
    """What files say of an orchestrator; None where they say nothing."""

    server: str | None = None
    token: Secret | None = None
    verify_ssl: bool = True
    nobody_there: str | None = None
    """Why there is no token: who would have left one does not run."""


@dataclass(frozen=True, slots=True)
class Where:
    """What the command line says of an orchestrator; None where it says nothing."""

    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The orchestrator: ws://HOST:PORT or wss://HOST:PORT. "
            f"[default: what --data-dir or --config say, or {DEFAULT_SERVER}]",
        ),
    ] = None
    token: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="An admin's token, or to look on, a monitor's: the token itself, env:NAME or "
            "file:PATH. [default: CAPTIONFLOW_ADMIN_TOKEN or CAPTIONFLOW_MONITOR_TOKEN, or what "
            "--data-dir or --config say]",
        ),
    ] = None
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of a run on this machine: whoever may read it needs nothing else.",
        ),
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The orchestrator's configuration, or a monitor's; otherwise orchestrator.yaml "
            "or monitor.yaml, here or in the usual places.",
        ),
    ] = None
    no_verify_ssl: Annotated[
        bool, typer.Option("--no-verify-ssl", help="Do not check the server's certificate.")
    ] = False

    def endpoint(self, rights: Rights) -> Endpoint:
        """Return whom to dial, with a token that has at least these rights, if all is as said.

        Raises:
            CommandFailed: there is no token, or what the command line names is not there.
        """
        found = self._found(rights)
        secret = self._token_given() or _from_environment(rights, self) or found.token
        if secret is None:
            if found.nobody_there is not None:
                raise CommandFailed(found.nobody_there)
            usage_error(_no_token(rights))
        try:
            token = secret.reveal()
        except SecretError as error:
            usage_error(f"the token: {error}")
        return Endpoint(
            self.server or found.server or DEFAULT_SERVER,
            token,
            verify_ssl=found.verify_ssl and not self.no_verify_ssl,
        )

    def _token_given(self) -> Secret | None:
        try:
            return None if self.token is None else Secret(self.token)
        except ValueError as error:
            usage_error(f"--token {error}")

    def _found(self, rights: Rights) -> Found:
        if self.data_dir is not None:
            return self._found_in(self.data_dir)
        if self.config is not None:
            return _found_in_file(self.config, rights)
        if self.server is not None:
            return Found()  # a token that happens to lie about is for another orchestrator
        components: tuple[Component, ...] = ("orchestrator", "monitor")
        for component in components if rights == "admin" else reversed(components):
            path = find_config(component, None, Path.cwd(), os.environ)
            if path is not None:
                return _found_in_file(path, rights)
        return Found()

    def monitor(self) -> MonitorConfig:
        """Return what a monitor shows, and how often.

        Raises:
            CommandFailed: the configuration is wrong.
        """
        path = find_config("monitor", self.config, Path.cwd(), os.environ)
        try:
            is_there = path is not None and (self.config is None or _has_monitor(path))
            return load_monitor(path if is_there else None).config
        except ConfigError as error:
            usage_error(error)

    def _found_in(self, data_dir: Path) -> Found:
        access = read_access(data_dir)
        if access is not None:
            return Found(access.server, Secret(access.token), access.verify_ssl)
        if self.server is None:
            raise CommandFailed(_nobody_on(data_dir))
        return Found()


def connects(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, which takes `Where` as its first argument, the options that make one."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    hints = get_type_hints(Where, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(Where)
    ]
    names = {parameter.name for parameter in shared}

    @wraps(command)
    def with_options(**given: Any) -> None:
        where = Where(**{name: value for name, value in given.items() if name in names})
        command(where, **{name: value for name, value in given.items() if name not in names})

    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + shared
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions take attributes
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    del with_options.__wrapped__  # what typer must not look at
    return with_options


def _from_environment(rights: Rights, where: Where) -> Secret | None:
    if where.data_dir is not None:
        return None  # a folder is named: whoever runs on it is meant, and nobody else
    set_here = (name for name in _VARIABLES[rights] if os.environ.get(name))
    name = next(set_here, None)
    return None if name is None else Secret(f"env:{name}")


def _found_in_file(path: Path, rights: Rights) -> Found:
    try:
        if _is_monitors(path):
            return _of_monitor(load_monitor(path).config)
        return _of_orchestrator(load_orchestrator(path).config, rights)
    except ConfigError as error:
        usage_error(error)


def _is_monitors(path: Path) -> bool:
    """Tell whether a file says nothing of an orchestrator; one that cannot be read may."""
    root = _root_of(path)
    return bool(root) and "orchestrator" not in root and "dataset" not in root


def _has_monitor(path: Path) -> bool:
    """Tell whether a file says anything of a monitor."""
    return "monitor" in _root_of(path) or _is_monitors(path)


def _root_of(path: Path) -> Mapping[Any, Any]:
    try:
        return parse_document(path.read_text("utf-8-sig"), str(path)).root
    except (OSError, UnicodeDecodeError):
        return {}


def _of_monitor(config: MonitorConfig) -> Found:
    return Found(config.server, config.token, config.verify_ssl)


def _of_orchestrator(config: OrchestratorConfig, rights: Rights) -> Found:
    """Return where the orchestrator of a configuration is; one that runs here says so itself."""
    access = read_access(config.storage.data_dir)
    if access is not None:
        return Found(access.server, Secret(access.token), access.verify_ssl)
    auth = config.auth or AuthConfig()
    usable = auth.admin_tokens if rights == "admin" else auth.admin_tokens + auth.monitor_tokens
    return Found(
        address_on_this_machine(config.host, config.port, tls=config.ssl is not None),
        usable[0].token if usable else None,
        nobody_there=_nobody_on(config.storage.data_dir),
    )


def _nobody_on(data_dir: Path) -> str:
    return f"no orchestrator of yours runs on {for_people(data_dir)}"


def _no_token(rights: Rights) -> str:
    kind = "a monitor's or an admin's" if rights == "monitor" else "an admin's"
    return (
        f"{kind} token is needed: --token file:PATH, --token env:NAME, {_VARIABLES[rights][0]} in "
        "the environment, or, on the orchestrator's machine, --data-dir with the run's folder"
    )
