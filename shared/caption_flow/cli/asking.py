"""Asking a running orchestrator: one connection, one request, one answer."""

from __future__ import annotations

import asyncio

from websockets.exceptions import ConnectionClosed

from caption_flow.cli.failures import CommandFailed, usage_error
from caption_flow.dialing.dial import Endpoint, UnluckyError, UnwelcomeError, dial
from caption_flow.protocol.codec import ProtocolError, decode_from_orchestrator, encode
from caption_flow.protocol.messages import Done, ObserverMessage, Problem, Status

ANSWER_SECONDS = 60.0


def ask(endpoint: Endpoint, request: ObserverMessage) -> Status | Done:
    """Return the answer of the orchestrator.

    Raises:
        CommandFailed: it cannot be reached, refuses the token, or cannot do what is asked.
    """
    try:
        answer = asyncio.run(_ask(endpoint, request))
    except UnwelcomeError as error:
        usage_error(error)
    except UnluckyError as error:
        raise CommandFailed(f"no connection to {endpoint.shown}: {error}") from error
    except (TimeoutError, ConnectionClosed, ProtocolError) as error:
        raise CommandFailed(f"no answer from {endpoint.shown}: {error}") from error
    match answer:
        case Status() | Done():
            return answer
        case Problem(message):
            raise CommandFailed(message)
        case _:
            raise CommandFailed(f"{endpoint.shown} answered with {type(answer).__name__}")


async def _ask(endpoint: Endpoint, request: ObserverMessage) -> object:
    connection = await dial(endpoint)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await connection.send(encode(request))
            return decode_from_orchestrator(await connection.recv())
    finally:
        await connection.close()
