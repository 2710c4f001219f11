"""What is said on one connection: hello and welcome, then messages turned into ledger events.

Knows messages and who may send them. What an event leads to is the leader's business.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import structlog
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from caption_flow.orchestrator.core import events as ev
from caption_flow.orchestrator.server.allowance import Allowance
from caption_flow.orchestrator.server.auth import Identity
from caption_flow.orchestrator.server.budget import REPORTS_BYTES, Budget
from caption_flow.orchestrator.server.observers import Steering, serve_observer
from caption_flow.orchestrator.server.pace import WORKER_MESSAGES_PER_SECOND, Pace
from caption_flow.orchestrator.server.session import NORMAL, POLICY_VIOLATION, Outgoing, close
from caption_flow.places.portions import Room
from caption_flow.protocol.codec import ProtocolError, decode_from_worker, encode
from caption_flow.protocol.messages import (
    Drain,
    Fetch,
    Heartbeat,
    Hello,
    Image,
    Problem,
    Recalled,
    Release,
    Results,
    Want,
    Welcome,
)

log = structlog.get_logger()

MOST_UNACKNOWLEDGED: Final = 32
"""Batches of one worker on their way to disk before no more is read from its connection."""
_HELLO_SECONDS: Final = 30.0
_MOST_FETCHES: Final = 512
_MOST_STRAYS: Final = 4096
"""Images asked for in a row of leases that are over: what a worker has asked for when one ends."""
_READS_AT_ONCE: Final = 8
_REASON_CHARACTERS: Final = 500
_MOST_ABSENT: Final = 256
"""Lost workers that are remembered for people; leases of others wait for them just as well."""


@dataclass(slots=True)
class Link:
    """One connected worker."""

    connection: ServerConnection
    outgoing: Outgoing
    session: str
    worker: str
    identity: Identity
    """Whose token it came with, as it was when the session began."""
    stages: tuple[str, ...] = ()
    """The stages that it runs; none stands for all."""
    version: str = ""
    engine: str = ""
    device: str = ""
    address: str = ""
    joined_at: float = field(default_factory=time.monotonic)
    heard_at: float = field(default_factory=time.monotonic)
    """When it last said anything, on the clock of `time.monotonic`."""
    unacknowledged: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(MOST_UNACKNOWLEDGED)
    )
    reads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_READS_AT_ONCE))
    fetches: set[asyncio.Task[None]] = field(default_factory=set)
    strays: int = 0
    """Images asked for of leases that it does not have, since it last asked for one it may have."""
    stats: Mapping[str, float] = field(default_factory=dict)
    refused: bool = False
    """It broke the protocol: an acknowledgement would vouch for what was refused, too."""
    ended: bool = False
    """Nothing that it says counts any more."""

    @property
    def contributor(self) -> str:
        """Whose token it came with."""
        return self.identity.name


class Leader(Protocol):
    """What a conversation needs of the orchestrator."""

    @property
    def draining(self) -> bool:
        """Whether the run is being ended."""
        ...

    def refusal(self, link: Link) -> str | None:
        """Return why a worker may not join, or None."""
        ...

    def lets_in(self, identity: Identity) -> bool:
        """Tell whether a token still lets in whom it let in a moment ago."""
        ...

    def welcome(self, link: Link, held: Collection[int]) -> Welcome:
        """Return the answer to a hello; ``held`` are leases the worker says it still has."""
        ...

    def serves(self, link: Link) -> frozenset[int]:
        """Return the positions of the stages that a worker runs; names nobody knows are none."""
        ...

    def apply(self, event: ev.Event, *, link: Link | None = None, payload: bytes = b"") -> None:
        """Tell the ledger and do what it says; ``link`` and ``payload`` belong to a report."""
        ...

    def shard_to_read(self, link: Link, lease: int, items: tuple[int, ...]) -> str | None:
        """Return the shard of the items if the worker may read them, else None."""
        ...

    def read_image(self, lease: int, shard: str, item: int, room: Room) -> AsyncGenerator[Image]:
        """Yield an item's bytes, whole or in portions, or why there are none.

        Each has its room in memory until the next is asked for.
        """
        ...


class Conversations:
    """The connected workers by session, and what they say."""

    def __init__(self, leader: Leader, steering: Steering) -> None:
        self._leader = leader
        self._allowance = Allowance()
        self._steering = steering
        self._reports = Budget(REPORTS_BYTES)
        self.links: dict[str, Link] = {}
        self.absent: OrderedDict[str, Link] = OrderedDict()
        """Workers that were lost and have not come back; the latest last."""
        self.observers: set[Outgoing] = set()
        self._watching: dict[ServerConnection, Identity] = {}

    async def serve(self, connection: ServerConnection, identity: Identity) -> None:
        """Handle one connection from upgrade to close."""
        try:
            if identity.role == "worker":
                await self._serve_worker(connection, identity)
            else:
                self._watching[connection] = identity
                # From here on it is ended with its token; before, nobody knew of it.
                if self._leader.lets_in(identity):
                    await serve_observer(connection, identity, self._steering, self.observers)
        except ProtocolError as error:
            log.warning("a session broke the protocol", who=identity.name, reason=str(error))
            await close(connection, POLICY_VIOLATION, str(error))
        except TimeoutError:
            await close(connection, POLICY_VIOLATION, "no hello in time")
        except ConnectionClosed:
            pass  # what is left of the session was cleaned up on the way out
        finally:
            self._watching.pop(connection, None)

    def end(self, verdict: Callable[[Identity], str | None]) -> list[asyncio.Task[None]]:
        """End the sessions for whose token there is a reason to; what they hold goes back at once.

        Returns the closings, to be kept until they are done.
        """
        closings = [
            asyncio.create_task(close(connection, POLICY_VIOLATION, why))
            for connection, identity in list(self._watching.items())
            if (why := verdict(identity)) is not None
        ]
        for link in list(self.absent.values()):
            if verdict(link.identity) is not None:
                # It cannot come back: what it holds need not wait for it.
                del self.absent[link.session]
                self._leader.apply(ev.SessionLeft(link.session))
        for link in list(self.links.values()):
            why = verdict(link.identity)
            if why is None:
                continue
            log.info("a session is ended", worker=link.worker, why=why)
            link.ended = link.refused = True
            del self.links[link.session]
            self._leader.apply(ev.SessionLeft(link.session))
            closing = close(link.connection, POLICY_VIOLATION, why)
            closings.append(asyncio.create_task(closing, name=f"close {link.worker}"))
        return closings

    def drop(self, session: str, reason: str) -> asyncio.Task[None] | None:
        """Close a session that broke the protocol; return the closing, to be kept until done."""
        link = self.links.get(session)
        if link is None:
            return None
        log.warning("a session broke the protocol", worker=link.worker, reason=reason)
        link.refused = True
        closing = close(link.connection, POLICY_VIOLATION, reason)
        return asyncio.create_task(closing, name=f"close {link.worker}")

    def begun(self, size: int) -> None:
        """Take note that a report of so many bytes is on its way to disk."""
        self._reports.take(size)

    def settled(self, link: Link, size: int) -> None:
        """Take note that a report of so many bytes is on disk, or never will be."""
        link.unacknowledged.release()
        self._reports.give_back(size)

    # ------------------------------------------------------------------ workers

    async def _serve_worker(self, connection: ServerConnection, identity: Identity) -> None:
        async with asyncio.timeout(_HELLO_SECONDS):
            hello = decode_from_worker(await connection.recv())
        if not isinstance(hello, Hello):
            raise ProtocolError("the first message must be hello")
        outgoing = Outgoing(connection)
        link = Link(
            connection,
            outgoing,
            hello.session,
            hello.name,
            identity,
            hello.stages,
            version=hello.version,
            engine=hello.engine,
            device=hello.device,
            address=_address(connection),
        )
        why_not = self._leader.refusal(link)
        if why_not is not None:
            log.warning("a worker was refused", worker=link.worker, why=why_not)
            await connection.send(encode(Problem(why_not)))
            await close(connection, POLICY_VIOLATION, why_not)
            return
        pace = Pace(WORKER_MESSAGES_PER_SECOND)
        pump = asyncio.create_task(outgoing.pump(), name=f"to {hello.name}")
        try:
            await self._join(link, hello)
            async for frame in connection:
                await pace.keep()
                if link.ended:
                    break
                link.heard_at = time.monotonic()
                await self._hear(link, decode_from_worker(frame))
        finally:
            self._part_with(link)
            for task in (pump, *link.fetches):
                task.cancel()

    async def _join(self, link: Link, hello: Hello) -> None:
        earlier = self.links.get(link.session)
        if earlier is not None and earlier.contributor != link.contributor:
            raise ProtocolError("this session belongs to another token")
        # Before the earlier connection is closed, so that its end is not taken for the session's.
        self.links[link.session] = link
        self.absent.pop(link.session, None)
        log.info(
            "worker joined",
            worker=link.worker,
            engine=hello.engine,
            device=hello.device,
            **({"stages": ", ".join(hello.stages)} if hello.stages else {}),
        )
        link.outgoing.send(self._leader.welcome(link, hello.leases))
        serves = self._leader.serves(link)
        joined = ev.SessionJoined(link.session, link.worker, hello.leases, serves, link.contributor)
        self._leader.apply(joined)
        if self._leader.draining:
            link.outgoing.send(Drain("the orchestrator is shutting down"))
        if earlier is not None:
            await close(earlier.connection, NORMAL, "the session has reconnected")

    def _part_with(self, link: Link) -> None:
        if self.links.get(link.session) is not link:
            return
        del self.links[link.session]
        if link.connection.close_code == NORMAL:
            log.info("worker left", worker=link.worker)
            self._leader.apply(ev.SessionLeft(link.session))
        else:
            log.info("worker lost, its leases wait for it", worker=link.worker)
            self._leader.apply(ev.SessionDropped(link.session))
            self.absent[link.session] = link
            if len(self.absent) > _MOST_ABSENT:
                self.absent.popitem(last=False)

    async def _hear(self, link: Link, message: object) -> None:
        session = link.session
        match message:
            case Results():
                await link.unacknowledged.acquire()
                if link.ended:
                    return  # while this waited for the disk
                await self._take_report(link, message)
            case Want(chunks, width, idle):
                self._leader.apply(ev.Wanted(session, max(1, chunks), width, idle))
            case Recalled(leases):
                self._leader.apply(ev.Recalled(session, leases))
            case Heartbeat(stats):
                link.stats = stats
                self._leader.apply(ev.Heard(session))
            case Release(lease, died, suspects, reason):
                reason = reason[:_REASON_CHARACTERS]
                self._leader.apply(ev.Released(session, lease, died, suspects, reason))
            case Fetch(lease, items):
                self._leader.apply(ev.Heard(session))
                self._fetch(link, lease, items)
            case _:
                raise ProtocolError("hello is said once")

    async def _take_report(self, link: Link, message: Results) -> None:
        size = len(message.rows)
        await self._reports.wait(size)
        try:
            lease, reached = message.lease, message.reached
            report = ev.Reported(link.session, lease, message.seq, message.items, reached)
            self._leader.apply(report, link=link, payload=message.rows)
        finally:
            # Whatever goes to disk has taken its own room.
            self._reports.give_back(size)

    def _fetch(self, link: Link, lease: int, items: tuple[int, ...]) -> None:
        if len(link.fetches) + len(items) > _MOST_FETCHES:
            raise ProtocolError(f"more than {_MOST_FETCHES} images asked for at once")
        shard = self._leader.shard_to_read(link, lease, items)
        link.strays = link.strays + len(items) if shard is None else 0
        if link.strays > _MOST_STRAYS:
            raise ProtocolError("asks for nothing but images of leases that it does not have")
        for item in items:
            if shard is None:
                link.outgoing.send(Image(lease, item, error="the lease is over"))
                continue
            sending = asyncio.create_task(self._send_image(link, lease, shard, item))
            link.fetches.add(sending)
            sending.add_done_callback(link.fetches.discard)

    async def _send_image(self, link: Link, lease: int, shard: str, item: int) -> None:
        async with link.reads:
            # One image at a time per slot: what is read waits in the socket, not in memory.
            room = partial(self._allowance.hold, link.session)
            async with aclosing(self._leader.read_image(lease, shard, item, room)) as images:
                async for image in images:
                    await link.outgoing.send_image(image)


def _address(connection: ServerConnection) -> str:
    """Return where a connection comes from, as ``host:port``."""
    host, port, *_ = connection.remote_address or ("?", 0)
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
