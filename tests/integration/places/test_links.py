"""Addresses in datasets, against a server that misbehaves in all the ways that servers do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address

import pytest
from aiohttp import web

from caption_flow.places.base import NotHereError, PlaceError
from caption_flow.places.links import Address, LinkLimits, LinkReader, is_public

LIMITS = LinkLimits(
    max_bytes=1000,
    connect_seconds=5,
    stall_seconds=0.2,
    total_seconds=10,
    first_pause_seconds=0.01,
    longest_pause_seconds=0.05,
)


def only_this_server(address: Address) -> bool:
    return str(address) == "127.0.0.1"


class Misbehaving:
    """A server with an address for each kind of trouble; counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.base = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        what = request.path.strip("/")
        self.asked[what] += 1
        if what.isdecimal():
            return web.Response(status=int(what), headers={"Retry-After": "3600"})
        ways: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
            "good": self._good,
            "breaks": self._breaks,
            "breaks-once": self._breaks,
            "stalls": self._stalls,
            "endless": self._endless,
        }
        if what == "breaks-once" and self.asked[what] > 1:
            return await self._good(request)
        if what in ways:
            return await ways[what](request)
        places = {
            "loop": "/loop",
            "to-good": "/good",
            "to-private": f"http://127.0.0.2:{request.url.port}/good",
            "to-mapped": f"http://[::ffff:127.0.0.2]:{request.url.port}/good",
            "to-file": "file:///etc/passwd",
        }
        if what == "huge":
            return web.Response(body=b"x" * 1001)
        raise web.HTTPFound(places[what])

    async def _good(self, _: web.Request) -> web.Response:
        return web.Response(body=b"x" * 1000)

    async def _breaks(self, request: web.Request) -> web.StreamResponse:
        answer = await self._begun(request)
        assert request.transport is not None
        request.transport.abort()
        return answer

    async def _stalls(self, request: web.Request) -> web.StreamResponse:
        answer = await self._begun(request)
        await asyncio.Event().wait()
        return answer

    async def _begun(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Length": "500"})
        await answer.prepare(request)
        await answer.write(b"x" * 100)
        return answer

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"x" * 100)


@pytest.fixture
async def server() -> AsyncIterator[Misbehaving]:
    misbehaving = Misbehaving()
    app = web.Application()
    app.router.add_get("/{what}", misbehaving.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    misbehaving.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield misbehaving
    await runner.cleanup()


@pytest.fixture
async def links() -> AsyncIterator[LinkReader]:
    reader = LinkReader(LIMITS, may_connect=only_this_server)
    yield reader
    await reader.close()


@pytest.mark.parametrize(("what", "times"), [("good", 1), ("to-good", 1), ("breaks-once", 2)])
async def test_what_can_be_had_is_fetched(
    what: str, times: int, server: Misbehaving, links: LinkReader
) -> None:
    assert await links.read(f"{server.base}/{what}") == b"x" * 1000
    assert server.asked[what] == times


@pytest.mark.parametrize(
    ("what", "kind", "times"),
    [
        ("404", "link_gone", 1),
        ("410", "link_gone", 1),
        ("403", "link_refused", 1),
        ("401", "link_refused", 1),
        ("429", "link_unavailable", 3),
        ("500", "link_unavailable", 3),
        ("503", "link_unavailable", 3),
        ("huge", "link_too_large", 1),
        ("endless", "link_too_large", 1),
        ("loop", "link_redirects", 6),
        ("to-private", "link_forbidden_address", 1),
        ("to-mapped", "link_forbidden_address", 1),
        ("to-file", "link_invalid", 1),
    ],
)
async def test_what_cannot_be_had_anywhere_says_why(
    what: str, kind: str, times: int, server: Misbehaving, links: LinkReader
) -> None:
    async with asyncio.timeout(20):
        with pytest.raises(PlaceError) as caught:
            await links.read(f"{server.base}/{what}")
    assert caught.value.kind == kind
    assert server.asked == {what: times}


@pytest.mark.parametrize("what", ["breaks", "stalls"])
async def test_what_fails_on_the_way_may_be_had_elsewhere(
    what: str, server: Misbehaving, links: LinkReader
) -> None:
    with pytest.raises(NotHereError):
        await links.read(f"{server.base}/{what}")
    assert server.asked[what] == 3


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0x7f.1"])
async def test_nothing_private_is_connected_to_unless_allowed(
    host: str, server: Misbehaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = server.base.rpartition(":")[2]
    monkeypatch.delenv("CAPTIONFLOW_ALLOW_PRIVATE_URLS", raising=False)
    strict = LinkReader(LIMITS)
    with pytest.raises(PlaceError, match="is not a public address") as caught:
        await strict.read(f"http://{host}:{port}/good")
    await strict.close()
    assert caught.value.kind == "link_forbidden_address"
    assert not server.asked
    monkeypatch.setenv("CAPTIONFLOW_ALLOW_PRIVATE_URLS", "1")
    lenient = LinkReader(LIMITS)
    assert await lenient.read(f"http://{host}:{port}/good") == b"x" * 1000
    await lenient.close()


@pytest.mark.parametrize("host", ["2130706433", "127.1", "[::1]", "[::ffff:127.0.0.1]"])
async def test_no_odd_spelling_leads_to_a_private_address(host: str, server: Misbehaving) -> None:
    strict = LinkReader(LIMITS, may_connect=is_public)
    with pytest.raises(PlaceError):
        await strict.read(f"http://{host}:{server.base.rpartition(':')[2]}/good")
    await strict.close()
    assert not server.asked


@pytest.mark.parametrize("url", ["ftp://example.org/a", "file:///etc/passwd", "", "http://", "a b"])
async def test_only_web_addresses_are_fetched(url: str, links: LinkReader) -> None:
    with pytest.raises(PlaceError) as caught:
        await links.read(url)
    assert caught.value.kind == "link_invalid"


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "100.64.0.1", "0.0.0.1"),
        *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1"),
        *("::ffff:10.0.0.1", "::7f00:1", "2002:7f00:1::", "64:ff9b::7f00:1"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ip_address(address))
