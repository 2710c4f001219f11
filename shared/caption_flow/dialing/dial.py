"""Dialling an orchestrator: TLS, token and subprotocol, and what a failed attempt means.

Everybody who connects dials here: workers, and the commands that watch and steer a run.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    InvalidURI,
    NegotiationError,
)
from websockets.typing import Subprotocol

from caption_flow.protocol.codec import MAX_FRAME_BYTES
from caption_flow.protocol.version import SUBPROTOCOL

HANDSHAKE_SECONDS: Final = 30.0
"""A refusal may be slow on purpose: the orchestrator delays addresses that guess tokens."""
PING_SECONDS: Final = 20.0
PONG_SECONDS: Final = 60.0
"""Loading a model may block the event loop for a while: that is no reason to dial again."""
_FAILED_DIALS: Final = (OSError, InvalidHandshake, InvalidURI, ConnectionClosed)
"""What dialling raises; a TimeoutError is an OSError, too. A connection may close half-made."""
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class ConnectionRefusedForGoodError(Exception):
    """Base of what ends all dialling; ``str()`` is one sentence a person can act on."""


class UnwelcomeError(ConnectionRefusedForGoodError):
    """The orchestrator refuses whoever dials; trying again is pointless."""


class UnluckyError(Exception):
    """This attempt failed; another may not."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an orchestrator is, and what to show it."""

    url: str
    token: str
    verify_ssl: bool = True

    @property
    def shown(self) -> str:
        """The URL as logs may show it: no user, no password, no query."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


async def dial(endpoint: Endpoint) -> ClientConnection:
    """Make one connection; nothing has been said on it yet.

    Raises:
        UnluckyError: it did not come about this time.
        UnwelcomeError: it never will.
    """
    try:
        connection = await connect(
            endpoint.url,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            additional_headers={"Authorization": f"Bearer {endpoint.token}"},
            ssl=_tls(endpoint),
            proxy=None if urlsplit(endpoint.url).hostname in _LOOPBACK else True,
            compression=None,
            max_size=MAX_FRAME_BYTES,
            logger=discreet("client"),
            open_timeout=HANDSHAKE_SECONDS,
            ping_interval=PING_SECONDS,
            ping_timeout=PONG_SECONDS,
            close_timeout=2.0,
        )
    except _FAILED_DIALS as error:
        raise _verdict(endpoint, error) from error
    if connection.subprotocol != SUBPROTOCOL:
        await connection.close()
        raise UnwelcomeError(_mismatch(endpoint.shown))
    return connection


def discreet(side: str) -> logging.Logger:
    """Return a logger for one side of connections that never logs whole requests.

    Their headers have tokens, and whoever embeds us may have everything logged.
    """
    logger = logging.getLogger(f"websockets.{side}.discreet")
    logger.setLevel(logging.INFO)
    return logger


def _tls(endpoint: Endpoint) -> ssl.SSLContext | None:
    if urlsplit(endpoint.url).scheme != "wss":
        return None
    context = ssl.create_default_context()
    if not endpoint.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _verdict(endpoint: Endpoint, error: Exception) -> UnluckyError | UnwelcomeError:
    """Say whether dialling failed for now or for good, and why."""
    shown = endpoint.shown
    match error:
        case InvalidStatus():
            return _verdict_of_status(shown, error)
        case InvalidURI():
            return UnwelcomeError(f"'{shown}' is no WebSocket address; write ws://host:port")
        case NegotiationError():
            return UnwelcomeError(_mismatch(shown))
        case ssl.SSLCertVerificationError():
            return UnwelcomeError(
                f"the certificate of {shown} cannot be verified ({error.verify_message}); "
                "use --no-verify-ssl if you trust it all the same"
            )
        case TimeoutError():
            return UnluckyError(f"no answer within {HANDSHAKE_SECONDS:.0f} s")
        case _:
            return UnluckyError(str(error) or type(error).__name__)


def _verdict_of_status(shown: str, error: InvalidStatus) -> UnluckyError | UnwelcomeError:
    response = error.response
    said = bytes(response.body or b"").decode("utf-8", errors="replace").strip()
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        return UnwelcomeError(f"the orchestrator at {shown} refused the token")
    if response.status_code == HTTPStatus.FORBIDDEN:  # a token that it knows, and may say more to
        return UnwelcomeError(f"the orchestrator at {shown} refused the token: {said}")
    if response.status_code in {HTTPStatus.BAD_REQUEST, HTTPStatus.UPGRADE_REQUIRED}:
        if not said or "invalid subprotocol" in said:  # the socket library's own words
            return UnwelcomeError(_mismatch(shown))
        return UnwelcomeError(f"{shown} refused the connection: {said}")
    return UnluckyError(str(error))


def _mismatch(shown: str) -> str:
    return (
        f"{shown} does not speak {SUBPROTOCOL}: orchestrator and worker have different major "
        "versions; upgrade the older one (pip install -U caption-flow)"
    )
