"""Asking a running orchestrator: one connection, one request, one answer; or its state for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from caption_flow.cli.failures import EXIT_USAGE, CommandFailed, usage_error
from caption_flow.cli.folders import for_people
from caption_flow.dialing.dial import Endpoint, UnluckyError, UnwelcomeError, dial
from caption_flow.protocol.codec import ProtocolError, decode_from_orchestrator, encode
from caption_flow.protocol.messages import Done, ObserverMessage, Problem, Status, StatusRequest

ANSWER_SECONDS: Final = 60.0
LONG_ANSWER_SECONDS: Final = 3600.0
"""For what has parts of the run written anew."""
_RETRY_SECONDS: Final = 2.0
_MOST_REFUSALS: Final = 3
"""In a row: a new orchestrator may be there a moment before the word of its new token."""
_GOING_AWAY: Final = frozenset({1000, 1001})
"""Close codes of an orchestrator that ends as it should (RFC 6455, section 7.4.1)."""


@dataclass(frozen=True, slots=True)
class Lost:
    """There is no connection at present, and why."""

    why: str


def ask(
    endpoint: Endpoint, request: ObserverMessage, *, seconds: float = ANSWER_SECONDS
) -> Status | Done:
    """Return the answer of the orchestrator, which has so many seconds for it.

    Raises:
        CommandFailed: it cannot be reached, refuses the token, or cannot do what is asked.
    """
    try:
        return asyncio.run(_ask(endpoint, request, seconds))
    except (TimeoutError, ConnectionClosed, ProtocolError) as error:
        raise CommandFailed(_no_answer(endpoint, error)) from error


async def watch(
    find: Callable[[], Endpoint], *, every_seconds: float
) -> AsyncIterator[dict[str, Any] | Lost]:
    """Yield the state of the run again and again, until the orchestrator ends as it should.

    One that vanishes is waited for: it may be started again, and be elsewhere then, or know another
    token; so it is to be found anew each time.

    Raises:
        CommandFailed: it could not be reached even once, or goes on refusing the token.
    """
    refused: int | None = None
    while True:
        try:
            endpoint = find()
            connection = await _connect(endpoint)
        except CommandFailed as error:
            if refused is None or refused >= _MOST_REFUSALS:
                raise
            refused += error.code == EXIT_USAGE
            yield Lost(str(error))
            await asyncio.sleep(_RETRY_SECONDS)
            continue
        refused = 0
        try:
            while True:
                yield _report(endpoint, await _say(connection, StatusRequest(), ANSWER_SECONDS))
                await _pause(connection, every_seconds)
        except ConnectionClosed as error:
            if error.rcvd is not None and error.rcvd.code in _GOING_AWAY:
                return
            yield Lost(f"the connection to {endpoint.shown} was lost")
        except (TimeoutError, ProtocolError) as error:
            yield Lost(_no_answer(endpoint, error))
        finally:
            await connection.close()


async def _connect(endpoint: Endpoint) -> ClientConnection:
    try:
        return await dial(endpoint)
    except UnwelcomeError as error:
        usage_error(error)
    except UnluckyError as error:
        raise CommandFailed(f"no connection to {endpoint.shown}: {error}") from error


async def _pause(connection: ClientConnection, seconds: float) -> None:
    """Wait, unless the connection ends meanwhile: that is noticed at once."""
    waiting = asyncio.create_task(connection.wait_closed())
    await asyncio.wait([waiting], timeout=seconds)
    waiting.cancel()


async def _ask(endpoint: Endpoint, request: ObserverMessage, seconds: float) -> Status | Done:
    connection = await _connect(endpoint)
    try:
        answer = await _say(connection, request, seconds)
    finally:
        await connection.close()
    match answer:
        case Status() | Done():
            return answer
        case Problem(message):
            raise CommandFailed("\n".join(map(for_people, message.splitlines())))
        case _:
            raise CommandFailed(f"{endpoint.shown} answered with {type(answer).__name__}")


async def _say(connection: ClientConnection, request: ObserverMessage, seconds: float) -> object:
    async with asyncio.timeout(seconds):
        await connection.send(encode(request))
        return decode_from_orchestrator(await connection.recv())


def _report(endpoint: Endpoint, answer: object) -> dict[str, Any]:
    match answer:
        case Status(report):
            return report
        case Problem(message):
            raise CommandFailed(message)
        case _:
            raise CommandFailed(f"{endpoint.shown} answered with {type(answer).__name__}")


def _no_answer(endpoint: Endpoint, error: Exception) -> str:
    return f"no answer from {endpoint.shown}: {error or type(error).__name__}"
