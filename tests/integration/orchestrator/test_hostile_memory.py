"""The orchestrator's process under attack: its memory has a limit, and so have its descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import ssl
from pathlib import Path

import pytest

from caption_flow.certificates.contexts import unverifying_context
from caption_flow.protocol.codec import encode
from caption_flow.protocol.messages import Fetch
from tests.support.certificates import Pair, pair
from tests.support.fleet import (
    TOKEN,
    Fleet,
    Process,
    check_captions,
    expected_captions,
    stored_rows,
    until,
    write_images,
)
from tests.support.hostile import BINARY, CONT, dialled, frame, let_in
from tests.support.wire import PLAIN, Wire


def client_hello() -> bytes:
    """Return what a client of TLS says first."""
    sent = ssl.MemoryBIO()
    client = unverifying_context().wrap_bio(ssl.MemoryBIO(), sent)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


MOST_BYTES = 2**29
"""What attacks may add to the process, as docs/architecture.md says."""
CLIENT_HELLO = client_hello()
SESSIONS = 60
"""Each tries to have 16 MiB kept for it: twice the limit, all together."""


def memory(process: Process, what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def descriptors(process: Process) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


async def stuff(port: int, wire: Wire, number: int, frames: list[bytes]) -> None:
    session = f"hostile-session-{number:06}"
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
        async with let_in(port, TOKEN, session, wire=wire) as peer, asyncio.timeout(15):
            for one in frames:
                await peer.send(one)
            await peer.gone()


@pytest.fixture(params=["plain", "tls"])
def certificate(request: pytest.FixtureRequest, tmp_path: Path) -> Pair | None:
    return pair(tmp_path / "certificate") if request.param == "tls" else None


@pytest.mark.parametrize("way", ["unfinished frames", "fragments", "unread answers"])
async def test_the_memory_of_an_attacked_orchestrator_is_bounded(
    tmp_path: Path, certificate: Pair | None, way: str
) -> None:
    wire = PLAIN if certificate is None else Wire(client=unverifying_context())
    frames = {
        "unfinished frames": [frame(BINARY, bytes(2**20), claimed=16 * 2**20 - 1)]
        + [bytes(2**20)] * 14,
        "fragments": [frame(BINARY, fin=False)] + [frame(CONT, bytes(16_000), fin=False)] * 1000,
        "unread answers": [frame(BINARY, encode(Fetch(0, tuple(range(400)))))] * 500,
    }[way]
    written = write_images(tmp_path / "images", 300)
    async with Fleet(tmp_path, certificate=certificate) as fleet:
        leader = await fleet.orchestrator()
        before = memory(leader, "VmRSS")
        attacks = [
            asyncio.create_task(stuff(fleet.port, wire, number, frames))
            for number in range(SESSIONS)
        ]
        worker = await fleet.worker("honest", engine={"latency_ms": 5})
        assert await worker.exit_code() == 0, worker.tail()
        await asyncio.gather(*attacks)
        assert memory(leader, "VmHWM") - before < MOST_BYTES
        check_captions(stored_rows(fleet.data_dir), expected_captions(written))


@pytest.mark.parametrize("said", [b"", CLIENT_HELLO[:40]], ids=["silent", "half a hello"])
async def test_hands_that_are_never_shaken_keep_nobody_out(tmp_path: Path, said: bytes) -> None:
    """Of TLS: twice as many connections at a time as the process has descriptors."""
    written = write_images(tmp_path / "images", 100)
    made = pair(tmp_path / "certificate")
    async with Fleet(tmp_path, certificate=made) as fleet, contextlib.AsyncExitStack() as stack:
        leader = await fleet.orchestrator()
        resource.prlimit(leader.pid, resource.RLIMIT_NOFILE, (1024, 1024))
        before = memory(leader, "VmRSS")
        for _ in range(2048):
            peer = await stack.enter_async_context(dialled(fleet.port))
            with contextlib.suppress(OSError):
                await peer.send(said)
        worker = await fleet.worker("honest", engine={"latency_ms": 5})
        assert await worker.exit_code() == 0, worker.tail()
        assert descriptors(leader) < 512
        assert memory(leader, "VmHWM") - before < MOST_BYTES
        check_captions(stored_rows(fleet.data_dir), expected_captions(written))


async def test_running_out_of_descriptors_is_survived(tmp_path: Path) -> None:
    """Who is connected works on, and when there are some again others get in."""
    written = write_images(tmp_path / "images", 200)
    async with Fleet(tmp_path, chunk_size=16) as fleet, contextlib.AsyncExitStack() as stack:
        leader = await fleet.orchestrator()
        early = await fleet.worker("early", engine={"latency_ms": 200, "requests_in_flight": 4})
        await until(lambda: stored_rows(fleet.data_dir), leader.tail)
        few, many = descriptors(leader) + 8, 4096
        resource.prlimit(leader.pid, resource.RLIMIT_NOFILE, (few, many))
        for _ in range(50):
            with contextlib.suppress(OSError):
                await stack.enter_async_context(dialled(fleet.port))
        before = len(stored_rows(fleet.data_dir))
        await until(lambda: len(stored_rows(fleet.data_dir)) > before, leader.tail)
        resource.prlimit(leader.pid, resource.RLIMIT_NOFILE, (many, many))
        late = await fleet.worker("late", engine={"latency_ms": 5})
        assert [await early.exit_code(), await late.exit_code()] == [0, 0], leader.tail()
        rows = stored_rows(fleet.data_dir)
        check_captions(rows, expected_captions(written))
        assert {row["worker"] for row in rows} == {"early", "late"}


async def test_as_many_descriptors_are_used_as_there_may_be(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 4)
    async with Fleet(tmp_path) as fleet:
        leader = await fleet.orchestrator()
        soft, hard = resource.prlimit(leader.pid, resource.RLIMIT_NOFILE)
        assert soft == hard
