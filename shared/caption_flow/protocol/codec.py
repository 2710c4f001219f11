"""Messages to msgpack frames and back; the only place where bytes from a peer become objects.

A few bytes of msgpack can become many objects. What comes from workers and observers is looked over
before any of it does, so that a frame costs no more memory than its kind may.
"""

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
MAX_REPORT_BYTES: Final = 16 * 2**20
"""No frame from a worker may be larger: four times what an outbox puts into one."""
MAX_HELLO_BYTES: Final = 4 * 2**20
"""No first frame may be larger: a hello names the items that its worker still has."""
MAX_WORDS_BYTES: Final = 2**20
"""No other frame may be larger, a report's rows not counted."""
MAX_LEASES_NAMED: Final = 10_000
"""Integers can be chosen so that a dictionary of them gets slow."""
_ERROR_CHARACTERS: Final = 300


class ProtocolError(ValueError):
    """A frame that is not one of the messages its sender may send."""


T = TypeVar("T")


class _Envelope(msgspec.Struct):
    """What is looked at before a frame is decoded; the rest is skipped without becoming objects."""

    type: str = ""
    rows: msgspec.Raw = msgspec.Raw()
    leases: msgspec.Raw = msgspec.Raw()


_encoder: Final = msgspec.msgpack.Encoder()
_envelope: Final[msgspec.msgpack.Decoder[_Envelope]] = msgspec.msgpack.Decoder(_Envelope)
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
        ProtocolError: the frame is text, not msgpack, or not a worker's message, or too large for
            what it is.
    """
    envelope = _decode(_envelope, frame)
    if _entries(bytes(memoryview(envelope.leases)[:5])) > MAX_LEASES_NAMED:
        raise ProtocolError(f"a message names more than {MAX_LEASES_NAMED:,} leases")
    most = MAX_HELLO_BYTES if envelope.type == "hello" else MAX_WORDS_BYTES
    rows = len(envelope.rows) if envelope.type == "results" else 0
    if len(frame) - rows > most:
        raise ProtocolError(f"a message of {len(frame):,} bytes is too large for what it is")
    return _decode(_from_worker, frame)


def decode_from_observer(frame: bytes | str) -> ObserverMessage:
    """Validate a frame received from a monitor or an admin; raises `ProtocolError`."""
    if len(frame) > MAX_WORDS_BYTES:
        raise ProtocolError(f"a request of {len(frame):,} bytes is too large")
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
        # What was wrong may be quoted, however long it is.
        told = str(error)[:_ERROR_CHARACTERS]
        raise ProtocolError(f"frame does not fit the protocol: {told}") from error


def _entries(head: bytes) -> int:
    """Return how many entries a msgpack map has that begins so; 0 for what is no map."""
    match head[:1]:
        case b"\xde":
            return int.from_bytes(head[1:3], "big")
        case b"\xdf":
            return int.from_bytes(head[1:5], "big")
        case _:
            return 0  # up to 15, or refused when it is decoded
