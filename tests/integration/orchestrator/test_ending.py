"""Draining, stopping, and a disk without room: what is acknowledged is safe, and it ends."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from caption_flow.orchestrator.assembly import assemble
from caption_flow.orchestrator.server.server import ServerError
from caption_flow.orchestrator.sources.base import SourceError
from caption_flow.protocol.messages import (
    DRAIN_ACK_SECONDS,
    DRAIN_WORK_SECONDS,
    Ack,
    Drain,
    Grant,
    Wait,
    Want,
)
from caption_flow.storage.database import PARTS_FOLDER
from caption_flow.storage.errors import StorageFullError
from caption_flow.storage.store import RunStore
from caption_flow.storage.verify import verify
from tests.integration.orchestrator.parties import (
    PATIENCE_SECONDS,
    TOKENS,
    Run,
    configuration,
    led,
    until,
)
from tests.integration.storage.folders import disk_full, rows_in_parts
from tests.support.fleet import write_images


async def test_a_drain_takes_what_is_in_flight_and_hands_out_nothing_more(tmp_path: Path) -> None:
    async with led(tmp_path, images=32) as run:
        worker, idle = await run.join(), await run.join()
        granted = await worker.lease()
        run.orchestrator.drain()
        await worker.expect(Drain)
        await idle.send(Want(1))
        assert isinstance(await idle.expect(Wait), Wait)
        await worker.work_off(granted)
        assert await worker.closed() == (1001, "the orchestrator ends")
        assert not any(isinstance(message, Grant) for message in idle.heard)
    assert set(rows_in_parts(run.data_dir)) == {item.index for item in granted.items}
    assert not verify(run.data_dir).breached


async def test_who_comes_during_a_drain_is_told(tmp_path: Path) -> None:
    async with led(tmp_path, images=32) as run:
        busy = await run.join()
        await busy.lease()
        run.orchestrator.drain()
        late = await run.join()
        await late.expect(Drain)


async def test_a_drain_waits_for_a_bounded_time_only(tmp_path: Path) -> None:
    async with led(tmp_path, images=32) as run:
        silent = await run.join()
        await silent.lease()
        run.orchestrator.settings = shortened(run)
        began = time.monotonic()
        run.orchestrator.drain()
        await silent.closed()
        assert time.monotonic() - began < PATIENCE_SECONDS / 2


async def test_a_drain_outlasts_what_workers_do_in_it(tmp_path: Path) -> None:
    """Else what they finish last would be lost, each time that not everything can be finished."""
    async with led(tmp_path, images=1) as run:
        assert run.orchestrator.settings.drain_seconds >= DRAIN_WORK_SECONDS + DRAIN_ACK_SECONDS


def shortened(run: Run) -> Any:
    settings = run.orchestrator.settings
    return type(settings)(
        **{name: getattr(settings, name) for name in settings.__slots__ if name != "drain_seconds"},
        drain_seconds=0.5,
    )


async def test_with_everything_done_a_drain_takes_no_time(tmp_path: Path) -> None:
    async with led(tmp_path, images=8) as run:
        worker = await run.join()
        await worker.work_until_finished()
        began = time.monotonic()
        run.orchestrator.drain()
        assert (await worker.closed())[0] == 1000
        assert time.monotonic() - began < 2.0
    assert set(rows_in_parts(run.data_dir)) == set(range(8))


async def test_stopping_at_once_keeps_all_that_was_acknowledged(tmp_path: Path) -> None:
    async with led(tmp_path, images=64, chunk_size=64) as run:
        worker = await run.join()
        granted = await worker.lease()
        for item in granted.items[:20]:
            seq = await worker.report(granted.lease, [item.index])
        await worker.acknowledged(seq)
    assert set(rows_in_parts(run.data_dir)) == {item.index for item in granted.items[:20]}


async def test_a_checkpoint_cut_short_by_the_end_loses_nothing(tmp_path: Path) -> None:
    """Stop in the middle of checkpoints, again and again, as Ctrl-C does."""
    acknowledged: set[int] = set()
    for _ in range(6):
        storage = {"caption_buffer_size": 1, "checkpoint_interval": 0.01}
        async with led(tmp_path, images=240, storage=storage) as run:
            worker = await run.join()
            for _ in range(3):
                granted = await worker.lease()
                await worker.work_off(granted)
                acknowledged |= {item.index for item in granted.items}
        assert set(rows_in_parts(run.data_dir)) == acknowledged
        assert not verify(run.data_dir).breached


# ---------------------------------------------------------------- no room


class Disk:
    """The disk below a run's ledger, as far as its writer notices."""

    def __init__(self, run: Run) -> None:
        writer = run.orchestrator._store._writer
        assert writer is not None
        self._writer, self._transaction = writer, writer._transaction

    def fill(self) -> None:
        self._writer._transaction = no_room  # type: ignore[method-assign, assignment]

    def free(self) -> None:
        self._writer._transaction = self._transaction  # type: ignore[method-assign]


def no_room(_group: object) -> None:
    raise disk_full()


async def test_without_room_nothing_is_acknowledged_or_handed_out_until_there_is_some(
    tmp_path: Path,
) -> None:
    with capture_logs() as logs:
        async with led(tmp_path, images=32) as run:
            worker, idle = await run.join(), await run.join()
            granted = await worker.lease()
            disk = Disk(run)
            disk.fill()
            seq = await worker.report(granted.lease, [item.index for item in granted.items])
            await until(lambda: run.orchestrator.trouble)
            assert str(run.data_dir) in str(run.orchestrator.steering.report()["trouble"])
            await idle.send(Want(1))
            assert isinstance(await idle.next(), Wait)
            assert not any(isinstance(message, Ack) for message in worker.heard)
            assert run.rows() == {}
            disk.free()
            await worker.acknowledged(seq)
            await idle.expect(Grant)  # without asking again
            assert run.orchestrator.trouble is None
    errors = [entry["event"] for entry in logs if entry["log_level"] == "error"]
    assert len(errors) == 1
    assert "is full" in errors[0]
    assert any("stored again" in entry["event"] for entry in logs)


async def test_a_drain_without_room_ends_with_the_reason_and_loses_nothing_acknowledged(
    tmp_path: Path,
) -> None:
    with pytest.raises(StorageFullError, match="is full"):  # noqa: PT012  -- by the run itself
        async with led(tmp_path, images=32) as run:
            worker = await run.join()
            first, second = await worker.lease(), await worker.lease()
            await worker.work_off(first)
            Disk(run).fill()
            await worker.report(second.lease, [item.index for item in second.items])
            await until(lambda: run.orchestrator.trouble)
    assert set(run.rows()) == {item.index for item in first.items}
    async with led(tmp_path) as run:
        again = await run.join(session=worker.session, leases=[second])
        seq = await again.report(second.lease, [item.index for item in second.items], seq=2)
        await again.acknowledged(seq)
        assert (await again.work_until_finished()).captioned == 32


async def test_a_part_without_room_is_said_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room_for_parts(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with capture_logs() as logs:
        storage = {"caption_buffer_size": 4, "checkpoint_interval": 0.05}
        async with led(tmp_path, images=16, storage=storage) as run:
            worker = await run.join()
            with monkeypatch.context() as patch:
                patch.setattr("caption_flow.storage.parts.pq.write_table", no_room_for_parts)
                await worker.work_off(await worker.lease())
                await until(lambda: any("no part could be written" in str(e) for e in logs))
            await worker.work_off(await worker.lease())  # commits go on meanwhile
            assert len(run.rows()) == 16
    assert set(rows_in_parts(run.data_dir)) == set(range(16))


# ---------------------------------------------------------------- not even beginning


async def test_a_port_in_use_is_said_and_the_folder_is_free_again(tmp_path: Path) -> None:
    async with led(tmp_path / "a") as run:
        config = configuration(tmp_path / "a" / "images", tmp_path / "b")
        config = config.model_copy(update={"port": run.orchestrator.port})
        second = await assemble(config, TOKENS)
        with pytest.raises(ServerError, match=f"port {run.orchestrator.port} .* in use"):
            await second.run()
        RunStore(tmp_path / "b").release()


async def test_an_empty_folder_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(SourceError, match="is empty"):
        await assemble(configuration(tmp_path / "images", tmp_path / "run"), TOKENS)
    assert not (tmp_path / "run").exists()


async def test_a_part_that_is_missing_is_named_at_the_checkpoint_that_needs_it(
    tmp_path: Path,
) -> None:
    """A changed picture's old row is in a part that somebody removed."""
    write_images(tmp_path / "images", 8)
    async with led(tmp_path) as run:
        await (await run.join()).work_until_finished()
    (part,) = (run.data_dir / PARTS_FOLDER).glob("*.parquet")
    content = part.read_bytes()
    part.unlink()
    picture = next((tmp_path / "images").rglob("*.bmp"))
    picture.write_bytes(picture.read_bytes()[:-8] + b"changed!")
    with pytest.raises(Exception, match=part.name):
        async with led(tmp_path) as run:
            await asyncio.wait_for(run.orchestrator._ending.wait(), PATIENCE_SECONDS)
    part.write_bytes(content)
    async with led(tmp_path) as run:
        assert (await (await run.join()).work_until_finished()).captioned == 8
