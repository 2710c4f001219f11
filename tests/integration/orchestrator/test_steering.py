"""Watching and steering a run over a real socket: what monitors see, and what admins do to it."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import types
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol

from caption_flow.cli.orchestrator import ReadAgain, configured_tokens
from caption_flow.config.load import load_orchestrator
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.config.problems import ConfigError, ConfigProblem
from caption_flow.orchestrator.assembly import assemble
from caption_flow.orchestrator.server.auth import TokenTable
from caption_flow.orchestrator.steering import Configuration
from caption_flow.protocol.messages import (
    AddToken,
    Done,
    Finished,
    Grant,
    Heartbeat,
    Hello,
    ListTokens,
    Message,
    Pause,
    Problem,
    RecipeChanged,
    Reload,
    RemoveToken,
    Resume,
    RetryFailed,
    Shutdown,
    Status,
    StatusRequest,
    Wait,
    Want,
    Welcome,
)
from caption_flow.protocol.report import Report, from_wire, to_wire
from caption_flow.protocol.rows import FAILED, PARTIAL, Row, StageStats
from tests.integration.orchestrator.parties import (
    ADMIN_TOKEN,
    MONITOR_TOKEN,
    OTHER_TOKEN,
    PATIENCE_SECONDS,
    TOKENS,
    Run,
    ScriptedWorker,
    configuration,
    leading,
    led,
    row,
    until,
)
from tests.support.fleet import items_between_stages, write_images

DIGEST = bytes(32)


async def asked(run: Run, request: Message, *, token: str = ADMIN_TOKEN) -> Any:
    """Ask as an admin, on a connection of its own, and return the answer."""
    observer = await run.connect(token=token)
    await observer.send(request)
    return await observer.next()


async def state(run: Run) -> Report:
    answer = await asked(run, StatusRequest(), token=MONITOR_TOKEN)
    assert isinstance(answer, Status)
    return from_wire(answer.report)


def failed(item: int, kind: str = "corrupt_image") -> Row:
    return Row(item, FAILED, {}, error_kind=kind, error="why")


# ---------------------------------------------------------------- what monitors see


async def test_a_monitor_sees_items_workers_storage_tokens_and_contributors(tmp_path: Path) -> None:
    storage = {"caption_buffer_size": 8}
    async with led(tmp_path, images=32, storage=storage) as run:
        worker = await run.connect()
        hello = Hello("näme", worker.session, "1.2.3", "synthetic", "gpu 0")
        await worker.send(hello)
        await worker.expect(Welcome)
        await worker.send(Heartbeat({"rate": 2.5, "done": 3, "starved": 1.5, "read_here": 4}))
        first, second = await worker.lease(), await worker.lease()
        stats = [StageStats("default", 100, 7, ("stop",), 5)]
        items = [item.index for item in first.items]
        rows = [row(item, stage_stats=stats) for item in items[:-1]] + [failed(items[-1])]
        await worker.acknowledged(await worker.report(first.lease, items, rows=rows))
        other = await run.join(token=OTHER_TOKEN)
        granted = await other.lease()
        await other.work_off(granted)
        await until(lambda: run.orchestrator.shelf)
        now = await state(run)
    done = len(first.items) + len(granted.items)
    assert (now.state, now.total, now.listed) == ("running", 32, True)
    assert (now.captioned, now.failed, now.quarantined) == (done - 1, {"corrupt_image": 1}, 0)
    assert (now.leased, now.pending) == (len(second.items), 32 - done - len(second.items))
    assert now.pending + now.leased + now.committing + done == now.total
    assert now.rate > 0
    assert now.rate_average > 0
    assert now.eta_seconds is not None
    assert (now.tokens.total_in, now.tokens.total_out) == (700, 49)
    assert now.tokens.out_per_second > 0
    assert now.storage.parts >= 1
    assert now.storage.rows + now.storage.buffered_rows == done
    assert now.storage.bytes > 0
    assert now.time - 60 < (now.storage.last_checkpoint_at or 0) <= now.time
    assert {one.name: (one.rows, one.captioned, one.failed) for one in now.contributors} == {
        "somebody": (len(items), len(items) - 1, 1),
        "somebody else": (len(granted.items),) * 2 + (0,),
    }
    one = next(one for one in now.workers if one.name == "näme")
    assert (one.version, one.engine, one.device) == ("1.2.3", "synthetic", "gpu 0")
    assert (one.contributor, one.connected) == ("somebody", True)
    assert one.address.startswith("127.0.0.1:")
    assert (one.leases, one.items) == (1, len(second.items))
    assert (one.rate, one.done, one.starved_seconds, one.images.here) == (2.5, 3, 1.5, 4)
    assert 0 <= one.last_seen_seconds <= one.connected_seconds < PATIENCE_SECONDS


async def test_what_was_stored_on_earlier_days_is_counted_too(tmp_path: Path) -> None:
    async with led(tmp_path, images=16) as run:
        worker = await run.join(token=OTHER_TOKEN)
        granted = await worker.lease()
        await worker.work_off(granted)
    async with led(tmp_path) as run:
        now = await state(run)
    count = len(granted.items)
    assert [(one.name, one.rows) for one in now.contributors] == [("somebody else", count)]
    assert (now.storage.parts, now.storage.rows, now.storage.buffered_rows) == (1, count, 0)
    assert now.storage.last_checkpoint_at is not None


async def test_a_lost_worker_is_shown_as_long_as_its_leases_wait_for_it(tmp_path: Path) -> None:
    async with led(tmp_path, images=32, lease_seconds=1.0) as run:
        worker = await run.join(name="lost one")
        await worker.lease()
        await worker.vanish()
        await until(lambda: not run.orchestrator.links)
        (one,) = (await state(run)).workers
        assert (one.name, one.connected, one.leases) == ("lost one", False, 1)
        await until(lambda: not run.orchestrator.progress.leased)
        assert (await state(run)).workers == ()


async def test_a_worker_that_came_back_is_shown_once(tmp_path: Path) -> None:
    async with led(tmp_path, images=32) as run:
        worker = await run.join()
        granted = await worker.lease()
        await worker.vanish()
        await until(lambda: not run.orchestrator.links)
        await run.join(session=worker.session, leases=[granted])
        assert [one.connected for one in (await state(run)).workers] == [True]


@pytest.mark.parametrize(
    "stats",
    [
        {f"number {n}": 1.0 for n in range(1000)},
        {"rate": math.nan},
        {"rate": math.inf},
        {"rate": 1e300},
        {"x" * 1000: 1.0},
    ],
    ids=["many", "nan", "inf", "huge", "long"],
)
async def test_what_workers_say_of_themselves_is_bounded(
    tmp_path: Path, stats: dict[str, float]
) -> None:
    async with led(tmp_path) as run:
        worker = await run.join()
        await worker.send(Heartbeat(stats))
        assert (await worker.closed())[0] == 1008
        assert (await state(run)).workers == ()


async def test_names_of_workers_are_bounded(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        worker = await run.connect()
        await worker.send(Hello("w", worker.session, version="v" * 201))
        assert (await worker.closed())[0] == 1008


async def test_a_report_is_json_and_read_as_it_was_meant(tmp_path: Path) -> None:
    async with led(tmp_path, images=8) as run:
        worker = await run.join()
        await worker.work_off(await worker.lease())
        answer = await asked(run, StatusRequest(), token=MONITOR_TOKEN)
    report = json.loads(json.dumps(answer.report, allow_nan=False))
    assert report == json.loads(json.dumps(to_wire(from_wire(report))))


REQUESTS = [
    Shutdown(),
    Pause(),
    Resume(),
    RetryFailed(),
    Reload(),
    AddToken("worker", "n", DIGEST),
    RemoveToken("an admin"),
    ListTokens(),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: type(one).__name__)
async def test_a_monitor_is_refused_everything_but_the_state(
    tmp_path: Path, request_: Message
) -> None:
    async with led(tmp_path) as run:
        answer = await asked(run, request_, token=MONITOR_TOKEN)
        assert isinstance(answer, Problem)
        assert "may not" in answer.message
        assert (await state(run)).state == "running"


# ---------------------------------------------------------------- pause and shutdown


async def test_a_paused_run_hands_out_nothing_and_takes_what_is_finished(tmp_path: Path) -> None:
    async with led(tmp_path, images=32) as run:
        worker, idle = await run.join(), await run.join()
        granted = await worker.lease()
        assert isinstance(await asked(run, Pause()), Done)
        assert (await state(run)).state == "paused"
        await idle.send(Want(1))
        assert isinstance(await idle.next(), Wait)
        await worker.work_off(granted)
        assert not any(isinstance(message, Grant) for message in idle.heard)
        assert isinstance(await asked(run, Resume()), Done)
        await idle.expect(Grant)  # without asking again
        assert (await state(run)).state == "running"


async def test_a_pause_outlasts_the_orchestrator_and_a_resume_does_too(tmp_path: Path) -> None:
    async with led(tmp_path, images=16) as run:
        await asked(run, Pause())
    async with led(tmp_path) as run:
        worker = await run.join()
        await worker.send(Want(1))
        assert isinstance(await worker.next(), Wait)
        assert (await state(run)).state == "paused"
        await asked(run, Resume())
        await worker.expect(Grant)
    async with led(tmp_path) as run:
        assert (await state(run)).state == "running"


async def test_a_full_disk_and_an_admin_hold_apart(tmp_path: Path) -> None:
    async with led(tmp_path, images=16) as run:
        await asked(run, Pause())
        run.orchestrator.hold("disk")
        run.orchestrator.let_go("disk")
        worker = await run.join()
        await worker.send(Want(1))
        assert isinstance(await worker.next(), Wait), "the admin has not let go"


@pytest.mark.parametrize("now", [False, True])
async def test_a_shutdown_is_answered_before_the_end(tmp_path: Path, now: bool) -> None:
    async with led(tmp_path) as run:
        admin = await run.connect(token=ADMIN_TOKEN)
        await admin.send(Shutdown(now))
        assert isinstance(await admin.next(), Done)
        assert (await admin.closed())[0] == 1001


async def test_a_shutdown_now_does_not_wait_for_what_is_in_flight(tmp_path: Path) -> None:
    async with led(tmp_path, images=16) as run:
        worker = await run.join()
        await worker.lease()
        began = asyncio.get_running_loop().time()
        await asked(run, Shutdown(now=True))
        assert (await worker.closed())[0] == 1001
        assert asyncio.get_running_loop().time() - began < 5.0, "a drain takes ten"


async def test_nothing_is_paused_or_retried_while_the_run_ends(tmp_path: Path) -> None:
    async with led(tmp_path, images=16) as run:
        worker = await run.join()
        await worker.lease()
        admin = await run.connect(token=ADMIN_TOKEN)
        await admin.send(Shutdown())
        await admin.expect(Done)
        for request in (Pause(), RetryFailed(), Reload()):
            await admin.send(request)
            assert (await admin.expect(Problem)).message == "the run is being ended"


# ---------------------------------------------------------------- failed items again


async def test_a_finished_run_goes_on_when_failed_items_are_put_back(tmp_path: Path) -> None:
    async with led(tmp_path, images=8) as run:
        worker = await run.join()
        granted = await worker.lease()
        items = [item.index for item in granted.items]
        rows = [failed(items[0]), failed(items[1], "other"), *map(row, items[2:])]
        await worker.report(granted.lease, items, rows=rows)
        assert await worker.expect(Finished) == Finished(6, 2)
        assert run.orchestrator.finished.is_set()
        answer = await asked(run, RetryFailed("corrupt_image"))
        assert (answer.message, answer.facts) == (
            "1 items are tried again",
            {"items": {"corrupt_image": 1}},
        )
        now = await state(run)
        assert (now.state, now.pending, now.failed) == ("running", 1, {"other": 1})
        assert not run.orchestrator.finished.is_set()
        assert [(one.rows, one.failed) for one in now.contributors] == [(7, 1)]
        again = await worker.lease()
        assert [item.index for item in again.items] == items[:1]
        await worker.report(again.lease, items[:1])
        assert await worker.expect(Finished) == Finished(7, 1), "the end is told anew"
        assert run.orchestrator.finished.is_set()
        assert (await state(run)).state == "finished"
        assert len(run.rows()) == 8


async def test_a_kind_that_nothing_failed_of_is_refused_with_those_there_are(
    tmp_path: Path,
) -> None:
    async with led(tmp_path, images=8) as run:
        worker = await run.join()
        granted = await worker.lease()
        await worker.acknowledged(
            await worker.report(
                granted.lease,
                [item.index for item in granted.items],
                rows=[failed(item.index) for item in granted.items],
            )
        )
        answer = await asked(run, RetryFailed("corupt"))
        assert isinstance(answer, Problem)
        assert answer.message == "no item failed as 'corupt'; there are corrupt_image"


# ---------------------------------------------------------------- another configuration

CHANGED_VLLM = {"model": "m", "inference_prompts": ["Say more."]}


class Files:
    """The configuration a run was started with, and what its file says now."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self.text: dict[str, Any] = {}
        self.tokens = TOKENS
        self.error: Exception | None = None

    def configuration(self, **settings: Any) -> OrchestratorConfig:
        return configuration(self._tmp_path / "images", self._tmp_path / "run", **settings)

    def read(self, text: str | None) -> Configuration:
        if self.error is not None:
            raise self.error
        settings = self.text if text is None else json.loads(text)
        return Configuration(self.configuration(**settings), self.tokens, ["a warning"])


class Reloadable:
    """`led`, with a configuration that can be read again."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = Files(tmp_path)
        self._tmp_path, self._patch = tmp_path, monkeypatch

    def led(self, images: int = 32, **settings: Any) -> Any:
        async def assembled(config: OrchestratorConfig, tokens: Any, **options: Any) -> Any:
            return await assemble(config, tokens, read_again=self.files.read, **options)

        self._patch.setattr("tests.integration.orchestrator.parties.assemble", assembled)
        self.files.text = settings
        return led(self._tmp_path, images, **settings)


@pytest.fixture
def reloadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reloadable:
    return Reloadable(tmp_path, monkeypatch)


async def test_a_changed_prompt_is_sent_to_workers_and_is_what_later_grants_follow(
    reloadable: Reloadable,
) -> None:
    async with reloadable.led() as run:
        worker, other = await run.join(), await run.join()
        assert worker.welcome is not None
        old = worker.welcome.recipe
        granted = await worker.lease()
        reloadable.files.text = {"vllm": CHANGED_VLLM}
        answer = await asked(run, Reload())
        assert isinstance(answer, Done)
        assert answer.facts["changed"] == ["vllm.inference_prompts"]
        assert (answer.facts["models_to_load"], answer.facts["warnings"]) == ([], ["a warning"])
        changed = await worker.expect(RecipeChanged)
        assert changed.recipe.stages[0].prompts == ("Say more.",)
        assert changed.recipe.fingerprint != old.fingerprint
        assert await other.expect(RecipeChanged) == changed
        assert (await state(run)).recipe == changed.recipe.fingerprint
        items = [item.index for item in granted.items]
        rows = [row(item, recipe=old.fingerprint) for item in items]
        await worker.acknowledged(await worker.report(granted.lease, items, rows=rows))
        stored = {item: one["recipe"] for item, one in run.rows().items()}
        assert stored == dict.fromkeys(items, old.fingerprint), "they count, as what they are"
        late = await run.join()
        assert late.welcome is not None
        assert late.welcome.recipe == changed.recipe


async def test_a_restart_after_a_reload_knows_the_recipe_that_was_in_force(
    reloadable: Reloadable, tmp_path: Path
) -> None:
    async with reloadable.led() as run:
        reloadable.files.text = {"vllm": CHANGED_VLLM}
        await asked(run, Reload())
    async with led(tmp_path, vllm=CHANGED_VLLM) as run:
        assert run.orchestrator._is_resumed


async def test_portions_and_limits_change_at_once(reloadable: Reloadable) -> None:
    async with reloadable.led(images=64, chunk_size=8) as run:
        worker = await run.join()
        await worker.lease()
        reloadable.files.text = {
            "chunk_size": 3,
            "chunks_per_request": 5,
            "lease_seconds": 7.0,
            "max_attempts": 1,
            "storage": {"checkpoint_interval": 5.0, "caption_buffer_size": 2},
        }
        answer = await asked(run, Reload())
        assert set(answer.facts["changed"]) == {
            "chunk_size",
            "chunks_per_request",
            "lease_seconds",
            "max_attempts",
            "storage.checkpoint_interval",
            "storage.caption_buffer_size",
        }
        limits = (await worker.expect(RecipeChanged)).limits
        assert limits is not None
        assert (limits.lease_seconds, limits.chunks_per_request, limits.max_attempts) == (7.0, 5, 1)
        assert limits.heartbeat_seconds < 7.0 / 2
        granted = await worker.lease()
        assert len(granted.items) == 3
        assert run.orchestrator.settings.checkpoint_rows == 2
        await worker.work_off(granted)
        await until(lambda: run.orchestrator.shelf)  # without waiting for a minute


async def test_a_configuration_can_be_sent_along(reloadable: Reloadable) -> None:
    async with reloadable.led() as run:
        worker = await run.join()
        answer = await asked(run, Reload(json.dumps({"vllm": CHANGED_VLLM})))
        assert isinstance(answer, Done)
        assert (await worker.expect(RecipeChanged)).recipe.stages[0].prompts == ("Say more.",)


async def test_what_has_not_changed_disturbs_nobody(reloadable: Reloadable) -> None:
    async with reloadable.led() as run:
        worker = await run.join()
        answer = await asked(run, Reload())
        assert answer.facts["changed"] == []
        await worker.lease()
        assert not any(isinstance(message, RecipeChanged) for message in worker.heard)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"host": "127.0.0.2"}, "host"),
        ({"storage": {"data_dir": "elsewhere"}}, "storage.data_dir"),
        (
            {"dataset": {"type": "local_filesystem", "dataset_path": "elsewhere"}},
            "dataset.dataset_path",
        ),
        ({"vllm": {**CHANGED_VLLM, "mock_results": True}}, "vllm.mock_results"),
        (
            {"vllm": {"model": "m", "stages": [{"name": "other", "prompts": ["p"]}]}},
            "vllm.stages",
        ),
        (
            {
                "vllm": {
                    "model": "m",
                    "stages": [{"name": "default", "prompts": ["p"], "output_field": "texts"}],
                }
            },
            "vllm.stages (default): output_field",
        ),
        ({"vllm": {"model": "m", "inference_prompts": ["{column:title}"]}}, "{column:title}"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
async def test_what_needs_a_restart_is_named_and_nothing_changes(
    reloadable: Reloadable, changed: dict[str, Any], named: str
) -> None:
    async with reloadable.led() as run:
        worker = await run.join()
        before = (await state(run)).recipe
        reloadable.files.text = {"vllm": CHANGED_VLLM, "chunk_size": 3, **changed}
        answer = await asked(run, Reload())
        assert isinstance(answer, Problem)
        assert answer.message.startswith("nothing was changed:\n")
        assert named in answer.message
        assert "restart" in answer.message
        assert len((await worker.lease()).items) == 8, "the portions are as before"
        assert (await state(run)).recipe == before
        assert not any(isinstance(message, RecipeChanged) for message in worker.heard)


async def test_a_configuration_that_is_wrong_is_refused_with_the_usual_errors(
    reloadable: Reloadable,
) -> None:
    async with reloadable.led() as run:
        reloadable.files.error = ConfigError(
            [
                ConfigProblem("a.yaml", "unknown key", "one", 3),
                ConfigProblem("a.yaml", "bad", "two"),
            ]
        )
        answer = await asked(run, Reload())
        assert isinstance(answer, Problem)
        assert answer.message.splitlines() == [
            "nothing was changed:",
            "a.yaml:3: one: unknown key",
            "a.yaml: two: bad",
        ]
        assert (await state(run)).state == "running"


async def test_tokens_change_with_the_configuration(reloadable: Reloadable) -> None:
    async with reloadable.led() as run:
        reloadable.files.tokens = (*TOKENS[1:], ("worker", "new one", "a new token"))
        await asked(run, Reload())
        await run.join(token="a new token")
        tokens: TokenTable = run.orchestrator._tokens
        assert tokens.identify(TOKENS[0][2]) is None
        assert tokens.identify(OTHER_TOKEN) is not None


async def test_a_run_without_a_configuration_of_its_own_says_so(tmp_path: Path) -> None:
    async with led(tmp_path) as run:
        answer = await asked(run, Reload())
        assert isinstance(answer, Problem)
        assert "no configuration" in answer.message


# ---------------------------------------------------------------- items between two stages


def staged(first: str, second: str = "Condense {draft}") -> dict[str, Any]:
    return {
        "vllm": {
            "model": "m",
            "stages": [
                {"name": "write", "prompts": [first], "output_field": "draft"},
                {"name": "judge", "prompts": [second], "output_field": "captions"},
            ],
        }
    }


def drafted(worker: ScriptedWorker, item: int, recipe: str) -> dict[str, Any]:
    texts = {"write.draft": [f"draft of {item}"]}
    return {"rows": [Row(item, PARTIAL, texts, recipe=recipe)], "fields": ("write.draft",)}


async def test_items_between_stages_begin_again_under_another_recipe(
    reloadable: Reloadable,
) -> None:
    async with reloadable.led(images=8, **staged("Describe.")) as run:
        writer = await run.join(stages=["write"])
        assert writer.welcome is not None
        old = writer.welcome.recipe.fingerprint
        granted = await writer.lease()
        first, second, *_ = (item.index for item in granted.items)
        seq = await writer.report(granted.lease, [first], reached=1, **drafted(writer, first, old))
        await writer.acknowledged(seq)
        judge = await run.join(stages=["judge"])
        judged = await judge.lease()
        assert [item.index for item in judged.items] == [first]
        reloadable.files.text = staged("Describe it otherwise.")
        assert isinstance(await asked(run, Reload()), Done)
        new = (await writer.expect(RecipeChanged)).recipe.fingerprint
        await until(lambda: not items_between_stages(run.data_dir))
        # What the old recipe still brings to a later stage is taken off the worker's hands only.
        seq = await writer.report(
            granted.lease, [second], reached=1, **drafted(writer, second, old)
        )
        await writer.acknowledged(seq)
        assert items_between_stages(run.data_dir) == {}
        late = Row(first, "captioned", {"captions": ["of old"]}, recipe=old)
        seq = await judge.report(judged.lease, [first], rows=[late], fields=("draft", "captions"))
        await judge.acknowledged(seq)
        assert run.rows() == {}, "half of it was made by another recipe"
        again = await writer.lease()
        items = [item.index for lease in (again, await writer.lease()) for item in lease.items]
        assert items == [first, second], "from the beginning"
        seq = await writer.report(again.lease, [first], reached=1, **drafted(writer, first, new))
        await writer.acknowledged(seq)
        assert items_between_stages(run.data_dir) == {first: 1}
        run.orchestrator._ledger.check()


async def test_a_recipe_that_nobody_was_sent_is_refused_as_ever(reloadable: Reloadable) -> None:
    async with reloadable.led(images=8, **staged("Describe.")) as run:
        writer = await run.join(stages=["write"])
        granted = await writer.lease()
        item = granted.items[0].index
        await writer.report(granted.lease, [item], reached=1, **drafted(writer, item, "made up"))
        assert "of another recipe" in (await writer.closed())[1]


async def test_a_run_keeps_no_token_that_its_configuration_had_written_out(tmp_path: Path) -> None:
    words = "in plain words"
    settings = {
        "host": "127.0.0.1",
        "port": 0,
        "dataset": {"type": "local_filesystem", "dataset_path": str(tmp_path / "images")},
        "vllm": {"model": "m", "inference_prompts": ["What is it?"]},
        "storage": {"data_dir": str(tmp_path / "run")},
        "auth": {
            "worker_tokens": [{"token": words, "name": "known by name"}],
            "admin_tokens": [{"token": f"{words} too", "name": "an owner"}],
        },
    }
    write_images(tmp_path / "images", 8)
    path = tmp_path / "orchestrator.json"
    path.write_text(json.dumps({"orchestrator": settings}))
    config = load_orchestrator(path).config
    reading = ReadAgain(path, {}, insecure=False)
    orchestrator = await assemble(config, configured_tokens(config), read_again=reading)
    async with leading(orchestrator, tmp_path / "run") as run:
        worker = await run.join(token=words)
        for _ in range(2):
            admin = await run.connect(token=f"{words} too")
            await admin.send(Reload())
            assert isinstance(await admin.next(), Done), "the tokens are the same"
            texts = texts_within(orchestrator, config, reading)
            assert "known by name" in texts
            assert {"Sec-WebSocket-Protocol", "Authorization"} & texts == {"Sec-WebSocket-Protocol"}
            assert not [text for text in texts if words in text]
        await worker.lease()


def texts_within(*roots: object) -> set[str]:
    """Return every text that can be reached from objects, but through code and our own clients."""
    code = (type, types.ModuleType, types.FunctionType, types.CodeType, types.FrameType)
    clients = (ClientConnection, ClientProtocol, ScriptedWorker)
    seen: dict[int, object] = {}
    waiting = list(roots)
    while waiting:
        one = waiting.pop()
        if id(one) not in seen and not isinstance(one, (*code, *clients)):
            seen[id(one)] = one
            waiting += gc.get_referents(one)
    return {one for one in seen.values() if isinstance(one, str)}
