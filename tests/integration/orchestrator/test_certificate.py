"""The certificate that is served is the one in its files; connections that are made live on."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop
from structlog.testing import capture_logs
from websockets.asyncio.server import ServerConnection

from caption_flow.certificates.contexts import unverifying_context
from caption_flow.certificates.describe import CertificateError
from caption_flow.certificates.fingerprint import Fingerprint, fingerprint_of, shown
from caption_flow.dialing.dial import Endpoint, dial
from caption_flow.orchestrator.server import certificate as served_certificate
from caption_flow.orchestrator.server import server
from caption_flow.orchestrator.server.auth import Identity, TokenTable
from caption_flow.orchestrator.server.certificate import ServedCertificate
from caption_flow.orchestrator.server.server import listen
from tests.support.certificates import Pair, pair, replace

TOKEN = "a worker's"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return tmp_path / "tls"


def look(served: ServedCertificate) -> None:
    """Look as often as it takes to take up files that have settled."""
    served.look()
    served.look()


@contextlib.asynccontextmanager
async def listening(served: ServedCertificate) -> AsyncIterator[int]:
    async def handle(connection: ServerConnection, _: Identity) -> None:
        async for message in connection:
            await connection.send(message)

    tokens = TokenTable()
    tokens.add(TOKEN, Identity("worker", "w"))
    serving = await listen(handle, tokens, host="127.0.0.1", port=0, tls=served.context)
    try:
        yield next(iter(serving.sockets)).getsockname()[1]
    finally:
        serving.close()
        await serving.wait_closed()


async def shake_hands(
    port: int, name: str = "", newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> Fingerprint:
    """Return whose certificate a client sees, one that names no server unless ``name`` is given."""
    context = unverifying_context()
    context.maximum_version = newest
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    tls = writer.get_extra_info("ssl_object")
    seen = fingerprint_of(tls.getpeercert(binary_form=True))
    writer.transport.abort()
    return seen


async def test_new_connections_get_the_new_certificate_and_old_ones_live_on(files: Path) -> None:
    first = pair(files)
    served = ServedCertificate(first.cert, first.key)
    async with listening(served) as port:
        url = f"wss://127.0.0.1:{port}"
        before = await dial(Endpoint(url, TOKEN, fingerprints=(first.fingerprint,)))
        second = pair(files)
        assert await shake_hands(port) == first.fingerprint
        look(served)
        after = await dial(Endpoint(url, TOKEN, fingerprints=(second.fingerprint,)))
        for connection in (before, after):
            await connection.send(b"still there?")
            assert await connection.recv() == b"still there?"
            await connection.close()
    assert served.certificate.fingerprint == second.fingerprint


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["", "localhost", "no.such.example"])
async def test_every_kind_of_client_gets_the_new_one(
    files: Path, newest: ssl.TLSVersion, name: str
) -> None:
    """Those that dial an address name no server, and some speak TLS 1.2."""
    first = pair(files)
    served = ServedCertificate(first.cert, first.key)
    async with listening(served) as port:
        assert await shake_hands(port, name, newest) == first.fingerprint
        second = pair(files)
        look(served)
        assert await shake_hands(port, name, newest) == second.fingerprint


def test_it_is_alike_on_the_orchestrators_loop(files: Path) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test_new_connections_get_the_new_certificate_and_old_ones_live_on(files))
        for name in ("", "localhost"):
            runner.run(
                test_every_kind_of_client_gets_the_new_one(files, ssl.TLSVersion.TLSv1_2, name)
            )


def _spoil(what: str, files: Path, second: Pair) -> None:
    match what:
        case "not the key":
            replace(second.key, pair(files.parent / "other").key.read_bytes())
        case "no key":
            replace(second.key, b"")
        case "no certificate":
            replace(second.cert, b"certainly none")
        case "gone":
            second.cert.unlink()
        case "encrypted":
            pair(files, passphrase=b"a passphrase")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("not the key", r"key\.pem is not the key of .*cert\.pem"),
        ("no key", r"key\.pem holds no private key"),
        ("no certificate", r"cert\.pem holds no certificate"),
        ("gone", r"cert\.pem cannot be read: No such file"),
        ("encrypted", r"key\.pem is encrypted with a passphrase"),
    ],
)
async def test_files_that_cannot_be_used_change_nothing_but_the_log(
    files: Path, what: str, says: str
) -> None:
    first = pair(files)
    served = ServedCertificate(first.cert, first.key)
    async with listening(served) as port:
        _spoil(what, files, pair(files))
        with capture_logs() as logs:
            for _ in range(5):
                served.look()
        [warning] = logs
        assert warning["log_level"] == "warning"
        assert "the old one stays" in warning["event"]
        assert await shake_hands(port) == first.fingerprint
        with pytest.raises(CertificateError, match=says):
            ServedCertificate(first.cert, first.key)
        mended = pair(files)
        look(served)
        assert await shake_hands(port) == mended.fingerprint


def test_half_a_change_is_waited_out_without_a_word(files: Path) -> None:
    first = pair(files)
    served = ServedCertificate(first.cert, first.key)
    second = pair(files.parent / "second")
    with capture_logs() as logs:
        replace(first.cert, second.cert.read_bytes())
        served.look()
        replace(first.key, second.key.read_bytes())
        served.look()
        assert logs == []
        served.look()
    assert served.certificate.fingerprint == second.fingerprint
    assert [(line["log_level"], line["sha256"]) for line in logs] == [
        ("info", shown(second.fingerprint))
    ]


def test_links_to_other_files_are_a_change(files: Path) -> None:
    """As certbot does it: the names stay, and lead to new files."""
    archive = [pair(files.parent / name) for name in ("archive-1", "archive-2")]
    files.mkdir()
    cert, key = files / "fullchain.pem", files / "privkey.pem"
    cert.symlink_to(archive[0].cert)
    key.symlink_to(archive[0].key)
    served = ServedCertificate(cert, key)
    for link, target in ((cert, archive[1].cert), (key, archive[1].key)):
        link.unlink()
        link.symlink_to(target)
    look(served)
    assert served.certificate.fingerprint == archive[1].fingerprint
    renewed = pair(archive[1].cert.parent)
    look(served)
    assert served.certificate.fingerprint == renewed.fingerprint, "links stayed as they were"


async def test_files_are_watched_by_themselves(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_certificate, "LOOK_SECONDS", 0.01)
    first = pair(files)
    served = ServedCertificate(first.cert, first.key)
    async with listening(served) as port:
        watching = asyncio.create_task(served.watch())
        second = pair(files)
        async with asyncio.timeout(20):
            while await shake_hands(port) != second.fingerprint:
                assert not watching.done()
        watching.cancel()


async def test_a_client_that_never_shakes_hands_is_hung_up_on(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "OPEN_SECONDS", 0.2)
    made = pair(files)
    async with listening(ServedCertificate(made.cert, made.key)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.transport.abort()
        assert await shake_hands(port) == made.fingerprint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ends_in_days": -0.5}, "will refuse it"),
        ({"begins_in_days": 0.5}, "will refuse it"),
        ({"ends_in_days": 3.0}, "expires soon"),
    ],
)
def test_one_that_ends_soon_or_has_ended_is_served_with_a_warning(
    files: Path, options: dict[str, float], says: str
) -> None:
    made = pair(files, **options)  # type: ignore[arg-type]  # a test's
    with capture_logs() as logs:
        served = ServedCertificate(made.cert, made.key)
    assert served.certificate.fingerprint == made.fingerprint
    [warning] = [line for line in logs if line["log_level"] == "warning"]
    assert says in warning["event"]


def test_a_key_for_everybody_to_read_is_warned_of(files: Path) -> None:
    made = pair(files)
    made.key.chmod(0o644)
    with capture_logs() as logs:
        ServedCertificate(made.cert, made.key)
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
        "the private key can be read by every user of this machine"
    ]


async def test_older_tls_than_1_2_is_not_spoken(files: Path) -> None:
    made = pair(files)
    old = unverifying_context()
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    served = ServedCertificate(made.cert, made.key)
    # OpenSSL's own caution would keep them apart here as well; on some machine it may be off.
    assert served.context.minimum_version >= ssl.TLSVersion.TLSv1_2
    async with listening(served) as port:
        with pytest.raises(OSError, match=r".*"):
            await asyncio.open_connection("127.0.0.1", port, ssl=old)
        assert await shake_hands(port, newest=ssl.TLSVersion.TLSv1_2) == made.fingerprint
