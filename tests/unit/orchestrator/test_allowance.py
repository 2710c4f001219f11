"""Memory for images: whoever stops waiting for it is passed over."""

from __future__ import annotations

import asyncio

from caption_flow.orchestrator.server.allowance import Allowance


async def test_who_was_cancelled_while_waiting_is_passed_over() -> None:
    allowance = Allowance(budget=10, portion=1)
    entered = asyncio.Event()
    leave = asyncio.Event()

    async def hold(worker: str, size: int) -> None:
        async with allowance.hold(worker, size):
            entered.set()
            await leave.wait()

    first = asyncio.create_task(hold("a", 10))
    await entered.wait()
    waiting = [asyncio.create_task(hold(name, 10)) for name in "bc"]
    await asyncio.sleep(0)
    # In one step, so that room becomes free before the one that is cancelled can withdraw.
    leave.set()
    waiting[0].cancel()
    await asyncio.gather(first, waiting[1])
    assert waiting[0].cancelled()
    assert allowance.held == 0
