"""What decoding a file may cost, as its header tells before anything is decoded.

Pixels alone do not say it: decoders differ tenfold in memory and a thousandfold in time, and some
formats hide a second, larger picture behind the size they state. The figures were measured, see
docs/performance.md.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Iterator
from typing import Any, Final

from PIL import Image

DEFAULT_MAX_BYTES: Final = 2 * 2**30
"""What all pictures that are being decoded at the same time may take together, in bytes."""

_BYTES_A_PIXEL: Final = {"JPEG2000": 28, "WEBP": 18, "AVIF": 20, "HEIF": 20}
"""Of formats whose decoders keep pictures of their own, at most; measured 24, 16, 9 and 7."""
_PLAIN_BYTES: Final = 8
_OTHER_BYTES: Final = 16
"""Of pictures that are transparent, or have more than eight bits a sample, or four colours."""
_PROGRESSIVE_BYTES: Final = 10
_PLAIN_MODES: Final = frozenset({"1", "L", "RGB"})

_MOST_SCAN_PIXELS: Final = 10_000_000_000
"""Scans of a JPEG times its pixels: each scan goes over all of them, about 0.6 s for 10^9.

A progressive photograph has about ten scans; a file of a few kilobytes can have thousands.
"""
_MOST_PIXELS_IN_PYTHON: Final = 10_000_000
"""Of pictures that Pillow decodes in Python, about 1.3 s for a million pixels."""
MOST_PIXELS_OF_ICONS: Final = 4_194_304
"""Of a picture inside an icon: Pillow decodes it before it says how large it is."""
_START_OF_SCAN: Final = b"\xff\xda"
_TILE_SIDES: Final = (322, 323)
_ICON: Final = b"\0\0\1\0"
_PNG: Final = b"\x89PNG\r\n\x1a\n"


def largest_size(file: Image.Image) -> tuple[int, int]:
    """Return the size of the largest picture that is decoded for this one, in pixels."""
    sizes = [file.size]
    if file.format == "TIFF":
        tags: Any = getattr(file, "tag_v2", {})
        sides = [tags.get(side, 0) for side in _TILE_SIDES]
        if all(isinstance(side, int) for side in sides):
            sizes.append((sides[0], sides[1]))
    return max(sizes, key=_pixels)


def largest_icon(data: bytes) -> tuple[int, int] | None:
    """Return the size of the largest picture in an icon, whose header may say less; else None."""
    sizes = _icons(data) if data[:4] == _ICON else ()
    return max(sizes, key=_pixels, default=None)


def bytes_to_decode(file: Image.Image) -> int:
    """Return how much memory decoding and converting may take at most, the file not counted."""
    width, height = largest_size(file)
    return width * height * _bytes_a_pixel(file)


def takes_too_long(file: Image.Image, data: bytes) -> str | None:
    """Say why decoding might take minutes, or None."""
    pixels = file.width * file.height
    if file.format in {"JPEG", "MPO"}:
        scans = data.count(_START_OF_SCAN)
        if scans * pixels > _MOST_SCAN_PIXELS:
            return f"the picture has {file.width} x {file.height} pixels in {scans:,} scans"
    if pixels > _MOST_PIXELS_IN_PYTHON and _is_decoded_in_python(file):
        return (
            f"the picture has {file.width} x {file.height} pixels; "
            f"the limit for its kind of {file.format} is {_MOST_PIXELS_IN_PYTHON:,} in all"
        )
    return None


def _bytes_a_pixel(file: Image.Image) -> int:
    known = _BYTES_A_PIXEL.get(file.format or "")
    if known is not None:
        return known
    if file.format in {"JPEG", "MPO"}:
        return _PROGRESSIVE_BYTES if "progressive" in file.info else _PLAIN_BYTES
    is_plain = file.mode in _PLAIN_MODES and not file.has_transparency_data
    return _PLAIN_BYTES if is_plain else _OTHER_BYTES


def _is_decoded_in_python(file: Image.Image) -> bool:
    tiles: list[Any] = getattr(file, "tile", [])
    return any(tile[0] in Image.DECODERS for tile in tiles)


def _icons(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield what the pictures in an icon say of their own sizes; its header may say less."""
    with contextlib.suppress(struct.error):  # cut off: Pillow will say so
        (count,) = struct.unpack_from("<H", data, 4)
        for number in range(count):
            (offset,) = struct.unpack_from("<I", data, 6 + 16 * number + 12)
            if data[offset : offset + 8] == _PNG:
                width, height = struct.unpack_from(">II", data, offset + 16)
                yield max(1, width), max(1, height)
            else:
                width, height = struct.unpack_from("<ii", data, offset + 4)
                # Twice as high: the mask stands below the picture.
                yield max(1, abs(width)), max(1, abs(height))


def _pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]


class DecodingMemory:
    """Memory that all decoding threads of a process share; who finds too little waits."""

    def __init__(self, most: int = DEFAULT_MAX_BYTES) -> None:
        self.most = most
        self._taken = 0
        self._freed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Wait until there are so many bytes, and have them meanwhile; at most ``most``."""
        with self._freed:
            self._freed.wait_for(lambda: self._taken + size <= self.most)
            self._taken += size
        try:
            yield
        finally:
            with self._freed:
                self._taken -= size
                self._freed.notify_all()
