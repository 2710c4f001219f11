"""``caption-flow generate-cert``: a certificate of one's own, and how workers come to trust it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from caption_flow.certificates.fingerprint import shown
from caption_flow.certificates.self_signed import (
    Made,
    Name,
    make_self_signed,
    names_of_this_machine,
    parse_name,
    write_pair,
)
from caption_flow.cli.failures import usage_error
from caption_flow.cli.folders import for_people
from caption_flow.protocol.addresses import is_loopback

CERT_FILE: Final = "cert.pem"
KEY_FILE: Final = "key.pem"
_PORT: Final = 8765
_LONGEST_DAYS: Final = 3650


def generate_cert(
    self_signed: Annotated[
        bool, typer.Option("--self-signed", help="Make a certificate of your own. Needed.")
    ] = False,
    domain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Host name or IP address that it is for; may be given several times. "
            "[default: localhost, 127.0.0.1, ::1 and this machine's names]",
        ),
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(metavar="DIR", help=f"Folder for {CERT_FILE} and {KEY_FILE}.")
    ] = Path(),
    days: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=_LONGEST_DAYS, help="Days until it expires."),
    ] = 365,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace files; workers then need the new fingerprint."),
    ] = False,
    email: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Accepted; only certbot has a use for it."),
    ] = None,
    staging: Annotated[
        bool, typer.Option("--staging", help="Accepted; only certbot has a use for it.")
    ] = False,
) -> None:
    """Make a certificate for `wss://`, and print what workers need to trust it.

    - `caption-flow generate-cert --self-signed --domain captions.example.org`

    Nobody vouches for such a certificate; workers are told its fingerprint instead and take it and
    no other (`worker --tls-fingerprint`). A certificate of an authority, which workers trust
    without being told, comes from certbot or the like.
    """
    names = _names(domain or [])
    if not self_signed:
        _refer_to_certbot(names if domain else [], email=email, staging=staging)
    cert, key = output_dir / CERT_FILE, output_dir / KEY_FILE
    existing = [for_people(path) for path in (cert, key) if path.exists() or path.is_symlink()]
    if existing and not force:
        usage_error(f"already there: {' and '.join(existing)}; --force replaces both")
    made = make_self_signed(names, days=days)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_pair(made, cert, key)
    except OSError as error:
        usage_error(f"{for_people(output_dir)} cannot be written to: {error.strerror or error}")
    print(_report(made, names, cert, key))


def _names(domains: list[str]) -> list[Name]:
    try:
        return list(dict.fromkeys(parse_name(one) for one in domains or names_of_this_machine()))
    except ValueError as error:
        usage_error(f"--domain: {error}")


def _refer_to_certbot(names: list[Name], *, email: str | None, staging: bool) -> NoReturn:
    first = str(names[0]) if names else "captions.example.org"
    command = ["certbot", "certonly", "--standalone"]
    for name in names or [first]:
        command += ["-d", str(name)]
    command += [] if email is None else ["-m", email]
    command += ["--staging"] if staging else []
    lives = f"/etc/letsencrypt/live/{first}"
    usage_error(
        "getting a certificate from an authority is not built in: --self-signed makes one of your "
        "own, and certbot gets one that every worker trusts:\n"
        f"  {shlex.join(command)}\n"
        f"  caption-flow orchestrator --cert {lives}/fullchain.pem --key {lives}/privkey.pem\n"
        "what certbot renews later is taken up without a restart"
    )


def _report(made: Made, names: list[Name], cert: Path, key: Path) -> str:
    certificate = made.certificate
    fingerprint = shown(certificate.fingerprint)
    host = next((one for one in map(str, names) if not is_loopback(one)), str(names[0]))
    host = "HOST" if host.startswith("*.") else f"[{host}]" if ":" in host else host
    return "\n".join(
        [
            f"certificate  {for_people(cert)}",
            f"key          {for_people(key)}  (for the orchestrator alone; workers need neither)",
            f"names        {', '.join(certificate.names)}",
            f"expires      {certificate.not_after:%Y-%m-%d}",
            f"SHA-256      {fingerprint}",
            "",
            "The orchestrator:",
            "  caption-flow orchestrator --config FILE "
            f"--cert {shlex.quote(str(cert))} --key {shlex.quote(str(key))}",
            "",
            "Each worker:",
            f"  caption-flow worker --server wss://{host}:{_PORT} --token file:worker.token "
            f"--tls-fingerprint {fingerprint}",
        ]
    )
