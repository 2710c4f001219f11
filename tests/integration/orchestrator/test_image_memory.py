"""What workers ask for and do not take, or take slowly, is not in the orchestrator's memory."""

from __future__ import annotations

import os
import random
from pathlib import Path

from caption_flow.orchestrator.server.allowance import Allowance
from caption_flow.places.portions import PORTION_BYTES
from caption_flow.protocol.messages import Fetch, Image
from caption_flow.worker.core.fetches import Fetches
from tests.integration.orchestrator.parties import ScriptedWorker, led, until

WORKERS = 12
IMAGE_BYTES = 20_000_000
AT_ONCE = 8


def resident() -> int:
    """Return how many bytes of this process are in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf(
        "SC_PAGE_SIZE"
    )


async def test_many_workers_that_ask_for_large_images_do_not_fill_the_memory(
    tmp_path: Path,
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for number in range(WORKERS * AT_ONCE):
        with (root / f"{number:03}.jpg").open("wb") as file:
            file.truncate(IMAGE_BYTES)  # sparse: they take no room on the disk
    async with led(tmp_path, root=root, chunk_size=AT_ONCE) as run:
        allowance = run.orchestrator._conversations._allowance
        before = resident()
        for _ in range(WORKERS):
            # Few frames are taken off the socket, and none of them is looked at.
            worker = await run.join(max_queue=1)
            granted = await worker.lease()
            for item in granted.items:
                await worker.send(Fetch(granted.lease, (item.index,)))
        everything = WORKERS * AT_ONCE * PORTION_BYTES
        await until(lambda: allowance.held == everything)
        assert resident() - before < everything + 150_000_000
        # 1.9 GB were asked for.
    assert allowance.held == 0


async def test_workers_that_take_nothing_leave_others_their_portion_of_a_small_memory(
    tmp_path: Path, monkeypatch: object
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    content = random.Random(1).randbytes(3 * PORTION_BYTES + 17)
    for number in range(16):
        (root / f"{number:03}.jpg").write_bytes(content)
    async with led(tmp_path, root=root, chunk_size=8) as run:
        small = Allowance(budget=2 * PORTION_BYTES)
        run.orchestrator._conversations._allowance = small
        stuck = await run.join(max_queue=1)
        granted = await stuck.lease()
        for item in granted.items:
            await stuck.send(Fetch(granted.lease, (item.index,)))
        await until(lambda: small.held == 3 * PORTION_BYTES)
        other = await run.join()
        lease = (await other.lease()).lease
        assert await whole_image(other, lease, 8) == content
        assert small.held == 3 * PORTION_BYTES


async def whole_image(worker: ScriptedWorker, lease: int, item: int) -> bytes:
    """Fetch an image as a worker does, piece by piece."""
    fetches = Fetches()
    fetches.open()
    fetches.want(lease, item)  # type: ignore[arg-type]
    (question,) = fetches.due(now=0.0)
    await worker.send(question)
    while True:
        image = fetches.receive(await worker.expect(Image), now=0.0)
        if image is not None:
            assert not image.error
            return image.payload


async def test_an_image_that_is_cut_short_while_it_is_sent_is_answered_with_the_reason(
    tmp_path: Path,
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    file = root / "a.jpg"
    with file.open("wb") as stream:
        stream.truncate(50 * PORTION_BYTES)
    async with led(tmp_path, root=root) as run:
        worker = await run.join(max_queue=1)
        granted = await worker.lease()
        await worker.send(Fetch(granted.lease, (0,)))
        received = len((await worker.expect(Image)).payload)
        os.truncate(file, 40 * PORTION_BYTES)
        while (image := await worker.expect(Image)).more:
            assert image.offset == received
            received += len(image.payload)
        assert "ends early" in image.error
        assert image.offset == received == 40 * PORTION_BYTES
