"""A full disk: said plainly, nothing acknowledged or handed out meanwhile, and then it goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import (
    Fleet,
    Process,
    check_captions,
    expected_captions,
    rows_of_parts,
    stored_items,
    stored_rows,
    until,
    write_images,
)
from tests.support.proxy import Proxy, Witness

ITEMS = 900
BLOCK = bytes(4096)


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave no room at all."""
        with self._ballast.open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(BLOCK)

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def mounted(folder: Path, megabytes: float) -> Iterator[Disk]:
    """Mount a tmpfs, or skip the test where nobody may."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={int(megabytes * 1024)}k"
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "none", folder],
        check=False,
        capture_output=True,
        text=True,
    )
    if mount.returncode:
        pytest.skip(f"no small file system can be mounted here: {mount.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@dataclass
class Run:
    """An orchestrator on a small disk, and a worker behind a proxy."""

    fleet: Fleet
    disk: Disk
    witness: Witness
    proxy: Proxy
    expected: dict[str, str]
    leader: Process
    worker: Process

    async def begin(self) -> None:
        """Let it work until some results are acknowledged."""
        await until(lambda: len(self.witness.acknowledged) >= 50, self.tails)

    async def until_unacknowledged(self, rows: int) -> None:
        """Wait until the worker says that so many rows of its wait for their acknowledgement."""
        stats = self.witness.stats
        await until(
            lambda: stats.get(self.proxy.session, {}).get("unacknowledged", 0) >= rows, self.tails
        )

    async def end(self) -> None:
        """Wait for the end, and check that everything is there, once."""
        assert await self.worker.exit_code() == 0, self.tails()
        self.leader.signal(signal.SIGINT)
        assert await self.leader.exit_code(30) == 0, self.tails()
        data_dir = self.fleet.data_dir
        check_captions(stored_rows(data_dir), self.expected)
        check_captions(rows_of_parts(data_dir), self.expected)
        assert self.witness.acknowledged <= stored_items(data_dir)
        await self.fleet.verify()

    def tails(self) -> str:
        return f"{self.leader.tail()}\n{self.worker.tail()}"


@contextlib.asynccontextmanager
async def run_on(tmp_path: Path, disk: Disk, data_dir: Path) -> AsyncIterator[Run]:
    written = write_images(tmp_path / "images", ITEMS)
    settings: dict[str, Any] = {
        "chunk_size": 20,
        "lease_seconds": 2,
        "storage": {"caption_buffer_size": 100, "checkpoint_interval": 1},
    }
    async with Fleet(tmp_path, data_dir=data_dir, **settings) as fleet:
        witness = Witness()
        proxy = Proxy(fleet.port, witness)
        await proxy.start()
        try:
            leader = await fleet.orchestrator()
            # Stays through drains of the orchestrator, as workers far away do.
            engine = {"latency_ms": 25, "requests_in_flight": 4}
            worker = await fleet.worker("worker 1", proxy.url, engine=engine)
            expected = expected_captions(written)
            yield Run(fleet, disk, witness, proxy, expected, leader, worker)
        finally:
            await proxy.stop()


async def test_a_disk_that_fills_up_holds_the_run_up_until_there_is_room(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 24) as disk:
        async with run_on(tmp_path, disk, disk.folder / "run") as run:
            await run.begin()
            disk.fill()
            await run.leader.says("is full; results wait until there is room")
            await run.until_unacknowledged(60)
            acknowledged, granted = set(run.witness.acknowledged), run.witness.granted
            assert acknowledged <= stored_items(run.fleet.data_dir)
            await run.until_unacknowledged(120)  # it works on, on what it has
            assert run.witness.acknowledged == acknowledged, "acknowledged without room for it"
            assert run.witness.granted == granted, "handed out without room for results"
            assert run.leader.code is None
            disk.free()
            await run.leader.says("results are stored again")
            await until(lambda: len(run.witness.acknowledged) >= len(acknowledged) + 120, run.tails)
            await run.end()
            assert "Traceback" not in run.leader.output


async def test_no_room_for_a_part_is_said_and_results_are_taken_all_the_same(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / "run"
    with mounted(data_dir / "captions", 2) as disk:
        async with run_on(tmp_path, disk, data_dir) as run:
            await run.begin()
            disk.fill()
            await run.leader.says("no part could be written")
            assert str(data_dir) in run.leader.output
            acknowledged = len(run.witness.acknowledged)
            await until(lambda: len(run.witness.acknowledged) >= acknowledged + 100, run.tails)
            assert not list(disk.folder.glob(".part-*")), "half a part is left on a full disk"
            disk.free()
            await run.end()
            assert "Traceback" not in run.leader.output


@pytest.mark.parametrize("ends_by", [signal.SIGINT, signal.SIGKILL])
async def test_ending_on_a_full_disk_says_why_and_loses_nothing_acknowledged(
    tmp_path: Path, ends_by: signal.Signals
) -> None:
    with mounted(tmp_path / "disk", 24) as disk:
        async with run_on(tmp_path, disk, disk.folder / "run") as run:
            await run.begin()
            disk.fill()
            await run.leader.says("is full; results wait until there is room")
            await run.until_unacknowledged(30)
            run.leader.signal(ends_by)
            code = await run.leader.exit_code(30)
            if ends_by == signal.SIGINT:
                assert code == 1, run.tails()
                last = run.leader.output.splitlines()[-1]
                assert last.startswith("Error: "), run.tails()
                assert str(run.fleet.data_dir) in last
                assert "full" in last
                assert "Traceback" not in run.leader.output
            assert run.witness.acknowledged <= stored_items(run.fleet.data_dir)
            # While there is no room, there is no new beginning either, and that is said.
            again = await run.fleet.orchestrator(ready=False)
            assert await again.exit_code() == 1, again.tail()
            assert again.output.splitlines()[-1].startswith("Error: "), again.tail()
            assert "full" in again.output.splitlines()[-1]
            assert "Traceback" not in again.output
            disk.free()
            assert run.witness.acknowledged <= stored_items(run.fleet.data_dir)
            run.leader = await run.fleet.orchestrator()
            # A drain sends workers home that leave when the run is finished.
            if run.worker.code is not None:
                assert run.worker.code == 0, run.tails()
                run.worker = await run.fleet.worker(
                    "worker 2", run.proxy.url, engine={"latency_ms": 5}
                )
            await run.end()
