"""The end: the tail is shared, it is told, and whoever was asked to leaves at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from tests.support.fleet import Fleet, check_captions, expected_captions, stored_rows, write_images
from tests.support.proxy import Proxy, Witness

ITEMS = 3_000
LATENCIES_MS = (5, 20, 100, 400)
SLOWEST_ITEM_SECONDS = max(LATENCIES_MS) / 1000
OVERHEAD_SECONDS = 1.0
"""Beside the items themselves: a batch waits 0.2 s for company, a tick 0.1 s, then come fsync,
a question and its answer, on a machine that does other things, too."""
FAREWELL_SECONDS = 1.0


async def test_the_tail_is_shared_between_workers_of_very_different_speed(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    written = write_images(tmp_path / "images", ITEMS)
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(Fleet(tmp_path, chunk_size=100))
        leader = await fleet.orchestrator()
        witness = Witness()
        workers, proxies = [], []
        for _ in LATENCIES_MS:
            proxy = Proxy(fleet.port, witness)
            await proxy.start()
            stack.push_async_callback(proxy.stop)
            proxies.append(proxy)
        for proxy, latency_ms in zip(proxies, LATENCIES_MS, strict=True):
            name = f"worker of {latency_ms} ms"
            engine = {"latency_ms": latency_ms, "requests_in_flight": 4}
            workers.append(await fleet.worker(name, proxy.url, engine=engine))
        began = loop.time()
        exits: dict[str, float] = {}

        async def leave(number: int) -> None:
            assert await workers[number].exit_code() == 0, workers[number].tail()
            exits[proxies[number].session] = loop.time()

        await asyncio.gather(*(leave(number) for number in range(len(workers))))
        finished = min(witness.finished_at.values())
        idle_since = min(witness.last_result_at.values())
        tail = finished - idle_since
        farewell = max(at - witness.finished_at[session] for session, at in exits.items())
        done = {
            worker.name: sum(
                session == proxy.session for works in witness.works.values() for session, _ in works
            )
            for worker, proxy in zip(workers, proxies, strict=True)
        }
        say(
            f"\n  from the first worker's last result to the end: {tail:.2f} s, "
            f"slowest item: {SLOWEST_ITEM_SECONDS:.1f} s\n"
            f"  from `finished` to the last worker's exit: {farewell:.2f} s\n"
            f"  items by worker: {done}, done twice: {witness.done_twice}, "
            f"wall time {finished - began:.1f} s"
        )
        leader.signal(signal.SIGINT)
        assert await leader.exit_code(30) == 0, leader.tail()
        check_captions(stored_rows(fleet.data_dir), expected_captions(written))
        assert all(done.values()), "somebody had nothing to do"
        assert witness.done_twice == 0
        assert farewell <= FAREWELL_SECONDS
        assert tail <= 2 * SLOWEST_ITEM_SECONDS + OVERHEAD_SECONDS
