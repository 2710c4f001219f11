"""``caption-flow auth``: let people into a run, and out again."""

from __future__ import annotations

import json
import os
import re
import secrets
import string
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import typer

from caption_flow.cli.asking import ask
from caption_flow.cli.commands import OfSeveral, OneCommand
from caption_flow.cli.connecting import Where, connects
from caption_flow.cli.failures import CommandFailed, usage_error
from caption_flow.cli.folders import for_people
from caption_flow.config.discovery import find_config
from caption_flow.config.edit import EditError, TokensFile
from caption_flow.config.load import parse_orchestrator
from caption_flow.config.problems import ConfigError
from caption_flow.config.secret import Secret, SecretError
from caption_flow.config.section import moment
from caption_flow.dialing.dial import UnluckyError
from caption_flow.protocol.messages import (
    AddToken,
    Done,
    ListTokens,
    ObserverMessage,
    RemoveToken,
    TokenLimits,
)
from caption_flow.storage.atomic import replaced_file

SHORTEST_TOKEN: Final = 16
_LENGTH: Final = 43
"""Characters with as many bits as 32 bytes."""
_LETTERS: Final = string.ascii_letters + string.digits
_UNITS: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}

auth = typer.Typer(
    cls=OfSeveral,
    rich_markup_mode="markdown",
    help="""Let people into a run, and out again.

    - `caption-flow auth add worker alice --max-workers 4 --trust low > alice.token`
    - `caption-flow auth remove alice`

    A running orchestrator is told, and remembers it in its folder: the configuration's file is not
    changed. What was removed lets nobody in again until it is added again, also where the file
    names it. With `--config FILE`, the file is changed instead if nobody runs on it, or with
    `--no-reload`: that counts from the orchestrator's next start, or from `reload-config`.
    """,
)


@auth.callback()
@connects
def _auth(where: Where, context: typer.Context) -> None:
    context.obj = where


@auth.command("add", cls=OneCommand)
@connects
def add(
    where: Where,
    context: typer.Context,
    role: Annotated[
        Literal["worker", "monitor", "admin"],
        typer.Argument(metavar="ROLE", help="What it is for: worker, monitor or admin."),
    ],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Whose it is; recorded as contributor of rows.")
    ],
    token_value: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="The token: itself, env:NAME or file:PATH. [default: a new one, which is printed "
            "once, alone, on standard output]",
        ),
    ] = None,
    max_workers: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Workers at a time.")
    ] = None,
    max_items: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Items in all; then its workers wait.")
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="When it ends: after 90m, 12h, 7d or 2w, at the end of a day (2026-12-31, UTC), "
            "or at a moment (2026-12-31T18:00+02:00).",
        ),
    ] = None,
    trust: Annotated[
        Literal["full", "low"],
        typer.Option(
            metavar="TRUST", help="full, or low: some of what it brings is done again and compared."
        ),
    ] = "full",
    no_reload: Annotated[
        bool,
        typer.Option("--no-reload", help="Change the configuration's file; tell no orchestrator."),
    ] = False,
) -> None:
    """Let somebody in. Without --token-value the new token is printed, once, and nothing else."""
    where = _merged(context.obj, where)
    limits = TokenLimits(max_workers, max_items, _expiry(expires), trust)
    value = token_value or new_token()
    token = _reveal(value)

    def in_file(file: TokensFile) -> None:
        file.add(role, name, value, _written(limits))

    done = _tell(
        where,
        AddToken(role, name, sha256(token.encode("utf-8", "surrogateescape")).digest(), limits),
        in_file,
        no_reload=no_reload,
    )
    print(done.message, file=sys.stderr)
    if token_value is None:
        print(token)


@auth.command("remove", cls=OneCommand)
@connects
def remove(
    where: Where,
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose tokens are to end.")],
    no_reload: Annotated[
        bool,
        typer.Option("--no-reload", help="Change the configuration's file; tell no orchestrator."),
    ] = False,
) -> None:
    """Let somebody in no more. Their sessions end, and what they hold goes back, at once."""
    where = _merged(context.obj, where)

    def in_file(file: TokensFile) -> None:
        file.remove(name)

    print(_tell(where, RemoveToken(name), in_file, no_reload=no_reload).message)


@auth.command("list", cls=OneCommand)
@connects
def list_tokens(
    where: Where,
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
) -> None:
    """Say who may connect, with what limits; never a token."""
    where = _merged(context.obj, where)
    answer = _ask(where, ListTokens())
    tokens = _in_file(_file_of(where)) if answer is None else answer.facts["tokens"]
    if as_json:
        print(json.dumps(tokens, ensure_ascii=False))
        return
    for one in tokens:
        print(_line(one))


@auth.command("generate", cls=OneCommand)
def generate(
    length: Annotated[
        int, typer.Option(metavar="N", min=SHORTEST_TOKEN, help="Characters of each.")
    ] = _LENGTH,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="How many.")] = 1,
) -> None:
    """Print new tokens, one a line, and let nobody in."""
    for _ in range(count):
        print(new_token(length))


def new_token(length: int = _LENGTH) -> str:
    """Return a token that nobody can guess, of letters and digits."""
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


# --------------------------------------------------------------------------- whom to tell


def _merged(before: Where, after: Where) -> Where:
    """Return what is said before ``add`` and the like, and after; the latter counts."""
    said = {one.name: getattr(after, one.name) for one in fields(Where)}
    return replace(before, **{name: value for name, value in said.items() if value})


def _tell(
    where: Where,
    request: ObserverMessage,
    in_file: Callable[[TokensFile], None],
    *,
    no_reload: bool,
) -> Done:
    """Have a change made, by the orchestrator or else in the configuration's file."""
    answer = None if no_reload else _ask(where, request)
    if answer is not None:
        return answer
    path = _file_of(where)
    _edit(path, in_file)
    return Done(f"{for_people(path)} is changed: it counts from the next start or reload-config")


def _ask(where: Where, request: ObserverMessage) -> Done | None:
    """Ask the orchestrator; None if it is to be found by its file only, and is not there."""
    may_be_away = where.config is not None and where.server is None
    try:
        endpoint = where.endpoint("admin")
    except CommandFailed:
        if may_be_away:
            return None  # its file names no admin who could ask, and nobody runs on its folder
        raise
    try:
        answer = ask(endpoint, request)
    except CommandFailed as failure:
        if may_be_away and isinstance(failure.__cause__, UnluckyError):
            return None
        raise
    if not isinstance(answer, Done):
        raise CommandFailed("the orchestrator answered something else than it was asked")
    return answer


def _file_of(where: Where) -> Path:
    path = where.config or find_config("orchestrator", None, Path.cwd(), os.environ)
    if path is None:
        usage_error("no configuration to change: name one with --config FILE")
    return path.resolve()


def _edit(path: Path, change: Callable[[TokensFile], None]) -> None:
    """Change a configuration's file as a whole, if it can be used before and after."""
    try:
        before = path.read_text("utf-8-sig")
        file = TokensFile(before)
        change(file)
        after = file.text()
        parse_orchestrator(after, source=str(path))
        with replaced_file(path, durable=True) as sink:
            sink.write(after.encode())
    except EditError as error:
        usage_error(f"{for_people(path)} {error}")
    except ConfigError as error:
        usage_error(f"nothing was changed:\n{error}")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{for_people(path)} cannot be changed: {error}") from error


# --------------------------------------------------------------------------- what is said


def _reveal(value: str) -> str:
    try:
        secret = Secret(value)
        token = secret.reveal()
    except (ValueError, SecretError) as error:
        usage_error(f"--token-value: {error}")
    if len(token) < SHORTEST_TOKEN:
        usage_error(f"--token-value: at least {SHORTEST_TOKEN} characters; fewer can be guessed")
    return token


def _expiry(text: str | None) -> float | None:
    if text is None:
        return None
    span = re.fullmatch(r"(\d{1,4})([mhdw])", text.strip())
    if span:
        seconds = int(span.group(1)) * _UNITS[span.group(2)]
        return (datetime.now(UTC) + timedelta(seconds=seconds)).timestamp()
    try:
        return moment(text)
    except ValueError as error:
        usage_error(f"--expires {error}; or a time from now, such as 7d")


def _written(limits: TokenLimits) -> dict[str, Any]:
    """Return limits as a configuration's entry has them."""
    entry: dict[str, Any] = msgspec.to_builtins(limits)
    if limits.expires is not None:
        entry["expires"] = _shown_moment(limits.expires)
    return entry


def _shown_moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _in_file(path: Path) -> list[dict[str, Any]]:
    try:
        entries = TokensFile(path.read_text("utf-8-sig")).entries()
        return [{"name": name, "role": role, **_limits(entry)} for role, name, entry in entries]
    except (OSError, UnicodeDecodeError, EditError) as error:
        usage_error(f"{for_people(path)}: {error}")


def _limits(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        return {}
    return {name: value for name, value in entry.items() if name not in {"token", "name"}}


def _line(one: Mapping[str, Any]) -> str:
    said = []
    for name, value in one.items():
        if name not in {"name", "role"}:
            shown = _shown_moment(value) if isinstance(value, float) else value
            said.append(f"{name}={shown}")
    return "  ".join([f"{one['role']:<7}", for_people(str(one["name"])), *said])
