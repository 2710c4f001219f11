"""What identifies an image's content, on both ends of the wire."""

from __future__ import annotations

import hashlib


def content_hash(data: bytes) -> str:
    """Return BLAKE2b-128 of ``data`` as 32 hexadecimal digits (what ``b2sum -l 128`` prints)."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
