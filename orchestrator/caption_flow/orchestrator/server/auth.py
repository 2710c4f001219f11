"""Who may connect: tokens, compared in constant time and kept only as digests.

Addresses that offer wrong tokens are answered more and more slowly. The table of such addresses is
bounded: the ones not heard of for longest are forgotten first.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
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
    digest: bytes = field(default=b"", repr=False, compare=False)
    """SHA-256 of the token."""


class TokenTable:
    """The tokens of a run, by digest: the configuration's, and this process's own."""

    def __init__(self) -> None:
        self._own: dict[bytes, Identity] = {}
        self._configured: dict[bytes, Identity] = {}

    def __iter__(self) -> Iterator[Identity]:
        """Yield whom the tokens let in, each token once."""
        return iter({**self._own, **self._configured}.values())

    def add(self, token: str, identity: Identity) -> None:
        """Let the holder of a token in for as long as this process runs, whatever is configured."""
        digest = digest_of(token)
        self._own[digest] = replace(identity, digest=digest)

    def replace(self, identities: Iterable[Identity]) -> None:
        """Take these for the configuration's tokens, in place of those that were."""
        self._configured = {one.digest: one for one in identities}

    def identify(self, token: str) -> Identity | None:
        """Return whose token it is, looking at every one however early it is found."""
        offered = digest_of(token)
        found: Identity | None = None
        for identity in self:
            if hmac.compare_digest(identity.digest, offered):
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


def digest_of(token: str) -> bytes:
    """Return the SHA-256 of a token."""
    return hashlib.sha256(token.encode()).digest()
