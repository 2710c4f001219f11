"""Arrow streams that an honest worker would not send."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from caption_flow.protocol.rows import CAPTIONED, Row, encode_batch, encode_rows

FIELDS: Final = ("captions",)
_FOUND: Final = Path(__file__).parents[1] / "fuzz/corpus/rows/found-empty-list-begins-elsewhere"


def honest(items: Sequence[int], text: str = "a caption") -> pa.RecordBatch:
    """What an honest worker sends."""
    rows = [Row(item, CAPTIONED, {"captions": [text]}) for item in items]
    with pa.ipc.open_stream(encode_rows(rows, FIELDS)) as reader:
        return reader.read_next_batch()


def stream(*batches: pa.RecordBatch, **options: Any) -> bytes:
    """A stream of these batches, written with pyarrow's options."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)
    ) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def malicious(items: Sequence[int]) -> Iterator[tuple[str, bytes]]:
    """Yield streams about these items, named, none of which may be stored."""
    batch = honest(items)
    plain = stream(batch)
    yield "nothing", b""
    yield "no Arrow", b"\xff" * 4096
    yield "cut off", plain[: len(plain) // 2]
    yield "two batches", stream(batch, batch)
    yield "another schema", stream(batch.select(["item_index", "status"]))
    yield "one more column", stream(batch.append_column("x", pa.nulls(len(items), pa.string())))
    yield "large texts", stream(_retyped(batch, "captions", pa.list_(pa.large_string())))
    coded = batch.column("status").dictionary_encode()
    yield "dictionary", stream(_replaced(batch, "status", coded))
    yield "metadata", stream(batch.replace_schema_metadata({"x": "y" * 1000}))
    for codec in ("zstd", "lz4"):
        yield f"compressed with {codec}", stream(honest(items, "a" * 10_000), compression=codec)
    yield (
        "compressed, claims terabytes",
        _claiming(stream(honest(items, "a" * 10_000), compression="zstd"), 2**43),
    )
    yield "no UTF-8", plain.replace(b"a caption", b"a\xff\xfe\xfdtion")
    yield "offsets beyond", _with_offsets(plain, (0, 2**30))
    yield "offsets that go back", _with_offsets(plain, (9, 3))
    yield "bytes that belong to nothing", plain + bytes(2**20)
    yield "an empty list that begins elsewhere", _FOUND.read_bytes()
    yield "other items", encode_batch(honest([item + 1000 for item in items]))
    yield "an item twice", encode_batch(honest([items[0]] * len(items)))


def _replaced(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    at = batch.schema.get_field_index(name)
    columns = [*batch.columns]
    columns[at] = values
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _retyped(batch: pa.RecordBatch, name: str, kind: pa.DataType) -> pa.RecordBatch:
    return _replaced(batch, name, batch.column(name).cast(kind))


def _claiming(compressed: bytes, size: int) -> bytes:
    """Let each compressed buffer (its true size, 8 bytes, then a zstd frame) claim another size."""
    magic = b"\x28\xb5\x2f\xfd"
    changed = bytearray(compressed)
    at = changed.find(magic)
    assert at > 0
    while at > 0:
        changed[at - 8 : at] = size.to_bytes(8, "little")
        at = changed.find(magic, at + 4)
    return bytes(changed)


def _with_offsets(plain: bytes, offsets: tuple[int, int]) -> bytes:
    """Let the first row's status begin and end elsewhere in the column's bytes."""
    honest_ones = struct.pack("<2i", 0, len(CAPTIONED))
    assert honest_ones in plain
    return plain.replace(honest_ones, struct.pack("<2i", *offsets), 1)
