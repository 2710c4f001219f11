"""Who gets in: tokens before frames, versions before messages, and what a stranger is told."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from websockets.exceptions import InvalidStatus

from caption_flow.dialing.dial import Endpoint, dial
from caption_flow.protocol.messages import Done, Problem, Shutdown, Status, StatusRequest, Want
from tests.integration.orchestrator.parties import (
    ADMIN_TOKEN,
    MONITOR_TOKEN,
    OTHER_TOKEN,
    TOKEN,
    Run,
    led,
    row,
    until,
)


async def refused(run: Run, **options: object) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as caught:
        await run.connect(**options)  # type: ignore[arg-type]  # a test's
    return caught.value.response.status_code, bytes(caught.value.response.body or b"").decode()


@pytest.mark.parametrize("token", [None, "", "guessed", TOKEN + "x", TOKEN.upper()])
async def test_without_a_known_token_nobody_gets_in(tmp_path: Path, token: str | None) -> None:
    async with led(tmp_path) as run:
        code, body = await refused(run, token=token)
        assert code == 401
        assert "token" in body
        assert TOKEN not in body


async def test_wrong_tokens_are_answered_more_and_more_slowly(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        took = []
        for _ in range(4):
            began = time.monotonic()
            await refused(run, token="guessed")
            took.append(time.monotonic() - began)
        assert took[0] >= 0.1
        assert took[3] >= 0.8
        began = time.monotonic()
        await run.join()
        assert time.monotonic() - began < 0.8, "a right token is let in without delay"


async def test_guessing_slows_nobody_who_is_in(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        worker = await run.join()
        guesses = [asyncio.create_task(refused(run, token="guessed")) for _ in range(5)]
        granted = await worker.lease()
        await worker.work_off(granted)
        assert not all(guess.done() for guess in guesses)
        await asyncio.gather(*guesses)


@pytest.mark.parametrize(
    ("offered", "side"), [("caption-flow.v2", "orchestrator"), ("caption-flow.v0", "worker")]
)
async def test_another_major_version_is_told_which_side_must_upgrade(
    tmp_path: Path, offered: str, side: str
) -> None:
    async with led(tmp_path) as run:
        code, body = await refused(run, subprotocol=offered)
        assert code == 426
        assert f"upgrade the {side}" in body


async def test_another_protocol_is_told_what_this_is(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        code, body = await refused(run, subprotocol="chat")
        assert code == 426
        assert "CaptionFlow" in body


async def test_a_version_is_not_told_to_somebody_without_a_token(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        code, body = await refused(run, token="guessed", subprotocol="chat")
        assert code == 401
        assert "CaptionFlow" not in body


async def test_health_is_answered_without_a_token(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.orchestrator.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_something_that_is_no_http_disturbs_nobody(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        worker = await run.join()
        _, writer = await asyncio.open_connection("127.0.0.1", run.orchestrator.port)
        writer.write(b"\x16\x03\x01\x02\x00 a TLS hello, say\r\n\r\n")
        await writer.drain()
        await worker.work_off(await worker.lease())
        writer.close()
        await writer.wait_closed()


async def test_a_monitor_sees_the_state_and_may_do_nothing(tmp_path: Path) -> None:
    async with led(tmp_path, images=5) as run:
        worker = await run.join(name="näme with spaces")
        await worker.work_off(await worker.lease())
        monitor = await run.connect(token=MONITOR_TOKEN)
        await monitor.send(StatusRequest())
        report = (await monitor.expect(Status)).report
        assert (report["total"], report["captioned"], report["state"]) == (5, 5, "finished")
        assert [one["name"] for one in report["workers"]] == ["näme with spaces"]
        await monitor.send(Shutdown())
        assert "may not" in (await monitor.expect(Problem)).message
        assert not run.orchestrator.draining


async def test_flags_are_counted_for_monitors_and_in_the_log(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with led(tmp_path, images=4) as run:
            worker = await run.join()
            granted = await worker.lease()
            items = [item.index for item in granted.items]
            rows = [row(item, flags=("length",)) for item in items[:-1]]
            rows.append(row(items[-1], flags=("length", "refusal")))
            await worker.acknowledged(await worker.report(granted.lease, items, rows=rows))
            monitor = await run.connect(token=MONITOR_TOKEN)
            await monitor.send(StatusRequest())
            report = (await monitor.expect(Status)).report
    expected = {"length": len(items), "refusal": 1}
    assert report["flagged"] == expected
    steps = [entry for entry in logs if entry["event"].startswith("step ")]
    assert steps[-1]["flagged"] == expected
    assert all(entry["flagged"] for entry in steps if "flagged" in entry), "a word about nothing"


async def test_the_log_has_no_word_of_flags_where_there_are_none(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with led(tmp_path, images=1) as run:
            worker = await run.join()
            await worker.work_off(await worker.lease())
            await until(run.orchestrator.finished.is_set)
    steps = [entry for entry in logs if entry["event"] == "step 1/1"]
    assert steps
    assert "flagged" not in steps[0]


async def test_a_monitor_that_speaks_as_a_worker_is_closed(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        monitor = await run.connect(token=MONITOR_TOKEN)
        await monitor.send(Want(1))
        assert (await monitor.closed())[0] == 1008


async def test_an_admin_may_end_the_run(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        admin = await run.connect(token=ADMIN_TOKEN)
        await admin.send(Shutdown())
        await admin.expect(Done)
        assert (await admin.closed())[0] == 1001
        assert run.orchestrator.draining


async def test_a_session_belongs_to_the_token_it_began_with(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        first = await run.join()
        granted = await first.lease()
        thief = await run.connect(token=OTHER_TOKEN, session=first.session)
        with pytest.raises(Exception, match="another token"):
            await thief.hello([granted])
        await first.work_off(granted)
        assert {row["contributor"] for row in run.rows().values()} == {"somebody"}


async def test_no_token_is_logged_even_where_a_library_logs_whole_requests(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with led(tmp_path) as run:
            await run.join()
            await refused(run, token="guessed wrongly")
            connection = await dial(Endpoint(run.url, OTHER_TOKEN))
            await connection.close()
    # The tests' own clients are as talkative as the library is by itself.
    ours = [one for one in caplog.records if one.name != "websockets.client"]
    said = "\n".join(one.getMessage() for one in ours)
    assert TOKEN not in said
    assert "guessed wrongly" not in said
    assert OTHER_TOKEN not in said
