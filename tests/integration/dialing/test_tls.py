"""A token is shown to the orchestrator that was meant, over TLS, and to nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request
from websockets.typing import Subprotocol

from caption_flow.certificates.fingerprint import Fingerprint, shown
from caption_flow.dialing.dial import Endpoint, UnluckyError, UnwelcomeError, dial
from caption_flow.protocol.version import SUBPROTOCOL
from tests.support.certificates import Pair, authority, pair
from tests.support.recorder import http_proxy, recorder

TOKEN = "the token that nobody else may see"
OTHER = Fingerprint(bytes(range(32)))


@pytest.fixture
def own(tmp_path: Path) -> Pair:
    return pair(tmp_path / "own")


class Orchestrator:
    """What is meant; ``tokens`` are those it was shown."""

    def __init__(self) -> None:
        self.port = 0
        self.tokens: list[str | None] = []

    def note(self, _: ServerConnection, request: Request) -> None:
        self.tokens.append(request.headers.get("Authorization"))


@contextlib.asynccontextmanager
async def serving(served: Pair) -> AsyncIterator[Orchestrator]:
    orchestrator = Orchestrator()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(served.cert, served.key)
    server: Server = await serve(
        ServerConnection.wait_closed,
        "127.0.0.1",
        0,
        ssl=context,
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        process_request=orchestrator.note,
    )
    orchestrator.port = next(iter(server.sockets)).getsockname()[1]
    try:
        yield orchestrator
    finally:
        server.close()
        await server.wait_closed()


async def succeeds(endpoint: Endpoint) -> None:
    connection = await dial(endpoint)
    assert connection.subprotocol == SUBPROTOCOL
    await connection.close()


async def refused(endpoint: Endpoint) -> str:
    with pytest.raises(UnwelcomeError) as caught:
        await dial(endpoint)
    sentence = str(caught.value)
    assert TOKEN not in sentence
    return sentence


# --------------------------------------------------------------------------- who is meant


async def test_the_pinned_certificate_is_taken_whatever_name_it_has(own: Pair) -> None:
    nameless = pair(own.cert.parent.parent / "nameless", ["elsewhere.example"])
    for one in (own, nameless):
        async with serving(one) as orchestrator:
            url = f"wss://127.0.0.1:{orchestrator.port}"
            await succeeds(Endpoint(url, TOKEN, fingerprints=(one.fingerprint,)))
            await succeeds(Endpoint(url, TOKEN, fingerprints=(OTHER, one.fingerprint)))
            assert orchestrator.tokens == [f"Bearer {TOKEN}"] * 2


async def test_a_certificate_of_a_trusted_authority_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted.file))
    async with serving(pair(tmp_path / "its", by=trusted)) as orchestrator:
        for host in ("localhost", "127.0.0.1"):
            await succeeds(Endpoint(f"wss://{host}:{orchestrator.port}", TOKEN))


async def test_any_certificate_is_taken_by_who_asks_for_that(own: Pair) -> None:
    async with serving(own) as orchestrator:
        url = f"wss://127.0.0.1:{orchestrator.port}"
        await succeeds(Endpoint(url, TOKEN, verify_ssl=False))


# --------------------------------------------------------------------------- whoever stands between


@pytest.mark.parametrize("verify_ssl", [True, False])
async def test_another_certificate_than_the_pinned_one_is_shown_nothing(
    own: Pair, tmp_path: Path, verify_ssl: bool
) -> None:
    """Not even by one who has a certificate of the same names, and asks for no verification."""
    async with recorder(pair(tmp_path / "another")) as middle:
        url = f"wss://127.0.0.1:{middle.port}"
        endpoint = Endpoint(url, TOKEN, verify_ssl=verify_ssl, fingerprints=(own.fingerprint,))
        sentence = await refused(endpoint)
        assert await middle.all_heard() == b""
    assert "not the one of --tls-fingerprint" in sentence
    assert "inspect-cert" in sentence


async def test_an_authority_changes_nothing_for_a_pinned_certificate(
    own: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted.file))
    async with recorder(pair(tmp_path / "its", by=trusted)) as middle:
        url = f"wss://127.0.0.1:{middle.port}"
        await refused(Endpoint(url, TOKEN, fingerprints=(own.fingerprint,)))
        assert await middle.all_heard() == b""


async def test_a_proxy_that_leads_elsewhere_is_shown_nothing(
    own: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        recorder(pair(tmp_path / "another")) as middle,
        serving(own) as orchestrator,
    ):
        for port, is_meant in ((orchestrator.port, True), (middle.port, False)):
            async with http_proxy(port) as proxy:
                for variable in ("https_proxy", "HTTPS_PROXY"):
                    monkeypatch.setenv(variable, proxy)
                endpoint = Endpoint(
                    "wss://far.example:8765", TOKEN, fingerprints=(own.fingerprint,)
                )
                await (succeeds(endpoint) if is_meant else refused(endpoint))
        assert await middle.all_heard() == b""
    assert orchestrator.tokens == [f"Bearer {TOKEN}"]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_nobody_is_followed_elsewhere(own: Pair, tmp_path: Path, status: int) -> None:
    """Neither to another server nor from TLS into the clear, whoever says so."""
    async with (
        recorder(None) as clear,
        recorder(pair(tmp_path / "another")) as other,
    ):
        for url in (f"ws://127.0.0.1:{clear.port}", f"wss://127.0.0.1:{other.port}"):
            answer = (
                f"HTTP/1.1 {status} Elsewhere\r\nLocation: {url}/\r\nContent-Length: 0\r\n\r\n"
            ).encode()
            async with recorder(own, answer) as first:
                endpoint = Endpoint(
                    f"wss://127.0.0.1:{first.port}", TOKEN, fingerprints=(own.fingerprint,)
                )
                sentence = await refused(endpoint)
                assert "redirects are not followed" in sentence
    assert (clear.connections, other.connections) == (0, 0)


@pytest.mark.parametrize("status", ["403 Forbidden", "400 Bad Request"])
async def test_what_a_refusal_says_is_one_harmless_line(status: str) -> None:
    body = b"sorry,\r\n\x1b[2Jnot \xffyou" + b"!" * 5000
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
    async with recorder(None, head.encode() + body) as stranger:
        sentence = await refused(Endpoint(f"ws://127.0.0.1:{stranger.port}", TOKEN))
    assert "sorry, \N{REPLACEMENT CHARACTER}[2Jnot" in sentence
    assert sentence.isprintable()
    assert len(sentence) < 500


# --------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ends_in_days": -0.5}, "has expired"),
        ({"begins_in_days": 0.5}, "clock"),
        ({"names": ["elsewhere.example"]}, "is for another name or address"),
        ({"names": ["127.0.0.2"]}, "is for another name or address"),
    ],
)
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_certificate_that_does_not_count_is_refused_with_the_reason(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
    says: str,
    host: str,
) -> None:
    trusted = authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted.file))
    served = pair(tmp_path / "served", by=trusted, **options)  # type: ignore[arg-type]  # a test's
    async with recorder(served) as middle:
        sentence = await refused(Endpoint(f"wss://{host}:{middle.port}", TOKEN))
        assert await middle.all_heard() == b""
    assert says in sentence
    assert shown(served.fingerprint) not in sentence


@pytest.mark.parametrize(("signed", "says"), [(False, "self-signed"), (True, "authority")])
async def test_who_nobody_vouches_for_is_refused_and_a_way_out_is_told(
    tmp_path: Path, signed: bool, says: str
) -> None:
    served = pair(tmp_path / "served", by=authority(tmp_path) if signed else None)
    async with recorder(served) as middle:
        sentence = await refused(Endpoint(f"wss://localhost:{middle.port}", TOKEN))
        assert await middle.all_heard() == b""
    assert says in sentence
    assert "--tls-fingerprint" in sentence
    assert "inspect-cert" in sentence
    assert "--no-verify-ssl" not in sentence
    for spelling in (shown(served.fingerprint), served.fingerprint.hex()):
        assert spelling not in sentence, "what was seen is nothing to copy"


async def test_tls_where_there_is_none_is_said(own: Pair) -> None:
    async with recorder(None, b"HTTP/1.1 400 Bad Request\r\n\r\n") as plain:
        sentence = await refused(
            Endpoint(f"wss://127.0.0.1:{plain.port}", TOKEN, fingerprints=(own.fingerprint,))
        )
    assert "does not speak TLS" in sentence
    assert TOKEN.encode() not in plain.heard


async def test_no_tls_where_there_is_some_is_said(own: Pair) -> None:
    async with serving(own) as orchestrator:
        sentence = await refused(Endpoint(f"ws://127.0.0.1:{orchestrator.port}", TOKEN))
        assert sentence.endswith(f"speaks TLS; write wss://127.0.0.1:{orchestrator.port}")
        assert orchestrator.tokens == []


async def test_a_tls_that_is_too_old_is_refused(own: Pair) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.cert, own.key)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1

    def answer(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with contextlib.suppress(OSError), connection:
            context.wrap_socket(connection, server_side=True).close()

    # Not asyncio's server: it hangs up without the alert that says why.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        answering = asyncio.create_task(asyncio.to_thread(answer, listening))
        url = f"wss://127.0.0.1:{listening.getsockname()[1]}"
        sentence = await refused(Endpoint(url, TOKEN, verify_ssl=False))
        await answering
    assert "older than 1.2" in sentence


async def test_a_connection_that_breaks_is_only_bad_luck() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for scheme in ("ws", "wss"):
        with pytest.raises(UnluckyError):
            await dial(Endpoint(f"{scheme}://127.0.0.1:{port}", TOKEN))
    server.close()
    await server.wait_closed()


async def test_another_machine_is_not_dialled_in_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    async with recorder(None) as middle, http_proxy(middle.port) as proxy:
        for variable in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(variable, proxy)
        sentence = await refused(Endpoint("ws://far.example:8765", TOKEN))
    assert "--insecure" in sentence
    assert middle.connections == 0


# --------------------------------------------------------------------------- on the workers' loop


@pytest.mark.parametrize(
    "promise",
    [
        test_the_pinned_certificate_is_taken_whatever_name_it_has,
        test_tls_where_there_is_none_is_said,
        test_no_tls_where_there_is_some_is_said,
    ],
)
def test_workers_find_the_same(
    promise: Callable[[Pair], Coroutine[Any, Any, None]], own: Pair
) -> None:
    """Their event loop is another one, with TLS of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(promise(own))


def test_workers_show_strangers_nothing_either(own: Pair, tmp_path: Path) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(
            test_another_certificate_than_the_pinned_one_is_shown_nothing(own, tmp_path, False)
        )
        runner.run(
            test_who_nobody_vouches_for_is_refused_and_a_way_out_is_told(
                tmp_path, False, "self-signed"
            )
        )
