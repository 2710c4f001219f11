"""One connection's outgoing side: a bounded queue in front of a socket that may be slow.

Acknowledgements are not queued: only the highest one matters, and it goes first, so that results
never wait behind images. Images go last, and in pieces: whatever comes up meanwhile waits for one
piece, not for a picture of many megabytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

import structlog
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from caption_flow.protocol.codec import encode
from caption_flow.protocol.messages import Ack, Image, Message

log = structlog.get_logger()

_MOST_QUEUED: Final = 1024
PIECE_BYTES: Final = 256 * 1024
_TAKE_SECONDS: Final = 120.0
"""For one frame; the socket's own keepalive waits for ever behind what nobody reads."""
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
        self._images: deque[tuple[Image, asyncio.Future[None]]] = deque()
        self._offset = 0
        """How much of the first image is sent."""
        self._acknowledged = 0
        self._announced = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.overflowed = False

    def send(self, message: Message) -> None:
        """Queue a message; a peer that lets too many pile up is disconnected."""
        if isinstance(message, Image):
            self.send_image(message)
            return
        if len(self._messages) >= _MOST_QUEUED:
            self._overflow()
        else:
            self._messages.append(message)
        self._stir()

    def send_image(self, image: Image) -> asyncio.Future[None]:
        """Queue an image as `send` does; the future is done when the socket has all of it."""
        handed_over = asyncio.get_running_loop().create_future()
        if len(self._images) >= _MOST_QUEUED:
            self._overflow()
        else:
            self._images.append((image, handed_over))
        self._stir()
        return handed_over

    def _stir(self) -> None:
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
        self._stir()

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
                    async with asyncio.timeout(_TAKE_SECONDS):
                        await self._connection.send(frame)
                self._idle.set()
            await close(self._connection, POLICY_VIOLATION, "too many unread messages")
        except TimeoutError:
            log.warning("a connection was closed: its peer reads nothing", seconds=_TAKE_SECONDS)
            self._abort()
        except ConnectionClosed:
            pass  # whoever reads from the connection learns of it, too, and cleans up
        finally:
            self._idle.set()
            for _, handed_over in self._images:
                _settle(handed_over)

    def _next(self) -> bytes | None:
        if self._acknowledged > self._announced:
            self._announced = self._acknowledged
            return encode(Ack(self._announced))
        if self._messages:
            return encode(self._messages.popleft())
        if self._images:
            return encode(self._next_piece())
        return None

    def _next_piece(self) -> Image:
        image, handed_over = self._images[0]
        begin, end = self._offset, self._offset + PIECE_BYTES
        is_last = end >= len(image.payload)
        if not is_last:
            self._offset = end
        else:
            self._offset = 0
            self._images.popleft()
            _settle(handed_over)
        # Not a copy: what is encoded is copied once more as it is.
        piece = memoryview(image.payload)[begin:end]
        return Image(
            image.lease,
            image.item,
            piece,  # type: ignore[arg-type]  # encoded like bytes
            image.error,
            image.offset + begin,
            image.more or not is_last,
            image.kind,
        )


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def close(connection: ServerConnection, code: int, reason: str) -> None:
    """Close a connection, saying why in as many bytes as fit."""
    fitting = reason.encode()[:_CLOSE_REASON_BYTES].decode("utf-8", "ignore")
    await connection.close(code, fitting)
