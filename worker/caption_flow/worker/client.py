"""The connection: dials, says hello, carries messages both ways, and dials again when it is lost.

It knows frames, tokens and patience. What the messages mean is the party's business, which is told
when a connection opens and closes; nothing sent on one connection is ever carried over to the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NoReturn, Protocol

import structlog
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from caption_flow.dialing.dial import (
    HANDSHAKE_SECONDS,
    ConnectionRefusedForGoodError,
    Endpoint,
    UnluckyError,
    UnwelcomeError,
    dial,
)
from caption_flow.protocol.codec import (
    ProtocolError,
    decode_from_orchestrator,
    encode,
)
from caption_flow.protocol.messages import Hello, Message, OrchestratorMessage, Problem, Welcome

log = structlog.get_logger()

FIRST_DELAY_SECONDS: Final = 0.2
LONGEST_DELAY_SECONDS: Final = 15.0
DIALS_WITHIN_A_LEASE: Final = 6
STEADY_SECONDS: Final = 10.0
"""A connection that lasted this long was a good one: patience starts afresh."""
MAX_BROKEN: Final = 5
"""So many connections in a row that end in an error of protocol are not bad luck."""

_PROTOCOL_CLOSE_CODES: Final = frozenset({1002, 1003, 1007, 1008, 1009})


class UnreachableError(ConnectionRefusedForGoodError):
    """No connection came about for as long as there was patience."""


@dataclass(frozen=True, slots=True)
class Address(Endpoint):
    """Where the orchestrator is, and for how long to try to reach it, in seconds.

    ``connect_seconds`` is the patience for the first connection, ``reconnect_seconds`` the one for
    a connection that was lost.
    """

    connect_seconds: float = 60.0
    reconnect_seconds: float = 600.0


class Party(Protocol):
    """Who speaks through the connection."""

    def hello(self) -> Hello:
        """Return the first message of a new connection."""
        ...

    def opened(self, welcome: Welcome) -> None:
        """Note that the orchestrator answered; from here on messages can be sent."""
        ...

    def heard(self, message: OrchestratorMessage) -> None:
        """Take a message."""
        ...

    def closed(self) -> None:
        """Note that the connection is gone, and with it whatever was not sent."""
        ...


class Client:
    """A connection to one orchestrator that outlives its sockets."""

    def __init__(self, address: Address, party: Party) -> None:
        self._address = address
        self._party = party
        self._connection: ClientConnection | None = None
        self._outgoing: deque[Message] = deque()
        self._more = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._broken = 0
        self._leaving = False

    def send(self, message: Message) -> None:
        """Send a message after those before it; without a connection it is dropped."""
        if self._connection is not None:
            self._outgoing.append(message)
            self._all_sent.clear()
            self._more.set()

    def redial(self, reason: str) -> None:
        """Give this connection up and make another."""
        log.warning("giving the connection up", reason=reason)
        if self._connection is not None:
            # At once: a peer that does not answer would not answer a closing handshake either.
            self._connection.transport.abort()

    async def leave(self, *, within_seconds: float = 1.0) -> None:
        """Send what is still to be sent, say goodbye, and dial no more."""
        self._leaving = True
        connection = self._connection
        if connection is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self._all_sent.wait()
                await connection.close(1000, "goodbye")

    async def run(self) -> None:
        """Keep a connection until `leave` or cancellation.

        Raises:
            UnreachableError: patience is over.
            UnwelcomeError: the orchestrator refuses this worker.

        """
        patience = _Patience(self._address, "first")
        while not self._leaving:
            try:
                connection, welcome = await self._dial()
            except UnluckyError as error:
                await patience.wait(str(error))
                continue
            lasted_seconds, reason = await self._use(connection, welcome)
            if self._leaving:
                return
            if lasted_seconds >= STEADY_SECONDS or patience.kind == "first":
                longest_delay_seconds = longest_delay(welcome.limits.lease_seconds)
                patience = _Patience(self._address, "again", longest_delay_seconds)
            await patience.wait(reason)

    # ------------------------------------------------------------------ dialling

    async def _dial(self) -> tuple[ClientConnection, Welcome]:
        """Make one connection and shake hands.

        Raises:
            UnluckyError: it did not come about this time.
            UnwelcomeError: it never will.

        """
        connection = await dial(self._address)
        try:
            return connection, await self._shake_hands(connection)
        except BaseException:
            await connection.close()
            raise

    async def _shake_hands(self, connection: ClientConnection) -> Welcome:
        shown = self._address.shown
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await connection.send(encode(self._party.hello()))
                answer = decode_from_orchestrator(await connection.recv())
        except ConnectionClosed as error:
            raise self._count_broken(error) from error
        except (TimeoutError, ProtocolError) as error:
            raise UnluckyError(f"{shown} does not answer as an orchestrator: {error}") from error
        match answer:
            case Welcome():
                return answer
            case Problem(message, "peer"):
                raise UnwelcomeError(f"the orchestrator at {shown} refused this worker: {message}")
            case Problem(message):
                raise UnluckyError(message)
            case _:
                raise UnluckyError(f"{shown} answered with {type(answer).__name__}, not Welcome")

    # ------------------------------------------------------------------ speaking

    async def _use(self, connection: ClientConnection, welcome: Welcome) -> tuple[float, str]:
        """Speak until the connection is lost; return how long it lasted and why it ended."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._outgoing.clear()
        self._all_sent.set()
        self._connection = connection
        speaking: list[asyncio.Task[NoReturn]] = []
        try:
            self._party.opened(welcome)
            speaking = [
                asyncio.create_task(self._read(connection)),
                asyncio.create_task(self._write(connection)),
            ]
            ended, _ = await asyncio.wait(speaking, return_when=asyncio.FIRST_COMPLETED)
            reason = str(ended.pop().result())
        except ConnectionClosed as error:
            reason = str(self._count_broken(error))
        except ProtocolError as error:
            await connection.close(1002, "not a message of this protocol")
            reason = f"the orchestrator sent something else than a message: {error}"
        finally:
            self._connection = None
            for task in speaking:
                task.cancel()
            await asyncio.gather(*speaking, return_exceptions=True)
            await connection.close()
            self._all_sent.set()
            self._party.closed()
        if loop.time() - began >= STEADY_SECONDS:
            self._broken = 0
        return loop.time() - began, reason

    async def _read(self, connection: ClientConnection) -> NoReturn:
        while True:
            self._party.heard(decode_from_orchestrator(await connection.recv()))

    async def _write(self, connection: ClientConnection) -> NoReturn:
        while True:
            while self._outgoing:
                await connection.send(encode(self._outgoing.popleft()))
            self._all_sent.set()
            self._more.clear()
            await self._more.wait()

    def _count_broken(self, error: ConnectionClosed) -> UnluckyError:
        """Return what to say of a lost connection.

        Raises:
            UnwelcomeError: it was lost in the same bad way too often.

        """
        received = error.rcvd
        if received is None:
            return UnluckyError("the connection broke")
        reason = f"the orchestrator closed the connection: {received.reason or received.code}"
        if received.code in _PROTOCOL_CLOSE_CODES:
            self._broken += 1
            if self._broken >= MAX_BROKEN:
                raise UnwelcomeError(f"{reason} ({self._broken} times in a row)")
        return UnluckyError(reason)


def longest_delay(lease_seconds: float) -> float:
    """Return the longest delay between dials that does not cost a worker its leases, in seconds."""
    return min(LONGEST_DELAY_SECONDS, lease_seconds / DIALS_WITHIN_A_LEASE)


def delays(longest_seconds: float) -> Iterator[float]:
    """Yield delays without end, each twice the one before, up to the longest."""
    delay_seconds = min(FIRST_DELAY_SECONDS, longest_seconds)
    while True:
        yield delay_seconds
        delay_seconds = min(delay_seconds * 2, longest_seconds)


class _Patience:
    """When to dial again, with delays that grow up to a longest one, and when to give up."""

    def __init__(
        self,
        address: Address,
        kind: Literal["first", "again"],
        longest_delay_seconds: float = LONGEST_DELAY_SECONDS,
    ) -> None:
        self.kind = kind
        self._address = address
        self._seconds = address.connect_seconds if kind == "first" else address.reconnect_seconds
        self._until = asyncio.get_running_loop().time() + self._seconds
        self._delays = delays(longest_delay_seconds)
        self._said = False

    async def wait(self, reason: str) -> None:
        """Wait before the next attempt; says why once. Raises `UnreachableError`."""
        left = self._until - asyncio.get_running_loop().time()
        if left <= 0:
            raise UnreachableError(
                f"no connection to {self._address.shown} for {self._seconds:.0f} s: {reason}"
            )
        if not self._said:
            self._said = True
            log.warning(
                "no connection, trying again",
                url=self._address.shown,
                reason=reason,
                for_seconds=round(self._seconds),
            )
        # Jitter: workers that lost the same orchestrator must not all come back at once.
        delay_seconds = next(self._delays) * random.SystemRandom().uniform(0.5, 1.0)
        await asyncio.sleep(min(delay_seconds, left))
