"""Who may connect: tokens, compared in constant time and kept only as digests.

Addresses that offer wrong tokens are answered more and more slowly. What is kept of them is
bounded: the ones not heard of for longest are forgotten first, and only so many wait at a time.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from caption_flow.protocol.messages import TokenLimits

Role = Literal["worker", "monitor", "admin"]

MOST_WAITING: Final = 256
"""Refusals that are held back at a time; whoever else is refused meanwhile hears it at once."""
_MOST_ADDRESSES: Final = 4096
_FIRST_DELAY_SECONDS: Final = 0.1
_LONGEST_DELAY_SECONDS: Final = 8.0
"""Less than the handshake may take: a refusal is to be heard."""
_NETWORK_BITS: Final = 64
"""Of an IPv6 address: whoever has one has all the others that begin alike."""
NO_LIMITS: Final = TokenLimits()


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose token it was; ``name`` is credited in rows as contributor."""

    role: Role
    name: str
    limits: TokenLimits = NO_LIMITS
    digest: bytes = field(default=b"", repr=False, compare=False)
    """SHA-256 of the token."""

    def has_expired(self, now: float) -> bool:
        """Tell whether its time is over; ``now`` in seconds since 1970."""
        return self.limits.expires is not None and now >= self.limits.expires


class TokenTable:
    """The tokens of a run, by digest: the configuration's, this process's own, and added ones.

    A digest that was revoked lets nobody in, wherever else it stands, until it is admitted again.
    """

    def __init__(self) -> None:
        self._own: dict[bytes, Identity] = {}
        self._configured: dict[bytes, Identity] = {}
        self._added: dict[bytes, Identity] = {}
        self._revoked: set[bytes] = set()

    def __iter__(self) -> Iterator[Identity]:
        """Yield whom the tokens let in, each token once."""
        known = {**self._own, **self._configured, **self._added}
        return (one for digest, one in known.items() if digest not in self._revoked)

    def add(self, token: str, identity: Identity) -> None:
        """Let the holder of a token in for as long as this process runs, whatever is configured."""
        digest = digest_of(token)
        self._own[digest] = replace(identity, digest=digest)

    def replace(self, identities: Iterable[Identity]) -> None:
        """Take these for the configuration's tokens, in place of those that were."""
        self._configured = {one.digest: one for one in identities}

    def admit(self, identity: Identity) -> None:
        """Let the holder of a token in that was added later, or was revoked."""
        self._added[identity.digest] = identity
        self._revoked.discard(identity.digest)

    def revoke(self, digests: Iterable[bytes]) -> None:
        """Let the holders of these tokens in no more, also where the configuration names them."""
        for digest in digests:
            self._revoked.add(digest)
            self._added.pop(digest, None)

    def identify(self, token: str) -> Identity | None:
        """Return whose token it is, looking at every one however early it is found."""
        offered = digest_of(token)
        found: Identity | None = None
        for identity in self:
            if hmac.compare_digest(identity.digest, offered):
                found = identity
        return found

    def current(self, identity: Identity) -> Identity | None:
        """Return what is known today of a token that let somebody in; None if it would no more."""
        digest = identity.digest
        if digest in self._revoked:
            return None
        known = self._added.get(digest) or self._configured.get(digest) or self._own.get(digest)
        same = known is not None and (known.role, known.name) == (identity.role, identity.name)
        return known if same else None


class Suspicion:
    """How long to keep an address waiting that has offered wrong tokens."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, int] = OrderedDict()

    def refuse(self, address: str) -> float:
        """Note one more wrong token; return the seconds to wait before answering."""
        network = network_of(address)
        failures = self._failures.pop(network, 0) + 1
        self._failures[network] = failures
        if len(self._failures) > _MOST_ADDRESSES:
            self._failures.popitem(last=False)
        delay = _FIRST_DELAY_SECONDS * 2.0 ** min(failures - 1, 16)
        return min(delay, _LONGEST_DELAY_SECONDS)

    def is_worth_a_line(self, address: str) -> bool:
        """Tell whether to log the last refusal: the first, second, fourth, eighth and so on.

        Nobody is to fill a disk with lines.
        """
        failures = self._failures.get(network_of(address), 0)
        return not failures & (failures - 1)

    def trust(self, address: str) -> None:
        """Forget an address's wrong tokens: it has offered a right one."""
        self._failures.pop(network_of(address), None)


def network_of(address: str) -> str:
    """Return what stands for an address and all others that its owner may take in its place."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv4Address):
        return str(known)
    if known.ipv4_mapped is not None:
        return str(known.ipv4_mapped)
    return str(ipaddress.ip_network((known, _NETWORK_BITS), strict=False))


def bearer_token(header: str | None) -> str | None:
    """Return the token of an ``Authorization: Bearer`` header (RFC 6750, section 2.1)."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def digest_of(token: str) -> bytes:
    """Return the SHA-256 of a token."""
    # Bytes of a header that are not ASCII come as surrogates.
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
