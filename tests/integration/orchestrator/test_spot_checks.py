"""Workers of low trust are checked by others, over real sockets: honest ones, and one that lies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs
from websockets.exceptions import ConnectionClosed

from caption_flow.protocol.messages import (
    Ack,
    Finished,
    Grant,
    GrantedLease,
    Release,
    Wait,
    Want,
)
from caption_flow.protocol.rows import CAPTIONED, FAILED, Row
from caption_flow.storage.manager import StorageManager
from tests.integration.orchestrator.parties import (
    OTHER_TOKEN,
    TOKEN,
    Run,
    ScriptedWorker,
    led,
    until,
)
from tests.integration.orchestrator.test_tokens import is_let_in, items_of

IMAGES = 64
WORDS = [f"word{number}" for number in range(400)]


def truth(item: int) -> str:
    """What is to be seen in an item; no two have much in common."""
    return " ".join(random.Random(item).sample(WORDS, 20))


def lie(item: int) -> str:
    return truth(item + 10_000)


def settings(*, other: str = "full", **checks: Any) -> dict[str, Any]:
    """`TOKEN` is of low trust; all that it brings is checked unless said otherwise."""
    entries = [
        {"token": TOKEN, "name": "somebody", "trust": "low"},
        {"token": OTHER_TOKEN, "name": "somebody else", "trust": other},
    ]
    return {
        "auth": {"worker_tokens": entries},
        "spot_checks": {"share": 1.0, "min_samples": 5, **checks},
    }


class Captioner:
    """A worker that says what it is made to say, of whatever it is granted, until it ends."""

    def __init__(self, worker: ScriptedWorker, says: Any) -> None:
        self.worker = worker
        self.says = says
        self.granted: list[GrantedLease] = []
        self.acknowledged = 0
        self.reported = 0

    def rows(self, granted: GrantedLease) -> list[Row]:
        rows = []
        for item in items_of(granted):
            said = self.says(item)
            fingerprint = self.recipe
            rows.append(
                Row(item, FAILED, error_kind="odd", error="odd", recipe=fingerprint)
                if said is None
                else Row(item, CAPTIONED, {"captions": [said]}, recipe=fingerprint)
            )
        return rows

    @property
    def recipe(self) -> str:
        assert self.worker.welcome is not None
        return self.worker.welcome.recipe.fingerprint

    async def work(self) -> Finished | None:
        """Work until the end is told, or until shut out."""
        try:
            await self.worker.send(Want(1))
            while True:
                match await self.worker.next():
                    case Grant(leases):
                        for granted in leases:
                            self.granted.append(granted)
                            self.reported = await self.worker.report(
                                granted.lease, items_of(granted), rows=self.rows(granted)
                            )
                        await self.worker.send(Want(1))
                    case Wait(seconds):
                        await asyncio.sleep(min(seconds, 0.5))  # as a worker does
                        await self.worker.send(Want(1))
                    case Ack(seq):
                        self.acknowledged = seq
                    case Finished() as finished:
                        return finished
        except ConnectionClosed:
            return None


@asynccontextmanager
async def checked(tmp_path: Path, images: int = IMAGES, **more: Any) -> AsyncIterator[Run]:
    async with led(tmp_path, images=images, **more) as run:
        await until(lambda: run.orchestrator.progress.listed)
        yield run


def standing(run: Run, name: str = "somebody") -> dict[str, Any]:
    contributors: Any = run.orchestrator.steering.report()["contributors"]
    return next(one for one in contributors if one["name"] == name)


def check_all_are_true(run: Run, images: int = IMAGES) -> None:
    rows = run.rows()
    assert set(rows) == set(range(images))
    assert {item: row["captions"] for item, row in rows.items()} == {
        item: [truth(item)] for item in range(images)
    }


async def test_an_honest_worker_of_low_trust_is_checked_and_nothing_is_stored_twice(
    tmp_path: Path,
) -> None:
    async with checked(tmp_path, **settings(on_cheat="revoke")) as run:
        low = Captioner(await run.join(), truth)
        full = Captioner(await run.join(token=OTHER_TOKEN), truth)
        ends = await asyncio.gather(low.work(), full.work())
        assert [end.captioned for end in ends if end is not None] == [IMAGES, IMAGES]
        check_all_are_true(run)
        mine = {item for granted in low.granted for item in items_of(granted)}
        theirs = [item for granted in full.granted for item in items_of(granted)]
        rows = run.rows()
        assert all(rows[item]["contributor"] == "somebody" for item in mine)
        assert sorted(theirs) == list(range(IMAGES)), "each of them once, those of others as checks"
        said = standing(run)
        assert (said["checks"], said["agreement"], said["flagged"]) == (len(mine), 1.0, False)
        assert standing(run, "somebody else")["checks"] == 0
        await until(lambda: full.acknowledged == full.reported or full.worker.heard)
    manager = StorageManager(tmp_path / "run")
    exported = (await manager.get_storage_contents()).rows
    assert sorted(row["item_index"] for row in exported) == list(range(IMAGES))
    await manager.close()


async def test_a_worker_that_lies_is_flagged_and_its_rows_stay_if_nothing_else_is_asked(
    tmp_path: Path,
) -> None:
    with capture_logs() as logs:
        async with checked(tmp_path, **settings()) as run:
            liar = Captioner(await run.join(), lie)
            full = Captioner(await run.join(token=OTHER_TOKEN), truth)
            await asyncio.gather(liar.work(), full.work())
            said = standing(run)
            assert said["flagged"]
            assert said["agreement"] < 0.2
            assert said["may_connect"]
            assert len(run.rows()) == IMAGES
            assert {row["contributor"] for row in run.rows().values()} >= {"somebody"}
    assert sum("answers differ" in line["event"] for line in logs) == 1
    async with checked(tmp_path, **settings()) as run:
        assert standing(run)["flagged"], "it is remembered"


async def test_a_worker_that_lies_is_cut_off_and_all_it_did_is_done_again(
    tmp_path: Path,
) -> None:
    async with checked(tmp_path, **settings(on_cheat="revoke"), lease_seconds=600) as run:
        liar = Captioner(await run.join(), lie)
        lying = asyncio.create_task(liar.work())
        await until(lambda: run.orchestrator.progress.done > 30)
        full = Captioner(await run.join(token=OTHER_TOKEN), truth)
        end = await full.work()
        assert await lying is None
        assert (await liar.worker.closed())[1].startswith("its answers differ")
        assert end is not None
        assert end.captioned == IMAGES
        check_all_are_true(run)
        assert {row["contributor"] for row in run.rows().values()} == {"somebody else"}
        assert not await is_let_in(run, TOKEN)
        said = standing(run)
        assert (said["flagged"], said["captioned"], said["may_connect"]) == (True, 0, False)
        assert run.orchestrator.progress.done == IMAGES
    async with checked(tmp_path, **settings(on_cheat="revoke")) as run:
        assert not await is_let_in(run, TOKEN)
        assert run.orchestrator.is_complete


async def test_the_run_does_not_end_before_the_last_items_of_a_liar_are_looked_at(
    tmp_path: Path,
) -> None:
    """All is terminal before anybody else has said a word; then others come, who have checks."""
    async with checked(tmp_path, images=8, **settings(on_cheat="revoke")) as run:
        full = Captioner(await run.join(token=OTHER_TOKEN), truth)
        liar = Captioner(await run.join(), lie)
        lying = asyncio.create_task(liar.work())
        await until(lambda: run.orchestrator.progress.done == 8)
        assert not run.orchestrator.is_complete
        assert (await full.work()) == Finished(8, 0)
        await lying
        check_all_are_true(run, 8)


async def test_a_cut_that_a_kill_interrupted_is_made_at_the_next_start(tmp_path: Path) -> None:
    from caption_flow.storage.people import KeepStanding, Standing  # noqa: PLC0415

    async with checked(tmp_path, images=8, **settings(share=0.0)) as run:
        await Captioner(await run.join(), lie).work()
        mark = KeepStanding("somebody", Standing(9, 0.0, 9, 0.0, flagged=True, cut_off=True))
        await run.orchestrator.write(mark)
    async with checked(tmp_path, images=8, **settings(share=0.0)) as run:
        await until(lambda: run.orchestrator.progress.pending == 8)
        assert run.rows() == {}
        assert not await is_let_in(run, TOKEN)
        end = await Captioner(await run.join(token=OTHER_TOKEN), truth).work()
        assert end == Finished(8, 0)


async def test_a_worker_that_says_of_good_images_that_they_are_broken_lies_too(
    tmp_path: Path,
) -> None:
    async with checked(tmp_path, **settings(on_cheat="revoke")) as run:
        liar = Captioner(await run.join(), lambda _: None)
        lying = asyncio.create_task(liar.work())
        await until(lambda: run.orchestrator.progress.done > 30)
        end = await Captioner(await run.join(token=OTHER_TOKEN), truth).work()
        await lying
        assert end == Finished(IMAGES, 0)


async def test_a_checker_of_low_trust_cannot_have_an_honest_worker_cut_off(
    tmp_path: Path,
) -> None:
    async with checked(tmp_path, **settings(other="low", on_cheat="revoke")) as run:
        honest = Captioner(await run.join(), truth)
        liar = Captioner(await run.join(token=OTHER_TOKEN), lie)
        ends = await asyncio.gather(honest.work(), liar.work())
        assert None not in ends
        assert standing(run)["flagged"]
        assert standing(run, "somebody else")["flagged"], "it is one word against another"
        assert await is_let_in(run, TOKEN)


async def test_whoever_is_of_full_trust_checks_while_there_is_anybody(tmp_path: Path) -> None:
    third = "a third worker's token"
    more = settings(other="low")
    more["auth"]["worker_tokens"].append({"token": third, "name": "third"})
    async with checked(tmp_path, images=8, **more) as run:
        from caption_flow.protocol.messages import AddToken  # noqa: PLC0415
        from tests.integration.orchestrator.test_tokens import asked, digest  # noqa: PLC0415

        await asked(run, AddToken("worker", "third", digest(third)))
        trusted = Captioner(await run.join(token=third), truth)
        idle = Captioner(await run.join(token=OTHER_TOKEN), truth)
        low = Captioner(await run.join(), truth)
        low_work = asyncio.create_task(low.work())
        await until(lambda: run.orchestrator.progress.done == 8)
        idle_work = asyncio.create_task(idle.work())
        await trusted.work()
        await asyncio.gather(low_work, idle_work)
        assert not idle.granted
        assert sum(len(items_of(granted)) for granted in trusted.granted) == 8


async def test_with_nobody_else_there_the_run_ends_and_it_is_said_once(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with checked(tmp_path, **settings()) as run:
            one, two = Captioner(await run.join(), truth), Captioner(await run.join(), truth)
            ends = await asyncio.gather(one.work(), two.work())
            assert None not in ends
    assert sum("nobody is connected whose token" in line["event"] for line in logs) == 1


async def test_a_check_that_nobody_answers_holds_the_end_up_for_a_lease_and_not_longer(
    tmp_path: Path,
) -> None:
    async with checked(tmp_path, images=8, **settings(), lease_seconds=1.5) as run:
        lazy = await run.join(token=OTHER_TOKEN)
        await lazy.send(Want(1))
        await lazy.expect(Grant)
        low = Captioner(await run.join(), truth)
        working = asyncio.create_task(low.work())
        await lazy.vanish()
        lazy = await run.join(token=OTHER_TOKEN)
        await lazy.send(Want(1))
        async with asyncio.timeout(15):
            assert await working == Finished(8, 0)


async def test_a_lease_for_checks_is_its_sessions_alone(tmp_path: Path) -> None:
    async with checked(tmp_path, images=8, **settings()) as run:
        full = await run.join(token=OTHER_TOKEN)
        low = Captioner(await run.join(), truth)
        working = asyncio.create_task(low.work())
        await until(lambda: run.orchestrator.progress.done == 8)
        check = await full.lease()
        items = items_of(check)
        image = await full.image(check.lease, items[0])
        assert image.payload
        for forgery in (Release(check.lease), None):
            thief = await run.join()
            assert (await thief.image(check.lease, items[0])).error
            if forgery is None:
                await thief.report(check.lease, items)
            else:
                await thief.send(forgery)
            assert await thief.closed() == (1008, f"lease {check.lease} is not yours")
        nonsense = await run.join(token=OTHER_TOKEN)
        await full.report(check.lease, [*items, max(items) + 1])
        code, reason = await full.closed()
        assert (code, reason) == (1008, f"a report names items that are not in lease {check.lease}")
        check = await nonsense.lease()
        await nonsense.report(check.lease, items_of(check), payload=b"no rows")
        code, reason = await nonsense.closed()
        assert (code, "Arrow" in reason) == (1008, True)
        again = Captioner(await run.join(token=OTHER_TOKEN), truth)
        await asyncio.gather(again.work(), working)
        assert standing(run)["agreement"] == 1.0


async def test_a_paused_run_hands_out_no_checks_and_gives_none_up(tmp_path: Path) -> None:
    async with checked(tmp_path, images=8, **settings(), lease_seconds=1.0) as run:
        full = Captioner(await run.join(token=OTHER_TOKEN), truth)
        low = Captioner(await run.join(), truth)
        lasting = asyncio.create_task(low.work())
        await until(lambda: run.orchestrator.progress.done == 8)
        await run.orchestrator.pause()
        working = asyncio.create_task(full.work())
        await asyncio.sleep(2.5)  # longer than the end would wait for anybody
        assert not full.granted
        await run.orchestrator.resume()
        assert await working == Finished(8, 0)
        await lasting
        assert standing(run)["checks"] == 8
