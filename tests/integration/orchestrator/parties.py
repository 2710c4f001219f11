"""An orchestrator in this process on a real socket, and workers that do what the test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, closing
from pathlib import Path
from typing import Any, TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.orchestrator.assembly import assemble
from caption_flow.orchestrator.service import Orchestrator
from caption_flow.protocol.codec import decode_from_orchestrator, encode
from caption_flow.protocol.messages import (
    Ack,
    Fetch,
    Finished,
    Grant,
    GrantedLease,
    Hello,
    Image,
    Message,
    OrchestratorMessage,
    Results,
    Want,
    Welcome,
)
from caption_flow.protocol.rows import CAPTIONED, Row, encode_rows
from caption_flow.protocol.version import SUBPROTOCOL
from caption_flow.storage.reader import StorageReader
from tests.support.fleet import write_images
from tests.support.hostile import Peer, dialled, let_in
from tests.support.wire import PLAIN, Wire

PATIENCE_SECONDS = 20.0
"""No test waits longer for anything; one that gets here has failed."""
TOKEN = "a worker's token, with spaces"
OTHER_TOKEN = "another worker's token"
ADMIN_TOKEN = "an admin's token"
MONITOR_TOKEN = "a monitor's token"
FIELDS = ("captions",)

MessageT = TypeVar("MessageT", bound=Message)


def session_id(number: int) -> str:
    return f"session-{number:016d}"


def row(item: int, **more: Any) -> Row:
    return Row(item, CAPTIONED, {"captions": [f"caption of {item}"]}, **more)


class ScriptedWorker:
    """One worker's connection; says nothing that the test does not ask it to."""

    def __init__(self, connection: ClientConnection, session: str) -> None:
        self.connection = connection
        self.session = session
        self.welcome: Welcome | None = None
        self.heard: list[OrchestratorMessage] = []
        self.seq = 0

    async def send(self, message: Message) -> None:
        await self.connection.send(encode(message))

    async def next(self) -> OrchestratorMessage:
        async with asyncio.timeout(PATIENCE_SECONDS):
            message = decode_from_orchestrator(await self.connection.recv())
        self.heard.append(message)
        return message

    async def expect(self, kind: type[MessageT]) -> MessageT:
        """Read until a message of this kind comes; what came before is in `heard`."""
        while True:
            message = await self.next()
            if isinstance(message, kind):
                return message

    async def hello(
        self, leases: Sequence[GrantedLease] = (), name: str = "", stages: Sequence[str] = ()
    ) -> Welcome:
        """Say hello, still having everything of some leases."""
        held = {int(one.lease): tuple(item.index for item in one.items) for one in leases}
        hello = Hello(name or self.session, self.session, leases=held, stages=tuple(stages))
        await self.send(hello)
        self.welcome = await self.expect(Welcome)
        return self.welcome

    async def lease(self) -> GrantedLease:
        """Ask for a lease and wait for it."""
        await self.send(Want(1))
        return (await self.expect(Grant)).leases[0]

    async def report(
        self,
        lease: int,
        items: Iterable[int],
        *,
        rows: Sequence[Row] | None = None,
        payload: bytes | None = None,
        seq: int | None = None,
        reached: int | None = None,
        fields: Sequence[str] = FIELDS,
    ) -> int:
        """Report items as captioned; the rows are theirs unless given. Returns the number."""
        named = tuple(items)
        self.seq = self.seq + 1 if seq is None else seq
        sent = [row(item) for item in named] if rows is None else rows
        encoded = encode_rows(sent, fields) if payload is None else payload
        await self.send(Results(self.seq, lease, named, encoded, reached))
        return self.seq

    async def acknowledged(self, seq: int) -> None:
        """Wait until batches up to ``seq`` are acknowledged."""
        while (await self.expect(Ack)).seq < seq:
            pass

    async def work_off(self, granted: GrantedLease) -> None:
        """Report everything of a lease and wait until it is acknowledged."""
        seq = await self.report(granted.lease, [item.index for item in granted.items])
        await self.acknowledged(seq)

    async def image(self, lease: int, item: int) -> Image:
        await self.send(Fetch(lease, (item,)))
        return await self.expect(Image)

    async def work_until_finished(self) -> Finished:
        """Take whatever is granted and caption it, until the end is told."""
        await self.send(Want(2))
        while True:
            match await self.next():
                case Grant(leases):
                    for granted in leases:
                        await self.report(granted.lease, [item.index for item in granted.items])
                    await self.send(Want(2))
                case Finished() as finished:
                    return finished

    async def closed(self) -> tuple[int, str]:
        """Wait until the orchestrator closes; return its code and reason (1006: without a word)."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self.next()
        received = self.connection.protocol.close_rcvd
        return (1006, "") if received is None else (received.code, received.reason)

    async def vanish(self) -> None:
        """Lose the connection without a word."""
        await _vanish(self.connection)


class Run:
    """A running orchestrator and whoever has connected to it."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        data_dir: Path,
        stack: AsyncExitStack,
        wire: Wire = PLAIN,
    ) -> None:
        self.orchestrator = orchestrator
        self.wire = wire
        self.data_dir = data_dir
        self._stack = stack
        self._sessions = 0

    @property
    def url(self) -> str:
        return f"{self.wire.scheme}://127.0.0.1:{self.orchestrator.port}"

    def dialled(self) -> AbstractAsyncContextManager[Peer]:
        """A raw connection that has not said anything."""
        return dialled(self.orchestrator.port or 0, self.wire)

    def let_in(
        self, token: str, session: str = "", *headers: str
    ) -> AbstractAsyncContextManager[Peer]:
        """A raw connection with a token, and if a session is named one that was welcomed."""
        return let_in(self.orchestrator.port or 0, token, session, *headers, wire=self.wire)

    async def connect(
        self,
        *,
        token: str | None = TOKEN,
        subprotocol: str = SUBPROTOCOL,
        session: str | None = None,
        **options: Any,
    ) -> ScriptedWorker:
        """Connect without a hello."""
        self._sessions += 1
        connection = await connect(
            self.url,
            subprotocols=[Subprotocol(subprotocol)],
            additional_headers={} if token is None else {"Authorization": f"Bearer {token}"},
            compression=None,
            max_size=2**26,
            close_timeout=1.0,
            ssl=self.wire.client,
            **options,
        )
        self._stack.push_async_callback(_vanish, connection)
        return ScriptedWorker(connection, session or session_id(self._sessions))

    async def join(
        self,
        *,
        leases: Sequence[GrantedLease] = (),
        name: str = "",
        stages: Sequence[str] = (),
        **options: Any,
    ) -> ScriptedWorker:
        """Connect and be welcomed."""
        worker = await self.connect(**options)
        await worker.hello(leases, name, stages)
        return worker

    def rows(self) -> dict[int, dict[str, Any]]:
        """Every durable row by item; fails if an item has two."""
        with closing(StorageReader(self.data_dir)) as reader:
            found = [row for batch in reader.batches() for row in batch.to_pylist()]
        by_item = {row["item_index"]: row for row in found}
        assert len(by_item) == len(found), "an item has two rows"
        return by_item


async def _vanish(connection: ClientConnection) -> None:
    if not connection.transport.is_closing():
        connection.transport.abort()
    await connection.wait_closed()


def configuration(root: Path, data_dir: Path, **settings: Any) -> OrchestratorConfig:
    storage = {"data_dir": str(data_dir), **settings.pop("storage", {})}
    return OrchestratorConfig.model_validate(
        {
            "host": "127.0.0.1",
            "port": 0,
            "chunk_size": 8,
            "dataset": {"type": "local_filesystem", "dataset_path": str(root)},
            "vllm": {"model": "m", "inference_prompts": ["Describe."]},
            "storage": storage,
            **settings,
        }
    )


TOKENS = (
    ("worker", "somebody", TOKEN),
    ("worker", "somebody else", OTHER_TOKEN),
    ("monitor", "a monitor", MONITOR_TOKEN),
    ("admin", "an admin", ADMIN_TOKEN),
)


@contextlib.asynccontextmanager
async def led(
    tmp_path: Path,
    images: int = 32,
    *,
    root: Path | None = None,
    wire: Wire = PLAIN,
    **settings: Any,
) -> AsyncIterator[Run]:
    """A run over so many pictures, led from this process, on a port of its own.

    A folder that is there already is taken as it is. Leaving stops the orchestrator at once.
    """
    root, data_dir = root or tmp_path / "images", tmp_path / "run"
    if not root.exists():
        write_images(root, images)
    config = configuration(root, data_dir, **settings)
    orchestrator = await assemble(config, TOKENS, tls=wire.served)
    async with leading(orchestrator, data_dir, wire) as run:
        yield run


@contextlib.asynccontextmanager
async def leading(
    orchestrator: Orchestrator, data_dir: Path, wire: Wire = PLAIN
) -> AsyncIterator[Run]:
    """Run an orchestrator that is there already; leaving stops it at once."""
    running = asyncio.create_task(orchestrator.run())
    ready = asyncio.create_task(orchestrator.ready.wait())
    await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    try:
        async with AsyncExitStack() as stack:
            yield Run(orchestrator, data_dir, stack, wire)
    finally:
        orchestrator.stop()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await running


async def until(condition: Any) -> None:
    """Wait until a condition holds that some other task or process brings about."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110  -- what is waited for sets no event
            await asyncio.sleep(0.005)
