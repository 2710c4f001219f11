"""What identifies an image's content, on both ends of the wire."""

from __future__ import annotations

import hashlib
from typing import BinaryIO, Final

_BLOCK: Final = 2**20
_DIGEST_BYTES: Final = 16


def content_hash(data: bytes) -> str:
    """Return BLAKE2b-128 of ``data`` as 32 hexadecimal digits (what ``b2sum -l 128`` prints)."""
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


def content_hash_of(file: BinaryIO) -> tuple[str, int]:
    """Return the content hash of a file of any size, from where it stands, and how long it is."""
    digest, size = hashlib.blake2b(digest_size=_DIGEST_BYTES), 0
    while block := file.read(_BLOCK):
        digest.update(block)
        size += len(block)
    return digest.hexdigest(), size
