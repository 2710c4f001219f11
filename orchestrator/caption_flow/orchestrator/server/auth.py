"""Who may connect: tokens, compared in constant time and kept only as digests.

Addresses that offer wrong tokens are answered more and more slowly. The table of such addresses is
bounded: the ones not heard of for longest are forgotten first.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Literal

Role = Literal["worker", "monitor", "admin"]

_MOST_ADDRESSES: Final = 4096
_FIRST_DELAY_SECONDS: Final = 0.1
_LONGEST_DELAY_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose token it was; ``name`` is credited in rows as contributor."""

    role: Role
    name: str


class TokenTable:
    """The tokens of a run, by digest."""

    def __init__(self) -> None:
        self._known: list[tuple[bytes, Identity]] = []

    def add(self, token: str, identity: Identity) -> None:
        """Let the holder of a token in."""
        self._known.append((_digest(token), identity))

    def identify(self, token: str) -> Identity | None:
        """Return whose token it is, looking at every one however early it is found."""
        offered = _digest(token)
        found: Identity | None = None
        for digest, identity in self._known:
            if hmac.compare_digest(digest, offered):
                found = identity
        return found


class Suspicion:
    """How long to keep an address waiting that has offered wrong tokens."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, int] = OrderedDict()

    def refuse(self, address: str) -> float:
        """Note one more wrong token; return the seconds to wait before answering."""
        failures = self._failures.pop(address, 0) + 1
        self._failures[address] = failures
        if len(self._failures) > _MOST_ADDRESSES:
            self._failures.popitem(last=False)
        delay = _FIRST_DELAY_SECONDS * 2.0 ** min(failures - 1, 16)
        return min(delay, _LONGEST_DELAY_SECONDS)

    def trust(self, address: str) -> None:
        """Forget an address's wrong tokens: it has offered a right one."""
        self._failures.pop(address, None)


def bearer_token(header: str | None) -> str | None:
    """Return the token of an ``Authorization: Bearer`` header (RFC 6750, section 2.1)."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
