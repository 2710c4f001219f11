"""A value beside an image as the text that prompts and rows have. Pure."""

from __future__ import annotations

import json
from typing import Any, Final

LONGEST: Final = 2**20
"""Characters of one value; what is longer counts as missing."""


def column_text(value: Any) -> str | None:
    """Return a value as text: lists of simple values joined with ", ", other structures as JSON.

    One kind for all, since files beside images need not agree on one. None, and what is longer than
    `LONGEST`, is None.
    """
    match value:
        case None:
            return None
        case str():
            text = value
        case bool() | dict():
            text = json.dumps(value, ensure_ascii=False, default=str)
        case list() | tuple():
            text = ", ".join(one for one in map(column_text, value) if one)
        case _:
            text = str(value)
    if len(text) > LONGEST:
        return None
    # Bytes that were no UTF-8, and JSON's lone surrogates: neither could be sent or stored.
    return text.encode("utf-8", "surrogateescape" if _escaped(text) else "replace").decode(
        "utf-8", "backslashreplace"
    )


def _escaped(text: str) -> bool:
    """Tell whether all surrogates stand for bytes, as the file system's do."""
    return all("\udc80" <= one <= "\udcff" for one in text if "\ud800" <= one <= "\udfff")
