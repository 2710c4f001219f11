"""Dialling an orchestrator: one connection, with TLS, token and subprotocol.

Everybody who connects dials here: workers, and the commands that watch and steer a run.
"""

from __future__ import annotations

import logging
import ssl
from typing import Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidURI
from websockets.typing import Subprotocol

from caption_flow.dialing.endpoint import Endpoint
from caption_flow.dialing.probes import speaks_http, speaks_tls
from caption_flow.dialing.tls import (
    WrongCertificateError,
    connection_for,
    context_for,
)
from caption_flow.dialing.verdicts import (
    HANDSHAKE_SECONDS,
    ConnectionRefusedForGoodError,
    UnluckyError,
    UnwelcomeError,
    Verdict,
    has_no_tls,
    needs_tls,
    other_version,
    verdict,
)
from caption_flow.protocol.codec import MAX_FRAME_BYTES
from caption_flow.protocol.version import SUBPROTOCOL

__all__ = [
    "HANDSHAKE_SECONDS",
    "ConnectionRefusedForGoodError",
    "Endpoint",
    "UnluckyError",
    "UnwelcomeError",
    "dial",
]

PING_SECONDS: Final = 20.0
PONG_SECONDS: Final = 60.0
"""Loading a model may block the event loop for a while: that is no reason to dial again."""
_FAILED_DIALS: Final = (
    OSError,
    InvalidHandshake,
    InvalidURI,
    ConnectionClosed,
    WrongCertificateError,
)
"""What dialling raises; a TimeoutError is an OSError, too. A connection may close half-made."""


class _Connect(connect):
    """Follows no redirect: who is dialled is who was named, over TLS if that was said."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def dial(endpoint: Endpoint) -> ClientConnection:
    """Make one connection; nothing has been said on it yet.

    Raises:
        UnluckyError: it did not come about this time.
        UnwelcomeError: it never will.
    """
    why_not = endpoint.why_not
    if why_not is not None:
        raise UnwelcomeError(why_not)
    try:
        connection = await _Connect(
            endpoint.url,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            additional_headers={"Authorization": f"Bearer {endpoint.token}"},
            ssl=context_for(endpoint),
            create_connection=connection_for(endpoint),
            proxy=None if endpoint.is_on_this_machine else True,
            compression=None,
            max_size=MAX_FRAME_BYTES,
            logger=discreet("client"),
            open_timeout=HANDSHAKE_SECONDS,
            ping_interval=PING_SECONDS,
            ping_timeout=PONG_SECONDS,
            close_timeout=2.0,
        )
    except _FAILED_DIALS as error:
        raise await _verdict(endpoint, error) from error
    if connection.subprotocol != SUBPROTOCOL:
        await connection.close()
        raise other_version(endpoint.shown)
    return connection


def discreet(side: str) -> logging.Logger:
    """Return a logger for one side of connections that never logs whole requests.

    Their headers have tokens, and whoever embeds us may have everything logged.
    """
    logger = logging.getLogger(f"websockets.{side}.discreet")
    logger.setLevel(logging.INFO)
    return logger


async def _verdict(endpoint: Endpoint, error: Exception) -> Verdict:
    """Say what an error means; where TLS meets a peer without it, errors alone do not tell."""
    parts = urlsplit(endpoint.url)
    host, port = parts.hostname or "", parts.port or (443 if endpoint.is_encrypted else 80)
    match error:
        case InvalidMessage() if not endpoint.is_encrypted and await speaks_tls(host, port):
            return needs_tls(endpoint.shown)
        case ConnectionResetError() | ssl.SSLEOFError() | TimeoutError() if (
            endpoint.is_encrypted and await speaks_http(host, port)
        ):
            return has_no_tls(endpoint.shown)
        case _:
            return verdict(endpoint, error)
