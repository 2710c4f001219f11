"""How fast an orchestrator sends images to workers that do not see them.

    python benchmarks/serving.py               a minute or two
    python benchmarks/serving.py --pairs 9     more of each
    python benchmarks/serving.py --profile F   cProfile's statistics of the orchestrator, into F

One orchestrator process and four clients, each a process of its own, on this machine. A client
says hello, wants leases and fetches each of their items, 16 at a time, as a worker does; it checks
the size of what comes and decodes nothing. Beside it, taking turns: the least that could do the
same, an asyncio server (uvloop) of a dozen lines that reads the files and writes them to four such
clients, 16 asked for at a time, too. What is printed are megabytes (10^6 bytes) a second of both,
the ratio of their medians, and the seconds that each server spent on a CPU for a GB, which other
processes on the machine change less. The files are in the page cache for both.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import cProfile
import json
import multiprocessing
import os
import random
import socket
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import structlog
import uvloop

from caption_flow.config.load import load_orchestrator
from caption_flow.orchestrator.assembly import assemble
from caption_flow.protocol.codec import decode_from_orchestrator, encode
from caption_flow.protocol.messages import Fetch, Finished, Grant, Hello, Image, Message, Wait, Want
from caption_flow.protocol.places import FilePlace
from caption_flow.protocol.version import SUBPROTOCOL

CLIENTS: Final = 4
IN_FLIGHT: Final = 16
TOKEN: Final = "benchmark"  # noqa: S105 - guards nothing
SIZES: Final = (100_000, 1_500_000)
"""Bytes of the smallest and the largest file; as many small as large ones."""

spawn: Final = multiprocessing.get_context("spawn")


def write_files(folder: Path, total: int) -> list[int]:
    """Write files of about ``total`` bytes in all; return their sizes."""
    chance = random.Random(0)
    sizes: list[int] = []
    while sum(sizes) < total:
        sizes.append(chance.randint(*SIZES))
        content = chance.randbytes(sizes[-1])
        (folder / f"{len(sizes):06}.jpg").write_bytes(content)
    return sizes


# --------------------------------------------------------------------------- the orchestrator


def lead(images: str, data_dir: str, tell: Connection, profile: str | None) -> None:
    """Be an orchestrator until told to end; runs in a process of its own."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    profiler = cProfile.Profile() if profile else None
    if profiler is not None:
        profiler.enable()
    uvloop.run(_lead(images, data_dir, tell))
    if profiler is not None:
        profiler.disable()
        profiler.dump_stats(profile or "")


async def _lead(images: str, data_dir: str, tell: Connection) -> None:
    settings = {
        "host": "127.0.0.1",
        "port": 0,
        "chunk_size": 32,
        "chunks_per_request": 1,
        "dataset": {"type": "local_filesystem", "dataset_path": images},
        "vllm": {"model": "m", "inference_prompts": ["Describe."]},
        "storage.data_dir": data_dir,
    }
    config = load_orchestrator(None, settings).config
    leader = await assemble(config, [("worker", f"w{n}", TOKEN + str(n)) for n in range(CLIENTS)])
    running = asyncio.create_task(leader.run())
    await leader.ready.wait()
    while not leader.progress.listed:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0.05)
    tell.send(leader.port)
    await asyncio.to_thread(tell.recv)
    began = time.process_time()
    await asyncio.to_thread(tell.recv)
    tell.send(time.process_time() - began)
    leader.stop()
    await running


class Frames:
    """A WebSocket client that blocks: whole frames from a socket, with few copies (RFC 6455)."""

    def __init__(self, port: int, token: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\nAuthorization: Bearer {token}\r\n"
            "\r\n".encode()
        )
        self._stream = self._socket.makefile("rb", 2**18)
        status = self._stream.readline()
        assert b" 101 " in status, status
        while self._stream.readline() != b"\r\n":
            pass

    def send(self, message: Message) -> None:
        payload = encode(message)
        length = len(payload)
        head = (
            bytes([0x82, 0x80 | length]) if length < 126 else struct.pack(">BBH", 0x82, 254, length)
        )
        self._socket.sendall(head + bytes(4) + payload)  # masked with zeroes

    def receive(self) -> bytes:
        while True:
            code, length = self._stream.read(2)
            if length == 126:
                (length,) = struct.unpack(">H", self._stream.read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self._stream.read(8))
            data: bytes = self._stream.read(length)
            if code == 0x82:
                return data
            assert code == 0x89, f"frame {code:#x}"  # ping; a run is too short to be missed


def fetch_all(port: int, number: int, tell: Connection) -> None:
    """Be a worker: fetch each item of each lease until there are no more; say how much came."""
    frames = Frames(port, TOKEN + str(number))
    frames.send(Hello(f"w{number}", f"benchmark-{number:016}"))
    tell.send("ready")
    tell.recv()
    frames.send(Want(1, width=1000, idle=1000))
    wanted: list[tuple[int, int, int]] = []
    sizes: dict[tuple[int, int], int] = {}
    received, asked, more_to_come = 0, 0, True
    while more_to_come or asked:
        match decode_from_orchestrator(frames.receive()):
            case Grant(leases):
                for lease in leases:
                    for one in lease.items:
                        assert isinstance(one.place, FilePlace)
                        wanted.append((lease.lease, one.index, one.place.size))
                frames.send(Want(1, width=1000, idle=1000))
            case Wait() | Finished():
                more_to_come = False
            case Image(lease, item, payload, error, offset, more):
                assert not error, error
                received += len(payload)
                if not more:
                    assert offset + len(payload) == sizes.pop((lease, item))
                    asked -= 1
            case _:
                pass
        while wanted and asked < IN_FLIGHT:
            lease_id, item, size = wanted.pop(0)
            sizes[lease_id, item] = size
            frames.send(Fetch(lease_id, (item,)))
            asked += 1
    tell.send(received)
    tell.recv()  # the connection stays, so that nothing is handed out again


# --------------------------------------------------------------------------- the least


def serve_plainly(images: str, tell: Connection) -> None:
    """Send files by number over plain sockets; runs in a process of its own."""
    uvloop.run(_serve_plainly(sorted(Path(images).iterdir()), tell))


async def _serve_plainly(files: list[Path], tell: Connection) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while number := await reader.read(4):
            content = files[int.from_bytes(number)].read_bytes()
            writer.write(len(content).to_bytes(8))
            writer.write(content)
            await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    tell.send(server.sockets[0].getsockname()[1])
    await asyncio.to_thread(tell.recv)
    began = time.process_time()
    await asyncio.to_thread(tell.recv)
    tell.send(time.process_time() - began)


def fetch_plainly(port: int, number: int, files: int, tell: Connection) -> None:
    """Fetch every fourth file, 16 asked for at a time; say how much came."""
    connection = socket.create_connection(("127.0.0.1", port))
    stream = connection.makefile("rb", 2**18)
    tell.send("ready")
    tell.recv()
    wanted = list(range(number, files, CLIENTS))
    for index in wanted[:IN_FLIGHT]:
        connection.sendall(index.to_bytes(4))
    received = 0
    for place in range(len(wanted)):
        received += len(stream.read(int.from_bytes(stream.read(8))))
        if place + IN_FLIGHT < len(wanted):
            connection.sendall(wanted[place + IN_FLIGHT].to_bytes(4))
    tell.send(received)
    tell.recv()


# --------------------------------------------------------------------------- both


def start(target: Callable[..., None], *arguments: Any) -> tuple[Any, Connection]:
    """Start a process that has one end of a pipe as the argument after these."""
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=target, args=(*arguments, theirs), daemon=True)
    process.start()
    return process, ours


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds by the clock, the server's own on a CPU, and the bytes that came."""

    seconds: float
    cpu_seconds: float
    received: int


def timed(server: Connection, client: Callable[..., None], *more: Any) -> Took:
    """Let four clients fetch everything."""
    port = server.recv()
    clients = [start(client, port, number, *more) for number in range(CLIENTS)]
    for _, pipe in clients:
        assert pipe.recv() == "ready"
    server.send("go")
    began = time.perf_counter()
    for _, pipe in clients:
        pipe.send("go")
    received = sum(pipe.recv() for _, pipe in clients)
    seconds = time.perf_counter() - began
    for process, pipe in clients:
        pipe.send("end")
        process.join()
    server.send("end")
    cpu_seconds = server.recv()
    return Took(seconds, cpu_seconds, received)


def measure_orchestrator(images: Path, profile: str | None) -> Took:
    with tempfile.TemporaryDirectory() as data_dir:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=lead, args=(str(images), data_dir, theirs, profile))
        process.start()
        took = timed(ours, fetch_all)
        process.join()
    return took


def measure_plain_server(images: Path, files: int) -> Took:
    process, pipe = start(serve_plainly, str(images))
    took = timed(pipe, fetch_plainly, files)
    process.join()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--profile", metavar="FILE")
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"orchestrator": [], "plain": []}
    cpu: dict[str, list[float]] = {"orchestrator": [], "plain": []}
    with tempfile.TemporaryDirectory() as folder:
        sizes = write_files(Path(folder), options.megabytes * 10**6)
        for pair in range(options.pairs):
            for name, took in (
                ("orchestrator", measure_orchestrator(Path(folder), options.profile)),
                ("plain", measure_plain_server(Path(folder), len(sizes))),
            ):
                assert took.received == sum(sizes), f"{took.received} of {sum(sizes)} bytes came"
                rates[name].append(took.received / took.seconds / 1e6)
                cpu[name].append(took.cpu_seconds / took.received * 1e9)
            print(
                f"pair {pair + 1}:",
                ", ".join(
                    f"{name} {rates[name][-1]:.0f} MB/s at {cpu[name][-1]:.2f} s of CPU a GB"
                    for name in rates
                ),
                flush=True,
            )
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = medians["orchestrator"] / medians["plain"]
    on_cpu = {
        f"{name}_cpu_seconds_a_gb": round(statistics.median(values), 2)
        for name, values in cpu.items()
    }
    print(
        json.dumps({"files": len(sizes), **medians, "ratio_of_medians": round(ratio, 3), **on_cpu})
    )


if __name__ == "__main__":
    main()
