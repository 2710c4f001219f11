"""``caption-flow inspect-cert``: what a certificate says, of a file or of who serves it."""

from __future__ import annotations

import json
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer
from rich.console import Console

from caption_flow.certificates.contexts import unverifying_context, verifying_context
from caption_flow.certificates.describe import (
    Certificate,
    CertificateError,
    describe_der,
    now,
    read_certificates,
)
from caption_flow.certificates.fingerprint import shown
from caption_flow.cli.failures import EXIT_FAILED, EXIT_OK, CommandFailed, usage_error

_TLS_PORT: Final = 443
_PATIENCE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Seen:
    """A certificate, and how it was come by."""

    where: str
    certificate: Certificate
    issuers: int = 0
    """Further certificates in the file."""
    distrust: str | None = None
    """Why this machine would not take it from a server by itself; empty if it would."""

    @property
    def was_served(self) -> bool:
        """Whether it came over a network, where anybody may have stood between."""
        return self.distrust is not None


def inspect_cert(
    where: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="A certificate's file, or who serves one: HOST:PORT or wss://HOST."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say whose a certificate is, for which names, until when, and its SHA-256 fingerprint.

    - `caption-flow inspect-cert cert.pem`
    - `caption-flow inspect-cert wss://captions.example.org:8765`

    The fingerprint is what `worker --tls-fingerprint` takes. Read it off the file, on the
    orchestrator's machine: what comes over a network may be another's. Exit code 1 if the
    certificate has expired or is not valid yet.
    """
    seen = _served(where) if _is_address(where) else _in_file(Path(where))
    why_invalid = seen.certificate.why_invalid(now())
    if as_json:
        print(json.dumps(_as_json(seen), indent=2, ensure_ascii=False))
    else:
        _print(seen, why_invalid)
    raise typer.Exit(EXIT_OK if why_invalid is None else EXIT_FAILED)


def _is_address(where: str) -> bool:
    """Tell an address from a path; what exists is a path."""
    if "://" in where:
        return True
    host, colon, port = where.rpartition(":")
    return bool(colon and host and port.isdecimal() and "/" not in where) and not (
        Path(where).exists()
    )


def _in_file(path: Path) -> _Seen:
    try:
        certificate, *issuers = read_certificates(path)
    except CertificateError as error:
        usage_error(error)
    return _Seen(str(path), certificate, len(issuers))


def _served(where: str) -> _Seen:
    host, port = _host_and_port(where)
    try:
        der, _ = _handshake(host, port, unverifying_context())
    except ssl.SSLError as error:
        raise CommandFailed(
            f"{where} does not answer as a TLS server: {error.reason or error}"
        ) from error
    except OSError as error:
        raise CommandFailed(f"no connection to {where}: {error.strerror or error}") from error
    try:
        return _Seen(where, describe_der(der), distrust=_distrust(host, port, der))
    except ValueError as error:
        raise CommandFailed(f"{where} serves a malformed certificate: {error}") from error


def _host_and_port(where: str) -> tuple[str, int]:
    try:
        parts = urlsplit(where if "://" in where else f"wss://{where}")
        scheme, host, port = parts.scheme, parts.hostname, parts.port or _TLS_PORT
    except ValueError:
        scheme, host, port = "", None, 0
    if not host or scheme not in {"wss", "https"}:
        usage_error(f"'{where}' names no TLS server; write HOST:PORT or wss://HOST:PORT")
    return host, port


def _handshake(host: str, port: int, context: ssl.SSLContext) -> tuple[bytes, str | None]:
    with (
        socket.create_connection((host, port), timeout=_PATIENCE_SECONDS) as connection,
        context.wrap_socket(connection, server_hostname=host) as secure,
    ):
        der = secure.getpeercert(binary_form=True)
        if der is None:
            raise ssl.SSLError("no certificate")
        return der, secure.version()


def _distrust(host: str, port: int, der: bytes) -> str:
    """Say why this machine does not take a server's certificate by itself; empty if it does."""
    try:
        again, _ = _handshake(host, port, verifying_context())
    except ssl.SSLCertVerificationError as error:
        return error.verify_message or "it cannot be verified"
    except OSError as error:
        return f"the second look failed: {error}"
    return "" if again == der else "the second look found another certificate"


def _as_json(seen: _Seen) -> dict[str, Any]:
    certificate = seen.certificate
    moment = now()
    described: dict[str, Any] = {
        "where": seen.where,
        "subject": certificate.subject,
        "issuer": certificate.issuer,
        "self_signed": certificate.is_self_signed,
        "names": list(certificate.names),
        "not_before": certificate.not_before.isoformat(),
        "not_after": certificate.not_after.isoformat(),
        "days_left": certificate.days_left(moment),
        "valid_now": certificate.why_invalid(moment) is None,
        "key": certificate.key,
        "sha256": shown(certificate.fingerprint),
    }
    if seen.was_served:
        described["trusted"] = not seen.distrust
    return described


def _print(seen: _Seen, why_invalid: str | None) -> None:
    certificate = seen.certificate
    days = certificate.days_left(now())
    issuer = "itself: self-signed" if certificate.is_self_signed else certificate.issuer
    validity = why_invalid or f"{days} day{'' if days == 1 else 's'} left"
    lines = [
        ("certificate", seen.where),
        ("subject", certificate.subject),
        ("issued by", issuer),
        ("names", ", ".join(certificate.names) or "none, so clients that check refuse it"),
        ("valid", f"{certificate.not_before:%Y-%m-%d} to {certificate.not_after:%Y-%m-%d}"),
        ("", validity),
        ("key", certificate.key),
        ("SHA-256", shown(certificate.fingerprint)),
    ]
    if seen.issuers:
        lines.append(("beside it", f"{seen.issuers} of its issuers"))
    if seen.was_served:
        lines.append(("trusted", f"no: {seen.distrust}" if seen.distrust else "yes"))
    out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for name, value in lines:
        out.print(f"{name:<12}{_printable(value)}")
    if seen.was_served:
        out.print(
            "\nThis came over the network. Before you use the SHA-256, compare it with what\n"
            "`caption-flow inspect-cert FILE` prints on the orchestrator's machine: whoever\n"
            "stands between would have shown a certificate of his own."
        )


def _printable(text: str) -> str:
    """Return a text from a certificate, whoever made it, without what terminals act upon."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
