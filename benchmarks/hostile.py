"""What attacks cost: honest workers' rate beside each, and the orchestrator's memory meanwhile.

    python benchmarks/hostile.py                     every attack, three rounds of five seconds
    python benchmarks/hostile.py connections pings   some of them
    python benchmarks/hostile.py --flat-out          honest workers that need no time for an item

A real orchestrator, honest workers in this process, and the attacker in a process of its own with
niceness 19: on a small machine it would otherwise take its processor, which is no weakness of the
orchestrator. Quiet and attacked spells take turns; the ratio of their rates is what counts.
Honest workers have a device each that does so many items a second and is kept busy as real workers
keep it, by asking early.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import uvloop  # noqa: E402
from websockets.asyncio.client import ClientConnection, connect  # noqa: E402
from websockets.typing import Subprotocol  # noqa: E402

from caption_flow.protocol.codec import decode_from_orchestrator, encode  # noqa: E402
from caption_flow.protocol.messages import Ack, Grant, Hello, Results, Want  # noqa: E402
from caption_flow.protocol.version import SUBPROTOCOL  # noqa: E402
from tests.integration.orchestrator.load import BATCH, rows_of  # noqa: E402
from tests.support.fleet import TOKEN, Fleet, write_images  # noqa: E402
from tests.support.hostile import (  # noqa: E402
    BINARY,
    CONT,
    PING,
    Peer,
    dialled,
    frame,
    let_in,
    request,
)

WORKERS: Final = 4
ITEMS_A_SECOND: Final = 50.0
"""Of one worker: more than the fastest vision-language models do on the fastest GPU."""
SETTLE_SECONDS: Final = 1.0
ASK_AGAIN_SECONDS: Final = 1.0


# --------------------------------------------------------------------------- honest


class Honest:
    """Workers that count what is acknowledged."""

    def __init__(self, port: int, *, flat_out: bool) -> None:
        self._url = f"ws://127.0.0.1:{port}"
        self._flat_out = flat_out
        self.acknowledged = 0

    async def work(self, number: int) -> None:
        """Be one worker, for ever."""
        async with connect(
            self._url,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            additional_headers={"Authorization": f"Bearer {TOKEN}"},
            compression=None,
            max_size=2**26,
        ) as connection:
            await connection.send(encode(Hello(f"honest {number}", f"honest-session-{number:04}")))
            await connection.send(encode(Want(2)))
            waiting: asyncio.Queue[tuple[int, tuple[int, ...]]] = asyncio.Queue()
            sent: dict[int, int] = {}
            generating = asyncio.create_task(self._generate(connection, waiting, sent))
            try:
                async for data in connection:
                    self._hear(decode_from_orchestrator(data), waiting, sent)
            finally:
                generating.cancel()

    async def _generate(
        self,
        connection: ClientConnection,
        waiting: asyncio.Queue[tuple[int, tuple[int, ...]]],
        sent: dict[int, int],
    ) -> None:
        seq = 0
        due = time.monotonic()
        while True:
            if waiting.qsize() < 4:
                await connection.send(encode(Want(1)))
            try:
                async with asyncio.timeout(ASK_AGAIN_SECONDS):
                    lease, items = await waiting.get()
            except TimeoutError:
                continue
            if not self._flat_out:
                # A device that had nothing to do does not catch up.
                due = max(due, time.monotonic()) + len(items) / ITEMS_A_SECOND
                await asyncio.sleep(due - time.monotonic())
            seq += 1
            sent[seq] = len(items)
            await connection.send(encode(Results(seq, lease, items, rows_of(items))))

    def _hear(
        self,
        message: object,
        waiting: asyncio.Queue[tuple[int, tuple[int, ...]]],
        sent: dict[int, int],
    ) -> None:
        match message:
            case Grant(leases):
                size = BATCH if self._flat_out else BATCH // 4
                for granted in leases:
                    items = tuple(item.index for item in granted.items)
                    for first in range(0, len(items), size):
                        waiting.put_nowait((granted.lease, items[first : first + size]))
            case Ack(seq):
                for done in [one for one in sent if one <= seq]:
                    self.acknowledged += sent.pop(done)
            case _:
                pass

    async def rate(self, seconds: float) -> float:
        """Return acknowledged items a second from now on."""
        before, began = self.acknowledged, time.monotonic()
        await asyncio.sleep(seconds)
        return (self.acknowledged - before) / (time.monotonic() - began)


# --------------------------------------------------------------------------- hostile


async def connections(port: int, _: int) -> None:
    """Open connections that say nothing, as fast as they are taken."""
    held: list[asyncio.StreamWriter] = []
    while True:
        _times[0] += 1
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        held.append(writer)
        if len(held) > 1000:
            held.pop(0).transport.abort()


async def slowloris(port: int, _: int) -> None:
    """Say an upgrade request byte by byte."""
    async with dialled(port) as peer:
        for byte in request(TOKEN) * 100:
            await peer.send(bytes([byte]))
            await asyncio.sleep(0.05)


async def guesses(port: int, number: int) -> None:
    """Offer wrong tokens."""
    async with dialled(port) as peer:
        await peer.upgrade(f"guessed {number}")


async def noise(port: int, number: int) -> None:
    """With a token: say what is no message, and come again."""
    async with let_in(port, TOKEN, _session(number)) as peer:
        await peer.send(frame(BINARY, os.urandom(1000)))
        await peer.ended()


async def pings(port: int, number: int) -> None:
    """With a token: pings as fast as they go, and come again."""
    async with let_in(port, TOKEN, _session(number)) as peer:
        while True:
            await peer.send(frame(PING) * 1000)


async def heartbeats(port: int, number: int) -> None:
    """With a token: lawful messages as fast as they are taken, by one session."""
    if number:
        await asyncio.Event().wait()
    async with let_in(port, TOKEN, _session(number)) as peer:
        while True:
            await peer.send(frame(BINARY, b"\x81\xa4type\xa9heartbeat") * 1000)


async def fragments(port: int, number: int) -> None:
    """With a token: one message without end, and come again."""
    async with let_in(port, TOKEN, _session(number)) as peer:
        await peer.send(frame(BINARY, fin=False))
        while True:
            await peer.send(frame(CONT, b"x", fin=False) * 100)


async def greed(port: int, number: int) -> None:
    """With a token: large frames that never end, in as many sessions as there are attackers."""
    async with let_in(port, TOKEN, _session(number)) as peer:
        await peer.send(frame(BINARY, bytes(15 * 2**20), claimed=16 * 2**20 - 1))
        await peer.gone()


async def deaf(port: int, number: int) -> None:
    """With a token: ask for images of no lease and never read the answers, and come again."""
    from caption_flow.protocol.messages import Fetch  # noqa: PLC0415

    async with let_in(port, TOKEN, _session(number)) as peer:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's
        for _ in range(200):
            await peer.send(frame(BINARY, encode(Fetch(0, tuple(range(400))))))
        await _gone(peer)


async def _gone(peer: Peer) -> None:
    peer.writer.transport.resume_reading()  # type: ignore[attr-defined]  # a socket's
    await peer.gone()


ATTACKS: Final[dict[str, tuple[Callable[[int, int], Awaitable[None]], int]]] = {
    "connections": (connections, 20),
    "slowloris": (slowloris, 300),
    "guesses": (guesses, 300),
    "noise": (noise, 20),
    "pings": (pings, 20),
    "heartbeats": (heartbeats, 1),
    "fragments": (fragments, 20),
    "greed": (greed, 60),
    "deaf": (deaf, 20),
}
"""Each with how many do it at the same time."""
_times: Final = [0]


def _session(number: int) -> str:
    return f"hostile-session-{number:04}"


async def attack(name: str, port: int) -> None:
    """Attack until killed; say after each second how often that was begun."""
    doing, many = ATTACKS[name]

    async def again(number: int) -> None:
        while True:
            _times[0] += 1
            # Whatever comes of being cut off in the middle: uvloop has errors of its own for it.
            with contextlib.suppress(Exception):
                await doing(port, number)

    async with asyncio.TaskGroup() as group:
        for number in range(many):
            group.create_task(again(number))
        while True:
            await asyncio.sleep(0.5)
            print(_times[0], flush=True)


# --------------------------------------------------------------------------- measuring


def _memory(pid: int, what: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"{what}:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) * 1024


def _processor(pid: int) -> float:
    """Return the seconds of processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _spell(honest: Honest, pid: int, seconds: float) -> tuple[float, float]:
    """Return items a second, and the orchestrator's share of a processor meanwhile."""
    began, used = time.monotonic(), _processor(pid)
    rate = await honest.rate(seconds)
    return rate, (_processor(pid) - used) / (time.monotonic() - began)


def _forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def measure(name: str, honest: Honest, port: int, pid: int, asked: argparse.Namespace) -> str:
    """Return the line about one attack."""
    quiet: list[tuple[float, float]] = []
    attacked: list[tuple[float, float]] = []
    before = _memory(pid, "VmRSS")
    _forget_peak(pid)
    begun = 0
    for _ in range(asked.rounds):
        await asyncio.sleep(SETTLE_SECONDS)
        quiet.append(await _spell(honest, pid, asked.seconds))
        attacker = await asyncio.create_subprocess_exec(
            *("nice", "-n", "19", sys.executable, __file__, "--attack", name, "--port", str(port)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert attacker.stdout is not None
        await attacker.stdout.readline()  # it is at it
        attacked.append(await _spell(honest, pid, asked.seconds))
        with contextlib.suppress(ProcessLookupError):
            attacker.kill()
        counts = (await attacker.stdout.read()).split()
        begun += int(counts[-1]) if counts else 0
        await attacker.wait()
    peak = _memory(pid, "VmHWM")
    ratios = [beside[0] / alone[0] for alone, beside in zip(quiet, attacked, strict=True)]
    (alone, alone_cpu), (beside, beside_cpu) = (
        [statistics.median(figures) for figures in zip(*spells, strict=True)]
        for spells in (quiet, attacked)
    )
    said = (
        f"{name:12} {alone:4.0f} -> {beside:4.0f} items/s",
        f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        f"processor {alone_cpu:.0%} -> {beside_cpu:.0%}",
        f"begun {begun:,} times",
        f"memory {before / 2**20:.0f} MiB before, {peak / 2**20:.0f} MiB at most",
    )
    return "  " + "; ".join(said)


async def main(asked: argparse.Namespace) -> None:
    """Measure each attack."""
    names = asked.attacks or list(ATTACKS)
    seconds = len(names) * asked.rounds * 2 * (asked.seconds + 2)
    rate = 5000 if asked.flat_out else WORKERS * ITEMS_A_SECOND
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "images", int(seconds * rate * 1.5))
        async with Fleet(Path(folder), chunk_size=256) as fleet:
            leader = await fleet.orchestrator()
            honest = Honest(fleet.port, flat_out=asked.flat_out)
            workers = [asyncio.create_task(honest.work(number)) for number in range(WORKERS)]
            pace = "no time for an item" if asked.flat_out else f"{ITEMS_A_SECOND:.0f} items/s each"
            print(
                f"{WORKERS} honest workers, {pace}; {asked.rounds} x {asked.seconds} s", flush=True
            )
            for name in names:
                print(await measure(name, honest, fleet.port, leader.pid, asked), flush=True)
            if any(worker.done() for worker in workers):
                print(leader.tail(40))
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attacks", nargs="*", choices=[*ATTACKS, []], metavar="ATTACK")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flat-out", action="store_true")
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if options.attack:
            runner.run(attack(options.attack, options.port))
        else:
            runner.run(main(options))
