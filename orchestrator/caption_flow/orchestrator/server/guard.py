"""What connections may cost, whoever is at the other end: sockets, memory, and time of the loop.

Strangers (connections whose upgrade is not accepted yet) are few, and the oldest makes room for the
newest: an honest worker needs milliseconds to get in, whoever waits for longer stands in its way.
They are counted from the first packet on; with TLS that is before hands are shaken.
What those let in have sent and nobody has taken yet is bounded in all; the one that holds the most
goes first, since honest ones hold little.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import ssl
from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, cast

import structlog
from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import CONNECTING, OPEN, Event

from caption_flow.protocol.codec import MAX_HELLO_BYTES

log = structlog.get_logger()

_SLICE_BYTES: Final = 4096
"""What is parsed at a time: some hundred of the smallest frames, a few milliseconds."""
_LARGEST_SLICE_BYTES: Final = 2**18
"""Inside a large frame, where there is nothing to parse."""
_LARGE_BYTES: Final = 2**20
"""Of a message that is not complete; few ever are so large."""
_LARGE_SECONDS: Final = 60.0
_CONTROL: Final = frozenset({Opcode.PING, Opcode.PONG})
_CONTROL_SECONDS: Final = 10.0
_FRAME_BYTES: Final = 256
"""What a frame costs beside what is in it."""
_TELL_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 2.0
_UNLIMITED: Final = 2**20
_OWN_DESCRIPTORS: Final = 128
"""Kept for the ledger's database, parts, the dataset's files and threads."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most of everything."""

    sessions: int = 4096
    strangers: int = 512
    strangers_of_an_address: int = 256
    request_bytes: int = 16 * 1024
    """Of an upgrade request, all its headers together."""
    held_bytes: int = 256 * 2**20
    """Received and not taken yet, of all connections together."""
    large: int = 8
    """Connections in the middle of a large message; others wait where theirs becomes one."""
    fragments: int = 1024
    """Frames of one message."""
    control_frames: int = 100
    """Pings and pongs in ten seconds."""

    def within(self, descriptors: int) -> Bounds:
        """Return bounds that leave some of so many file descriptors to the rest of the process."""
        ours = max(32, descriptors - _OWN_DESCRIPTORS)
        strangers = min(self.strangers, ours // 4)
        return replace(
            self,
            strangers=strangers,
            strangers_of_an_address=min(self.strangers_of_an_address, max(1, strangers // 2)),
            sessions=min(self.sessions, ours - strangers),
        )


def raise_descriptor_limit() -> int:
    """Allow this process as many file descriptors as it may have; return how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(
            ValueError, OSError
        ):  # "unlimited" is more than some systems grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return _UNLIMITED if soft == resource.RLIM_INFINITY else soft


class Seldom:
    """Counts what would fill the log, and says when to tell of it."""

    def __init__(self) -> None:
        self._count = 0
        self._told = float("-inf")

    def due(self, now: float) -> int:
        """Count one more; return how many to tell of, or 0 to be silent."""
        self._count += 1
        if now - self._told < _TELL_SECONDS:
            return 0
        self._told = now
        count, self._count = self._count, 0
        return count


class Doorkeeper:
    """Who is connected, and what they hold."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._strangers: OrderedDict[GuardedConnection, str] = OrderedDict()
        self._by_address: dict[str, OrderedDict[GuardedConnection, None]] = {}
        self._members: set[GuardedConnection] = set()
        self._held: dict[GuardedConnection, int] = {}
        self._total = 0
        self._large: set[GuardedConnection] = set()
        self._held_back: OrderedDict[GuardedConnection, None] = OrderedDict()
        self._crowd = Seldom()

    @property
    def strangers(self) -> int:
        """Connections whose upgrade is not accepted."""
        return len(self._strangers)

    @property
    def held_bytes(self) -> int:
        """What all connections hold together."""
        return self._total

    def arrived(self, connection: GuardedConnection) -> None:
        """Take note of a new connection, and part with the oldest stranger if they are too many."""
        address = str((connection.remote_address or ("?",))[0])
        self._strangers[connection] = address
        neighbours = self._by_address.setdefault(address, OrderedDict())
        neighbours[connection] = None
        if len(neighbours) > self.bounds.strangers_of_an_address:
            self._turn_away(next(iter(neighbours)))
        elif len(self._strangers) > self.bounds.strangers:
            crowd = max(self._by_address.values(), key=len)
            self._turn_away(next(iter(crowd)))

    def admit(self, connection: GuardedConnection) -> bool:
        """Count a stranger among the sessions, unless these are as many as there may be."""
        if len(self._members) >= self.bounds.sessions:
            return False
        if self._forget_stranger(connection):
            self._members.add(connection)
        return True

    def left(self, connection: GuardedConnection) -> None:
        """Forget a connection that is closed."""
        self._forget_stranger(connection)
        self._members.discard(connection)
        self._total -= self._held.pop(connection, 0)
        self._held_back.pop(connection, None)
        self.ends_large(connection)

    def begins_large(self, connection: GuardedConnection) -> bool:
        """Tell whether a connection may go on with a large message; if not, it is called later."""
        if len(self._large) < self.bounds.large:
            self._large.add(connection)
            return True
        self._held_back[connection] = None
        return False

    def ends_large(self, connection: GuardedConnection) -> None:
        """Let the next one go on with its large message."""
        if connection not in self._large:
            return
        self._large.discard(connection)
        if self._held_back:
            following, _ = self._held_back.popitem(last=False)
            self._large.add(following)
            following.go_on_with_large()

    def holds(self, connection: GuardedConnection, held: int) -> None:
        """Take note of what a connection holds now, and part with the greediest if need be."""
        if connection not in self._members:
            return
        self._total += held - self._held.get(connection, 0)
        self._held[connection] = held
        while self._total > self.bounds.held_bytes and self._held:
            greediest = max(self._held, key=lambda one: self._held[one])
            log.warning(
                "a connection was closed: too much was received and not taken yet",
                bytes=self._held[greediest],
                of_all=self._total,
            )
            self.left(greediest)
            greediest.abort()

    def _forget_stranger(self, connection: GuardedConnection) -> bool:
        address = self._strangers.pop(connection, None)
        if address is None:
            return False
        neighbours = self._by_address[address]
        del neighbours[connection]
        if not neighbours:
            del self._by_address[address]
        return True

    def _turn_away(self, connection: GuardedConnection) -> None:
        count = self._crowd.due(connection.loop.time())
        if count:
            log.warning("connections were closed: too many wait to be let in", closed=count)
        self._forget_stranger(connection)
        connection.abort()


class GuardedConnection(ServerConnection):
    """A connection that keeps within the bounds, and is cut off where it does not."""

    def __init__(
        self,
        doorkeeper: Doorkeeper,
        tls: ssl.SSLContext | None,
        handshake_seconds: float,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._doorkeeper = doorkeeper
        self._tls = tls
        self._handshake_seconds = handshake_seconds
        self._securing: asyncio.Task[None] | None = None
        self._begun = False
        self._early = bytearray()
        """What came before there was anybody to decrypt it, and then before `_begin`."""
        self._requested = 0
        self._unparsed = bytearray()
        self._resuming = False
        self._messages: deque[int] = deque()
        """What each complete message holds that is not taken yet."""
        self._message = 0
        self._fragments = 0
        self._waiting = 0
        self._taken = 0
        """What the message holds that is being worked on: until the next one is asked for."""
        self._frames = 0
        """Parsed since this was last looked at."""
        self._greeted = False
        self._large: asyncio.TimerHandle | None = None
        """When to give up on the large message that is being received."""
        self._held_back = False
        self._control = 0
        self._control_since = 0.0
        self._lost = False

    def abort(self) -> None:
        """Close without a word, and take nothing more in."""
        self._lost = True
        self._unparsed.clear()
        if not self.transport.is_closing():
            self.transport.abort()

    # ------------------------------------------------------------------ what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register with the doorkeeper; it may have to part with another."""
        self.transport = cast("asyncio.Transport", transport)
        self._doorkeeper.arrived(self)
        if self._tls is None:
            self._begin(transport)
        else:
            self._securing = self.loop.create_task(self._secure(self.transport, self._tls))

    async def _secure(self, transport: asyncio.Transport, tls: ssl.SSLContext) -> None:
        """Shake hands, and begin if that succeeds.

        A server with an ``ssl`` argument would do so before it tells anybody of the connection, and
        nobody could bound how many do not.
        """
        shaking = self.loop.create_task(
            self.loop.start_tls(
                *(transport, self, tls),
                server_side=True,
                ssl_handshake_timeout=self._handshake_seconds,
            )
        )
        try:
            await asyncio.sleep(0)  # from here on the transport's protocol is the one of TLS
            self._hand_over(transport.get_protocol())
            secured = await shaking
        except (OSError, EOFError):
            secured = None
        finally:
            shaking.cancel()
        if secured is None or self._lost or secured.is_closing() or transport.is_closing():
            self._doorkeeper.left(self)
            transport.abort()
        else:
            self._begin(secured)

    def _hand_over(self, protocol: Any) -> None:
        """Give TLS's protocol, an `asyncio.BufferedProtocol`, what came before it was there."""
        early, self._early = bytes(self._early), bytearray()
        while early:
            room = protocol.get_buffer(len(early))
            count = min(len(room), len(early))
            room[:count] = early[:count]
            protocol.buffer_updated(count)
            early = early[count:]

    def _begin(self, transport: asyncio.BaseTransport) -> None:
        self._begun = True
        super().connection_made(transport)
        self.recv_messages.resume = self._resume
        if self._early:
            self.data_received(bytes(self._early))
            self._early.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back everything."""
        self._lost = True
        self._unparsed.clear()
        if self._large is not None:
            self._large.cancel()
        self._doorkeeper.left(self)
        if self._begun:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, a little at a time and no more than is asked for."""
        if self._lost:
            return
        if not self._begun:
            self._early += data
            return
        if self.state is CONNECTING:
            self._requested += len(data)
            if self._requested > self._doorkeeper.bounds.request_bytes:
                self.abort()
            else:
                super().data_received(data)
            return
        self._unparsed += data
        if not self._resuming:
            self._parse()

    def eof_received(self) -> None:
        """Drop what was not parsed: nobody is there any more to hear of it."""
        self._unparsed.clear()
        if self._begun:
            super().eof_received()

    # ------------------------------------------------------------------ taking in

    def process_event(self, event: Event) -> None:
        """Count what a frame costs before it is queued."""
        if isinstance(event, Frame):
            self._frames += 1
            if event.opcode in _CONTROL:
                self._count_control()
            elif event.opcode is not Opcode.CLOSE:
                self._count_data(event)
        super().process_event(event)

    async def recv(self, decode: bool | None = None) -> Any:
        """Return the next message, letting others have their turn first."""
        self._taken = 0
        await asyncio.sleep(0)
        message = await super().recv(decode)
        if self._messages:
            self._taken = self._messages.popleft()
            self._waiting -= self._taken
        self._greeted = True
        self._note()
        return message

    def _parse(self) -> None:
        size = _SLICE_BYTES
        while self._unparsed and self._may_read():
            piece = bytes(self._unparsed[:size])
            del self._unparsed[:size]
            self._frames = 0
            super().data_received(piece)
            self._watch_large()
            size = _SLICE_BYTES if self._frames else min(2 * size, _LARGEST_SLICE_BYTES)
        if self._lost:
            return
        self._note()
        if self.protocol.close_expected() and self.state is not OPEN:
            # A peer that does not answer our farewell keeps no socket for it.
            self.loop.call_later(_CLOSE_SECONDS, self.abort)

    def _resume(self) -> None:
        """Go on where the queue was full: first with what was received, then with the socket."""
        if not self._resuming:
            self._resuming = True
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._resuming = False
        if self._lost:
            return
        self._parse()
        if self._may_read() and not self.transport.is_closing():
            self.transport.resume_reading()

    def _may_read(self) -> bool:
        return not (self.recv_messages.paused or self._held_back or self._lost)

    def _watch_large(self) -> None:
        """Wait for leave where a message becomes large, and give it back where it is complete."""
        if len(self.protocol.reader.buffer) + self._message > _LARGE_BYTES:
            if self._large is None and not self._held_back:
                if self._doorkeeper.begins_large(self):
                    self._begin_large()
                else:
                    self._held_back = True
                    self.transport.pause_reading()
        elif self._large is not None:
            self._large.cancel()
            self._large = None
            self._doorkeeper.ends_large(self)

    def go_on_with_large(self) -> None:
        """Receive the rest of a large message: it is this connection's turn."""
        self._held_back = False
        self._begin_large()
        self._resume()

    def _begin_large(self) -> None:
        self._large = self.loop.call_later(_LARGE_SECONDS, self._give_up_large)

    def _give_up_large(self) -> None:
        log.warning("a connection was closed: a large message took it too long")
        self.abort()

    def _count_control(self) -> None:
        now = self.loop.time()
        if now - self._control_since > _CONTROL_SECONDS:
            self._control_since, self._control = now, 0
        self._control += 1
        if self._control > self._doorkeeper.bounds.control_frames:
            log.warning("a connection was closed: it sends nothing but pings")
            self.abort()

    def _count_data(self, frame: Frame) -> None:
        cost = len(frame.data) + _FRAME_BYTES
        self._waiting += cost
        self._message += cost
        self._fragments += 1
        if frame.fin:
            self._messages.append(self._message)
            self._message = self._fragments = 0
        elif self._fragments >= self._doorkeeper.bounds.fragments:
            self._refuse("too many fragments")

    def _note(self) -> None:
        buffered = len(self.protocol.reader.buffer)
        if not self._greeted and buffered + self._message > MAX_HELLO_BYTES:
            self._refuse("the first message is too large")
        held = buffered + len(self._unparsed) + self._waiting + self._taken
        self._doorkeeper.holds(self, held)

    def _refuse(self, reason: str) -> None:
        if self.state is OPEN:
            self._unparsed.clear()
            self.protocol.fail(CloseCode.MESSAGE_TOO_BIG, reason)
            self.send_data()
            self.loop.call_later(_CLOSE_SECONDS, self.abort)


def guarded_by(
    doorkeeper: Doorkeeper, tls: ssl.SSLContext | None, handshake_seconds: float
) -> type[ServerConnection]:
    """Return what `websockets.serve` makes connections with; ``tls`` is for these, not for it.

    TLS's handshake may take so many seconds.
    """
    made = partial(GuardedConnection, doorkeeper, tls, handshake_seconds)
    return cast("type[ServerConnection]", made)
