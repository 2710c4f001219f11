"""A worker on a real socket: it comes back, loses nothing, says what is wrong, and ends in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import pytest
import structlog
from PIL import Image as Picture
from structlog.testing import LogCapture
from websockets.datastructures import Headers
from websockets.http11 import Response

from caption_flow.protocol.messages import (
    DRAIN_WORK_SECONDS,
    Ack,
    Drain,
    Fetch,
    Finished,
    Heartbeat,
    Hello,
    Image,
    ItemDescription,
    OrchestratorMessage,
    Problem,
    QualitySpec,
    Recall,
    Recalled,
    RecipeChanged,
    RecipeSpec,
    Release,
    Results,
    StageSpec,
    Trim,
    Wait,
    Want,
    Welcome,
)
from caption_flow.protocol.places import FilePlace
from caption_flow.worker.client import Address, Client
from caption_flow.worker.engines.base import Engine, EngineDied, EngineUnavailable
from caption_flow.worker.service import WorkerSettings, run_worker
from tests.support.engines import PATIENCE_SECONDS, ScriptedEngine
from tests.support.orchestrator import (
    ONE_STAGE,
    TOKEN,
    ScriptedOrchestrator,
    rows_of,
    scripted_orchestrator,
)


def png(shade: int) -> bytes:
    buffer = BytesIO()
    Picture.new("RGB", (8, 6), (shade % 256, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = {index: png(index) for index in range(64)}


class LogsWatched(LogCapture):
    """Collects what is logged, and tells when there is more."""

    def __init__(self) -> None:
        super().__init__()
        self.grew = asyncio.Event()

    def __call__(self, *arguments: Any) -> NoReturn:
        self.grew.set()
        super().__call__(*arguments)


@contextlib.contextmanager
def watched_logs() -> Iterator[LogsWatched]:
    processors = structlog.get_config()["processors"]
    before, captured = list(processors), LogsWatched()
    processors[:] = [captured]  # in place: loggers that exist already hold this very list
    try:
        yield captured
    finally:
        processors[:] = before


class Running:
    """A worker in this process, and what it logged."""

    def __init__(self, task: asyncio.Task[int], captured: LogsWatched) -> None:
        self.task, self._captured, self.logs = task, captured, captured.entries

    async def exit_code(self) -> int:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await asyncio.shield(self.task)

    async def says(self, part: str) -> None:
        """Wait until it logs something with ``part`` in it."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self.said(part):
                self._captured.grew.clear()
                await self._captured.grew.wait()

    @property
    def last_line(self) -> str:
        return str(self.logs[-1]["event"])

    def said(self, part: str) -> bool:
        return any(part in str(entry) for entry in self.logs)


@contextlib.asynccontextmanager
async def worker(
    orchestrator: ScriptedOrchestrator, *engines: ScriptedEngine, **settings: Any
) -> AsyncIterator[Running]:
    """Run a worker with these engines until it ends or the block does.

    They are by model; of several for one, each that is built is the next.
    """
    to_build = list(engines)

    def build(model: str, options: Mapping[str, Any], mock_results: bool) -> Engine:
        built = next((engine for engine in to_build if engine.model == model), None)
        if built is None:
            raise EngineUnavailable(f"no such model: {model}")
        to_build.remove(built)
        return built

    defaults = {"token": TOKEN, "name": "w", "when_finished": "shutdown", "connect_seconds": 5.0}
    chosen = WorkerSettings(server=orchestrator.url, **{**defaults, **settings})
    with watched_logs() as captured:
        task = asyncio.create_task(run_worker(chosen, build=build))
        try:
            yield Running(task, captured)
        finally:
            task.cancel()
            await asyncio.wait([task])
    assert not any(TOKEN in str(entry) for entry in captured.entries), "a token was logged"


def answering(**options: Any) -> ScriptedEngine:
    return ScriptedEngine(reply=lambda _: "a caption", **options)


# --------------------------------------------------------------------------- the way of an item


async def test_items_come_back_as_rows_and_the_end_is_an_exit_with_0() -> None:
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, answering()) as it:
        peer = await orchestrator.joined(total=3)
        assert await peer.expect(Want) == Want(2, 4)
        await peer.grant(1, [0, 1, 2])
        await peer.serve_images(IMAGES, until=3)
        rows = await peer.rows(3)
        began = time.monotonic()
        await peer.send(Finished(3, 0))
        assert await peer.closed() == (1000, "goodbye")
        assert await it.exit_code() == 0
        assert time.monotonic() - began < 1.0
        assert it.last_line == "finished, step 3/3"

    assert [row["captions"] for row in rows] == [["a caption"]] * 3
    assert {row["status"] for row in rows} == {"captioned"}
    assert {row["recipe"] for row in rows} == {"one stage"}


async def test_an_owners_look_ahead_bounds_what_is_prepared_ahead_of_the_engine() -> None:
    engine = ScriptedEngine(width=1)
    async with (
        scripted_orchestrator() as orchestrator,
        worker(orchestrator, engine, look_ahead_items=2),
    ):
        peer = await orchestrator.joined(total=8)
        await peer.grant(1, range(8))
        await peer.serve_images(IMAGES, until=3)
        await engine.has_count(1)
        for _ in range(3):
            stats = (await peer.expect(Heartbeat)).stats
        assert stats["in_flight"] == 3, "one in the engine, two ahead of it"
        assert stats["backlog"] == 5


async def test_tokens_and_starvation_are_in_the_heartbeat_and_at_the_end_in_the_log() -> None:
    async with (
        scripted_orchestrator() as orchestrator,
        worker(orchestrator, answering(width=4)) as it,
    ):
        peer = await orchestrator.joined(total=3)
        for _ in range(3):
            before = (await peer.expect(Heartbeat)).stats
        await peer.grant(1, [0, 1, 2])
        await peer.serve_images(IMAGES, until=3)
        await peer.rows(3)
        while (stats := (await peer.expect(Heartbeat)).stats)["done"] < 3:
            pass
        assert (stats["tokens_in"], stats["tokens_out"]) == (30, 6)
        assert stats["tokens_per_second"] >= 0
        assert stats["starved_no_lease"] > before["starved_no_lease"] > 0
        causes = ("no_lease", "fetch", "decode", "render", "back_pressure")
        assert stats["starved"] == pytest.approx(sum(stats[f"starved_{one}"] for one in causes))
        await peer.send(Finished(3, 0))
        assert await it.exit_code() == 0
        starved, ways = (str(line["event"]) for line in it.logs[-3:-1])
        assert "the engine was starved for " in starved
        assert ": no lease " in starved
        assert ways == "images: 3 sent by the orchestrator"


async def test_the_engine_hears_before_it_starts_how_requests_will_come() -> None:
    engine, other = answering(), answering(model="other")
    retry = QualitySpec(("length",), 1, ("length",), {"temperature": 1.0})
    stage = StageSpec("s", "m", ("p",), "captions", sampling={"top_p": 0.5}, quality=retry)
    last = StageSpec("t", "other", ("p",), "captions", sampling={"top_k": 3})
    recipe = RecipeSpec(stages=(stage, last), fingerprint="f")
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, engine, other):
        peer = await orchestrator.joined(recipe=recipe)
        await peer.expect(Want)
        assert engine.expected == [{"top_p": 0.5}, {"top_p": 0.5, "temperature": 1.0}]
        assert other.expected == [{"top_k": 3}]


async def test_the_same_file_is_read_here_and_any_other_is_asked_for(tmp_path: Path) -> None:
    described = []
    for index in range(4):
        path = tmp_path / f"{index}.png"
        path.write_bytes(IMAGES[index])
        found = path.stat()
        described.append(
            ItemDescription(index, FilePlace(os.fsencode(path), found.st_size, found.st_mtime_ns))
        )
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_bytes(IMAGES[2] + b"longer")
    os.utime(tmp_path / "3.png", ns=(0, 0))

    async with scripted_orchestrator() as orchestrator, worker(orchestrator, answering()):
        peer = await orchestrator.joined()
        await peer.expect(Want)
        await peer.grant(1, described)
        await peer.serve_images(IMAGES, until=3)
        rows = await peer.rows(4)
        asked = [item for m in peer.heard if isinstance(m, Fetch) for item in m.items]

    assert sorted(asked) == [1, 2, 3]
    assert {row["status"] for row in rows} == {"captioned"}


async def test_bytes_nobody_has_are_a_failed_row_with_the_orchestrators_reason() -> None:
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, answering()):
        peer = await orchestrator.joined()
        await peer.expect(Want)
        await peer.grant(1, [0, 1])
        await peer.serve_images({0: "the file is gone", 1: b"no picture"}, until=2)
        rows = await peer.rows(2)

    assert (rows[0]["error_kind"], rows[0]["error"]) == ("image_missing", "the file is gone")
    assert rows[1]["error_kind"] == "image_unrecognised"


async def test_a_kind_that_comes_with_the_reason_is_the_rows_own() -> None:
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, answering()):
        peer = await orchestrator.joined()
        await peer.expect(Want)
        await peer.grant(1, [0])
        await peer.serve_images({0: "nobody answers there"}, until=1, kind="link_gone")
        rows = await peer.rows(1)

    assert (rows[0]["error_kind"], rows[0]["error"]) == ("link_gone", "nobody answers there")


async def test_fetches_in_flight_are_bounded() -> None:
    async with (
        scripted_orchestrator() as orchestrator,
        worker(orchestrator, answering(width=64)),
    ):
        peer = await orchestrator.joined()
        await peer.expect(Want)
        await peer.grant(1, list(range(40)))
        for _ in range(16):
            await peer.expect(Fetch)
        for _ in range(3):  # heartbeats go on, and nothing but them comes
            assert isinstance(await peer.next(), Heartbeat | Want)


async def test_the_worker_says_hello_with_its_token_name_and_secret() -> None:
    async with (
        scripted_orchestrator() as orchestrator,
        worker(orchestrator, answering(), name="SimpleTuner caption worker 1 \udcff", gpus=("3",)),
    ):
        peer = await orchestrator.joined()
        assert peer.hello.name == "SimpleTuner caption worker 1 ?"
        assert len(peer.hello.session) == 32
        assert (peer.hello.engine, peer.hello.device) == ("vllm", "gpu 3")
        assert peer.connection.subprotocol == "caption-flow.v1"
        assert orchestrator.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"


async def test_heartbeats_go_on_while_the_engine_loads_and_leases_wait_for_it() -> None:
    engine = answering()
    engine.start_gate = asyncio.Event()
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, engine):
        peer = await orchestrator.joined()
        for _ in range(3):
            assert isinstance(await peer.next(), Heartbeat)
        engine.start_gate.set()
        await peer.expect(Want)
        assert (await peer.expect(Heartbeat)).stats["width"] == 4


async def test_trimmed_items_are_not_done() -> None:
    engine = ScriptedEngine(width=1)
    async with (
        scripted_orchestrator() as orchestrator,
        worker(orchestrator, engine) as it,
    ):
        peer = await orchestrator.joined()
        await peer.expect(Want)
        await peer.grant(1, list(range(64)))
        await peer.serve_images(IMAGES, until=2)
        await peer.send(Trim(1, tuple(range(20, 64))))
        engine.reply = lambda _: "a caption"
        await engine.until(lambda: bool(engine.prompts()))
        engine.answer("Describe.")
        await peer.serve_images(IMAGES, until=18)
        rows = await peer.rows(20)
        assert [row["item_index"] for row in rows] == list(range(20))
        await peer.send(Wait(60.0))
        assert not it.task.done()


async def test_why_there_is_nothing_to_do_is_said_once() -> None:
    reason = "the token of 'ada' is for 5 items, done or in work: no more"
    async with (
        scripted_orchestrator() as orchestrator,
        worker(orchestrator, ScriptedEngine(width=1)) as it,
    ):
        peer = await orchestrator.joined()
        for _ in range(3):
            await peer.expect(Want)
            await peer.send(Wait(0.0, reason=reason))
        await peer.expect(Want)
        said = [line["reason"] for line in it.logs if line["event"] == "nothing to do"]
        assert said == [reason]


async def test_what_is_given_up_on_a_recall_is_named_and_not_done() -> None:
    engine = ScriptedEngine(width=1)
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, engine):
        peer = await orchestrator.joined()
        await peer.expect(Want)
        await peer.grant(1, list(range(64)))
        await peer.serve_images(IMAGES, until=17)  # one in the engine, 16 loaded ahead of it
        await engine.has_prompt("Describe.")

        await peer.send(Recall())

        given = (await peer.expect(Recalled)).leases
        assert given == {1: tuple(range(32, 64))}, "half of what is not in the engine"
        engine.reply = lambda _: "a caption"
        engine.answer("Describe.")
        await peer.serve_images(IMAGES, until=32 - 17)
        rows = await peer.rows(32)
        assert [row["item_index"] for row in rows] == list(range(32))


# --------------------------------------------------------------------------- losing the connection


@pytest.mark.parametrize("how", ["vanishes", "closes"])
async def test_rows_that_were_not_acknowledged_come_again_first_after_a_reconnect(how: str) -> None:
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, answering()) as it:
        first = await orchestrator.joined()
        await first.expect(Want)
        await first.grant(1, [0, 1])
        await first.serve_images(IMAGES, until=2)
        before = await first.rows(2, acknowledge=False)
        if how == "vanishes":
            first.vanish()
        else:
            await first.close()

        second = await orchestrator.joined(leases=[1])
        assert second.hello.session == first.hello.session
        assert set(second.hello.leases) == {1}
        again = await second.next()
        assert isinstance(again, Results)
        assert again.seq == 1
        assert [row for row in rows_of(again) if row in before] == rows_of(again)
        await second.send(Ack(again.seq))
        await second.send(Finished(2, 0))
        assert await it.exit_code() == 0


async def test_work_goes_on_while_the_orchestrator_is_away() -> None:
    engine = ScriptedEngine(width=1)
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, engine) as it:
        first = await orchestrator.joined()
        await first.expect(Want)
        await first.grant(1, [0, 1, 2])
        await first.serve_images(IMAGES, until=3)
        await engine.has_count(1)
        await orchestrator.stop_listening()
        for count in range(1, 4):
            engine.answer("Describe.", f"caption {count}")
            await engine.has_seen(min(3, count + 1))
        await engine.until(lambda: not engine.in_flight)

        await orchestrator.listen()
        second = await orchestrator.joined(leases=[1])
        rows = await second.rows(3)
        # Which item came first is up to the threads that decode.
        captions = sorted(row["captions"] for row in rows)
        assert captions == [["caption 1"], ["caption 2"], ["caption 3"]]
        assert it.said("no connection, trying again")


class AbruptParty:
    """Loses its first connection before anything it said could leave."""

    def __init__(self) -> None:
        self.client: Client | None = None
        self.connections = 0

    def hello(self) -> Hello:
        return Hello("w", "s" * 32)

    def opened(self, welcome: Welcome) -> None:
        assert isinstance(welcome, Welcome)
        assert self.client is not None
        self.connections += 1
        for number in range(3):
            self.client.send(Want(self.connections * 10 + number))
        if self.connections == 1:
            self.client.redial("the test wants it")

    def heard(self, message: OrchestratorMessage) -> None: ...

    def closed(self) -> None: ...


async def test_what_could_not_be_sent_is_not_carried_over_to_the_next_connection() -> None:
    party = AbruptParty()
    async with scripted_orchestrator() as orchestrator:
        party.client = Client(Address(orchestrator.url, TOKEN), party)
        running = asyncio.create_task(party.client.run())
        await orchestrator.joined()
        second = await orchestrator.joined()
        assert await second.next() == Want(20)
        running.cancel()
        await asyncio.wait([running])


async def test_images_that_were_asked_for_are_asked_for_again() -> None:
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, answering()):
        first = await orchestrator.joined()
        await first.expect(Want)
        await first.grant(1, [5])
        await first.expect(Fetch)
        first.vanish()

        second = await orchestrator.joined(leases=[1])
        assert await second.expect(Fetch) == Fetch(1, (5,))


async def test_leases_that_were_lost_meanwhile_are_dropped() -> None:
    engine = ScriptedEngine()
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, engine):
        first = await orchestrator.joined()
        await first.expect(Want)
        await first.grant(1, [0])
        await first.serve_images(IMAGES, until=1)
        await engine.has_count(1)
        first.vanish()

        second = await orchestrator.joined()
        await engine.until(lambda: not engine.in_flight)
        await second.expect(Want)
        await second.grant(2, [0])
        await second.serve_images(IMAGES, until=1)
        await engine.has_count(1)
        engine.answer("Describe.")
        results = await second.expect(Results)
        assert results.lease == 2


async def test_a_frame_that_is_no_message_costs_the_connection_and_nothing_else() -> None:
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, answering()) as it:
        first = await orchestrator.joined()
        await first.expect(Want)
        await first.connection.send(b"\xc1 nonsense")
        assert (await first.closed())[0] == 1002

        await orchestrator.joined()
        assert not it.task.done()


# --------------------------------------------------------------------------- what is wrong


async def test_a_refused_token_ends_the_worker_at_once() -> None:
    async with (
        scripted_orchestrator() as orchestrator,
        worker(orchestrator, answering(), token="another") as it,
    ):
        assert await it.exit_code() == 1
        assert it.last_line == f"Error: the orchestrator at {orchestrator.url} refused the token"
        assert orchestrator.refusals == 1


@pytest.mark.parametrize("subprotocols", [None, ("caption-flow.v2",)])
async def test_another_protocol_ends_the_worker_and_says_what_to_do(
    subprotocols: tuple[str, ...] | None,
) -> None:
    async with (
        scripted_orchestrator(subprotocols=subprotocols) as orchestrator,
        worker(orchestrator, answering()) as it,
    ):
        assert await it.exit_code() == 1
        assert it.last_line.startswith("Error: ")
        assert "caption-flow.v1" in it.last_line


async def test_a_refusal_with_a_reason_is_passed_on() -> None:
    sentence = "this orchestrator speaks protocol 2: upgrade the worker"
    async with scripted_orchestrator() as orchestrator:
        orchestrator.refuse_with.append(
            Response(HTTPStatus.BAD_REQUEST, "Bad Request", Headers(), sentence.encode())
        )
        async with worker(orchestrator, answering()) as it:
            assert await it.exit_code() == 1
            assert sentence in it.last_line


async def test_a_problem_instead_of_a_welcome_ends_the_worker() -> None:
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, answering()) as it:
        peer = await orchestrator.peer()
        await peer.send(Problem("a worker of this session is connected already"))
        assert await it.exit_code() == 1
        assert "a worker of this session is connected already" in it.last_line


async def test_an_orchestrator_that_never_comes_is_waited_for_only_so_long() -> None:
    orchestrator = ScriptedOrchestrator()
    orchestrator.url = "ws://user:secret@127.0.0.1:9/?token=secret"
    async with worker(orchestrator, answering(), connect_seconds=0.3) as it:
        assert await it.exit_code() == 1
        assert it.last_line.startswith("Error: no connection to ws://127.0.0.1:9/ for 0 s: ")
        assert not it.said("secret")
        waits = [entry for entry in it.logs if "trying again" in entry["event"]]
        assert len(waits) == 1, "said once"


async def test_an_orchestrator_that_comes_late_is_found() -> None:
    orchestrator = ScriptedOrchestrator()
    await orchestrator.listen()
    await orchestrator.stop_listening()
    async with worker(orchestrator, answering()) as it:
        await it.says("trying again")
        await orchestrator.listen()
        await orchestrator.joined()
    await orchestrator.stop_listening()


async def test_an_address_that_is_none_is_refused_at_once() -> None:
    orchestrator = ScriptedOrchestrator()
    orchestrator.url = "http://127.0.0.1:9"
    async with worker(orchestrator, answering()) as it:
        assert await it.exit_code() == 1
        assert "write ws://host:port" in it.last_line


async def test_an_orchestrator_that_always_objects_is_given_up() -> None:
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, answering()) as it:
        for _ in range(5):
            peer = await orchestrator.joined()
            await peer.close(1008, "lease 7 is not yours")
        assert await it.exit_code() == 1
        assert "lease 7 is not yours" in it.last_line


async def test_a_model_that_cannot_be_loaded_ends_the_worker_with_the_reason() -> None:
    recipe = RecipeSpec(stages=(StageSpec("s", "huge", ("p",), "captions"),), fingerprint="f")
    async with scripted_orchestrator() as orchestrator, worker(orchestrator) as it:
        await orchestrator.joined(recipe=recipe)
        assert await it.exit_code() == 1
        assert it.last_line == "Error: no such model: huge"


async def test_a_recipe_that_cannot_be_run_ends_the_worker_with_the_reason() -> None:
    stage = StageSpec("s", "m", ("p",), "captions", requires=("nothing",))
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, answering()) as it:
        await orchestrator.joined(recipe=RecipeSpec(stages=(stage,), fingerprint="f"))
        assert await it.exit_code() == 1
        assert "nothing" in it.last_line


async def test_an_engine_that_is_gone_gives_its_lease_back_with_the_suspects() -> None:
    engine = ScriptedEngine(reply=lambda _: EngineDied("no device"))
    async with (
        scripted_orchestrator() as orchestrator,
        worker(orchestrator, engine, restart_backoff_seconds=0.0) as it,
    ):
        peer = await orchestrator.joined()
        await peer.expect(Want)
        await peer.grant(1, [0])
        await peer.serve_images(IMAGES, until=1)
        release = await peer.expect(Release)
        assert (release.lease, release.engine_died, release.suspects) == (1, True, (0,))
        assert await it.exit_code() == 1
        assert it.last_line.startswith("Error: the engine of m died")


# --------------------------------------------------------------------------- changes and the end


async def test_a_changed_recipe_applies_to_what_is_granted_after_it() -> None:
    changed = RecipeSpec(
        stages=(StageSpec("default", "m", ("Now in French.",), "french"),), fingerprint="changed"
    )
    engine = ScriptedEngine(reply=lambda request: f"answer to {request.prompt}")
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, engine):
        peer = await orchestrator.joined()
        await peer.expect(Want)
        await peer.grant(1, [0])
        engine.reply = None
        await peer.serve_images(IMAGES, until=1)
        await engine.has("Describe.")
        await peer.send(RecipeChanged(changed))
        engine.answer("Describe.")
        engine.reply = lambda request: f"answer to {request.prompt}"
        await peer.grant(2, [1])
        await peer.serve_images(IMAGES, until=1)
        by_lease: dict[int, Results] = {}
        while len(by_lease) < 2:
            results = await peer.expect(Results)
            by_lease[results.lease] = results
        (old,) = rows_of(by_lease[1])
        (new,) = rows_of(by_lease[2], ["french"])

    assert (old["recipe"], old["captions"]) == ("one stage", ["answer to Describe."])
    assert (new["recipe"], new["french"]) == ("changed", ["answer to Now in French."])


def recipe_of(fingerprint: str, *stages: StageSpec) -> RecipeSpec:
    return RecipeSpec(stages=stages, fingerprint=fingerprint)


async def test_a_changed_recipe_with_the_same_model_loads_nothing() -> None:
    engine = answering()
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, engine) as it:
        peer = await orchestrator.joined()
        await peer.expect(Want)
        await peer.send(RecipeChanged(recipe_of("f2", StageSpec("s", "m", ("p",), "captions"))))
        await it.says("the recipe changed")
        await peer.grant(1, [0])
        await peer.serve_images(IMAGES, until=1)
        (row,) = await peer.rows(1)
    assert row["recipe"] == "f2"
    assert engine.starts == 1


async def test_a_new_model_is_loaded_when_the_old_one_has_answered_what_it_was_asked() -> None:
    old, new = ScriptedEngine(), answering(model="large")
    other = recipe_of("f2", StageSpec("default", "large", ("p",), "captions"))
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, old, new):
        peer = await orchestrator.joined()
        await peer.grant(1, [0])
        await peer.serve_images(IMAGES, until=1)
        await old.has("Describe.")
        await peer.send(RecipeChanged(other))
        await peer.grant(2, [1])
        assert (await peer.expect(Recalled)).leases == {}, "the engine has it"
        assert (old.stops, new.starts) == (0, 0), "the old engine still has something to do"
        old.answer("Describe.", "of old")
        await peer.serve_images(IMAGES, until=1)
        rows = await peer.rows(2)
        assert (old.stops, new.starts) == (1, 1)
    assert [(row["recipe"], row["models"]) for row in rows] == [
        ("one stage", ["m"]),
        ("f2", ["large"]),
    ]


async def test_a_model_with_other_engine_options_is_loaded_anew_and_the_other_one_is_not() -> None:
    kept, first, anew = answering(model="a"), answering(model="b"), answering(model="b")

    def recipe(fingerprint: str, **options: Any) -> RecipeSpec:
        return recipe_of(
            fingerprint,
            StageSpec("one", "a", ("p",), "x", engine={"gpu_memory_utilization": 0.3}),
            StageSpec("two", "b", ("p",), "y", engine={"gpu_memory_utilization": 0.3, **options}),
        )

    async with (
        scripted_orchestrator() as orchestrator,
        worker(orchestrator, kept, first, anew) as it,
    ):
        peer = await orchestrator.joined(recipe=recipe("f1"))
        await peer.expect(Want)
        await peer.send(RecipeChanged(recipe("f2", dtype="float16")))
        await peer.grant(1, [0])
        await peer.serve_images(IMAGES, until=1)
        await it.says("this takes a model to be loaded")
        results = await peer.expect(Results)
    (row,) = rows_of(results, ("x", "y"))
    assert row["recipe"] == "f2"
    assert (kept.starts, kept.stops) == (1, 1), "stopped at the end only"
    assert (first.stops, anew.starts) == (1, 1)


async def test_a_recipe_that_changes_while_the_model_loads_is_followed_when_it_is_there() -> None:
    old, new = answering(), answering(model="large")
    old.start_gate = asyncio.Event()
    other = recipe_of("f2", StageSpec("default", "large", ("p",), "captions"))
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, old, new) as it:
        peer = await orchestrator.joined()
        await old.until(lambda: old.starts == 1)
        await peer.send(RecipeChanged(other))
        await it.says("the recipe changed")
        old.start_gate.set()
        await peer.grant(1, [0])
        await peer.serve_images(IMAGES, until=1)
        (row,) = await peer.rows(1)
    assert (row["recipe"], row["models"]) == ("f2", ["large"])


async def test_a_new_model_that_cannot_be_loaded_ends_the_worker_and_its_leases_go_back() -> None:
    other = recipe_of("f2", StageSpec("s", "unknown", ("p",), "captions"))
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, answering()) as it:
        peer = await orchestrator.joined()
        await peer.expect(Want)
        await peer.send(RecipeChanged(other))
        await peer.grant(1, [0])
        assert (await peer.expect(Release)).lease == 1
        assert await it.exit_code() == 1
        assert it.last_line == "Error: no such model: unknown"


async def test_a_worker_that_stays_connected_takes_new_work_after_the_end() -> None:
    async with (
        scripted_orchestrator() as orchestrator,
        worker(orchestrator, answering(), when_finished="stay_connected") as it,
    ):
        peer = await orchestrator.joined()
        await peer.expect(Want)
        await peer.send(Finished(0, 0))
        await peer.grant(1, [0])
        await peer.serve_images(IMAGES, until=1)
        assert len(await peer.rows(1)) == 1
        assert not it.task.done()


@pytest.mark.parametrize(("command", "code"), [("exit 7", 7), ("test $CAPTION_FLOW_FAILED = 2", 0)])
async def test_the_hook_decides_the_exit_code(command: str, code: int) -> None:
    async with (
        scripted_orchestrator() as orchestrator,
        worker(
            orchestrator, answering(), when_finished="post_exec_hook", post_exec_hook=command
        ) as it,
    ):
        peer = await orchestrator.joined()
        await peer.send(Finished(5, 2))
        assert await it.exit_code() == code


async def test_the_hook_is_for_the_end_of_the_run_only(tmp_path: Path) -> None:
    async with (
        scripted_orchestrator() as orchestrator,
        worker(
            orchestrator,
            answering(),
            when_finished="post_exec_hook",
            post_exec_hook=f"touch '{tmp_path}/ran'",
        ) as it,
    ):
        await (await orchestrator.joined()).expect(Want)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await it.exit_code() == 0
    assert not (tmp_path / "ran").exists()


async def test_the_orchestrators_drain_ends_a_worker_when_it_closes() -> None:
    engine = ScriptedEngine()
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, engine) as it:
        peer = await orchestrator.joined()
        await peer.expect(Want)
        await peer.grant(1, [0])
        await peer.serve_images(IMAGES, until=1)
        await engine.has_count(1)
        await peer.send(Drain("shutting down"))
        engine.answer("Describe.")
        await peer.rows(1)
        await peer.close()
        assert await it.exit_code() == 0
        assert it.last_line == "drained, step 1/1"


async def test_a_worker_that_stays_comes_back_after_the_orchestrators_drain() -> None:
    async with (
        scripted_orchestrator() as orchestrator,
        worker(orchestrator, answering(), when_finished="stay_connected"),
    ):
        peer = await orchestrator.joined()
        await peer.expect(Want)
        await peer.send(Drain("shutting down"))
        await peer.close()
        again = await orchestrator.joined()
        await again.expect(Want)


# --------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    engine = ScriptedEngine(width=1)
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, engine) as it:
        peer = await orchestrator.joined()
        await peer.expect(Want)
        await peer.grant(1, list(range(12)))
        await peer.serve_images(IMAGES, until=9)
        await engine.has_count(1)
        os.kill(os.getpid(), number)
        engine.reply = lambda _: "a caption"
        engine.answer("Describe.", "the first")
        rows = await peer.rows(9)
        assert (await peer.expect(Release)).lease == 1
        assert await it.exit_code() == 0
        assert it.last_line == "drained, step 9/9"
    assert [row["item_index"] for row in rows] == list(range(9))
    assert signal.getsignal(number) is before


async def test_a_second_signal_stops_at_once() -> None:
    engine = ScriptedEngine(width=1)
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, engine) as it:
        peer = await orchestrator.joined()
        await peer.expect(Want)
        await peer.grant(1, [0])
        await peer.serve_images(IMAGES, until=1)
        await engine.has_count(1)
        os.kill(os.getpid(), signal.SIGTERM)
        await it.says("a second signal stops at once")
        os.kill(os.getpid(), signal.SIGTERM)
        assert await it.exit_code() == 130


IGNORING_SIGINT = ("sh", "-c", 'trap "" INT; exec "$0" "$@"')


async def start_process(
    *arguments: str, before: Sequence[str] = (), **options: Any
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *before,
        sys.executable,
        "-m",
        "tests.support.worker_process",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["orchestrator", "worker", "shared"])},
        **options,
    )


@contextlib.asynccontextmanager
async def worker_process(*arguments: str, **options: Any) -> AsyncIterator[Any]:
    process = await start_process(*arguments, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def exit_of(process: asyncio.subprocess.Process) -> tuple[int | None, list[str]]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        output, _ = await process.communicate()
    return process.returncode, output.decode().splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_process_started_with_sigint_ignored_drains_all_the_same(
    number: signal.Signals,
) -> None:
    async with (
        scripted_orchestrator() as orchestrator,
        worker_process(orchestrator.url, TOKEN, "latency_ms=50", before=IGNORING_SIGINT) as process,
    ):
        peer = await orchestrator.joined()
        await peer.expect(Want)
        await peer.grant(1, list(range(40)))
        await peer.serve_images(IMAGES, until=10)
        process.send_signal(number)
        serving = asyncio.create_task(serve_and_collect(peer))
        code, lines = await exit_of(process)
        done = await serving

    assert code == 0, lines
    assert lines[-1] == f"event='drained, step {len(done)}/{len(done)}'"
    assert 10 <= len(done) < 40


async def serve_and_collect(peer: Any) -> list[dict[str, Any]]:
    """Answer whatever the worker asks until it leaves; return its rows."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(Exception):
        while True:
            match await peer.next():
                case Fetch() as fetch:
                    for item in fetch.items:
                        await peer.send(Image(fetch.lease, item, IMAGES[item]))
                case Results() as results:
                    rows += rows_of(results)
                    await peer.send(Ack(results.seq))
    return rows


async def test_a_finished_worker_process_is_gone_soon() -> None:
    async with (
        scripted_orchestrator() as orchestrator,
        worker_process(orchestrator.url, TOKEN) as process,
    ):
        peer = await orchestrator.joined(total=1)
        await peer.expect(Want)
        await peer.grant(1, [0])
        await peer.serve_images(IMAGES, until=1)
        await peer.rows(1)
        began = time.monotonic()
        await peer.send(Finished(1, 0))
        code, lines = await exit_of(process)
        took_seconds = time.monotonic() - began

    assert code == 0
    assert lines[-1] == "event='finished, step 1/1'"
    # The worker's own share is half a second; the rest is the interpreter's, on a busy machine.
    assert took_seconds < 3.0


async def test_a_failing_process_ends_with_one_sentence() -> None:
    async with (
        scripted_orchestrator() as orchestrator,
        worker_process(orchestrator.url, "wrong") as process,
    ):
        code, lines = await exit_of(process)
    assert code == 1
    assert lines[-1] == f"event='Error: the orchestrator at {orchestrator.url} refused the token'"


async def test_a_worker_ends_with_its_parent() -> None:
    async with scripted_orchestrator() as orchestrator:
        shell = await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            '"$@" exit_with_parent=yes >/dev/null & read line',
            "sh",
            sys.executable,
            "-m",
            "tests.support.worker_process",
            orchestrator.url,
            TOKEN,
            stdin=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[3],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(["orchestrator", "worker", "shared"])},
        )
        peer = await orchestrator.joined()
        await peer.expect(Want)
        shell.kill()
        await shell.wait()
        assert shell.stdin is not None
        shell.stdin.close()
        await peer.closed()


def test_one_stage_is_what_the_scripts_assume() -> None:
    assert [stage.output_field for stage in ONE_STAGE.stages] == ["captions"]


# --------------------------------------------------------------------------- models in turn

IN_TURN = RecipeSpec(
    stages=(
        StageSpec("first", "m", ("Describe.",), "draft"),
        StageSpec("second", "large", ("Condense {draft}.",), "captions", ("first",)),
    ),
    fingerprint="two models",
)


async def test_models_that_do_not_fit_together_are_loaded_in_turn_and_it_is_said() -> None:
    first, second = answering(), answering(model="large")
    async with (
        scripted_orchestrator() as orchestrator,
        worker(orchestrator, first, second, restart_backoff_seconds=0.0) as it,
    ):
        peer = await orchestrator.joined(recipe=IN_TURN)
        assert (await peer.expect(Want)).width == 4
        assert it.said(
            "m and large do not fit on the device together (gpu_memory_utilization 0.92 + 0.92, "
            "more than 0.95) and are loaded in turn: m, then large, for 256 items at a time at "
            "first, then as many as keep loading under 5% of the time (at most 50,000)"
        )
        assert second.starts == 0
        await peer.grant(1, range(5))
        await peer.serve_images(IMAGES, until=10)  # once for each model
        results = await peer.expect(Results)
        rows = rows_of(results, ["draft", "captions"])
        assert {tuple(row["models"]) for row in rows} == {("m", "large")}
        assert len(rows) == 5
        assert (first.starts, first.stops, second.starts) == (1, 1, 1)
        await peer.send(Ack(results.seq))
        await peer.send(Finished(5, 0))
        assert await it.exit_code() == 0


async def test_engine_options_of_the_workers_owner_decide_whether_models_fit() -> None:
    first, second = answering(), answering(model="large")
    settings = {"engine_settings": {"gpu_memory_utilization": 0.4}}
    async with (
        scripted_orchestrator() as orchestrator,
        worker(orchestrator, first, second, **settings) as it,
    ):
        peer = await orchestrator.joined(recipe=IN_TURN)
        assert (await peer.expect(Want)).width == 8, "both are up"
        assert it.said("m and large are loaded together (gpu_memory_utilization 0.4 + 0.4, at")


async def test_a_worker_stopped_while_a_model_is_loading_gives_half_done_items_back_at_once() -> (
    None
):
    first, second = answering(), answering(model="large")
    second.start_gate = asyncio.Event()
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, first, second) as it:
        peer = await orchestrator.joined(recipe=IN_TURN)
        await peer.expect(Want)
        await peer.grant(1, range(5))
        await peer.serve_images(IMAGES, until=5)
        await it.says("'model': 'large'")

        os.kill(os.getpid(), signal.SIGTERM)
        asked = time.monotonic()
        recalled = await peer.expect(Recalled)
        assert {lease: sorted(items) for lease, items in recalled.leases.items()} == {
            1: [0, 1, 2, 3, 4]
        }
        assert await it.exit_code() == 0
        assert time.monotonic() - asked < DRAIN_WORK_SECONDS / 2, "it waited for nothing"
    assert not any(isinstance(message, Results) for message in peer.heard)


async def test_a_worker_that_is_stopping_loads_no_other_model_for_what_it_has_begun() -> None:
    first, second = ScriptedEngine(), answering(model="large")
    async with scripted_orchestrator() as orchestrator, worker(orchestrator, first, second) as it:
        peer = await orchestrator.joined(recipe=IN_TURN)
        await peer.expect(Want)
        await peer.grant(1, [0])
        await peer.serve_images(IMAGES, until=1)
        await first.has_count(1)
        os.kill(os.getpid(), signal.SIGTERM)
        await it.says("stopping: finishing what has begun")
        first.answer("Describe.")
        assert (await peer.expect(Recalled)).leases == {1: (0,)}
        assert await it.exit_code() == 0
    assert second.starts == 0
