"""What a failed attempt to connect means: for now or for good, why, and what to do. Pure.

No sentence names the certificate that was seen: whoever stands between could have it copied into a
command. What it is held against comes from the orchestrator's own machine.
"""

from __future__ import annotations

import ssl
from http import HTTPStatus
from typing import Final

from websockets.exceptions import InvalidStatus, InvalidURI, NegotiationError
from websockets.http11 import Response

from caption_flow.dialing.endpoint import Endpoint
from caption_flow.dialing.tls import WrongCertificateError
from caption_flow.protocol.version import SUBPROTOCOL

HANDSHAKE_SECONDS: Final = 30.0
"""A refusal may be slow on purpose: the orchestrator delays addresses that guess tokens."""

_LONGEST_SHOWN: Final = 300
_COMPARE: Final = (
    "ask for the SHA-256 that `caption-flow inspect-cert FILE` prints on the orchestrator's "
    "machine and give it with --tls-fingerprint"
)

# OpenSSL's numbers (x509_vfy.h): what is wrong with a certificate.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_UNTRUSTED: Final = {
    18: "is self-signed",
    19: "is of an authority that this machine does not trust",
    20: "is of an authority that this machine does not trust",
    21: "is self-signed, or lacks the certificates of its issuers",
}
_WRONG_NAME: Final = frozenset({62, 64})

# OpenSSL's reasons, as Python writes them; which one it is differs by OpenSSL's version.
_NOT_TLS: Final = frozenset(
    {
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
        "HTTPS_PROXY_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
        "RECORD_TOO_SMALL",
    }
)
_OLD_TLS: Final = frozenset(
    {"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "VERSION_TOO_LOW"}
)


class ConnectionRefusedForGoodError(Exception):
    """Base of what ends all dialling; ``str()`` is one sentence a person can act on."""


class UnwelcomeError(ConnectionRefusedForGoodError):
    """The orchestrator refuses whoever dials, or must not be dialled; trying again is pointless."""


class UnluckyError(Exception):
    """This attempt failed; another may not."""


Verdict = UnluckyError | UnwelcomeError


def verdict(endpoint: Endpoint, error: Exception) -> Verdict:
    """Say whether dialling failed for now or for good, and why."""
    shown = endpoint.shown
    match error:
        case InvalidStatus():
            return _of_status(shown, error)
        case InvalidURI():
            return UnwelcomeError(f"'{shown}' is no WebSocket address; write ws://host:port")
        case NegotiationError():
            return other_version(shown)
        case WrongCertificateError() | ssl.SSLError():
            return _of_tls(shown, error)
        case TimeoutError():
            return UnluckyError(f"no answer within {HANDSHAKE_SECONDS:.0f} s")
        case _:
            return UnluckyError(str(error) or type(error).__name__)


def other_version(shown: str) -> UnwelcomeError:
    """Say that the two sides are of different times."""
    return UnwelcomeError(
        f"{shown} does not speak {SUBPROTOCOL}: orchestrator and worker have different major "
        "versions; upgrade the older one (pip install -U caption-flow)"
    )


def needs_tls(shown: str) -> UnwelcomeError:
    """Say that there is TLS at an address that was dialled without."""
    return UnwelcomeError(f"{shown} speaks TLS; write {shown.replace('ws://', 'wss://', 1)}")


def has_no_tls(shown: str) -> UnwelcomeError:
    """Say that there is no TLS at an address that was dialled with it."""
    return UnwelcomeError(
        f"what answers at {shown} does not speak TLS: is the orchestrator started with --cert and "
        "--key, and is the port its own?"
    )


def _wrong_certificate(shown: str) -> str:
    return (
        f"the certificate of {shown} is not the one of --tls-fingerprint, so it was sent nothing, "
        "the token neither: either the orchestrator has a new one, or somebody else answers; "
        f"{_COMPARE}"
    )


def _unverified(shown: str, error: ssl.SSLCertVerificationError) -> str:
    code = error.verify_code
    whose = f"the certificate of {shown}"
    if code == _EXPIRED:
        return (
            f"{whose} has expired, by this machine's clock; renew it on the orchestrator's machine "
            "(new files are taken up without a restart)"
        )
    if code == _NOT_YET_VALID:
        return f"{whose} is not valid yet: is this machine's clock right?"
    if code in _WRONG_NAME:
        return (
            f"{whose} is for another name or address ({error.verify_message.rstrip('.')}); use the "
            f"one that it is for, or {_COMPARE}"
        )
    if code in _UNTRUSTED:
        return (
            f"{whose} {_UNTRUSTED[code]}, so it proves nothing by itself; {_COMPARE}. An authority "
            "of your own is trusted with SSL_CERT_FILE"
        )
    return f"{whose} cannot be verified ({error.verify_message}); {_COMPARE}"


def _of_tls(shown: str, error: WrongCertificateError | ssl.SSLError) -> Verdict:
    if isinstance(error, WrongCertificateError):
        return UnwelcomeError(_wrong_certificate(shown))
    if isinstance(error, ssl.SSLCertVerificationError):
        return UnwelcomeError(_unverified(shown, error))
    if error.reason in _NOT_TLS:
        return has_no_tls(shown)
    if error.reason in _OLD_TLS:
        return UnwelcomeError(
            f"{shown} speaks TLS older than 1.2 only; what stands there must be upgraded"
        )
    return UnluckyError(f"TLS with {shown} failed: {error.reason or error}")


def _of_status(shown: str, error: InvalidStatus) -> Verdict:
    response = error.response
    said = _said(response)
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        return UnwelcomeError(f"the orchestrator at {shown} refused the token")
    if response.status_code == HTTPStatus.FORBIDDEN:  # a token that it knows, and may say more to
        more = f": {said}" if said else ""
        return UnwelcomeError(f"the orchestrator at {shown} refused the token{more}")
    if response.status_code in {HTTPStatus.BAD_REQUEST, HTTPStatus.UPGRADE_REQUIRED}:
        if not said or "invalid subprotocol" in said:  # the socket library's own words
            return other_version(shown)
        return UnwelcomeError(f"{shown} refused the connection: {said}")
    if HTTPStatus.MULTIPLE_CHOICES <= response.status_code < HTTPStatus.BAD_REQUEST:
        where = response.headers.get("Location", "")[:_LONGEST_SHOWN]
        return UnwelcomeError(
            f"{shown} redirects to {where!r}, and redirects are not followed: give the address of "
            "the orchestrator itself"
        )
    return UnluckyError(str(error))


def _said(response: Response) -> str:
    """Return an answer's text as one short line that moves no cursor, whoever answers."""
    text = bytes(response.body or b"").decode("utf-8", errors="replace")
    line = " ".join(text[:_LONGEST_SHOWN].split())
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in line)
