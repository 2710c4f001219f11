"""Addresses that stand in a dataset: fetched with mistrust, since anybody may have written them.

Only public addresses are connected to, and that is looked at where the connection is made, after
names are resolved and for each redirect: no name can point elsewhere a moment later. The variable
``CAPTIONFLOW_ALLOW_PRIVATE_URLS=1`` lifts this on a machine whose owner wants it so.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from caption_flow.places.base import NotHereError, PlaceError

ALLOW_PRIVATE: Final = "CAPTIONFLOW_ALLOW_PRIVATE_URLS"
INVALID: Final = "link_invalid"
GONE: Final = "link_gone"
REFUSED: Final = "link_refused"
TOO_LARGE: Final = "link_too_large"
FORBIDDEN_ADDRESS: Final = "link_forbidden_address"
REDIRECTS: Final = "link_redirects"
UNAVAILABLE: Final = "link_unavailable"

Address = IPv4Address | IPv6Address
Rule = Callable[[Address], bool]
"""Says whether an address may be connected to."""

_GONE_STATUS: Final = frozenset({404, 410})
_REDIRECT_STATUS: Final = frozenset({301, 302, 303, 307, 308})
_PIECE_BYTES: Final = 2**16
_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """What fetching one address may cost; times in seconds."""

    max_bytes: int = 100_000_000
    max_redirects: int = 5
    tries: int = 3
    connect_seconds: float = 10.0
    stall_seconds: float = 20.0
    total_seconds: float = 120.0
    """For one try."""
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 30.0
    """Servers that ask to be left alone for longer are asked again after that."""


class _AgainError(Exception):
    """It may go well next time; ``pause`` is how many seconds the server asked for."""

    def __init__(
        self, message: str, *, pause: float | None = None, is_answer: bool = False
    ) -> None:
        super().__init__(message)
        self.pause = pause
        self.is_answer = is_answer


class _ForbiddenAddressError(OSError):
    """A name stands for an address that may not be connected to."""


class LinkReader:
    """Fetches addresses; one for each process and event loop.

    ``may_connect`` stands in for the rule that only public addresses may be connected to.
    """

    def __init__(
        self, limits: LinkLimits | None = None, *, may_connect: Rule | None = None
    ) -> None:
        self._limits = limits or LinkLimits()
        self._may_connect = may_connect or _default_rule()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._session: aiohttp.ClientSession | None = None

    async def read(self, url: str) -> bytes:
        """Return what an address answers with, after a few tries if need be.

        Raises:
            NotHereError: it cannot be reached from this machine.
            PlaceError: the address is not fetched (``link_invalid``, ``link_forbidden_address``),
                or answered that there is nothing to be had (``link_gone``, ``link_refused``,
                ``link_too_large``, ``link_redirects``, ``link_unavailable``).
        """
        limits = self._limits
        for tried in range(1, limits.tries + 1):
            try:
                async with self._turns, asyncio.timeout(limits.total_seconds):
                    return await self._follow(_parse(url))
            except (_AgainError, TimeoutError) as error:
                if tried == limits.tries:
                    raise _given_up(error, tried) from error
                await asyncio.sleep(self._pause(error, tried))
        raise AssertionError("unreachable: the last try returns or raises")

    async def close(self) -> None:
        """Close all connections; idempotent."""
        if self._session is not None:
            await self._session.close()

    def _pause(self, error: _AgainError | TimeoutError, tried: int) -> float:
        asked = error.pause if isinstance(error, _AgainError) else None
        if asked is None:
            asked = self._limits.first_pause_seconds * 2 ** (tried - 1)
            asked *= random.uniform(0.75, 1.25)  # noqa: S311  -- only so that not all ask at once
        return min(asked, self._limits.longest_pause_seconds)

    async def _follow(self, url: URL) -> bytes:
        for _ in range(self._limits.max_redirects + 1):
            async with self._asking(url) as answer:
                if answer.status not in _REDIRECT_STATUS:
                    return await self._body(answer)
                where = answer.headers.get("Location")
            if where is None:
                raise PlaceError(REFUSED, "the server redirects to nowhere")
            url = _parse(where, base=url)
        raise PlaceError(REDIRECTS, f"more than {self._limits.max_redirects} redirects")

    @asynccontextmanager
    async def _asking(self, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            self._check_literal(url)
            async with self._opened().get(url, allow_redirects=False) as answer:
                yield answer
        except aiohttp.InvalidURL as error:
            raise PlaceError(INVALID, "it is not an address that can be fetched") from error
        except (aiohttp.ClientError, OSError) as error:
            if (forbidden := _forbidden_in(error)) is not None:
                raise PlaceError(FORBIDDEN_ADDRESS, str(forbidden)) from error
            raise _AgainError(str(error) or type(error).__name__) from error

    def _check_literal(self, url: URL) -> None:
        """Refuse an address that needs no resolving: those never reach the resolver."""
        try:
            address = ip_address((url.host or "").partition("%")[0])
        except ValueError:
            return
        _check(address, self._may_connect)

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        _check_status(answer)
        most = self._limits.max_bytes
        too_large = PlaceError(TOO_LARGE, f"it is larger than {most} bytes")
        if answer.content_length is not None and answer.content_length > most:
            raise too_large
        data = bytearray()
        async for piece in answer.content.iter_chunked(_PIECE_BYTES):
            data += piece
            if len(data) > most:
                raise too_large
        return bytes(data)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            limits = self._limits
            resolver = _CheckedResolver(aiohttp.ThreadedResolver(), self._may_connect)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, resolver=resolver),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    sock_connect=limits.connect_seconds,
                    sock_read=limits.stall_seconds,
                ),
            )
        return self._session


class _CheckedResolver(AbstractResolver):
    """Resolves names to what may be connected to: aiohttp connects to these very addresses."""

    def __init__(self, inner: AbstractResolver, may_connect: Rule) -> None:
        self._inner = inner
        self._may_connect = may_connect

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for result in found:
            # One private address among public ones is refused, too: it is not there by accident.
            _check(ip_address(result["host"].partition("%")[0]), self._may_connect)
        return found

    async def close(self) -> None:
        await self._inner.close()


def _check(address: Address, may_connect: Rule) -> None:
    if not may_connect(address):
        raise _ForbiddenAddressError(
            f"it leads to {address}, which is not a public address; {ALLOW_PRIVATE}=1 allows those"
        )


def _default_rule() -> Rule:
    return (lambda _: True) if os.environ.get(ALLOW_PRIVATE) == "1" else is_public


def is_public(address: Address) -> bool:
    """Say whether an address is of the public internet, and so is what it embeds."""
    inner: Address = address
    if isinstance(address, IPv6Address):
        # What is embedded is where the packets go: mapped, 6to4, Teredo's client, and NAT64.
        teredo = address.teredo[1] if address.teredo else None
        nat64 = (
            IPv4Address(address.packed[12:])
            if address.packed[:12] == bytes.fromhex("0064ff9b0000000000000000")
            else None
        )
        inner = address.ipv4_mapped or address.sixtofour or teredo or nat64 or address
    return inner.is_global and not (inner.is_multicast or inner.is_reserved)


def _parse(url: str, base: URL | None = None) -> URL:
    try:
        parsed = URL(url) if base is None else base.join(URL(url))
        is_usable = parsed.scheme in {"http", "https"} and bool(parsed.host)
        _ = parsed.port
    except ValueError as error:
        raise PlaceError(INVALID, f"{url[:200]!r} is not an address") from error
    if not is_usable:
        raise PlaceError(INVALID, f"{url[:200]!r} is not an http:// or https:// address")
    return parsed


def _check_status(answer: aiohttp.ClientResponse) -> None:
    status = answer.status
    what = f"the server answers {status} {answer.reason or ''}".rstrip()
    if status == 200:
        return
    if status in _GONE_STATUS:
        raise PlaceError(GONE, what)
    if status in {408, 425, 429} or status >= 500:
        raise _AgainError(
            what, pause=_retry_after(answer.headers.get("Retry-After")), is_answer=True
        )
    raise PlaceError(REFUSED, what)


def _retry_after(value: str | None) -> float | None:
    """Return seconds: the header holds them, or a date. RFC 9110, 10.2.3."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value[:9])
    try:
        then = parsedate_to_datetime(value)
    except ValueError:
        return None
    then = then if then.tzinfo is not None else then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())


def _forbidden_in(error: BaseException) -> _ForbiddenAddressError | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _ForbiddenAddressError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _given_up(error: _AgainError | TimeoutError, tries: int) -> PlaceError | NotHereError:
    if isinstance(error, _AgainError) and error.is_answer:
        return PlaceError(UNAVAILABLE, f"{error}, {tries} times in a row")
    return NotHereError(f"{error or 'no answer in time'}, {tries} times in a row")
