"""How little a worker's token is worth: what its holder may send, and what becomes of it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from caption_flow.orchestrator.server import conversation
from caption_flow.protocol.messages import (
    Ack,
    Fetch,
    Heartbeat,
    Hello,
    Release,
    Results,
    Want,
)
from caption_flow.protocol.rows import CAPTIONED, FAILED, MAX_TEXT_BYTES, Row, StageStats
from caption_flow.storage import writes
from tests.integration.orchestrator.parties import led, row, until
from tests.integration.orchestrator.test_tokens import items_of


async def test_items_of_the_same_chunk_that_another_holds_are_not_taken(tmp_path: Path) -> None:
    """The chunk is one; each of the two has half of it, and may report its own half only."""
    async with led(tmp_path, images=16, chunk_size=16) as run:
        await until(lambda: run.orchestrator.progress.listed)  # near the end chunks are shared
        first, second = await run.join(), await run.join()
        mine, others = await first.lease(), await second.lease()
        assert mine.chunk == others.chunk
        seq = await first.report(mine.lease, [*items_of(mine), *items_of(others)])
        await first.acknowledged(seq)
        assert set(run.rows()) == set(items_of(mine))
        await second.work_off(others)
        assert set(run.rows()) == {*items_of(mine), *items_of(others)}


async def test_replayed_and_reordered_numbers_store_nothing_twice(tmp_path: Path) -> None:
    async with led(tmp_path, images=8) as run:
        worker = await run.join()
        granted = await worker.lease()
        items = items_of(granted)
        lie = [Row(item, CAPTIONED, {"captions": ["another"]}) for item in items[:2]]
        await worker.report(granted.lease, items[:2], seq=9)
        await worker.report(granted.lease, items[:2], seq=9, rows=lie)
        await worker.report(granted.lease, items[2:4], seq=3)
        await worker.report(granted.lease, items[:2], seq=1, rows=lie)
        await worker.report(granted.lease, items[4:], seq=2**40)
        await worker.acknowledged(2**40)
        assert {item: found["captions"] for item, found in run.rows().items()} == {
            item: [f"caption of {item}"] for item in items
        }


async def test_a_lease_number_that_was_made_up_brings_nothing(tmp_path: Path) -> None:
    async with led(tmp_path, images=8) as run:
        worker = await run.join()
        for lease in (0, 1, 2**62, -1):
            seq = await worker.report(lease, range(8))
            await worker.acknowledged(seq)
        assert run.rows() == {}
        assert run.orchestrator.progress.done == 0


def text_of(length: int) -> dict[str, Any]:
    return {"outputs": {"captions": ["x" * length]}}


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        (text_of(MAX_TEXT_BYTES + 1), "captions"),
        ({"outputs": {"captions": ["x"] * 10_001}}, "captions"),
        ({"content_hash": "x" * 1025}, "content_hash"),
        ({"image_format": "x" * 1025}, "image_format"),
        ({"models": ["x" * 1025]}, "models"),
        ({"recipe": "x" * 1025}, "recipe"),
        ({"stage_stats": [StageStats("x" * 1025, 1, 1, ("stop",), 1)]}, "stage_stats"),
        ({"stage_stats": [StageStats("x", 1, 1, ("x" * 1025,), 1)]}, "stage_stats"),
        ({"status": FAILED, "error_kind": "k", "error": "x" * (2**14 + 1)}, "error"),
        ({"status": FAILED, "error_kind": "x" * 65, "error": "e"}, "error_kind"),
        ({"status": FAILED, "error_kind": "rm -rf", "error": "e"}, "error_kind"),
        ({"status": FAILED, "error_kind": "a\nb", "error": "e"}, "error_kind"),
        ({"status": FAILED, "error_kind": "", "error": "e"}, "error_kind"),
    ],
)
async def test_what_is_longer_than_anybody_needs_is_refused_and_leaves_no_trace(
    tmp_path: Path, facts: dict[str, Any], what: str
) -> None:
    async with led(tmp_path, images=8) as run:
        worker = await run.join()
        granted = await worker.lease()
        item = items_of(granted)[0]
        default = {"status": CAPTIONED, **({} if "status" in facts else text_of(1))}
        sent = Row(item, **{**default, **facts})
        await worker.report(granted.lease, [item], rows=[sent])
        code, reason = await worker.closed()
        assert code == 1008
        assert what in reason
        assert run.rows() == {}
        await (await run.join()).work_until_finished()


async def test_the_longest_text_that_is_taken_is_stored_as_it_is(tmp_path: Path) -> None:
    async with led(tmp_path, images=8) as run:
        worker = await run.join()
        granted = await worker.lease()
        item = items_of(granted)[0]
        text = "\x1b[2J<script>alert(1)</script>{caption}%s\x00" + "é" * (MAX_TEXT_BYTES // 4)
        sent = Row(item, CAPTIONED, {"captions": [text]})
        await worker.acknowledged(await worker.report(granted.lease, [item], rows=[sent]))
        assert run.rows()[item]["captions"] == [text]


async def test_kinds_of_failure_that_one_contributor_invents_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "MOST_KINDS", 5)
    async with led(tmp_path, images=8) as run:
        worker = await run.join()
        granted = await worker.lease()
        for number, item in enumerate(items_of(granted)[:6]):
            kind = Row(item, FAILED, error_kind=f"kind_{number}", error="e")
            seq = await worker.report(granted.lease, [item], rows=[kind])
            if number < 5:
                await worker.acknowledged(seq)
        code, reason = await worker.closed()
        assert (code, "kinds" in reason) == (1008, True)
        assert len(run.orchestrator.progress.failures) == 5


def frame(**fields: Any) -> bytes:
    return msgspec.msgpack.encode(fields)


@pytest.mark.parametrize(
    "message",
    [
        frame(type="hello", name="n" * 201, session="s" * 32),
        frame(type="hello", name="n", session="s" * 65),
        frame(type="hello", name="n", session="s" * 32, version="v" * 201),
        frame(type="hello", name="n", session="s" * 32, device="d" * 201),
        frame(type="hello", name="n", session="s" * 32, stages=["x" * 201]),
        frame(type="hello", name="n", session="s" * 32, stages=["x"] * 101),
        frame(type="hello", name="n", session="s" * 32, leases={n: [] for n in range(100_001)}),
    ],
)
async def test_a_hello_that_says_too_much_is_refused(tmp_path: Path, message: bytes) -> None:
    async with led(tmp_path) as run:
        worker = await run.connect()
        await worker.connection.send(message)
        assert (await worker.closed())[0] == 1008
        assert not run.orchestrator.links


@pytest.mark.parametrize(
    "message",
    [
        frame(type="heartbeat", stats={f"s{number}": 1.0 for number in range(129)}),
        frame(type="heartbeat", stats={"s" * 201: 1.0}),
        frame(type="results", seq=1, lease=1, items=[0] * 4097, rows=b""),
        frame(type="results", seq=0, lease=1, items=[0], rows=b""),
        frame(type="fetch", lease=1, items=[0] * 4097),
        frame(type="release", lease=1, suspects=[0] * (2**16 + 1)),
        frame(type="recalled", leases={1: [0] * (2**20 + 1)}),
    ],
)
async def test_a_message_that_says_too_much_is_refused(tmp_path: Path, message: bytes) -> None:
    async with led(tmp_path) as run:
        worker = await run.join()
        await worker.connection.send(message)
        assert (await worker.closed())[0] == 1008
        other = await run.join()
        await other.work_off(await other.lease())


async def test_who_speaks_too_fast_is_heard_more_slowly_and_not_shut_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "WORKER_MESSAGES_PER_SECOND", 50.0)
    async with led(tmp_path, images=40) as run:
        chatty, other = await run.join(), await run.join()
        for _ in range(200):  # a hundred at once, and then fifty a second
            await chatty.send(Heartbeat())
        began = time.monotonic()
        await other.work_off(await other.lease())
        assert time.monotonic() - began < 1.5, "nobody else is slowed"
        await chatty.send(Want(1))
        async with asyncio.timeout(10):
            await chatty.next()
        assert time.monotonic() - began >= 1.5


async def test_suspects_are_looked_at_within_the_lease_only(tmp_path: Path) -> None:
    async with led(tmp_path, images=8) as run:
        worker = await run.join()
        granted = await worker.lease()
        await worker.send(Release(granted.lease, True, (2**48, 999, items_of(granted)[0]), "x"))
        await worker.send(Fetch(granted.lease, (0,)))
        await worker.next()
        assert run.orchestrator.progress.pending == 8


async def test_text_of_others_cannot_write_lines_of_its_own_into_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import structlog  # noqa: PLC0415

    from caption_flow.cli.logs import configure_logging  # noqa: PLC0415

    monkeypatch.setattr("structlog._config._CONFIG", structlog._config._Configuration())
    configure_logging("test", verbose=True)
    # Loggers that are used here must not remember this for the tests that follow.
    structlog.configure(cache_logger_on_first_use=False)
    monkeypatch.setattr(conversation, "log", structlog.get_logger())
    async with led(tmp_path) as run:
        evil = "\x1b[2J\n2026-01-01 00:00:00 [error] Error: all is lost \u202e"
        worker = await run.connect()
        await worker.send(Hello(evil, worker.session, device=evil))
        await worker.next()
    said = capsys.readouterr().err
    assert "worker joined" in said
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert not any(line.startswith("2026-01-01") for line in said.splitlines())
    (line,) = [line for line in said.splitlines() if "worker joined" in line]
    assert line.count("all is lost") == 2, "its name, and its device"


async def test_a_refused_report_is_never_acknowledged(tmp_path: Path) -> None:
    async with led(tmp_path, images=8) as run:
        worker = await run.join()
        granted = await worker.lease()
        await worker.send(Results(5, granted.lease, tuple(items_of(granted)), b"no rows"))
        await worker.report(granted.lease, [], seq=6)
        await worker.closed()
        assert not any(isinstance(message, Ack) for message in worker.heard)
        assert row(0)
