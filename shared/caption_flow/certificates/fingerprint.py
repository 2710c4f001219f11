"""The fingerprint by which a certificate is pinned: SHA-256 of its DER form. Pure.

It is written as `openssl x509 -fingerprint -sha256` prints it, and read with or without colons.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import NewType

Fingerprint = NewType("Fingerprint", bytes)
"""32 bytes."""

_LABEL = re.compile(r"sha-?256(?:\s+fingerprint)?\s*[:=]\s*", re.IGNORECASE)
_SPELT = re.compile(r"[0-9a-f]{64}|[0-9a-f]{2}(?::[0-9a-f]{2}){31}", re.IGNORECASE)


def parse_fingerprint(text: str) -> Fingerprint:
    """Read a fingerprint: 64 hexadecimal digits of any case, in pairs with colons or without.

    A leading ``sha256:`` or ``SHA256 Fingerprint=``, as other programs write it, is no matter.

    Raises:
        ValueError: it is something else.
    """
    digits = text.strip()
    if label := _LABEL.match(digits):
        digits = digits[label.end() :]
    if not _SPELT.fullmatch(digits):
        raise ValueError(
            "must be the SHA-256 of a certificate: 64 hexadecimal digits, with or without colons, "
            "as `caption-flow inspect-cert` prints it"
        )
    return Fingerprint(bytes.fromhex(digits.replace(":", "")))


def fingerprint_of(der: bytes) -> Fingerprint:
    """Return the fingerprint of a certificate in DER form."""
    return Fingerprint(hashlib.sha256(der).digest())


def shown(fingerprint: Fingerprint) -> str:
    """Return it as people compare it: pairs of upper-case digits with colons between."""
    return fingerprint.hex(":").upper()


def is_one_of(der: bytes, pinned: Iterable[Fingerprint]) -> bool:
    """Tell whether a certificate is one of those pinned, in a time that tells nothing of them."""
    seen = fingerprint_of(der)
    matches = [hmac.compare_digest(seen, one) for one in pinned]
    return any(matches)
