"""Looks at an address where dialling failed: TLS, or HTTP without it? No token is sent."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Final

from caption_flow.certificates.contexts import unverifying_context

PROBE_SECONDS: Final = 3.0
_NO_PEER: Final = (OSError, EOFError)
"""A TimeoutError and an SSLError are OSErrors."""


async def speaks_tls(host: str, port: int) -> bool:
    """Tell whether a TLS handshake comes about."""
    try:
        async with asyncio.timeout(PROBE_SECONDS), _connected(host, port, unverifying_context()):
            return True
    except _NO_PEER:
        return False


async def speaks_http(host: str, port: int) -> bool:
    """Tell whether plain HTTP is answered with HTTP."""
    try:
        async with (
            asyncio.timeout(PROBE_SECONDS),
            _connected(host, port, None) as (reader, writer),
        ):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n")
            return await reader.readexactly(5) == b"HTTP/"
    except _NO_PEER:
        return False


@contextlib.asynccontextmanager
async def _connected(
    host: str, port: int, tls: ssl.SSLContext | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    try:
        yield reader, writer
    finally:
        # Nothing is owed to the peer, a goodbye neither.
        writer.transport.abort()
        with contextlib.suppress(*_NO_PEER):
            await writer.wait_closed()
