"""Messages to msgpack frames and back; the only place where bytes from a peer become objects."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from caption_flow.protocol.messages import (
    Message,
    ObserverMessage,
    OrchestratorMessage,
    WorkerMessage,
)

MAX_FRAME_BYTES: Final = 64 * 2**20
"""No frame may be larger; a peer that sends a larger one is disconnected by the socket layer."""


class ProtocolError(ValueError):
    """A frame that is not one of the messages its sender may send."""


T = TypeVar("T")

_encoder: Final = msgspec.msgpack.Encoder()
_from_worker: Final[msgspec.msgpack.Decoder[WorkerMessage]] = msgspec.msgpack.Decoder(WorkerMessage)
_from_observer: Final[msgspec.msgpack.Decoder[ObserverMessage]] = msgspec.msgpack.Decoder(
    ObserverMessage
)
_from_orchestrator: Final[msgspec.msgpack.Decoder[OrchestratorMessage]] = msgspec.msgpack.Decoder(
    OrchestratorMessage
)


def encode(message: Message) -> bytes:
    """Encode one message as one binary frame."""
    return _encoder.encode(message)


def decode_from_worker(frame: bytes | str) -> WorkerMessage:
    """Validate a frame received from a worker.

    Raises:
        ProtocolError: the frame is text, not msgpack, or not a worker's message.
    """
    return _decode(_from_worker, frame)


def decode_from_observer(frame: bytes | str) -> ObserverMessage:
    """Validate a frame received from a monitor or an admin; raises `ProtocolError`."""
    return _decode(_from_observer, frame)


def decode_from_orchestrator(frame: bytes | str) -> OrchestratorMessage:
    """Validate a frame received from the orchestrator; raises `ProtocolError`."""
    return _decode(_from_orchestrator, frame)


def _decode(decoder: msgspec.msgpack.Decoder[T], frame: bytes | str) -> T:
    if isinstance(frame, str):
        raise ProtocolError("text frame; messages are binary msgpack maps")
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"frame does not fit the protocol: {error}") from error
