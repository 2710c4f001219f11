"""Who watches and steers a run: monitors read, admins act.

Every request gets one answer, in order: `Status`, `Done`, or a `Problem` that says why not.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableSet
from typing import Protocol

import structlog
from websockets.asyncio.server import ServerConnection

from caption_flow.orchestrator.server.auth import Identity
from caption_flow.orchestrator.server.pace import OBSERVER_REQUESTS_PER_SECOND, Pace
from caption_flow.orchestrator.server.session import Outgoing
from caption_flow.protocol.codec import decode_from_observer
from caption_flow.protocol.messages import (
    AddToken,
    Done,
    ListTokens,
    ObserverMessage,
    Pause,
    Problem,
    Reload,
    RemoveToken,
    Resume,
    RetryFailed,
    Shutdown,
    Status,
    StatusRequest,
)

log = structlog.get_logger()


class SteeringError(Exception):
    """What was asked for cannot be done; ``str()`` is one sentence a person can act on."""


class Steering(Protocol):
    """What observers may ask of the orchestrator; what cannot be done raises `SteeringError`."""

    def report(self) -> dict[str, object]:
        """Return the state of the run for people and scripts."""
        ...

    def shut_down(self, *, now: bool) -> Done:
        """End the run: by draining, or at once."""
        ...

    async def pause(self) -> Done:
        """Hand out nothing until `resume`."""
        ...

    async def resume(self) -> Done:
        """Hand out again."""
        ...

    async def retry_failed(self, kind: str | None) -> Done:
        """Take failed rows back, of one kind or of any, and have their items done again."""
        ...

    async def reload(self, config: str | None) -> Done:
        """Take over what can change in a configuration without a restart."""
        ...

    async def add_token(self, asked: AddToken) -> Done:
        """Let somebody in."""
        ...

    async def remove_token(self, name: str) -> Done:
        """Let somebody in no more."""
        ...

    def list_tokens(self) -> Done:
        """Tell who may connect."""
        ...


async def serve_observer(
    connection: ServerConnection,
    identity: Identity,
    steering: Steering,
    present: MutableSet[Outgoing],
) -> None:
    """Answer one observer until its connection closes; meanwhile it is ``present``.

    Raises:
        ProtocolError: it sent something else than an observer's message.
    """
    outgoing = Outgoing(connection)
    present.add(outgoing)
    pump = asyncio.create_task(outgoing.pump(), name=f"to {identity.name}")
    pace = Pace(OBSERVER_REQUESTS_PER_SECOND)
    try:
        async for frame in connection:
            await pace.keep()
            outgoing.send(await _answer(decode_from_observer(frame), identity, steering))
            await outgoing.flush()
    finally:
        present.discard(outgoing)
        pump.cancel()


async def _answer(
    request: ObserverMessage, identity: Identity, steering: Steering
) -> Status | Done | Problem:
    if isinstance(request, StatusRequest):
        return Status(steering.report())
    if identity.role != "admin":
        return Problem(f"a {identity.role} token may not do this: it takes an admin's")
    log.info("asked for by an admin", what=type(request).__name__, by=identity.name)
    try:
        return await _obey(request, steering)
    except SteeringError as error:
        return Problem(str(error))


async def _obey(  # noqa: PLR0911  -- one match over all requests
    request: ObserverMessage, steering: Steering
) -> Done:
    match request:
        case Shutdown(now):
            return steering.shut_down(now=now)
        case Pause():
            return await steering.pause()
        case Resume():
            return await steering.resume()
        case RetryFailed(kind):
            return await steering.retry_failed(kind)
        case Reload(config):
            return await steering.reload(config)
        case AddToken():
            return await steering.add_token(request)
        case RemoveToken(name):
            return await steering.remove_token(name)
        case ListTokens():
            return steering.list_tokens()
        case StatusRequest():
            raise AssertionError("monitors may ask this, too")
