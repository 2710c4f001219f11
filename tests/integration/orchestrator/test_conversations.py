"""What a worker may do, and that one which does more harms nobody but itself."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.exceptions import ConnectionClosed

from caption_flow.orchestrator.server import conversation
from caption_flow.orchestrator.sources.base import Item, SourceError
from caption_flow.protocol.codec import MAX_FRAME_BYTES
from caption_flow.protocol.messages import (
    Ack,
    Fetch,
    Finished,
    Grant,
    Heartbeat,
    Hello,
    Image,
    Release,
    Trim,
    Want,
)
from caption_flow.protocol.places import FilePlace
from caption_flow.protocol.rows import FAILED, Row
from caption_flow.storage.errors import StorageFullError
from caption_flow.storage.writes import CommitRows
from tests.integration.orchestrator.parties import (
    Run,
    ScriptedWorker,
    led,
    row,
    session_id,
    until,
)
from tests.integration.storage.folders import disk_full


def items_of(granted: object) -> list[int]:
    return [item.index for item in granted.items]  # type: ignore[attr-defined]  # a GrantedLease


async def others_are_well(run: Run, worker: ScriptedWorker) -> None:
    """The other worker's lease goes on, and so does the run."""
    await worker.work_off(await worker.lease())
    assert run.orchestrator.progress.captioned


# ---------------------------------------------------------------- frames that do not fit


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ("text", "text frame"),
        (b"", "does not fit"),
        (b"\xff\xff\xff", "does not fit"),
        (b"\x81\xa4type\xa7unknown", "does not fit"),
        (b"\x81\xa4type\xa3ack", "does not fit"),  # an orchestrator's message
        (b"\x82\xa4type\xa4want\xa6chunks\xff", "does not fit"),  # a negative count
        (b"\x81\xa4type\xa5hello", "does not fit"),  # without its fields
    ],
)
@pytest.mark.parametrize("joined", [True, False])
async def test_a_frame_that_does_not_fit_closes_that_session_and_no_other(
    tmp_path: Path, frame: str | bytes, reason: str, joined: bool
) -> None:
    async with led(tmp_path) as run:
        other = await run.join()
        broken = await run.join() if joined else await run.connect()
        await broken.connection.send(frame)
        code, said = await broken.closed()
        assert code == 1008
        assert reason in said
        await others_are_well(run, other)


async def test_the_first_message_is_hello_and_hello_is_said_once(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        rude = await run.connect()
        await rude.send(Want(1))
        assert await rude.closed() == (1008, "the first message must be hello")
        chatty = await run.join()
        await chatty.send(Hello("again", chatty.session))
        assert await chatty.closed() == (1008, "hello is said once")
        await others_are_well(run, await run.join())


async def test_a_session_id_that_anybody_could_guess_is_refused(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        short = await run.connect(session="1")
        await short.send(Hello("name", "1"))
        assert (await short.closed())[0] == 1008


async def test_a_frame_too_large_for_the_protocol_closes_that_session(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        other = await run.join()
        large = await run.join()
        await large.connection.send(bytes(64 * 2**20 + 1))
        assert (await large.closed())[0] == 1009
        await others_are_well(run, other)


# ---------------------------------------------------------------- leases of others


async def test_a_report_on_somebody_elses_lease_is_refused_and_nothing_of_it_counts(
    tmp_path: Path,
) -> None:
    async with led(tmp_path) as run:
        owner, thief = await run.join(), await run.join()
        granted = await owner.lease()
        await thief.report(granted.lease, items_of(granted))
        code, reason = await thief.closed()
        assert (code, reason) == (1008, f"lease {granted.lease} is not yours")
        assert run.rows() == {}
        await owner.work_off(granted)
        assert set(run.rows()) == set(items_of(granted))


async def test_an_item_outside_the_lease_is_refused_with_all_that_came_with_it(
    tmp_path: Path,
) -> None:
    async with led(tmp_path) as run:
        worker = await run.join()
        granted = await worker.lease()
        outside = max(items_of(granted)) + 1
        await worker.report(granted.lease, [*items_of(granted), outside])
        code, reason = await worker.closed()
        assert code == 1008
        assert "not in" in reason
        assert run.rows() == {}
        assert not run.orchestrator.progress.captioned


@pytest.mark.parametrize("outside", [2**48, 10**9])
async def test_an_item_that_does_not_exist_is_refused(tmp_path: Path, outside: int) -> None:
    async with led(tmp_path) as run:
        worker = await run.join()
        granted = await worker.lease()
        await worker.report(granted.lease, [outside])
        assert (await worker.closed())[0] == 1008
        assert run.rows() == {}


# ---------------------------------------------------------------- rows that are not what they say


def rows_of_others(items: list[int]) -> dict[str, object]:
    return {"rows": [row(item + 1) for item in items]}


def too_few(items: list[int]) -> dict[str, object]:
    return {"rows": [row(item) for item in items[:-1]]}


def another_order(items: list[int]) -> dict[str, object]:
    return {"rows": [row(item) for item in reversed(items)]}


def no_arrow(items: list[int]) -> dict[str, object]:
    return {"payload": b"ARROW1 and nothing more"}


def no_status_of_ours(items: list[int]) -> dict[str, object]:
    return {"rows": [Row(item, "nearly", {"captions": ["x"]}) for item in items]}


def a_failure_without_a_reason(items: list[int]) -> dict[str, object]:
    return {"rows": [Row(item, FAILED) for item in items]}


def a_caption_without_a_text(items: list[int]) -> dict[str, object]:
    return {"rows": [Row(item, "captioned") for item in items]}


def a_caption_with_a_reason(items: list[int]) -> dict[str, object]:
    return {"rows": [row(item, error_kind="odd", error="odd") for item in items]}


@pytest.mark.parametrize(
    "lie",
    [
        rows_of_others,
        too_few,
        another_order,
        no_arrow,
        no_status_of_ours,
        a_failure_without_a_reason,
        a_caption_without_a_text,
        a_caption_with_a_reason,
    ],
)
async def test_rows_that_are_not_what_they_say_leave_no_trace(tmp_path: Path, lie: object) -> None:
    async with led(tmp_path, images=8) as run:
        liar = await run.join()
        granted = await liar.lease()
        items = items_of(granted)
        await liar.report(granted.lease, items, **lie(items))  # type: ignore[operator]
        # Right behind it, before anybody can have looked at the first one:
        await liar.report(granted.lease, [])
        code, _ = await liar.closed()
        assert code == 1008
        assert not any(isinstance(message, Ack) for message in liar.heard)
        assert run.rows() == {}
        assert not run.orchestrator.progress.done
        honest = await run.join()
        finished = await honest.work_until_finished()
        assert (finished.captioned, finished.failed) == (8, 0)
        assert set(run.rows()) == set(range(8))


# ---------------------------------------------------------------- reports, twice and late


async def test_a_report_sent_twice_is_acknowledged_twice_and_stored_once(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        worker = await run.join()
        granted = await worker.lease()
        items = items_of(granted)
        seq = await worker.report(granted.lease, items[:4])
        await worker.acknowledged(seq)
        await worker.vanish()
        again = await run.join(session=worker.session, leases=[granted])
        other_text = [Row(item, "captioned", {"captions": ["another text"]}) for item in items[:4]]
        await again.report(granted.lease, items[:4], seq=seq, rows=other_text)
        await again.acknowledged(seq)
        assert {r["captions"][0] for r in run.rows().values()} == {
            f"caption of {item}" for item in items[:4]
        }


async def test_an_acknowledgement_is_sent_only_for_what_another_reader_finds(
    tmp_path: Path,
) -> None:
    async with led(tmp_path, images=64) as run:
        worker = await run.join()
        for _ in range(4):
            granted = await worker.lease()
            for item in items_of(granted):
                seq = await worker.report(granted.lease, [item])
                await worker.acknowledged(seq)
                assert item in run.rows()


async def test_what_an_ended_lease_still_brings_counts_if_nobody_else_was_first(
    tmp_path: Path,
) -> None:
    async with led(tmp_path, images=8, lease_seconds=0.6) as run:
        slow = await run.join()
        granted = await slow.lease()
        await slow.expect(Trim)  # it was silent for too long: its items are somebody else's
        assert not run.orchestrator.progress.leased
        seq = await slow.report(granted.lease, items_of(granted)[:3])
        await slow.acknowledged(seq)
        assert set(run.rows()) == set(items_of(granted)[:3])
        other = await run.join()
        assert (await other.work_until_finished()).captioned == 8
        assert set(run.rows()) == set(range(8))


async def test_of_two_workers_with_the_same_item_the_first_one_counts(tmp_path: Path) -> None:
    async with led(tmp_path, images=8, lease_seconds=0.6) as run:
        slow = await run.join()
        granted = await slow.lease()
        await slow.expect(Trim)
        quick = await run.join()
        await quick.work_until_finished()
        texts = {item: found["captions"] for item, found in run.rows().items()}
        late = [Row(item, "captioned", {"captions": ["late"]}) for item in items_of(granted)]
        seq = await slow.report(granted.lease, items_of(granted), rows=late)
        await slow.acknowledged(seq)
        assert {item: found["captions"] for item, found in run.rows().items()} == texts


async def test_what_a_lease_that_ended_before_a_restart_still_brings_is_acknowledged_when_durable(
    tmp_path: Path,
) -> None:
    """A worker stopped past its lease, an orchestrator restarted meanwhile, then late results."""
    async with led(tmp_path, images=8, lease_seconds=0.6) as run:
        slow = await run.join()
        granted = await slow.lease()
        await slow.expect(Trim)
    async with led(tmp_path) as run:
        late = await run.join(session=slow.session)
        seq = await late.report(granted.lease, items_of(granted))
        await late.acknowledged(seq)
        assert set(run.rows()) == set(items_of(granted))


@pytest.mark.parametrize(
    ("field", "taken"), [("captions", True), ("other", False)], ids=["same field", "another field"]
)
async def test_what_comes_late_counts_under_a_changed_recipe_that_has_the_same_fields(
    tmp_path: Path, field: str, taken: bool
) -> None:
    async with led(tmp_path, images=8) as run:
        slow = await run.join()
        granted = await slow.lease()
    stage = {"name": "new", "prompts": ["Another prompt."], "output_field": field}
    async with led(tmp_path, vllm={"model": "m", "stages": [stage]}) as run:
        late = await run.join(session=slow.session, leases=[granted])
        seq = await late.report(granted.lease, items_of(granted))
        await late.acknowledged(seq)
        assert set(run.rows()) == (set(items_of(granted)) if taken else set())


# ---------------------------------------------------------------- images


def content_of(path: bytes) -> bytes:
    return Path(path.decode()).read_bytes()


def grow(path: bytes, size: int) -> bytes:
    """Make a file larger and return what is in it then."""
    content = random.Random(size).randbytes(size)
    Path(path.decode()).write_bytes(content)
    return content


def remove(path: bytes) -> None:
    Path(path.decode()).unlink()


async def test_image_bytes_are_sent_within_ones_own_lease_and_not_beyond(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        worker, other = await run.join(), await run.join()
        granted, foreign = await worker.lease(), await other.lease()
        described = granted.items[0]
        assert isinstance(described.place, FilePlace)
        image = await worker.image(granted.lease, described.index)
        assert image.payload == content_of(described.place.path)
        assert not image.error
        for lease, item in (
            (foreign.lease, foreign.items[0].index),
            (granted.lease, foreign.items[0].index),
            (999_999, 0),
            (granted.lease, 2**48),
        ):
            refused = await worker.image(lease, item)
            assert (refused.payload, refused.error) == (b"", "the lease is over")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (SourceError("the shard default has changed"), "the shard default has changed"),
        (TypeError("a defect"), "the orchestrator failed while reading it"),
    ],
)
async def test_whatever_goes_wrong_with_an_image_is_an_answer_to_who_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def broken(shard: str, item: int) -> Item:
        raise error

    async with led(tmp_path) as run:
        worker = await run.join()
        granted = await worker.lease()
        monkeypatch.setattr(run.orchestrator._source, "locate", broken)
        image = await worker.image(granted.lease, granted.items[0].index)
        assert says in image.error
        assert image.kind == "image_missing"


async def test_an_image_that_has_vanished_is_answered_with_the_reason(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        worker = await run.join()
        granted = await worker.lease()
        gone, there = granted.items[0], granted.items[1]
        assert isinstance(gone.place, FilePlace)
        remove(gone.place.path)
        image = await worker.image(granted.lease, gone.index)
        assert image.payload == b""
        assert "No such file" in image.error
        assert (await worker.image(granted.lease, there.index)).payload


async def test_an_acknowledgement_overtakes_a_large_image(tmp_path: Path) -> None:
    """Also one that fits into no frame: it comes in pieces, and between any two others pass."""
    async with led(tmp_path, images=8) as run:
        worker = await run.join()
        granted = await worker.lease()
        large, other = granted.items[:2]
        assert isinstance(large.place, FilePlace)
        content = grow(large.place.path, MAX_FRAME_BYTES + 2**20)
        await worker.send(Fetch(granted.lease, (large.index,)))
        pieces = [await worker.expect(Image)]
        await worker.report(granted.lease, [other.index])
        # Nobody reads meanwhile, so that the image cannot be through before the row is on disk.
        await until(lambda: other.index in run.rows())

        before = len(worker.heard)
        while pieces[-1].more:
            pieces.append(await worker.expect(Image))
        heard = [type(message) for message in worker.heard[before:]]
        assert Ack in heard
        assert heard.index(Ack) < len(heard) / 2
        assert b"".join(piece.payload for piece in pieces) == content
        sizes = [len(piece.payload) for piece in pieces]
        assert [piece.offset for piece in pieces] == [sum(sizes[:n]) for n in range(len(sizes))]


async def test_more_images_than_anybody_needs_at_once_are_refused(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        worker = await run.join()
        granted = await worker.lease()
        await worker.send(Fetch(granted.lease, (granted.items[0].index,) * 600))
        code, reason = await worker.closed()
        assert code == 1008
        assert "images" in reason


# ---------------------------------------------------------------- coming back


async def test_a_session_that_returns_keeps_its_leases_and_nothing_is_done_twice(
    tmp_path: Path,
) -> None:
    async with led(tmp_path, images=8) as run:
        worker = await run.join()
        granted = await worker.lease()
        other = await run.join()
        await worker.vanish()
        again = await run.join(session=worker.session, leases=[granted])
        assert again.welcome is not None
        assert again.welcome.leases == (granted.lease,)
        await again.work_off(granted)
        assert (await again.work_until_finished()).captioned == 8
        await other.expect(Finished)
        assert not any(isinstance(message, Grant) for message in other.heard)


async def test_a_session_that_returns_after_a_restart_keeps_its_leases(tmp_path: Path) -> None:
    async with led(tmp_path, images=8) as run:
        worker = await run.join()
        granted = await worker.lease()
        seq = await worker.report(granted.lease, items_of(granted)[:2])
        await worker.acknowledged(seq)
    async with led(tmp_path) as run:
        other = await run.join(session=session_id(77))
        again = await run.join(session=worker.session, leases=[granted])
        assert again.welcome is not None
        assert again.welcome.leases == (granted.lease,)
        await again.work_off(granted)
        assert (await other.work_until_finished()).captioned == 8
        assert set(run.rows()) == set(range(8))


async def test_a_lease_its_session_does_not_name_any_more_is_handed_out_again(
    tmp_path: Path,
) -> None:
    async with led(tmp_path, images=8) as run:
        worker = await run.join()
        granted = await worker.lease()
        await worker.vanish()
        again = await run.join(session=worker.session, leases=[])
        assert again.welcome is not None
        assert again.welcome.leases == ()
        assert items_of(await again.lease()) == items_of(granted)


async def test_a_second_connection_of_a_session_takes_the_place_of_the_first(
    tmp_path: Path,
) -> None:
    async with led(tmp_path, images=8) as run:
        first = await run.join()
        granted = await first.lease()
        second = await run.join(session=first.session, leases=[granted])
        assert await first.closed() == (1000, "the session has reconnected")
        assert second.welcome is not None
        assert second.welcome.leases == (granted.lease,)
        await second.work_off(granted)
        assert len(run.orchestrator._conversations.links) == 1


async def test_a_worker_that_says_goodbye_leaves_its_work_to_others_at_once(
    tmp_path: Path,
) -> None:
    async with led(tmp_path, images=8, lease_seconds=60) as run:
        leaver, other = await run.join(), await run.join()
        granted = await leaver.lease()
        await leaver.connection.close(1000)
        assert items_of(await other.lease()) == items_of(granted)


async def test_what_is_given_back_in_peace_is_granted_again_without_blame(tmp_path: Path) -> None:
    async with led(tmp_path, images=8, max_attempts=1) as run:
        worker = await run.join()
        for _ in range(4):
            granted = await worker.lease()
            await worker.send(Release(granted.lease, reason="stopping"))
        assert (await worker.work_until_finished()).failed == 0


async def test_heartbeats_alone_keep_a_lease(tmp_path: Path) -> None:
    async with led(tmp_path, images=8, lease_seconds=1.2) as run:
        worker = await run.join()
        granted = await worker.lease()
        other = await run.join()
        await other.send(Want(1))
        loop = asyncio.get_running_loop()
        until_seconds = loop.time() + 3.0  # more than two leases long
        while loop.time() < until_seconds:
            await worker.send(Heartbeat({"rate": 1.0}))
            await asyncio.sleep(0.2)
        assert not any(isinstance(message, Trim) for message in worker.heard)
        await worker.work_off(granted)


# ---------------------------------------------------------------- the end


async def test_the_end_is_told_to_all_and_to_those_who_come_late(tmp_path: Path) -> None:
    async with led(tmp_path, images=8) as run:
        worker, idle = await run.join(), await run.join()
        finished = await worker.work_until_finished()
        assert (finished.captioned, finished.failed) == (8, 0)
        assert await idle.expect(Finished) == finished
        late = await run.join()
        assert await late.expect(Finished) == finished
        await late.send(Want(1))
        assert await late.expect(Finished) == finished


async def test_a_run_that_was_finished_before_is_finished_at_once(tmp_path: Path) -> None:
    async with led(tmp_path, images=8) as run:
        await (await run.join()).work_until_finished()
    async with led(tmp_path) as run:
        assert (await (await run.join()).expect(Finished)).captioned == 8
        assert run.orchestrator.finished.is_set()


async def test_the_end_is_not_told_before_the_last_row_is_durable(tmp_path: Path) -> None:
    async with led(tmp_path, images=8) as run:
        worker = await run.join()
        await worker.work_until_finished()
        assert set(run.rows()) == set(range(8))


# ---------------------------------------------------------------- slow readers


async def test_a_worker_that_reads_nothing_costs_a_bounded_amount_of_memory(
    tmp_path: Path,
) -> None:
    async with led(tmp_path, images=96, chunk_size=32) as run:
        for path in (tmp_path / "images").rglob("*.bmp"):
            path.write_bytes(bytes(2**20))
        worker = await run.join()
        other = await run.join()
        granted = await worker.lease()
        reads = 0
        read = run.orchestrator._places.run

        async def counted(work: Callable[[], Any]) -> Any:
            nonlocal reads
            reads += 1
            return await read(work)

        run.orchestrator._places.run = counted  # type: ignore[method-assign]
        asked = items_of(granted) * (500 // len(granted.items))
        await worker.send(Fetch(granted.lease, tuple(asked)))
        await until(lambda: reads >= 8)
        await others_are_well(run, other)
        before = 0
        while reads != before:  # until it has stopped reading
            before = reads
            await others_are_images(other)
        # What was read and is in no socket yet, and what the sockets on both ends can hold.
        assert reads <= 40
        for _ in asked:
            while (image := await worker.expect(Image)).more:
                pass
            assert not image.error
        assert reads == len(asked)


async def others_are_images(worker: ScriptedWorker) -> None:
    """Let the orchestrator go around a few times."""
    for _ in range(20):
        await worker.image(0, 0)


@pytest.mark.parametrize("stuck", [True, False])
async def test_a_worker_that_lets_answers_pile_up_is_disconnected(
    tmp_path: Path, stuck: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "_MOST_STRAYS", 10**9)
    async with led(tmp_path, images=96, chunk_size=32) as run:
        other = await run.join()
        deaf = await run.join(max_queue=1)
        link = run.orchestrator._conversations.links[deaf.session]
        if stuck:
            # First of all fill both ends' sockets, so that a send is under way that never returns.
            for path in (tmp_path / "images").rglob("*.bmp"):
                path.write_bytes(bytes(8 * 2**20))
            granted = await deaf.lease()
            await deaf.send(Fetch(granted.lease, tuple(items_of(granted)[:8])))
            sent = -1
            while sent != (sent := link.connection.transport.get_write_buffer_size()) or not sent:
                await others_are_images(other)
        with contextlib.suppress(ConnectionClosed):
            for _ in range(1000):  # far more than the sockets between them hold
                await deaf.send(Fetch(0, tuple(range(400))))
        await until(lambda: deaf.session not in run.orchestrator._conversations.links)
        assert link.outgoing.overflowed
        await others_are_well(run, other)


async def test_results_that_cannot_be_stored_slow_their_sender_and_hold_up_no_drain(
    tmp_path: Path,
) -> None:
    """On a full disk a worker's socket fills, not the orchestrator's memory."""
    with pytest.raises(StorageFullError):  # noqa: PT012  -- by the run itself
        async with led(tmp_path, images=400, chunk_size=400) as run:
            worker, other = await run.join(), await run.join()
            granted = await worker.lease()
            write, held = run.orchestrator._store.write, 0

            def counted(change: Any) -> asyncio.Future[None]:
                nonlocal held
                held += isinstance(change, CommitRows)
                return write(change)

            run.orchestrator._store.write = counted  # type: ignore[method-assign, assignment]
            writer = run.orchestrator._store._writer
            assert writer is not None
            writer._transaction = no_room  # type: ignore[method-assign, assignment]
            for item in items_of(granted)[:100]:
                await worker.report(granted.lease, [item])
            await until(lambda: held >= 32)
            await others_are_images(other)
            assert held == 32
            assert run.orchestrator.trouble is not None
            assert run.orchestrator._ledger.paused
    assert not any(isinstance(message, Ack) for message in worker.heard)


def no_room(_group: object) -> None:
    raise disk_full()


async def test_a_refusal_names_the_worker_in_the_log(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with led(tmp_path) as run:
            worker = await run.join(name="gpu box 3")
            await worker.connection.send(b"junk")
            await worker.closed()
    assert any("broke the protocol" in entry["event"] for entry in logs)
    assert any("gpu box 3" in str(entry) for entry in logs)
