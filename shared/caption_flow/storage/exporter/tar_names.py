"""What a sample is called in a tar: its key, and the suffix of its image.

A key is the image's path without its suffix, percent-encoded where it has to be: WebDataset cuts
names at the first dot, and what cannot be a name everywhere (a line break, a byte that is no UTF-8,
what Windows forbids) is in none. ``urllib.parse.unquote_to_bytes`` gives the path back. A ``~`` is
ours: it precedes a hash, in keys of paths that are too long or whose key is another image's.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from caption_flow.storage.exporter.names import last_part, stem

_UNSAFE: Final = re.compile(r'[\x00-\x1f\x7f-\x9f%~.\\:*?"<>|\u2028\u2029\ud800-\udfff]')
_MOST_BYTES: Final = 200
"""Of a part of a path; with a hash and a suffix it still is a file name on any disk."""
_MOST_BYTES_IN_ALL: Final = 1000
_SUFFIXES: Final = {
    "JPEG": ("jpg", "jpeg"),
    "JPEG2000": ("jp2",),
    "TIFF": ("tif", "tiff"),
    "HEIF": ("heic", "heif"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "DIB": ("bmp",),
    "MP4": ("mp4", "m4v"),
}
"""Of formats whose suffix is not their name; the first is taken where a file has none of them."""
_WORD: Final = re.compile(r"[a-z0-9]{1,8}")
_TAKEN: Final = frozenset({"txt", "json", "cls"})


def sample_key(path: str) -> str:
    """Return the key of an image with this path in its dataset; two paths never have one key.

    But for paths that differ in what no file system tells apart, such as a doubled slash.
    """
    parts = [_part(part) for part in path.split("/") if part]
    if parts and parts[0].startswith("__"):  # what WebDataset takes for the tar's own
        parts[0] = f"%5F{parts[0][1:]}"
    key = "/".join(parts)
    return key if key and len(key.encode()) <= _MOST_BYTES_IN_ALL else f"~{_digest(path)}"


def key_of_file(path: str) -> str:
    """Return the key of an image file, whose suffix is no part of it."""
    folder, slash, name = path.rpartition("/")
    return sample_key(f"{folder}{slash}{stem(name)}")


def key_beside(key: str, item_key: str) -> str:
    """Return the key of an item whose own, ``key``, is another image's (``x.jpg``, ``x.png``)."""
    return f"{key}~{_digest(item_key)}"


def image_suffix(image_format: str | None, name: str | None) -> str:
    """Return the suffix for an image of this format, without a dot and in lower case.

    A file's own suffix is kept where it says what the image really is.
    """
    own = last_part(name or "").rpartition(".")[2].lower()
    if image_format is None:
        return own if _WORD.fullmatch(own) and own not in _TAKEN else "bin"
    known = _SUFFIXES.get(image_format, (image_format.lower(),))
    suffix = own if own in known else known[0]
    return suffix if _WORD.fullmatch(suffix) and suffix not in _TAKEN else "bin"


def _part(part: str) -> str:
    encoded = _UNSAFE.sub(_percent, part)
    if len(encoded.encode()) <= _MOST_BYTES:
        return encoded
    # Characters, and what stands for one, are cut nowhere in their middle.
    short = encoded.encode()[: _MOST_BYTES // 2].decode(errors="ignore")
    return f"{re.sub('%[0-9A-F]?$', '', short)}~{_digest(part)}"


def _percent(found: re.Match[str]) -> str:
    character = found.group()
    try:
        raw = character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        raw = character.encode("utf-8", "surrogatepass")
    return "".join(f"%{byte:02X}" for byte in raw)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
