"""Peers that mean harm cost the orchestrator little, and honest workers nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from websockets.exceptions import ConnectionClosed, InvalidStatus

from caption_flow.orchestrator.server import guard, server, session
from caption_flow.orchestrator.server.guard import Bounds
from caption_flow.protocol.codec import MAX_HELLO_BYTES, MAX_REPORT_BYTES
from caption_flow.protocol.messages import Fetch, GrantedLease, Want
from tests.integration.orchestrator.parties import (
    MONITOR_TOKEN,
    OTHER_TOKEN,
    PATIENCE_SECONDS,
    TOKEN,
    Run,
    ScriptedWorker,
    led,
    until,
)
from tests.support.hostile import (
    BINARY,
    CONT,
    PING,
    TEXT,
    Peer,
    frame,
    request,
    wild_messages,
)
from tests.support.hostile_rows import malicious
from tests.support.wire import PLAIN, Wire, tls

SESSION = "session-of-the-hostile-one"
WILD = wild_messages()


@contextlib.asynccontextmanager
async def attacked(tmp_path: Path, wire: Wire, images: int = 32) -> AsyncIterator[Run]:
    """A run in which an honest worker works off one chunk before the attack, and one after it."""
    async with (
        led(tmp_path, images=images, wire=wire) as run,
        asyncio.timeout(3 * PATIENCE_SECONDS),
    ):
        honest = await run.join()
        await honest.work_off(await honest.lease())
        yield run
        await honest.work_off(await honest.lease())
        assert all(row["captions"] == [f"caption of {at}"] for at, row in run.rows().items())


def items_of(lease: GrantedLease) -> list[int]:
    return [item.index for item in lease.items]


@pytest.fixture(params=["plain", "tls"])
def wire(request: pytest.FixtureRequest, tmp_path: Path) -> Wire:
    return PLAIN if request.param == "plain" else tls(tmp_path / "certificate")


# ---------------------------------------------------------------- before anybody is let in


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "OPEN_SECONDS", 0.5)


@pytest.mark.parametrize("said", [b"", b"GET / HT", request(None)[:-2]])
async def test_who_does_not_finish_the_upgrade_request_is_closed_in_time(
    tmp_path: Path, wire: Wire, hurried: None, said: bytes
) -> None:
    async with attacked(tmp_path, wire) as run, run.dialled() as peer:
        await peer.send(said)
        async with asyncio.timeout(5):
            await peer.gone()


async def test_a_request_that_comes_byte_by_byte_gets_no_more_time(
    tmp_path: Path, wire: Wire, hurried: None
) -> None:
    async with attacked(tmp_path, wire) as run, run.dialled() as peer:
        async with asyncio.timeout(5):
            with contextlib.suppress(OSError):
                for byte in request(TOKEN) * 100:
                    await peer.send(bytes([byte]))
                    await asyncio.sleep(0.02)
            await peer.gone()


async def test_headers_without_end_are_cut_off_long_before_the_time_is_up(
    tmp_path: Path, wire: Wire
) -> None:
    async with attacked(tmp_path, wire) as run, run.dialled() as peer:
        async with asyncio.timeout(server.OPEN_SECONDS / 2):
            with contextlib.suppress(OSError):
                await peer.send(b"GET / HTTP/1.1\r\n")
                for number in range(100):
                    await peer.send(f"X-{number}: {'x' * 1000}\r\n".encode())
            await peer.gone()


async def test_ten_thousand_connections_keep_nobody_out(tmp_path: Path, wire: Wire) -> None:
    """They come faster than the time for a request runs out; the oldest make room."""
    with capture_logs() as logs:
        async with attacked(tmp_path, wire) as run:
            honest = await run.join()
            flood = asyncio.create_task(open_and_hold(run, 10_000))
            crowd = Bounds().strangers_of_an_address
            await until(lambda: count_strangers(run) >= crowd or flood.done())
            for _ in range(5):
                newcomer = await run.join()
                assert count_strangers(run) <= crowd
                await newcomer.connection.close()
            await honest.work_off(await honest.lease())
            assert not flood.done(), "the attack was over before anything was tried"
            assert await flood > 9_000
            assert count_strangers(run) <= crowd
    told = [entry for entry in logs if "too many wait" in entry["event"]]
    assert 1 <= len(told) <= 10, "a flood of connections is no flood of the log"


async def open_and_hold(run: Run, count: int) -> int:
    """Open connections that say nothing, some at a time; return how many there were."""
    opened = 0
    writers = []
    while opened < count:
        dialling = [asyncio.open_connection("127.0.0.1", run.orchestrator.port) for _ in range(50)]
        for made in await asyncio.gather(*dialling, return_exceptions=True):
            if isinstance(made, tuple):
                writers.append(made[1])
                opened += 1
        for writer in writers[:-2000]:
            writer.transport.abort()
        del writers[:-2000]
    for writer in writers:
        writer.transport.abort()
    return opened


def count_strangers(run: Run) -> int:
    return doorkeeper_of(run).strangers


def doorkeeper_of(run: Run) -> guard.Doorkeeper:
    """The doorkeeper as any connected worker's connection knows it."""
    (link, *_) = run.orchestrator._conversations.links.values()
    assert isinstance(link.connection, guard.GuardedConnection)
    return link.connection._doorkeeper


async def test_no_more_sessions_than_there_may_be(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bounds, "within", lambda *_: Bounds(sessions=3))
    async with attacked(tmp_path, wire) as run:
        others = [await run.join() for _ in range(2)]
        with pytest.raises(InvalidStatus, match="503"):
            await run.connect()
        await others[0].connection.close()
        await until(lambda: len(run.orchestrator._conversations.links) == 2)
        await run.join()


# ---------------------------------------------------------------- frames


async def test_compression_is_neither_accepted_nor_understood(tmp_path: Path, wire: Wire) -> None:
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    async with (
        attacked(tmp_path, wire) as run,
        run.let_in(TOKEN, "", offer) as peer,
    ):
        assert "extensions" not in peer.answer.lower()
        await peer.send(frame(BINARY, b"\x00" * 100, rsv1=True))
        assert (await peer.ended())[0] == 1002


@pytest.mark.parametrize("claimed", [MAX_REPORT_BYTES + 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1])
async def test_a_frame_that_claims_too_much_is_refused_by_its_header(
    tmp_path: Path, wire: Wire, claimed: int
) -> None:
    async with (
        attacked(tmp_path, wire) as run,
        run.let_in(TOKEN, SESSION) as peer,
    ):
        await peer.send(frame(BINARY, claimed=claimed))
        assert (await peer.ended())[0] == 1009


@pytest.mark.parametrize("token", [TOKEN, MONITOR_TOKEN])
async def test_the_first_message_must_be_small(tmp_path: Path, wire: Wire, token: str) -> None:
    async with attacked(tmp_path, wire) as run, run.let_in(token) as peer:
        with contextlib.suppress(OSError):
            await peer.send(frame(BINARY, bytes(MAX_HELLO_BYTES + 2**17), claimed=15 * 2**20))
        assert (await peer.ended())[0] in {1009, 1006}
        await peer.gone()


@pytest.mark.parametrize("payload", [b"", b"x"])
async def test_a_message_of_endless_fragments_is_refused(
    tmp_path: Path, wire: Wire, payload: bytes
) -> None:
    async with (
        attacked(tmp_path, wire) as run,
        run.let_in(TOKEN, SESSION) as peer,
    ):
        with contextlib.suppress(OSError):
            await peer.send(frame(BINARY, payload, fin=False))
            for _ in range(100):
                await peer.send(frame(CONT, payload, fin=False) * 100)
        assert (await peer.ended())[0] in {1009, 1006}
        await until(lambda: SESSION not in run.orchestrator._conversations.links)


async def test_who_sends_nothing_but_pings_is_cut_off(tmp_path: Path, wire: Wire) -> None:
    async with (
        attacked(tmp_path, wire) as run,
        run.let_in(TOKEN, SESSION) as peer,
    ):
        with contextlib.suppress(OSError):
            for _ in range(1000):
                await peer.send(frame(PING, b"x" * 125) * 10)
        await until(lambda: SESSION not in run.orchestrator._conversations.links)


async def test_what_one_session_pours_in_leaves_others_their_turn(
    tmp_path: Path, wire: Wire
) -> None:
    """A flood of small, lawful messages is taken one at a time, and not faster than that."""
    async with (
        attacked(tmp_path, wire) as run,
        run.let_in(TOKEN, SESSION) as peer,
    ):
        flood = frame(BINARY, b"\x81\xa4type\xa9heartbeat") * 20_000
        pouring = asyncio.create_task(peer.send(flood))
        honest = await run.join()
        await honest.work_off(await honest.lease())
        assert SESSION in run.orchestrator._conversations.links
        await pouring


async def test_text_is_no_message(tmp_path: Path, wire: Wire) -> None:
    async with (
        attacked(tmp_path, wire) as run,
        run.let_in(TOKEN, SESSION) as peer,
    ):
        await peer.send(frame(TEXT, b'{"type": "want", "chunks": 1}'))
        code, reason = await peer.ended()
        assert code == 1008
        assert "binary" in reason


async def test_a_frame_without_a_mask_is_no_frame(tmp_path: Path, wire: Wire) -> None:
    async with (
        attacked(tmp_path, wire) as run,
        run.let_in(TOKEN, SESSION) as peer,
    ):
        await peer.send(b"\x82\x05hello")
        assert (await peer.ended())[0] == 1002


@pytest.mark.parametrize("welcomed", [True, False])
@pytest.mark.parametrize("name", [name for name, _ in WILD])
async def test_what_is_no_message_ends_its_session_and_no_other(
    tmp_path: Path, wire: Wire, name: str, welcomed: bool
) -> None:
    said = dict(WILD)[name]
    async with (
        attacked(tmp_path, wire) as run,
        run.let_in(TOKEN, SESSION if welcomed else "") as peer,
    ):
        await peer.send(frame(BINARY, said))
        code, reason = await peer.ended()
        assert code == 1008
        assert reason


# ---------------------------------------------------------------- messages


async def granted(run: Run, token: str = OTHER_TOKEN) -> tuple[ScriptedWorker, GrantedLease]:
    worker = await run.connect(token=token)
    await worker.hello()
    return worker, await worker.lease()


@pytest.mark.parametrize("name", [name for name, _ in malicious([8, 9])])
async def test_rows_that_are_not_what_they_should_be_are_not_stored(
    tmp_path: Path, wire: Wire, name: str
) -> None:
    async with attacked(tmp_path, wire) as run:
        before = set(run.rows())
        liar, lease = await granted(run)
        items = items_of(lease)
        payload = dict(malicious(items))[name]
        await liar.report(lease.lease, items, payload=payload)
        code, reason = await liar.closed()
        assert (code, bool(reason)) == (1008, True)
        assert set(run.rows()) == before


async def test_the_lease_of_another_gives_nothing_away_and_takes_nothing(
    tmp_path: Path, wire: Wire
) -> None:
    async with attacked(tmp_path, wire) as run:
        victim, lease = await granted(run)
        items = items_of(lease)
        for number in (lease.lease, 0, -1, 2**63 - 1):
            thief = await run.connect()
            await thief.hello()
            assert "over" in (await thief.image(number, items[0])).error
            await thief.report(number, items)
            if number == lease.lease:
                assert "not yours" in (await thief.closed())[1]
            else:
                await thief.acknowledged(thief.seq)
            assert not set(run.rows()) & set(items)
        await victim.work_off(lease)
        assert {run.rows()[item]["contributor"] for item in items} == {"somebody else"}


async def test_who_asks_for_nothing_but_what_it_may_not_have_is_cut_off(
    tmp_path: Path, wire: Wire
) -> None:
    async with attacked(tmp_path, wire) as run:
        curious, lease = await granted(run)
        with contextlib.suppress(ConnectionClosed):
            for _ in range(20):
                await curious.send(Fetch(lease.lease + 1, tuple(range(400))))
        assert "does not have" in (await curious.closed())[1]


async def test_numbers_that_come_again_or_out_of_order_store_nothing_twice(
    tmp_path: Path, wire: Wire
) -> None:
    async with attacked(tmp_path, wire) as run:
        worker, lease = await granted(run)
        items = items_of(lease)
        for seq, some in ((5, items[:2]), (5, items[:2]), (3, items[2:4]), (9, items), (1, items)):
            await worker.report(lease.lease, some, seq=seq)
        await worker.acknowledged(9)
        assert set(items) <= set(run.rows()), "checked there: no item has two rows"


async def test_who_reads_nothing_for_long_is_cut_off(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_TAKE_SECONDS", 1.0)
    async with attacked(tmp_path, wire) as run:
        deaf, lease = await granted(run)
        deaf.connection.transport.pause_reading()
        for path in (tmp_path / "images").rglob("*.bmp"):
            path.write_bytes(bytes(8 * 2**20))
        items = tuple(items_of(lease))
        for _ in range(4):
            await deaf.send(Fetch(lease.lease, items))
        await until(lambda: deaf.session not in run.orchestrator._conversations.links)
        await until(lambda: not run.orchestrator._conversations._allowance.held)


async def test_what_many_sessions_send_and_do_not_end_is_bounded_in_all(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bounds, "within", lambda *_: Bounds(held_bytes=32 * 2**20))
    async with attacked(tmp_path, wire) as run, contextlib.AsyncExitStack() as stack:
        peers: list[Peer] = []
        for number in range(8):
            peer = await stack.enter_async_context(run.let_in(TOKEN, f"{SESSION}-{number}"))
            peers.append(peer)
            with contextlib.suppress(OSError):
                await peer.send(frame(BINARY, bytes(12 * 2**20), claimed=15 * 2**20))
        await until(lambda: len(run.orchestrator._conversations.links) <= 3)
        assert doorkeeper_of(run).held_bytes <= 32 * 2**20


async def test_an_honest_worker_is_not_the_greediest(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bounds, "within", lambda *_: Bounds(held_bytes=2 * 2**20))
    async with (
        attacked(tmp_path, wire) as run,
        run.let_in(TOKEN, SESSION) as peer,
    ):
        honest = await run.join()
        await honest.send(Want(1))
        with contextlib.suppress(OSError):
            await peer.send(frame(BINARY, bytes(8 * 2**20), claimed=15 * 2**20))
        await peer.gone()
        assert honest.session in run.orchestrator._conversations.links
