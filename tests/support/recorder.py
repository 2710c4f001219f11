"""Servers that are not the orchestrator: they note every byte they get to read."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

from tests.support.certificates import Pair

_TLS_HELLO = 0x16
_LAST_WORD = b"so much for that"


class Recorder:
    """Whoever connects is listened to; ``answer`` is what it is told after its first words."""

    def __init__(self, answer: bytes = b"") -> None:
        self.port = 0
        self.heard = b""
        self.connections = 0
        self._more = asyncio.Event()
        self._answer = answer

    async def all_heard(self) -> bytes:
        """Return what was heard so far; what came before a connection made now is in it.

        A TLS handshake takes several turns of the loop, so that nothing earlier is still unread.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context)
        writer.write(_LAST_WORD)
        async with asyncio.timeout(10):
            while _LAST_WORD not in self.heard:
                self._more.clear()
                await self._more.wait()
        writer.transport.abort()
        return self.heard.replace(_LAST_WORD, b"")

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError):
            while heard := await reader.read(65536):
                self.heard += heard
                self._more.set()
                if self._answer and (b"\r\n\r\n" in self.heard or heard[0] == _TLS_HELLO):
                    writer.write(self._answer)
                    await writer.drain()
                    break
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def recorder(served: Pair | None, answer: bytes = b"") -> AsyncIterator[Recorder]:
    """Listen with a certificate (None: without TLS) as anybody can who stands between."""
    listening = Recorder(answer)
    server = await asyncio.start_server(
        listening.handle, "127.0.0.1", 0, ssl=_context(served) if served is not None else None
    )
    listening.port = server.sockets[0].getsockname()[1]
    try:
        yield listening
    finally:
        server.close()
        await server.wait_closed()


def _context(served: Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(served.cert, served.key)
    return context


@contextlib.asynccontextmanager
async def http_proxy(port: int) -> AsyncIterator[str]:
    """Offer a proxy that takes every CONNECT, and leads to the same port wherever it was for."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        assert asked.startswith(b"CONNECT ")
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(_pour(reader, far_writer), _pour(far_reader, writer))

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while block := await reader.read(65536):
            writer.write(block)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
