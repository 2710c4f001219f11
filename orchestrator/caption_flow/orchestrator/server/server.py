"""The listening socket: token check and protocol version before any frame is read, health checks.

One port serves workers, observers and plain HTTP. Who connects is decided in the upgrade request
(401 without a known token), so that nothing a stranger sends is ever parsed as a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http
import ssl
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final
from weakref import WeakKeyDictionary

import structlog
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from caption_flow.dialing.dial import discreet
from caption_flow.orchestrator.server.auth import (
    MOST_WAITING,
    Identity,
    Suspicion,
    TokenTable,
    bearer_token,
)
from caption_flow.orchestrator.server.guard import (
    Bounds,
    Doorkeeper,
    GuardedConnection,
    guarded_by,
    raise_descriptor_limit,
)
from caption_flow.orchestrator.server.session import PIECE_BYTES
from caption_flow.protocol.codec import MAX_REPORT_BYTES
from caption_flow.protocol.version import SUBPROTOCOL, refusal

log = structlog.get_logger()

PING_SECONDS: Final = 20.0
PONG_SECONDS: Final = 60.0
CLOSE_SECONDS: Final = 2.0
OPEN_SECONDS: Final = 10.0
"""For TLS, and then for the upgrade request, its answer included."""
MOST_QUEUED_FRAMES: Final = 8
"""Of one connection, before nothing more is read from it."""

_BOUNDS: Final = Bounds()

Handler = Callable[[ServerConnection, Identity], Awaitable[None]]


class ServerError(Exception):
    """The server cannot listen as configured; one sentence with what to do about it."""


class Gate:
    """Decides on each upgrade request. Connections that pass carry their `Identity`."""

    def __init__(self, tokens: TokenTable, doorkeeper: Doorkeeper) -> None:
        self._tokens = tokens
        self._doorkeeper = doorkeeper
        self._suspicion = Suspicion()
        self._waiting = 0
        # Weakly: a connection may end before anybody asks whose it was.
        self._admitted: WeakKeyDictionary[ServerConnection, Identity] = WeakKeyDictionary()

    async def __call__(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP and refusals; None lets the upgrade go on."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "ok\n")
        address = str((connection.remote_address or ("?",))[0])
        token = bearer_token(request.headers.get("Authorization"))
        identity = None if token is None else self._tokens.identify(token)
        # The connection keeps its request; nobody needs to know the token any longer.
        request.headers.pop("Authorization", None)
        if identity is None:
            await self._hold_back(connection, address)
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "a known token is needed (Authorization: Bearer)\n"
            )
        self._suspicion.trust(address)
        if identity.has_expired(time.time()):
            log.warning("a token that has expired was refused", who=identity.name)
            return connection.respond(http.HTTPStatus.FORBIDDEN, f"{expiry(identity)}\n")
        offered = ",".join(request.headers.get_all("Sec-WebSocket-Protocol")).split(",")
        why_not = refusal([name.strip() for name in offered])
        if why_not is not None:
            return connection.respond(http.HTTPStatus.UPGRADE_REQUIRED, f"{why_not}\n")
        if isinstance(connection, GuardedConnection) and not self._doorkeeper.admit(connection):
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE, "too many are connected; try again later\n"
            )
        self._admitted[connection] = identity
        return None

    async def _hold_back(self, connection: ServerConnection, address: str) -> None:
        """Let a stranger wait, if not too many do: the right tokens would wait for room, too."""
        delay = self._suspicion.refuse(address)
        if self._suspicion.is_worth_a_line(address):
            log.warning("a connection without a known token was refused", address=address)
        if self._waiting >= MOST_WAITING:
            return
        self._waiting += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await connection.wait_closed()  # who is gone keeps no memory for an answer
        finally:
            self._waiting -= 1

    def identity(self, connection: ServerConnection) -> Identity:
        """Return, once, whose connection it is."""
        return self._admitted.pop(connection)


def expiry(identity: Identity) -> str:
    """Say when a token's time was over."""
    moment = datetime.fromtimestamp(identity.limits.expires or 0.0, UTC)
    return f"this token expired at {moment:%Y-%m-%d %H:%M:%S} UTC"


async def listen(
    handler: Handler,
    tokens: TokenTable,
    *,
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    bounds: Bounds = _BOUNDS,
) -> Server:
    """Start listening; ``port`` 0 takes any free one.

    Raises:
        ServerError: the port is in use or the address is not this machine's.
    """
    doorkeeper = Doorkeeper(bounds.within(raise_descriptor_limit()))
    gate = Gate(tokens, doorkeeper)

    async def handle(connection: ServerConnection) -> None:
        await handler(connection, gate.identity(connection))

    try:
        return await serve(
            handle,
            host,
            port,
            process_request=gate,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            create_connection=guarded_by(doorkeeper, tls, OPEN_SECONDS),
            open_timeout=OPEN_SECONDS,
            max_size=MAX_REPORT_BYTES,
            max_queue=MOST_QUEUED_FRAMES,
            compression=None,
            write_limit=2 * PIECE_BYTES,
            ping_interval=PING_SECONDS,
            ping_timeout=PONG_SECONDS,
            close_timeout=CLOSE_SECONDS,
            server_header=None,
            logger=discreet("server"),
        )
    except OSError as error:
        raise ServerError(_why(error, host, port)) from error


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is in use by another program; "
            "choose another one (--port, or orchestrator.port)"
        )
    if error.errno == errno.EACCES:
        return f"port {port} needs special rights; choose one above 1023 (--port)"
    return f"cannot listen on {host} port {port}: {error.strerror or error}"
