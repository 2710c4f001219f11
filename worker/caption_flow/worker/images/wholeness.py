"""Whether a file of a common format is all there, as far as its bytes tell without decoding it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal

_BEGINNINGS: Final = {
    name: re.compile(begins, re.DOTALL)
    for name, begins in {
        "JPEG": rb"\xff\xd8\xff",
        "PNG": rb"\x89PNG\r\n\x1a\n",
        "GIF": rb"GIF8[79]a",
        "WEBP": rb"RIFF.{4}WEBP",
        "TIFF": rb"II\*\0|MM\0\*",
        "AVIF": rb".{4}ftypavi[fs]",
        "HEIF": rb".{4}ftyp(hei[cmx]|hevc|mif1)",
        # Two letters are soon met at the beginning of a text; four zeros are not.
        "BMP": rb"BM.{4}\0{4}",
    }.items()
}


def format_of(data: bytes) -> str | None:
    """Name the common format that these bytes begin like."""
    return next((name for name, begins in _BEGINNINGS.items() if begins.match(data)), None)


def is_cut_off(data: bytes) -> bool:
    """Tell whether a file of a common format lacks its end."""
    ends = _ENDS.get(format_of(data) or "")
    return ends is not None and not ends(data)


def _gif_ends(data: bytes) -> bool:
    flags = data[10] if len(data) > 10 else 0
    palette = 3 << ((flags & 7) + 1) if flags & 0x80 else 0
    return len(data) >= 13 + palette and b";" in data[-16:]


def _first_directory_of_tiff_ends(data: bytes) -> bool:
    order: Literal["little", "big"] = "little" if data[:1] == b"I" else "big"
    begin = int.from_bytes(data[4:8], order)
    entries = int.from_bytes(data[begin : begin + 2], order)
    return len(data) >= max(8, begin) + 2 + 12 * entries + 4


def _boxes_end(data: bytes) -> bool:
    """Walk the boxes of an ISO media file."""
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:
            return True  # 0: until the end of the file; else none that makes sense
        at += size
    return at == len(data)


_ENDS: Final[dict[str, Callable[[bytes], bool]]] = {
    # Some cameras pad behind the end marker.
    "JPEG": lambda data: b"\xff\xd9" in data[-4096:],
    "PNG": lambda data: b"IEND" in data[-4096:],
    "GIF": _gif_ends,
    "WEBP": lambda data: int.from_bytes(data[4:8], "little") + 8 <= len(data),
    "TIFF": _first_directory_of_tiff_ends,
    "AVIF": _boxes_end,
    "HEIF": _boxes_end,
    "BMP": lambda data: int.from_bytes(data[2:6], "little") <= len(data),
}
