"""An orchestrator that does what the test says, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

import pyarrow as pa
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from caption_flow.protocol.codec import decode_from_worker, encode
from caption_flow.protocol.messages import (
    Ack,
    Fetch,
    Grant,
    GrantedLease,
    Hello,
    Image,
    ItemDescription,
    LeaseId,
    Limits,
    Message,
    RecipeSpec,
    Results,
    StageSpec,
    Welcome,
    WorkerMessage,
)
from caption_flow.protocol.rows import decode_rows
from caption_flow.protocol.version import SUBPROTOCOL
from tests.support.engines import PATIENCE_SECONDS

TOKEN = "a token with spaces"
LIMITS = Limits(
    lease_seconds=60.0,
    heartbeat_seconds=0.05,
    chunks_per_request=2,
    max_frame_bytes=2**20,
    max_unacknowledged_batches=8,
)
ONE_STAGE = RecipeSpec(
    stages=(StageSpec("default", "m", ("Describe.",), "captions"),), fingerprint="one stage"
)

MessageT = TypeVar("MessageT", bound=Message)


class Peer:
    """One worker's connection, seen from the orchestrator."""

    def __init__(self, connection: ServerConnection, hello: Hello) -> None:
        self.connection = connection
        self.hello = hello
        self.heard: list[WorkerMessage] = []

    async def send(self, message: Message) -> None:
        await self.connection.send(encode(message))

    async def welcome(
        self,
        *,
        recipe: RecipeSpec = ONE_STAGE,
        limits: Limits = LIMITS,
        leases: Sequence[int] = (),
        total: int | None = None,
    ) -> None:
        await self.send(Welcome("worker-1", recipe, limits, tuple(leases), total))

    async def grant(self, lease: int, items: Sequence[int | ItemDescription]) -> None:
        described = tuple(
            item if isinstance(item, ItemDescription) else ItemDescription(item) for item in items
        )
        await self.send(Grant((GrantedLease(LeaseId(lease), "shard", "chunk", described),)))

    async def next(self) -> WorkerMessage:
        async with asyncio.timeout(PATIENCE_SECONDS):
            message = decode_from_worker(await self.connection.recv())
        self.heard.append(message)
        return message

    async def expect(self, kind: type[MessageT]) -> MessageT:
        """Read until a message of this kind comes; what came before is in `heard`."""
        while True:
            message = await self.next()
            if isinstance(message, kind):
                return message

    async def serve_images(
        self, payloads: Mapping[int, bytes | str], *, until: int, kind: str = ""
    ) -> None:
        """Answer `Fetch` until ``until`` items have been answered; a text is an error."""
        answered = 0
        while answered < until:
            fetch = await self.expect(Fetch)
            for item in fetch.items:
                given = payloads[item]
                image = (
                    Image(fetch.lease, item, error=given, kind=kind)
                    if isinstance(given, str)
                    else Image(fetch.lease, item, given)
                )
                await self.send(image)
                answered += 1

    async def rows(self, count: int, *, acknowledge: bool = True) -> list[dict[str, Any]]:
        """Read results until there are ``count`` rows."""
        rows: list[dict[str, Any]] = []
        while len(rows) < count:
            results = await self.expect(Results)
            rows += rows_of(results)
            if acknowledge:
                await self.send(Ack(results.seq))
        return sorted(rows, key=lambda row: row["item_index"])

    async def closed(self) -> tuple[int, str]:
        """Wait until the worker closes; return its code and reason (1006: without a word)."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self.next()
        received = self.connection.protocol.close_rcvd
        return (1006, "") if received is None else (received.code, received.reason)

    async def close(self, code: int = 1001, reason: str = "") -> None:
        await self.connection.close(code, reason)

    def vanish(self) -> None:
        """Lose the connection without a word."""
        self.connection.transport.abort()


class ScriptedOrchestrator:
    """Accepts workers with the right token; each connection is then the test's."""

    def __init__(self) -> None:
        self.url = ""
        self.port = 0
        self.refusals = 0
        self.requests: list[Request] = []
        self.refuse_with: deque[Response] = deque()
        self._server: Server | None = None
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._ended = asyncio.Event()

    async def peer(self) -> Peer:
        """Wait for the next worker that says hello."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._peers.get()

    async def joined(self, **welcome: Any) -> Peer:
        """Wait for the next worker and welcome it."""
        peer = await self.peer()
        await peer.welcome(**welcome)
        return peer

    async def _handle(self, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            hello = decode_from_worker(await connection.recv())
            assert isinstance(hello, Hello), "the first message is hello"
            await self._peers.put(Peer(connection, hello))
            await connection.wait_closed()

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        if self.refuse_with:
            return self.refuse_with.popleft()
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refusals += 1
            return connection.respond(HTTPStatus.UNAUTHORIZED, "no such token\n")
        return None

    async def listen(self, *, subprotocols: Sequence[str] | None = (SUBPROTOCOL,)) -> None:
        names = None if subprotocols is None else [Subprotocol(name) for name in subprotocols]
        self._server = await serve(
            self._handle,
            "127.0.0.1",
            self.port,
            subprotocols=names,
            process_request=self._check,
            max_size=2**26,
            close_timeout=1.0,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}"

    async def stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()


@contextlib.asynccontextmanager
async def scripted_orchestrator(**options: Any) -> AsyncIterator[ScriptedOrchestrator]:
    orchestrator = ScriptedOrchestrator()
    await orchestrator.listen(**options)
    try:
        yield orchestrator
    finally:
        await orchestrator.stop_listening()


def rows_of(results: Results, fields: Sequence[str] = ("captions",)) -> list[dict[str, Any]]:
    batch: pa.RecordBatch = decode_rows(results.rows, fields)
    rows: list[dict[str, Any]] = batch.to_pylist()
    assert tuple(row["item_index"] for row in rows) == results.items
    return rows
