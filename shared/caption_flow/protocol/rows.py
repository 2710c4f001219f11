"""The rows of a `Results` message: one Arrow IPC stream with one record batch.

The worker fills what it knows of the picture and of the captions; what names the item (its key,
its file) is filled in by the orchestrator from its own records and never taken from the network.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from caption_flow.protocol.codec import ProtocolError

MAX_TEXT_BYTES: Final = 2**20
"""UTF-8 bytes of one text of an output field; a worker makes a failure of a longer one."""
_MAX_ERROR_BYTES: Final = 16 * 2**10
_MAX_NAME_BYTES: Final = 2**10
_MAX_IN_A_LIST: Final = 10_000
"""Texts of one field, stages, models, flags or finish reasons of one row."""
_KIND: Final = r"\A[a-z][a-z0-9_]{0,63}\z"

CAPTIONED: Final = "captioned"
FAILED: Final = "failed"
PARTIAL: Final = "partial"
"""Of an item that has reached a stage which its worker does not run; never stored as a row."""

_MOST_METADATA_BYTES: Final = 2**18
"""Of a schema, or of a batch without its contents: some hundred columns take a tenth of it."""
_MOST_NAMED: Final = 50
_ERROR_CHARACTERS: Final = 300

_STATS: Final[tuple[pa.Field, ...]] = (
    pa.field("stage", pa.string()),
    pa.field("tokens_in", pa.int32()),
    pa.field("tokens_out", pa.int32()),
    pa.field("finish_reasons", pa.list_(pa.string())),
    pa.field("milliseconds", pa.int32()),
)
STAGE_STATS: Final = pa.list_(pa.struct(_STATS))
CREDITED_STATS: Final = pa.list_(
    pa.struct([*_STATS, pa.field("worker", pa.string()), pa.field("contributor", pa.string())])
)
"""As they are stored: with who ran each stage. The wire never says that."""
TEXTS: Final = pa.list_(pa.string())

WIRE_FIELDS: Final[tuple[pa.Field, ...]] = (
    pa.field("item_index", pa.int64(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error_kind", pa.string()),
    pa.field("error", pa.string()),
    pa.field("image_width", pa.int32()),
    pa.field("image_height", pa.int32()),
    pa.field("image_format", pa.string()),
    pa.field("file_size", pa.int64()),
    pa.field("content_hash", pa.string()),
    pa.field("stage_stats", STAGE_STATS),
    pa.field("models", TEXTS),
    pa.field("recipe", pa.string()),
    pa.field("image_scaled_to", pa.string()),
    pa.field("flags", TEXTS),
)
LATER_FIELDS: Final = frozenset({"image_scaled_to", "flags"})
"""Fields that rows written before there were any lack; there, as nulls, they are read all the same.

They stand at the end of `WIRE_FIELDS`.
"""


@dataclass(frozen=True, slots=True)
class StageStats:
    """What one stage cost one item: tokens over all its prompts, wall milliseconds."""

    stage: str
    tokens_in: int
    tokens_out: int
    finish_reasons: tuple[str, ...]
    milliseconds: int


@dataclass(frozen=True, slots=True)
class Row:
    """An item's terminal state as its worker saw it.

    ``outputs`` maps each output field to its texts, in the order of the prompts; a failed item
    keeps what its earlier stages gave. ``image_width`` and ``image_height`` are the picture's own,
    after its EXIF orientation is applied and before any resize; ``content_hash`` is the file's.
    ``image_scaled_to`` (``WIDTHxHEIGHT``) is set where the picture had to shrink further than usual
    to fit into the model's context beside its prompt; ``flags`` are of `recipe.quality`.
    """

    item_index: int
    status: str
    outputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    error_kind: str | None = None
    error: str | None = None
    image_width: int | None = None
    image_height: int | None = None
    image_format: str | None = None
    file_size: int | None = None
    content_hash: str | None = None
    stage_stats: Sequence[StageStats] = ()
    models: Sequence[str] = ()
    recipe: str | None = None
    image_scaled_to: str | None = None
    flags: Sequence[str] = ()


def wire_schema(output_fields: Sequence[str]) -> pa.Schema:
    """Return the schema of a result batch: the fixed fields, then one text list per field."""
    return pa.schema([*WIRE_FIELDS, *(pa.field(name, TEXTS) for name in output_fields)])


def credited_schema(output_fields: Sequence[str]) -> pa.Schema:
    """Return `wire_schema` with `CREDITED_STATS`."""
    schema = wire_schema(output_fields)
    column = pa.field("stage_stats", CREDITED_STATS)
    return schema.set(schema.get_field_index("stage_stats"), column)


def wire_output_fields(schema: pa.Schema) -> tuple[str, ...]:
    """Return the output fields of a result batch: what follows the fixed fields."""
    fixed = zip(schema.names, WIRE_FIELDS, strict=False)
    return tuple(schema.names[sum(name == known.name for name, known in fixed) :])


def encode_rows(rows: Sequence[Row], output_fields: Sequence[str]) -> bytes:
    """Encode rows as an Arrow IPC stream of one record batch with `wire_schema`."""
    schema = wire_schema(output_fields)
    return encode_batch(
        pa.RecordBatch.from_pylist([_as_dict(row, output_fields) for row in rows], schema)
    )


def encode_batch(batch: pa.RecordBatch) -> bytes:
    """Encode a record batch as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def decode_rows(
    payload: bytes, output_fields: Sequence[str] | None = None, *, stored: bool = False
) -> pa.RecordBatch:
    """Decode and validate a stream made by `encode_rows`.

    Without ``output_fields`` any are accepted: the stream's own names are taken. A ``stored``
    stream is our own, and may say who ran each stage (`CREDITED_STATS`).

    Raises:
        ProtocolError: not an Arrow stream, another schema, invalid contents, compressed, not one
            batch, or with more bytes than its rows have.
    """
    try:
        schema, batch = _read(payload)
        names = wire_output_fields(schema) if output_fields is None else output_fields
        expected = wire_schema(names)
        if stored and schema == credited_schema(names):
            expected = schema
        is_known = schema.equals(expected, check_metadata=True)
        if not is_known and not schema.equals(_earlier(expected), check_metadata=True):
            raise ProtocolError(f"result rows have another schema: {schema.names[:_MOST_NAMED]}")
        rows = pa.ipc.read_record_batch(batch, schema)
        rows.validate(full=True)
        for column in rows.columns:
            _check_offsets(column)
        if len(payload) > pa.ipc.get_record_batch_size(rows) + 2 * _MOST_METADATA_BYTES:
            raise ProtocolError("result rows come with bytes that belong to none of them")
        return _with_later_fields(rows, expected)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        told = str(error)[:_ERROR_CHARACTERS]
        raise ProtocolError(f"result rows are not a valid Arrow stream: {told}") from error


def _read(payload: bytes) -> tuple[pa.Schema, pa.ipc.Message]:
    """Return the schema of a stream of one record batch, and the batch before it is decoded.

    Raises:
        ProtocolError: there is more or less in it, or decoding would take more memory than it has.
    """
    reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(payload))
    messages = list(islice(reader, 3))
    if [one.type for one in messages] != ["schema", "record batch"]:
        kinds = ", ".join(one.type for one in messages)
        raise ProtocolError(f"result rows must be one record batch, got: {kinds or 'nothing'}")
    if any(one.metadata.size > _MOST_METADATA_BYTES for one in messages):
        raise ProtocolError("result rows have too much metadata")
    schema, batch = messages
    if _is_compressed(batch.metadata.to_pybytes()):
        # How large it gets is the sender's word, and would be believed.
        raise ProtocolError("result rows are compressed")
    return pa.ipc.read_schema(schema), batch


def _check_offsets(values: pa.Array) -> None:
    """Raise `ProtocolError` if lists or texts do not begin at 0, or lists leave elements over.

    `validate` does not look there. What measures, flattens or writes an empty one that begins
    elsewhere reads there; and one that was left over becomes such an empty one when it is written.
    """
    kind = values.type
    if pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            _check_offsets(values.field(number))
        return
    if pa.types.is_list(kind):
        _check_offsets(values.values)
    elif not pa.types.is_string(kind):
        return
    offsets = values.buffers()[1]
    if len(values) == 0 and offsets is not None and any(offsets.slice(0, 4).to_pybytes()):
        raise ProtocolError("result rows have an empty list that begins elsewhere")
    if pa.types.is_list(kind):
        bounds = _bounds(values, offsets) if len(values) else (0, 0)
        if bounds != (0, len(values.values)):
            raise ProtocolError("result rows have lists that leave out what comes with them")


def _bounds(lists: pa.Array, offsets: pa.Buffer) -> tuple[int, int]:
    """Return where the first list begins and the last one ends, among their elements."""
    (first,) = struct.unpack_from("<i", offsets, 4 * lists.offset)
    (last,) = struct.unpack_from("<i", offsets, 4 * (lists.offset + len(lists)))
    return first, last


def _is_compressed(metadata: bytes) -> bool:
    """Tell whether a record batch's buffers are compressed (Arrow's ``Message.fbs``).

    pyarrow does not say, and has checked that this is a sound flatbuffer.
    """
    (message,) = struct.unpack_from("<I", metadata)
    header = _member(metadata, message, 2)
    (batch,) = struct.unpack_from("<I", metadata, header)
    return bool(_member(metadata, header + batch, 3))


def _member(metadata: bytes, table: int, number: int) -> int:
    """Return where a table of a flatbuffer has a member; 0 if it has none."""
    (back,) = struct.unpack_from("<i", metadata, table)
    vtable = table - back
    (size,) = struct.unpack_from("<H", metadata, vtable)
    entry = 4 + 2 * number
    (offset,) = struct.unpack_from("<H", metadata, vtable + entry) if entry < size else (0,)
    return table + offset if offset else 0


def check_bounds(rows: pa.RecordBatch) -> None:
    """Raise `ProtocolError` if anything in rows from a worker is longer than anybody needs.

    What is in them is text, whatever it looks like; but a failure's kind is a name, since they are
    counted and shown by it.
    """
    output_fields = set(wire_output_fields(rows.schema))
    for column, values in zip(rows.schema, rows.columns, strict=True):
        most = MAX_TEXT_BYTES if column.name in output_fields else _MAX_NAME_BYTES
        _check_lengths(column.name, values, _MAX_ERROR_BYTES if column.name == "error" else most)
    kinds = rows.column("error_kind")
    if kinds.null_count == len(kinds):
        return
    kinds = kinds.drop_null()
    if not pc.all(pc.match_substring_regex(kinds, _KIND), min_count=0).as_py():
        raise ProtocolError(
            "a result row's error_kind is no name: small letters, digits and _, at most 64"
        )


def _check_lengths(name: str, values: pa.Array, most: int) -> None:
    """Raise `ProtocolError` if a list or a text is too long.

    Where all of them together are short enough, which is nearly always, none is measured: for small
    batches a call of pyarrow costs more than what it does.
    """
    if pa.types.is_list(values.type):
        elements = values.values
        if len(elements) > _MAX_IN_A_LIST:
            longest = pc.max(pc.list_value_length(values)).as_py() or 0
            if longest > _MAX_IN_A_LIST:
                raise ProtocolError(
                    f"a result row has {longest} values in {name}: {_MAX_IN_A_LIST} at most"
                )
        _check_lengths(name, elements, most)
    elif pa.types.is_struct(values.type):
        for number in range(values.type.num_fields):
            _check_lengths(name, values.field(number), most)
    elif pa.types.is_string(values.type):
        text = values.buffers()[2]
        if text is None or text.size <= most:
            return
        longest = pc.max(pc.binary_length(values)).as_py() or 0
        if longest > most:
            raise ProtocolError(f"a result row has {longest} bytes in {name}: {most} at most")


def _earlier(schema: pa.Schema) -> pa.Schema:
    """Return the schema as it was before there were `LATER_FIELDS`."""
    return pa.schema([one for one in schema if one.name not in LATER_FIELDS])


def _with_later_fields(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    if batch.schema.equals(schema):
        return batch
    known = set(batch.schema.names)
    columns = [
        batch.column(one.name) if one.name in known else pa.nulls(batch.num_rows, one.type)
        for one in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _as_dict(row: Row, output_fields: Sequence[str]) -> dict[str, Any]:
    fixed: dict[str, Any] = {
        "item_index": row.item_index,
        "status": row.status,
        "error_kind": row.error_kind,
        "error": row.error,
        "image_width": row.image_width,
        "image_height": row.image_height,
        "image_format": row.image_format,
        "file_size": row.file_size,
        "content_hash": row.content_hash,
        "stage_stats": [
            {
                "stage": stats.stage,
                "tokens_in": stats.tokens_in,
                "tokens_out": stats.tokens_out,
                "finish_reasons": list(stats.finish_reasons),
                "milliseconds": stats.milliseconds,
            }
            for stats in row.stage_stats
        ],
        "models": list(row.models),
        "recipe": row.recipe,
        "image_scaled_to": row.image_scaled_to,
        "flags": list(row.flags),
    }
    for name in output_fields:
        texts = row.outputs.get(name)
        fixed[name] = None if texts is None else list(texts)
    return fixed
