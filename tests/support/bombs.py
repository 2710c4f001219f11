"""Pictures of a few kilobytes that cost gigabytes or minutes, made by hand."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

Entry = tuple[int, int, int]


def png(
    width: int, height: int, *, text: int = 0, profile: int = 0, claimed: int | None = None
) -> bytes:
    """A transparent black PNG, perhaps with so many bytes of compressed text or colour profile.

    It may claim to have other sides than it has rows for.
    """
    squeeze = zlib.compressobj(9)
    line = bytes(1 + 4 * width)
    rows = b"".join(squeeze.compress(line) for _ in range(height)) + squeeze.flush()
    extra = b""
    if text:
        extra += _chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(text)))
    if profile:
        extra += _chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(profile)))
    sides = (width, height) if claimed is None else (claimed, claimed)
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", *sides, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def icon(inside: bytes, side: int = 16) -> bytes:
    """An icon whose header says ``side``, whatever the picture inside says."""
    entry = struct.pack("<BBBBHHII", side, side, 0, 0, 1, 32, len(inside), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + inside


def bitmap_header(width: int, height: int) -> bytes:
    """The header of a run-length encoded bitmap, as icons have them inside."""
    return struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 0, 0)


def apple_icon(inside: bytes) -> bytes:
    """The same for Apple's icons."""
    content = b"ic10" + struct.pack(">I", 8 + len(inside)) + inside
    return b"icns" + struct.pack(">I", 8 + len(content)) + content


def tiled_tiff(size: int, tile: int) -> bytes:
    """A TIFF of ``size`` by ``size`` in one tile of ``tile`` by ``tile``."""
    data = zlib.compress(bytes(size * size))
    values = {256: size, 257: size, 322: tile, 323: tile, 324: 8, 325: len(data)}
    shorts = {258: 8, 259: 8, 262: 1, 277: 1}
    entries = b"".join(
        struct.pack("<HHIHH", tag, 3, 1, shorts[tag], 0)
        if tag in shorts
        else struct.pack("<HHII", tag, 4, 1, values[tag])
        for tag in sorted({**values, **shorts})
    )
    count = len(values) + len(shorts)
    directory = struct.pack("<H", count) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def many_directories(count: int) -> bytes:
    """A TIFF of one pixel with so many more directories behind the first, all the same."""
    buffer = io.BytesIO()
    frames = [Image.new("L", (1, 1))] * (count - 1)
    Image.new("L", (1, 1)).save(buffer, "TIFF", save_all=True, append_images=frames)
    return buffer.getvalue()


def gif_screen(side: int) -> bytes:
    """A GIF of one pixel on a screen of ``side`` by ``side``."""
    buffer = io.BytesIO()
    Image.new("P", (1, 1)).save(buffer, "GIF")
    data = bytearray(buffer.getvalue())
    data[6:10] = struct.pack("<HH", side, side)
    return bytes(data)


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + b"\xff\xd9"


def of_one_colour(width: int, height: int, file_format: str, mode: str = "RGB") -> bytes:
    """A picture that compresses to almost nothing."""
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, file_format)
    return buffer.getvalue()


def claiming(data: bytes, old: bytes, new: bytes) -> bytes:
    """A file in which one place of the header says something else."""
    assert old in data
    return data.replace(old, new, 1)


def small_ones() -> list[bytes]:
    """One of each kind, small enough to begin fuzzing with."""
    return [
        png(40, 40, text=5000, profile=3000),
        icon(png(200, 200)),
        icon(bitmap_header(3000, 3000) + bytes(64)),
        apple_icon(png(128, 128)),
        tiled_tiff(16, 64),
        many_directories(20),
        gif_screen(300),
        many_scans(64, 30),
    ]
