"""One connection's outgoing side: a bounded queue in front of a socket that may be slow.

Acknowledgements are not queued: only the highest one matters, and it goes first, so that results
never wait behind images.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from caption_flow.protocol.codec import encode
from caption_flow.protocol.messages import Ack, Image, Message

_MOST_QUEUED: Final = 1024
_LAST_WORDS_SECONDS: Final = 2.0
_CLOSE_REASON_BYTES: Final = 120
"""A close frame holds 125 bytes, two of them the code (RFC 6455, section 5.5.1)."""

POLICY_VIOLATION: Final = 1008
GOING_AWAY: Final = 1001
NORMAL: Final = 1000


class Outgoing:
    """What is on its way to one peer."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self._messages: deque[Message] = deque()
        self._images: deque[Image] = deque()
        self._acknowledged = 0
        self._announced = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.overflowed = False

    def send(self, message: Message) -> None:
        """Queue a message; a peer that lets too many pile up is disconnected."""
        queue = self._images if isinstance(message, Image) else self._messages
        if len(queue) >= _MOST_QUEUED:
            self._overflow()
        else:
            queue.append(message)  # type: ignore[arg-type]  # images go to the queue of images
        self._idle.clear()
        self._wake.set()

    def _overflow(self) -> None:
        if not self.overflowed:
            self.overflowed = True
            # `pump` says why and closes, unless it is stuck in a send that the peer does not take.
            asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, self._abort)

    def _abort(self) -> None:
        if not self._connection.transport.is_closing():
            self._connection.transport.abort()

    def acknowledge(self, seq: int) -> None:
        """Tell the peer that its batches up to ``seq`` are durable."""
        self._acknowledged = max(self._acknowledged, seq)
        self._idle.clear()
        self._wake.set()

    async def flush(self) -> None:
        """Wait until everything queued has been handed to the socket."""
        await self._idle.wait()

    async def pump(self) -> None:
        """Send what is queued until the connection closes."""
        try:
            while not self.overflowed:
                await self._wake.wait()
                self._wake.clear()
                while (frame := self._next()) is not None:
                    await self._connection.send(frame)
                self._idle.set()
            await close(self._connection, POLICY_VIOLATION, "too many unread messages")
        except ConnectionClosed:
            pass  # whoever reads from the connection learns of it, too, and cleans up
        finally:
            self._idle.set()

    def _next(self) -> bytes | None:
        if self._acknowledged > self._announced:
            self._announced = self._acknowledged
            return encode(Ack(self._announced))
        if self._messages:
            return encode(self._messages.popleft())
        if self._images:
            return encode(self._images.popleft())
        return None


async def close(connection: ServerConnection, code: int, reason: str) -> None:
    """Close a connection, saying why in as many bytes as fit."""
    fitting = reason.encode()[:_CLOSE_REASON_BYTES].decode("utf-8", "ignore")
    await connection.close(code, fitting)
