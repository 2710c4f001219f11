"""Peers that mean harm: raw sockets, and frames that no client library would send."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Final

from caption_flow.protocol.codec import encode
from caption_flow.protocol.messages import Hello
from caption_flow.protocol.version import SUBPROTOCOL
from tests.support.wire import PLAIN, Wire

CONT: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9


def request(token: str | None, *headers: str) -> bytes:
    """An upgrade request."""
    lines = [
        "GET / HTTP/1.1",
        "Host: here",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Protocol: {SUBPROTOCOL}",
        *([] if token is None else [f"Authorization: Bearer {token}"]),
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv1: bool = False,
    claimed: int | None = None,
) -> bytes:
    """A masked frame (with a mask of zeros), which may claim another length than it has."""
    length = len(payload) if claimed is None else claimed
    head = bytes([(fin << 7) | (rsv1 << 6) | opcode])
    if length < 126:
        head += bytes([0x80 | length])
    elif length < 2**16:
        head += bytes([0x80 | 126]) + struct.pack("!H", length)
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", length)
    return head + bytes(4) + payload


class Peer:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.answer = ""

    async def send(self, data: bytes) -> None:
        """Send, as far as the other side takes it; raises what the socket raises."""
        self.writer.write(data)
        await self.writer.drain()
        await asyncio.sleep(0)  # `drain` alone lets nobody else have a turn

    async def upgrade(self, token: str | None, *headers: str) -> str:
        """Ask to be let in; return the answer's head."""
        await self.send(request(token, *headers))
        self.answer = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        return self.answer

    async def hello(self, session: str) -> None:
        """Be welcomed as a worker."""
        await self.send(frame(BINARY, encode(Hello(session, session))))
        await self.next()

    async def next(self) -> tuple[int, bytes]:
        """The next frame's opcode and payload; raises `IncompleteReadError` at the end."""
        first, second = await self.reader.readexactly(2)
        length = second & 127
        if length == 126:
            (length,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
        return first & 15, await self.reader.readexactly(length)

    async def ended(self) -> tuple[int, str]:
        """Wait until the other side ends it; its code and reason (1006: without a word)."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                opcode, payload = await self.next()
                if opcode == CLOSE:
                    return struct.unpack("!H", payload[:2])[0], payload[2:].decode()
        return 1006, ""

    async def gone(self) -> None:
        """Wait until the socket is closed from the other side, whatever was said before."""
        with contextlib.suppress(OSError):
            while await self.reader.read(2**16):
                pass


@contextlib.asynccontextmanager
async def dialled(port: int, wire: Wire = PLAIN) -> AsyncIterator[Peer]:
    """A connection that has not said anything; aborted at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=wire.client)
    try:
        yield Peer(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def let_in(
    port: int, token: str, session: str = "", *headers: str, wire: Wire = PLAIN
) -> AsyncIterator[Peer]:
    """A connection with a token, and if a session is named one that was welcomed."""
    async with dialled(port, wire) as peer:
        answer = await peer.upgrade(token, *headers)
        assert answer.startswith("HTTP/1.1 101 "), answer
        if session:
            await peer.hello(session)
        yield peer


def wild_messages() -> Sequence[tuple[str, bytes]]:
    """Frames' contents that fit no protocol, named."""
    import msgspec  # noqa: PLC0415  -- beside what it makes

    pack = msgspec.msgpack.encode
    report = {"type": "results", "seq": 1, "lease": 1, "items": [0], "rows": b""}
    return (
        ("random", bytes(range(256)) * 4),
        ("empty", b""),
        ("a list", pack([1, 2, 3])),
        ("a number", pack(7)),
        ("unknown type", pack({"type": "surrender"})),
        ("an orchestrator's", pack({"type": "finished", "captioned": 1, "failed": 0})),
        ("an admin's", pack({"type": "shutdown", "now": True})),
        ("type that is a map", pack({"type": {"a": 1}})),
        ("negative item", pack({**report, "items": [-1]})),
        ("item beyond", pack({**report, "items": [2**60]})),
        ("rows that are text", pack({**report, "rows": "rows"})),
        ("huge number", pack({"type": "want", "chunks": 2**64 - 1})),
        ("claims 4 billion items", b"\x82\xa4type\xa5fetch\xa5items\xdd\xff\xff\xff\xff"),
        ("claims 4 GB of rows", b"\x82\xa4type\xa7results\xa4rows\xc6\xff\xff\xff\xff"),
        ("deep lists", b"\x82\xa4type\xa9heartbeat\xa1x" + b"\x91" * 500_000 + b"\xc0"),
        ("deep maps", b"\x82\xa4type\xa9heartbeat\xa1x" + b"\x81\xa1a" * 300_000 + b"\xc0"),
        ("large heartbeat", pack({"type": "heartbeat", "x": b"x" * (2**20 + 1)})),
        (
            "many leases",
            pack({"type": "recalled", "leases": {at: [] for at in range(20_000)}}),
        ),
    )
