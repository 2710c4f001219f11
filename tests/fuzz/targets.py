"""What strangers' bytes meet first, as functions of bytes: whatever they raise is a finding.

`tests.fuzz` feeds them with what coverage leads to, `tests/property/test_hostile_bytes.py` with
what hypothesis draws. Both begin with `seeds`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator
from typing import Final

import msgspec
import pyarrow as pa
from websockets.http11 import Request
from websockets.streams import StreamReader

from caption_flow.orchestrator.server.auth import Identity, TokenTable, bearer_token
from caption_flow.protocol.codec import (
    ProtocolError,
    decode_from_observer,
    decode_from_orchestrator,
    decode_from_worker,
)
from caption_flow.protocol.messages import Message, Results
from caption_flow.protocol.rows import decode_rows, encode_batch
from caption_flow.protocol.version import refusal
from caption_flow.storage.writes import CommitRows
from caption_flow.worker.images.load import IMAGE_ERROR_KINDS, ImageError, prepare

FIELDS: Final = ("captions",)
MOST_PIXELS_IN: Final = 1_000_000
MOST_PIXELS_OUT: Final = 900
_TOKENS: Final = TokenTable()
_TOKENS.add("a token that nobody guesses", Identity("worker", "somebody"))


def from_worker(data: bytes) -> None:
    """A worker's frame is one of its messages, or breaks the protocol."""
    message = _decoded(decode_from_worker, data)
    if isinstance(message, Results):
        rows(message.rows)


def from_observer(data: bytes) -> None:
    """So is an observer's."""
    _decoded(decode_from_observer, data)


def from_orchestrator(data: bytes) -> None:
    """So is an orchestrator's: a worker trusts it no further than it must."""
    _decoded(decode_from_orchestrator, data)


def rows(data: bytes) -> None:
    """A payload gives rows that can be stored and read again, or breaks the protocol."""
    try:
        batch = decode_rows(data, FIELDS)
    except ProtocolError as error:
        _check(error)
        return
    assert batch.nbytes <= 64 * len(data), "a few bytes became many"
    again = decode_rows(encode_batch(batch), FIELDS)
    assert again.equals(batch) or _has_nan(batch)
    _committed(data, batch)


def _committed(data: bytes, batch: pa.RecordBatch) -> None:
    items = tuple(batch.column("item_index").to_pylist())
    accepted = tuple(range(0, len(items), 2))
    write = CommitRows("shard", 0, items, accepted, data, FIELDS, "somebody", "worker")
    try:
        write.prepare()
    except ProtocolError:
        return
    assert sum(write.counts.values()) == len(accepted)


def _has_nan(batch: pa.RecordBatch) -> bool:
    return any(pa.types.is_floating(column.type) for column in batch.columns)


def upgrade(data: bytes) -> None:
    """An upgrade request is understood or refused, and a stranger's token is nobody's."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    try:
        request = _finished(Request.parse(reader.read_line))
    except Exception:  # noqa: BLE001  -- what websockets answers itself
        return
    # As the gate reads them.
    headers = request.headers
    token = bearer_token(",".join(headers.get_all("Authorization")) or None)
    assert token is None or _TOKENS.identify(token) is None
    offered = ",".join(headers.get_all("Sec-WebSocket-Protocol")).split(",")
    why_not = refusal([name.strip() for name in offered])
    assert why_not is None or len(why_not) < 500


def image(data: bytes) -> None:
    """A file is a picture within the limits or an `ImageError`."""
    try:
        loaded = prepare(data, max_pixels_in=MOST_PIXELS_IN, max_pixels_out=MOST_PIXELS_OUT)
    except ImageError as error:
        _check(error)
        return
    pixels = loaded.image.pixels
    assert pixels.mode == "RGB"
    assert 1 <= pixels.width * pixels.height <= MOST_PIXELS_OUT
    assert 1 <= loaded.width * loaded.height <= MOST_PIXELS_IN
    pixels.save(io.BytesIO(), "BMP")


def _decoded(decode: Callable[[bytes], Message], data: bytes) -> Message | None:
    try:
        message = decode(data)
    except ProtocolError as error:
        _check(error)
        return None
    # What was understood can be said again, and means the same.
    said = msgspec.msgpack.encode(message)
    assert msgspec.msgpack.encode(decode(said)) == said
    return message


def _check(error: ProtocolError | ImageError) -> None:
    assert len(str(error)) < 5000, "a sentence that fills logs"
    assert isinstance(error, ProtocolError) or error.kind in IMAGE_ERROR_KINDS


def _finished(parsing: Generator[None, None, Request]) -> Request:
    try:
        while True:
            next(parsing)
    except StopIteration as end:
        request: Request = end.value
        return request


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "from_worker": from_worker,
    "from_observer": from_observer,
    "from_orchestrator": from_orchestrator,
    "rows": rows,
    "upgrade": upgrade,
    "image": image,
}
