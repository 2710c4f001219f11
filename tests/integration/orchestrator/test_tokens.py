"""Tokens that come, go and are limited while a run goes on, over real sockets."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.exceptions import InvalidStatus

from caption_flow.orchestrator.server import server
from caption_flow.protocol.messages import (
    AddToken,
    Done,
    Finished,
    Grant,
    GrantedLease,
    ListTokens,
    Message,
    Problem,
    RemoveToken,
    Status,
    StatusRequest,
    TokenLimits,
    Wait,
    Want,
)
from tests.integration.orchestrator.parties import (
    ADMIN_TOKEN,
    MONITOR_TOKEN,
    OTHER_TOKEN,
    TOKEN,
    Run,
    ScriptedWorker,
    led,
    until,
)

NEW_TOKEN = "a token that was added later"


def digest(token: str) -> bytes:
    return sha256(token.encode()).digest()


def limited(**limits: Any) -> dict[str, Any]:
    """The limits of `TOKEN` as a configuration has them."""
    return {"auth": {"worker_tokens": [{"token": TOKEN, "name": "somebody", **limits}]}}


async def asked(run: Run, request: Message, token: str = ADMIN_TOKEN) -> Done | Problem | Status:
    admin = await run.connect(token=token)
    await admin.send(request)
    answer = await admin.next()
    assert isinstance(answer, Done | Problem | Status)
    await admin.vanish()
    return answer


async def is_let_in(run: Run, token: str) -> bool:
    try:
        worker = await run.connect(token=token)
    except InvalidStatus as refusal:
        if refusal.response.status_code != HTTPStatus.UNAUTHORIZED:
            raise
        return False
    await worker.vanish()
    return True


def items_of(granted: GrantedLease) -> list[int]:
    return [item.index for item in granted.items]


# ---------------------------------------------------------------- strangers


async def test_refusals_that_are_held_back_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound a stranger hears at once, and whoever has a token is never in the way."""
    monkeypatch.setattr(server, "MOST_WAITING", 3)
    async with led(tmp_path) as run:
        for _ in range(4):
            await is_let_in(run, "guessed")  # from here on a refusal takes 1.6 seconds and more
        held_back = [asyncio.create_task(is_let_in(run, "guessed")) for _ in range(3)]
        await asyncio.sleep(0.3)
        began = time.monotonic()
        assert not await is_let_in(run, "guessed")
        assert await is_let_in(run, TOKEN)
        assert time.monotonic() - began < 1.0
        assert not any(one.done() for one in held_back)
        await asyncio.gather(*held_back)


async def test_refusals_do_not_fill_the_log(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with led(tmp_path) as run:
            await asyncio.gather(*(is_let_in(run, "guessed") for _ in range(6)))
    lines = [line for line in logs if "without a known token" in line["event"]]
    assert len(lines) == 3, "the first, the second, the fourth"


async def test_a_token_in_bytes_that_are_no_ascii_is_just_unknown(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.orchestrator.port)
        writer.write(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
            b"Authorization: Bearer \xff\xfe\x80\r\n\r\n"
        )
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
        writer.close()
        await writer.wait_closed()


# ---------------------------------------------------------------- added and removed


async def test_an_added_token_lets_in_and_survives_a_restart_as_a_digest(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        assert not await is_let_in(run, NEW_TOKEN)
        answer = await asked(run, AddToken("worker", "newcomer", digest(NEW_TOKEN)))
        assert isinstance(answer, Done)
        worker = await run.join(token=NEW_TOKEN)
        await worker.work_off(await worker.lease())
        assert {row["contributor"] for row in run.rows().values()} == {"newcomer"}
    async with led(tmp_path) as run:
        assert await is_let_in(run, NEW_TOKEN)
    for file in (tmp_path / "run").rglob("*"):
        if file.is_file():
            assert NEW_TOKEN.encode() not in file.read_bytes()


async def test_a_removed_token_ends_its_sessions_and_their_leases_wait_at_once(
    tmp_path: Path,
) -> None:
    async with led(tmp_path, images=8, lease_seconds=600) as run:
        gone, stays = await run.join(), await run.join(token=OTHER_TOKEN)
        granted = await gone.lease()
        answer = await asked(run, RemoveToken("somebody"))
        assert isinstance(answer, Done)
        assert answer.facts == {"sessions": 1}
        assert run.orchestrator.progress.pending == 8, "at once, not when somebody has waited long"
        assert await gone.closed() == (1008, "its token was removed")
        assert not await is_let_in(run, TOKEN)
        again = await stays.lease()
        assert items_of(again) == items_of(granted)
        await stays.work_off(again)


async def test_the_leases_of_a_lost_session_do_not_wait_for_a_token_that_is_removed(
    tmp_path: Path,
) -> None:
    async with led(tmp_path, images=8, lease_seconds=600) as run:
        lost, stays = await run.join(), await run.join(token=OTHER_TOKEN)
        granted = await lost.lease()
        await lost.vanish()
        await until(lambda: len(run.orchestrator.links) == 1)
        await asked(run, RemoveToken("somebody"))
        assert run.orchestrator.progress.pending == 8
        assert items_of(await stays.lease()) == items_of(granted)


async def test_what_a_removed_session_has_sent_and_nobody_read_does_not_count(
    tmp_path: Path,
) -> None:
    async with led(tmp_path, images=8) as run:
        gone = await run.join()
        granted = await gone.lease()
        link = run.orchestrator._conversations.links[gone.session]
        for _ in range(32):
            await link.unacknowledged.acquire()  # as if the disk were slow
        await gone.report(granted.lease, items_of(granted))
        await until(lambda: bool(link.unacknowledged._waiters))
        await asked(run, RemoveToken("somebody"))
        link.unacknowledged.release()
        await gone.closed()
        other = await run.join(token=OTHER_TOKEN)
        await other.work_until_finished()
        assert {row["contributor"] for row in run.rows().values()} == {"somebody else"}


async def test_a_removed_token_of_the_configuration_stays_out_until_it_is_added_again(
    tmp_path: Path,
) -> None:
    async with led(tmp_path) as run:
        await asked(run, RemoveToken("somebody"))
    async with led(tmp_path) as run:
        assert not await is_let_in(run, TOKEN)
        assert isinstance(await asked(run, AddToken("worker", "again", digest(TOKEN))), Done)
        assert await is_let_in(run, TOKEN)
    async with led(tmp_path) as run:
        worker = await run.join()
        await worker.work_off(await worker.lease())
        assert {row["contributor"] for row in run.rows().values()} == {"again"}


async def test_an_observer_is_shown_out_with_its_token(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        monitor = await run.connect(token=MONITOR_TOKEN)
        await monitor.send(StatusRequest())
        await monitor.expect(Status)
        await asked(run, RemoveToken("a monitor"))
        assert await monitor.closed() == (1008, "its token was removed")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (AddToken("worker", "somebody", digest(NEW_TOKEN)), "has a token as a worker already"),
        (AddToken("worker", "another", digest(TOKEN)), "is 'somebody''s already"),
        (AddToken("worker", " ", digest(NEW_TOKEN)), "printable"),
        (AddToken("worker", "a\nb", digest(NEW_TOKEN)), "printable"),
        (AddToken("worker", "x", digest(NEW_TOKEN), TokenLimits(expires=1.0)), "expired at 1970"),
        (RemoveToken("nobody"), "no token is 'nobody''s; there are 'a monitor'"),
        (RemoveToken("an admin"), "the last admin's token"),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    tmp_path: Path, request_: Message, reason: str
) -> None:
    async with led(tmp_path) as run:
        answer = await asked(run, request_)
        assert isinstance(answer, Problem)
        assert reason in answer.message
        assert await is_let_in(run, TOKEN)
        assert not await is_let_in(run, NEW_TOKEN)
    with closing(sqlite3.connect(tmp_path / "run" / "ledger.sqlite3")) as ledger:
        assert ledger.execute("SELECT * FROM tokens").fetchall() == []


@pytest.mark.parametrize("token", [MONITOR_TOKEN, TOKEN])
async def test_nobody_but_an_admin_changes_tokens_or_sees_them(tmp_path: Path, token: str) -> None:
    async with led(tmp_path) as run:
        for request in (
            AddToken("admin", "me", digest(NEW_TOKEN)),
            RemoveToken("somebody else"),
            ListTokens(),
        ):
            other = await run.connect(token=token)
            await other.send(request)
            if token == TOKEN:
                assert (await other.closed())[0] == 1008
            else:
                assert "admin's" in (await other.expect(Problem)).message
        assert await is_let_in(run, OTHER_TOKEN)
        assert not await is_let_in(run, NEW_TOKEN)


async def test_a_list_of_tokens_says_names_and_limits_and_nothing_that_stands_for_a_token(
    tmp_path: Path,
) -> None:
    async with led(tmp_path, **limited(max_workers=3, trust="low")) as run:
        await run.join()
        answer = await asked(run, ListTokens())
        assert isinstance(answer, Done)
        known = {one["name"]: one for one in answer.facts["tokens"]}
        assert known["somebody"] == {
            "name": "somebody",
            "role": "worker",
            "max_workers": 3,
            "trust": "low",
            "workers": 1,
        }
        assert known["an admin"] == {"name": "an admin", "role": "admin"}
        for token in (TOKEN, ADMIN_TOKEN):
            assert token not in repr(answer)
            assert digest(token).hex() not in repr(answer)
            assert repr(digest(token)) not in repr(answer)


async def test_a_configuration_read_anew_ends_the_sessions_of_tokens_it_has_no_more(
    tmp_path: Path,
) -> None:
    async with led(tmp_path, images=8, lease_seconds=600) as run:
        gone, stays = await run.join(), await run.join(token=OTHER_TOKEN)
        granted = await gone.lease()
        await asked(run, AddToken("worker", "newcomer", digest(NEW_TOKEN)))
        members = run.orchestrator.membership
        members.replace([one for one in members._tokens if one.name == "somebody else"])
        assert run.orchestrator.progress.pending == 8
        assert await gone.closed() == (1008, "its token is configured no more")
        assert await is_let_in(run, NEW_TOKEN), "it was added, and not by the configuration"
        assert items_of(await stays.lease()) == items_of(granted)


# ---------------------------------------------------------------- limits


async def test_more_workers_than_a_token_is_for_are_told_so_and_others_are_not_in_the_way(
    tmp_path: Path,
) -> None:
    async with led(tmp_path, images=40, **limited(max_workers=2)) as run:
        first, _ = await run.join(), await run.join()
        third = await run.connect()
        with pytest.raises(AssertionError):
            await expect_welcome(third)
        problem = third.heard[-1]
        assert isinstance(problem, Problem)
        assert problem.message == (
            "the token of 'somebody' is for 2 workers at a time, and 2 are connected"
        )
        await run.join(token=OTHER_TOKEN)
        await first.vanish()
        again = await run.join(session=first.session)
        await again.work_off(await again.lease())
        await until(lambda: len(run.orchestrator._conversations.links) == 3)


async def expect_welcome(worker: ScriptedWorker) -> None:
    from caption_flow.protocol.messages import Hello, Welcome  # noqa: PLC0415

    await worker.send(Hello(worker.session, worker.session))
    assert isinstance(await worker.next(), Welcome)


async def test_a_session_that_reconnects_is_no_second_worker(tmp_path: Path) -> None:
    async with led(tmp_path, **limited(max_workers=1)) as run:
        first = await run.join()
        again = await run.join(session=first.session)  # before the first one is known to be gone
        await again.work_off(await again.lease())


async def take_all(worker: ScriptedWorker) -> list[int]:
    """Do whatever is granted until the worker is told to wait; return the items."""
    done: list[int] = []
    while True:
        await worker.send(Want(1))
        match await worker.next():
            case Grant(leases):
                for granted in leases:
                    await worker.work_off(granted)
                    done += items_of(granted)
            case Wait() | Finished():
                return done


async def test_a_contributor_brings_no_more_items_than_its_token_is_for_over_all_restarts(
    tmp_path: Path,
) -> None:
    settings = limited(max_items=11)
    async with led(tmp_path, images=40, **settings) as run:
        worker = await run.join()
        granted = await worker.lease()
        await worker.work_off(granted)
        assert len(items_of(granted)) == 8
        other = await run.join()
        assert len(await take_all(other)) == 3, "what one has done, all have"
        assert await take_all(worker) == []
        wait = worker.heard[-1]
        assert isinstance(wait, Wait)
        assert wait.reason == ("the token of 'somebody' is for 11 items, done or in work: no more")
    async with led(tmp_path, **limited(max_items=12)) as run:
        assert len(await take_all(await run.join())) == 1
    async with led(tmp_path, **limited(max_items=12)) as run:
        assert await take_all(await run.join()) == []
        other = await run.join(token=OTHER_TOKEN)
        assert (await other.work_until_finished()).captioned == 40
        rows = run.rows()
        assert sum(row["contributor"] == "somebody" for row in rows.values()) == 12
        assert len(rows) == 40
        status = await asked(run, StatusRequest(), MONITOR_TOKEN)
        assert isinstance(status, Status)
        credited = {one["name"]: one for one in status.report["contributors"]}
        assert credited["somebody"]["captioned"] == 12
        assert credited["somebody"]["limits"] == {"max_items": 12}
        assert credited["somebody else"]["captioned"] == 28


async def test_workers_share_what_is_left_of_their_tokens_items(tmp_path: Path) -> None:
    """What one holds, another is not given; what it gives back, another gets."""
    async with led(tmp_path, images=40, **limited(max_items=10)) as run:
        first, second = await run.join(), await run.join()
        granted = await first.lease()
        assert len(items_of(granted)) == 8
        assert len(items_of(await second.lease())) == 2
        await second.send(Want(1))
        assert (await second.expect(Wait)).reason
        await first.connection.close()  # goodbye: its lease goes back
        await until(lambda: len(run.orchestrator._conversations.links) == 1)
        assert len(await take_all(second)) == 8


async def test_a_token_that_expires_ends_its_sessions_and_lets_nobody_in(tmp_path: Path) -> None:
    soon = time.time() + 1.5
    async with led(tmp_path, images=8, lease_seconds=600) as run:
        limits = TokenLimits(expires=soon)
        await asked(run, AddToken("worker", "guest", digest(NEW_TOKEN), limits))
        guest = await run.join(token=NEW_TOKEN)
        granted = await guest.lease()
        code, reason = await guest.closed()
        assert time.time() >= soon
        assert code == 1008
        assert reason.startswith("this token expired at ")
        with pytest.raises(InvalidStatus) as refusal:
            await run.connect(token=NEW_TOKEN)
        assert refusal.value.response.status_code == 403
        assert b"expired at" in bytes(refusal.value.response.body or b"")
        other = await run.join(token=OTHER_TOKEN)
        assert items_of(await other.lease()) == items_of(granted)
