r"""Rows as JSON: what the json and jsonl formats, and lists in csv cells, share.

Times are ISO 8601, bytes base64, numbers that JSON has no word for (NaN) null. Text is UTF-8 and
not escaped. A file name that is not valid UTF-8 shows its odd bytes as ``\xff``; its exact bytes
are in the column ``filename_raw``. (A lone surrogate would say it too, but many JSON parsers
refuse a whole file for one.)
"""

from __future__ import annotations

from typing import Any

import msgspec

from caption_flow.storage.contents import Row, displayable

_encoder = msgspec.json.Encoder()


def json_bytes(value: Row | Any) -> bytes:
    """Encode a row, or one value of it, as JSON."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return _encoder.encode(displayable(value))
