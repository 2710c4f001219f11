"""How many results one orchestrator process takes in, durably, and how soon it says so.

    python benchmarks/ingest.py                    batches of 8, 64 and 256 rows, five pairs each
    python benchmarks/ingest.py --batch 64 --pairs 3
    python benchmarks/ingest.py --profile F        cProfile's statistics of the orchestrator, into F

Eight connections of two client processes first take leases of the whole dataset and make all their
batches of results ready (300 characters a caption, words at random, so that they compress like
prose); then they send as fast as the protocol allows, 64 batches unacknowledged each. What counts
is the time from the first batch to the last acknowledgement, which says that everything is on
disk. Beside it, taking turns: the least that could do the same, a server (uvloop, websockets,
msgpack) that puts each batch into an SQLite table of the same settings, as many in a transaction as
have come, and acknowledges. The orchestrator, or that server, has one core for itself and the
clients have the others. Then the orchestrator alone at half of its median rate: how long
acknowledgements take.

Printed are items a second by the clock and a second of the server's processor time (which other
work on the machine changes less), the ratio of both servers' medians, and times in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import multiprocessing
import os
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import structlog
import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from caption_flow.cli.arrow import keep_pandas_out
from caption_flow.config.load import load_orchestrator
from caption_flow.orchestrator.assembly import assemble
from caption_flow.protocol.codec import decode_from_orchestrator, encode
from caption_flow.protocol.messages import Ack, Grant, Hello, Results, Want
from caption_flow.protocol.rows import CAPTIONED, Row, encode_rows
from caption_flow.protocol.version import SUBPROTOCOL

PROCESSES: Final = 2
CONNECTIONS: Final = 4
"""Of each process."""
CHUNK: Final = 1024
UNACKNOWLEDGED: Final = 64
CHARACTERS: Final = 300
_QUIET_SECONDS: Final = 10.0
TOKEN: Final = "benchmark"  # noqa: S105 - guards nothing

spawn: Final = multiprocessing.get_context("spawn")


def write_dataset(folder: Path, items: int) -> None:
    """Write a dataset of Parquet files in the hub's layout, whose pictures nobody looks at."""
    (folder / "data").mkdir(parents=True)
    per_file = 100_000
    files = -(-items // per_file)
    for number in range(files):
        count = min(per_file, items - number * per_file)
        pictures = pa.array([{"bytes": b"x", "path": None}] * count)
        name = f"train-{number:05}-of-{files:05}.parquet"
        pq.write_table(pa.table({"image": pictures}), folder / "data" / name, row_group_size=10_000)


def captions() -> Iterator[str]:
    """Yield texts of 300 characters that repeat no more than people do."""
    words = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text("utf-8").split()
    chance = random.Random(0)
    while True:
        yield " ".join(chance.choices(words, k=CHARACTERS // 4))[:CHARACTERS]


# --------------------------------------------------------------------------- the orchestrator


def lead(dataset: str, data_dir: str, profile: str | None, core: int, tell: Connection) -> None:
    """Be an orchestrator until told to end; runs in a process of its own, on a core of its own."""
    os.sched_setaffinity(0, {core})
    keep_pandas_out()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    profiler = cProfile.Profile() if profile else None
    if profiler is not None:
        profiler.enable()
    uvloop.run(_lead(dataset, data_dir, tell))
    if profiler is not None:
        profiler.disable()
        profiler.dump_stats(profile or "")


async def _lead(dataset: str, data_dir: str, tell: Connection) -> None:
    settings = {
        "host": "127.0.0.1",
        "port": 0,
        "chunk_size": CHUNK,
        "chunks_per_request": 64,
        "dataset": {"processor_type": "huggingface_datasets", "dataset_path": dataset},
        "vllm": {"model": "m", "inference_prompts": ["Describe."]},
        "storage.data_dir": data_dir,
    }
    config = load_orchestrator(None, settings).config
    names = range(PROCESSES * CONNECTIONS)
    leader = await assemble(config, [("worker", f"w{n}", f"{TOKEN}{n}") for n in names])
    running = asyncio.create_task(leader.run())
    await leader.ready.wait()
    while not leader.progress.listed:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0.05)
    await _tell_times(leader.port, tell)
    leader.stop()
    await running


async def _tell_times(port: int | None, tell: Connection) -> None:
    """Say where the server listens, and from a first word to a second one what it took."""
    tell.send(port)
    await asyncio.to_thread(tell.recv)
    began = time.process_time()
    await asyncio.to_thread(tell.recv)
    tell.send(time.process_time() - began)


# --------------------------------------------------------------------------- the least


def serve_barely(data_dir: str, core: int, tell: Connection) -> None:
    """Put batches into a table until told to end; runs in a process of its own."""
    os.sched_setaffinity(0, {core})
    uvloop.run(_serve_barely(data_dir, tell))


async def _serve_barely(data_dir: str, tell: Connection) -> None:
    database = sqlite3.connect(Path(data_dir, "bare.sqlite3"), check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE batches (session, seq, lease, items, rows)")
    waiting: list[tuple[ServerConnection, int, tuple[Any, ...]]] = []
    came = asyncio.Event()

    def write(batches: Sequence[tuple[Any, ...]]) -> None:
        with database:
            database.executemany("INSERT INTO batches VALUES (?, ?, ?, ?, ?)", batches)

    async def handle(connection: ServerConnection) -> None:
        await connection.recv()  # the hello
        async for frame in connection:
            message = msgspec.msgpack.decode(cast("bytes", frame))
            items = msgspec.msgpack.encode(message["items"])
            row = (id(connection), message["seq"], message["lease"], items, message["rows"])
            waiting.append((connection, message["seq"], row))
            came.set()

    async def commit() -> None:
        while True:
            await came.wait()
            came.clear()
            taken, waiting[:] = waiting[:], []
            await asyncio.to_thread(write, [row for _, _, row in taken])
            for connection, seq in {connection: seq for connection, seq, _ in taken}.items():
                await connection.send(msgspec.msgpack.encode({"type": "ack", "seq": seq}))

    async with serve(
        handle,
        "127.0.0.1",
        0,
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        compression=None,
        max_size=2**26,
    ) as server:
        committing = asyncio.create_task(commit())
        await _tell_times(next(iter(server.sockets)).getsockname()[1], tell)
        committing.cancel()
    database.close()


# --------------------------------------------------------------------------- the clients


@dataclass(frozen=True, slots=True)
class Load:
    """What a client process does: rows a batch, and batches a second of it (0: all it can)."""

    batch: int
    items: int
    takes_leases: bool
    batches_a_second: float = 0.0


def send_all(port: int, number: int, cores: set[int], load: Load, tell: Connection) -> None:
    """Make all batches, send them when told to, and say how long each acknowledgement took."""
    os.sched_setaffinity(0, cores)
    uvloop.run(_send_all(port, number, load, tell))


async def _send_all(port: int, number: int, load: Load, tell: Connection) -> None:
    numbers = range(number * CONNECTIONS, (number + 1) * CONNECTIONS)
    clients = [await _connected(port, one) for one in numbers]
    if load.takes_leases:
        await asyncio.gather(*(client.take_leases() for client in clients))
    else:
        for client, one in zip(clients, numbers, strict=True):
            share = load.items // (PROCESSES * CONNECTIONS)
            client.leases = [(0, tuple(range(one * share, (one + 1) * share)))]
    texts = captions()
    for client in clients:
        client.make_batches(load.batch, texts)
    tell.send(sum(len(client.batches) for client in clients))
    await asyncio.to_thread(tell.recv)
    pause = CONNECTIONS * PROCESSES / load.batches_a_second if load.batches_a_second else 0.0
    await asyncio.gather(*(client.send_batches(pause) for client in clients))
    tell.send([took for client in clients for took in client.took])
    await asyncio.to_thread(tell.recv)


class Client:
    """One worker's connection."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self.leases: list[tuple[int, tuple[int, ...]]] = []
        self.batches: list[bytes] = []
        self.took: list[float] = []

    async def take_leases(self) -> None:
        """Ask until there is nothing left, and take what is still on its way."""
        await self._connection.send(encode(Want(8, width=100_000, idle=100_000)))
        while True:
            try:
                async with asyncio.timeout(_QUIET_SECONDS):
                    message = decode_from_orchestrator(await self._connection.recv())
            except TimeoutError:
                return
            if isinstance(message, Grant):
                items = [(one.lease, tuple(i.index for i in one.items)) for one in message.leases]
                self.leases += items
                await self._connection.send(encode(Want(1, width=100_000, idle=100_000)))

    def make_batches(self, size: int, texts: Iterator[str]) -> None:
        """Encode everything there is to send."""
        for lease, items in self.leases:
            for first in range(0, len(items), size):
                part = items[first : first + size]
                rows = [Row(item, CAPTIONED, {"captions": [next(texts)]}) for item in part]
                seq = len(self.batches) + 1
                results = Results(seq, lease, part, encode_rows(rows, ("captions",)))
                self.batches.append(encode(results))

    async def send_batches(self, pause: float) -> None:
        """Send it, one batch each ``pause`` seconds or as fast as can be, until all is acked."""
        self._sent: list[float] = []
        self._acked = 0
        self._room = asyncio.Semaphore(UNACKNOWLEDGED)
        hearing = asyncio.create_task(self._hear())
        began = time.perf_counter()
        for number, batch in enumerate(self.batches):
            if pause:
                await asyncio.sleep(began + number * pause - time.perf_counter())
            await self._room.acquire()
            self._sent.append(time.perf_counter())
            await self._connection.send(batch)
        await hearing

    async def _hear(self) -> None:
        while self._acked < len(self.batches):
            match decode_from_orchestrator(await self._connection.recv()):
                case Ack(seq):
                    now = time.perf_counter()
                    for number in range(self._acked, seq):
                        self.took.append(now - self._sent[number])
                        self._room.release()
                    self._acked = seq
                case _:
                    pass


async def _connected(port: int, number: int) -> Client:
    connection = await connect(
        f"ws://127.0.0.1:{port}",
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        additional_headers={"Authorization": f"Bearer {TOKEN}{number}"},
        compression=None,
        max_size=2**26,
        ping_interval=None,
    )
    await connection.send(encode(Hello(f"w{number}", f"benchmark-{number:016}")))
    return Client(connection)


# --------------------------------------------------------------------------- both


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds by the clock and on the server's processor; of each acknowledgement, in order."""

    seconds: float
    cpu_seconds: float
    acknowledged_after: list[float]


def start(target: Callable[..., None], *arguments: Any) -> tuple[Any, Connection]:
    """Start a process that has one end of a pipe as the argument after these."""
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=target, args=(*arguments, theirs), daemon=True)
    process.start()
    return process, ours


def measure(server: Callable[..., None], arguments: Sequence[Any], load: Load) -> Took:
    """Start a server and its clients, and let them do all the work there is."""
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_cores = cores[0], set(cores[1:] or cores)
    leading, pipe = start(server, *arguments, server_core)
    port = pipe.recv()
    clients = [start(send_all, port, number, client_cores, load) for number in range(PROCESSES)]
    batches = sum(one.recv() for _, one in clients)
    assert batches >= load.items // load.batch, f"{batches} batches of {load.items} items"
    pipe.send("go")
    began = time.perf_counter()
    for _, one in clients:
        one.send("go")
    took = [seconds for _, one in clients for seconds in one.recv()]
    seconds = time.perf_counter() - began
    pipe.send("end")
    cpu_seconds = pipe.recv()
    for process, one in clients:
        one.send("end")
        process.join()
    leading.join()
    return Took(seconds, cpu_seconds, took)


def measure_orchestrator(load: Load, profile: str | None = None) -> Took:
    """Let an orchestrator take everything in."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder, "dataset")
        write_dataset(dataset, load.items)
        return measure(lead, (str(dataset), str(Path(folder, "run")), profile), load)


def measure_bare(load: Load) -> Took:
    """Let the bare server do so."""
    with tempfile.TemporaryDirectory() as folder:
        return measure(serve_barely, (folder,), load)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that so large a share of all is not above."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def compare(batch: int, items: int, pairs: int, profile: str | None) -> dict[str, Any]:
    """Measure both, taking turns; return medians, ranges and the ratio."""
    rates: dict[str, list[float]] = {"orchestrator": [], "bare": []}
    on_cpu: dict[str, list[float]] = {"orchestrator": [], "bare": []}
    for pair in range(pairs):
        for name, took in (
            ("orchestrator", measure_orchestrator(Load(batch, items, takes_leases=True), profile)),
            ("bare", measure_bare(Load(batch, items, takes_leases=False))),
        ):
            rates[name].append(items / took.seconds)
            on_cpu[name].append(items / took.cpu_seconds)
        said = ", ".join(
            f"{name} {rates[name][-1]:,.0f} items/s, {on_cpu[name][-1]:,.0f} a second of CPU"
            for name in rates
        )
        print(f"batches of {batch}, pair {pair + 1}: {said}", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    cpu_medians = {name: statistics.median(values) for name, values in on_cpu.items()}
    return {
        "batch": batch,
        "items": items,
        "pairs": pairs,
        "items_a_second": {name: round(value) for name, value in medians.items()},
        "range": {name: [round(min(v)), round(max(v))] for name, v in rates.items()},
        "ratio_of_medians": round(medians["orchestrator"] / medians["bare"], 3),
        "items_a_cpu_second": {name: round(value) for name, value in cpu_medians.items()},
        "ratio_on_cpu": round(cpu_medians["orchestrator"] / cpu_medians["bare"], 3),
    }


def acknowledgements(batch: int, items: int, rate: float) -> dict[str, Any]:
    """Measure how long acknowledgements take at a rate in items a second."""
    load = Load(batch, items, takes_leases=True, batches_a_second=rate / batch)
    took = measure_orchestrator(load).acknowledged_after
    figures = {"p50": percentile(took, 0.5), "p99": percentile(took, 0.99), "most": max(took)}
    return {
        "batch": batch,
        "items_a_second": round(rate),
        "ms_to_ack": {name: round(value * 1e3, 1) for name, value in figures.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--batch", type=int, action="append", help="rows; may be repeated")
    parser.add_argument("--items", type=int, default=400_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--profile", metavar="FILE")
    options = parser.parse_args()
    found = []
    for batch in options.batch or (8, 64, 256):
        items = options.items if batch > 8 else options.items // 4
        figures = compare(batch, items, options.pairs, options.profile)
        half = figures["items_a_second"]["orchestrator"] / 2
        figures["at_half"] = acknowledgements(batch, items, half)
        print(json.dumps(figures), flush=True)
        found.append(figures)


if __name__ == "__main__":
    main()
