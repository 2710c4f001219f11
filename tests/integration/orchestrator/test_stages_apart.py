"""Stages on different workers: what one said reaches the next, from the orchestrator's own disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from caption_flow.protocol.messages import (
    Grant,
    GrantedLease,
    Release,
    Status,
    StatusRequest,
    Trim,
    Want,
)
from caption_flow.protocol.rows import CAPTIONED, FAILED, PARTIAL, Row, StageStats
from caption_flow.storage.verify import verify
from tests.integration.orchestrator.parties import (
    MONITOR_TOKEN,
    OTHER_TOKEN,
    Run,
    ScriptedWorker,
    led,
    session_id,
    until,
)
from tests.support.fleet import write_image

VLLM: dict[str, Any] = {
    "model": "m",
    "stages": [
        {"name": "look", "prompts": ["Describe.", "Name it."], "output_field": "seen"},
        {"name": "judge", "prompts": ["Judge: {seen}"], "output_field": "verdict"},
        {"name": "add", "prompts": ["Add to: {look.seen}"], "output_field": "seen"},
    ],
}
FIELDS = ("seen", "verdict")
LOOK, JUDGE, ADD = ["look"], ["judge"], ["add"]


def looked(item: int, recipe: str, **more: Any) -> Row:
    return Row(
        item,
        PARTIAL,
        {"look.seen": [f"a thing {item}", f"thing {item}"]},
        content_hash=f"hash {item}",
        image_width=item + 1,
        stage_stats=[StageStats("look", 10, 2, ("stop", "stop"), 5)],
        models=["large"],
        recipe=recipe,
        **more,
    )


def judged(item: int, recipe: str) -> Row:
    stats = [StageStats("judge", 3, 1, ("stop",), 1)]
    texts = {"judge.verdict": [f"fine {item}"]}
    return Row(item, PARTIAL, texts, stage_stats=stats, models=["small"], recipe=recipe)


def added(item: int, recipe: str, **outputs: list[str]) -> Row:
    texts = {"seen": [f"and more {item}"], **outputs}
    stats = [StageStats("add", 4, 1, ("stop",), 2)]
    return Row(item, CAPTIONED, texts, stage_stats=stats, models=["large"], recipe=recipe)


def recipe_of(worker: ScriptedWorker) -> str:
    assert worker.welcome is not None
    return worker.welcome.recipe.fingerprint


def items_of(granted: GrantedLease) -> list[int]:
    return [item.index for item in granted.items]


async def look(worker: ScriptedWorker, lease: int, items: Iterable[int], **more: Any) -> None:
    named = list(items)
    rows = [looked(item, recipe_of(worker)) for item in named]
    seq = await worker.report(lease, named, rows=rows, reached=1, fields=["look.seen"], **more)
    await worker.acknowledged(seq)


async def judge(worker: ScriptedWorker, granted: GrantedLease) -> None:
    rows = [judged(item, recipe_of(worker)) for item in items_of(granted)]
    seq = await worker.report(
        granted.lease, items_of(granted), rows=rows, reached=2, fields=["judge.verdict"]
    )
    await worker.acknowledged(seq)


def seen_by_look(item: int) -> tuple[str, ...]:
    return f"a thing {item}", f"thing {item}"


async def test_each_worker_is_told_what_came_before_and_the_row_has_it_all(tmp_path: Path) -> None:
    async with led(tmp_path, images=3, vllm=VLLM) as run:
        looking = await run.join(stages=LOOK)
        granted = await looking.lease()
        assert (granted.stage, [item.earlier for item in granted.items]) == (0, [None] * 3)
        await look(looking, granted.lease, items_of(granted))
        judging = await run.join(stages=JUDGE, token=OTHER_TOKEN)
        granted = await judging.lease()
        assert granted.stage == 1
        for item in granted.items:
            assert item.earlier == {"look": {"seen": seen_by_look(item.index)}}
        await judge(judging, granted)
        adding = await run.join(stages=ADD)
        granted = await adding.lease()
        assert granted.stage == 2
        for item in granted.items:
            assert item.earlier == {
                "look": {"seen": seen_by_look(item.index)},
                "judge": {"verdict": (f"fine {item.index}",)},
            }
        assert run.rows() == {}, "between stages is not captioned"
        rows = [added(item, recipe_of(adding)) for item in items_of(granted)]
        await adding.acknowledged(
            await adding.report(granted.lease, items_of(granted), rows=rows, fields=FIELDS)
        )
        await until(run.orchestrator.finished.is_set)
        for number, row in run.rows().items():
            assert row["seen"] == [*seen_by_look(number), f"and more {number}"]
            assert row["verdict"] == [f"fine {number}"]
            assert [stats["stage"] for stats in row["stage_stats"]] == ["look", "judge", "add"]
            contributors = [stats["contributor"] for stats in row["stage_stats"]]
            assert contributors == ["somebody", "somebody else", "somebody"]
            assert [stats["worker"] for stats in row["stage_stats"]] == [
                one.session for one in (looking, judging, adding)
            ]
            assert row["models"] == ["large", "small"]
            assert (row["content_hash"], row["image_width"]) == (f"hash {number}", number + 1)
            assert (row["status"], row["error_kind"]) == (CAPTIONED, None)
    findings = verify(tmp_path / "run")
    assert (findings.captioned, findings.between, findings.breaches) == (3, 0, [])


async def test_no_worker_says_what_another_one_said(tmp_path: Path) -> None:
    async with led(tmp_path, images=1, vllm=VLLM) as run:
        looking, judging = await run.join(stages=LOOK), await run.join(stages=["judge", "add"])
        await look(looking, (await looking.lease()).lease, [0])
        granted = await judging.lease()
        rows = [added(0, recipe_of(judging), verdict=["bad"])]
        # It runs a stage that adds to `seen`, and none but its own texts are added.
        await judging.acknowledged(
            await judging.report(granted.lease, [0], rows=rows, fields=FIELDS)
        )
        assert run.rows()[0]["seen"] == [*seen_by_look(0), "and more 0"]
    async with led(tmp_path, root=more_images(tmp_path), vllm=VLLM) as run:
        looking, judging = await run.join(stages=["look", "judge"]), await run.join(stages=ADD)
        granted = await looking.lease()
        (item,) = items_of(granted)
        texts = {"look.seen": list(seen_by_look(item)), "judge.verdict": ["good"]}
        row = Row(item, PARTIAL, texts, recipe=recipe_of(looking))
        seq = await looking.report(
            granted.lease, [item], rows=[row], reached=2, fields=["look.seen", "judge.verdict"]
        )
        await looking.acknowledged(seq)
        granted = await judging.lease()
        rows = [added(item, recipe_of(judging), verdict=["forged"])]
        await judging.acknowledged(
            await judging.report(granted.lease, [item], rows=rows, fields=FIELDS)
        )
        assert run.rows()[item]["verdict"] == ["good"]


def more_images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    write_image(root / "folder 0" / "one more.bmp", 1000)
    return root


async def test_a_restart_goes_on_where_items_were_with_what_was_said(tmp_path: Path) -> None:
    async with led(tmp_path, images=8, vllm=VLLM) as run:
        looking = await run.join(stages=LOOK)
        granted = await looking.lease()
        await look(looking, granted.lease, [1, 2])
    assert verify(tmp_path / "run").between == 2
    async with led(tmp_path, vllm=VLLM) as run:
        judging = await run.join(session=session_id(7), stages=JUDGE)
        onward = await judging.lease()
        assert items_of(onward) == [1, 2]
        assert [item.earlier for item in onward.items] == [
            {"look": {"seen": seen_by_look(item)}} for item in (1, 2)
        ]
        looking = await run.join(session=looking.session, stages=LOOK, leases=[granted])
        await look(looking, granted.lease, items_of(granted))
        await judge(judging, onward)
        await judging.send(Want(1))
        assert items_of((await judging.expect(Grant)).leases[0]) == [0, 3, 4, 5, 6, 7]


async def test_stages_of_another_recipe_are_not_taken_up(tmp_path: Path) -> None:
    async with led(tmp_path, images=2, vllm=VLLM) as run:
        looking = await run.join(stages=LOOK)
        await look(looking, (await looking.lease()).lease, [0, 1])
    first, *others = VLLM["stages"]
    changed = {**VLLM, "stages": [{**first, "prompts": ["Look!", "Name it."]}, *others]}
    async with led(tmp_path, vllm=changed) as run:
        worker = await run.join()
        granted = await worker.lease()
        assert (granted.stage, items_of(granted)) == (0, [0, 1])
        await until(lambda: verify(tmp_path / "run").between == 0)


async def test_what_stages_said_of_a_file_that_changed_is_forgotten(tmp_path: Path) -> None:
    async with led(tmp_path, images=2, vllm=VLLM) as run:
        looking = await run.join(stages=LOOK)
        await look(looking, (await looking.lease()).lease, [0, 1])
    path = tmp_path / "images" / "folder 0" / "000000.bmp"
    path.unlink()
    write_image(path, 77)
    async with led(tmp_path, vllm=VLLM) as run:
        looking = await run.join(stages=LOOK)
        granted = await looking.lease()
        assert (granted.stage, items_of(granted)) == (0, [0])
        await until(lambda: verify(tmp_path / "run").between == 1)


async def test_a_failure_at_a_later_stage_keeps_what_came_before(tmp_path: Path) -> None:
    async with led(tmp_path, images=1, vllm=VLLM) as run:
        looking, judging = await run.join(stages=LOOK), await run.join(stages=JUDGE)
        await look(looking, (await looking.lease()).lease, [0])
        granted = await judging.lease()
        rows = [Row(0, FAILED, error_kind="empty_caption", error="it said nothing")]
        await judging.acknowledged(
            await judging.report(granted.lease, [0], rows=rows, fields=FIELDS)
        )
        (row,) = run.rows().values()
        assert (row["status"], row["seen"], row["verdict"]) == (FAILED, list(seen_by_look(0)), None)
        assert row["models"] == ["large"]


async def test_an_item_that_kills_at_a_later_stage_keeps_what_came_before(tmp_path: Path) -> None:
    async with led(tmp_path, images=1, vllm=VLLM, max_attempts=1) as run:
        looking, judging = await run.join(stages=LOOK), await run.join(stages=JUDGE)
        await look(looking, (await looking.lease()).lease, [0])
        await lose_engine(judging, await judging.lease())
        await lose_engine(judging, await judging.lease())
        await until(run.orchestrator.finished.is_set)
        (row,) = run.rows().values()
        assert (row["error_kind"], row["seen"]) == ("quarantined", list(seen_by_look(0)))
    assert verify(tmp_path / "run").breaches == []


async def lose_engine(worker: ScriptedWorker, granted: GrantedLease) -> None:
    await worker.send(Release(granted.lease, engine_died=True, reason="it died"))


async def refused(worker: ScriptedWorker, reason: str) -> None:
    code, said = await worker.closed()
    assert code == 1008
    assert reason in said


async def test_stages_are_reported_as_they_are_or_the_session_is_closed(tmp_path: Path) -> None:
    async with led(tmp_path, images=8, vllm=VLLM, chunk_size=1) as run:
        await refuses(run, "cannot have reached stage 2", reached=2, fields=["look.seen"])
        await refuses(run, "has no text in look.seen", empty=True)
        await refuses(run, "of another recipe", recipe="another")
        await refuses(run, "another schema", fields=["judge.verdict"])
        await refuses(run, "says that it is something else", status=CAPTIONED)
        worker = await run.join(stages=LOOK)
        granted = await worker.lease()
        (item,) = items_of(granted)
        row = Row(item, CAPTIONED, {"seen": ["x"], "verdict": ["y"]})
        await worker.report(granted.lease, [item], rows=[row], fields=FIELDS)
        await refused(worker, "from a worker without the last stage")
        assert run.rows() == {}
    assert verify(tmp_path / "run").between == 0


async def refuses(
    run: Run,
    reason: str,
    *,
    reached: int = 1,
    fields: Iterable[str] = ("look.seen",),
    empty: bool = False,
    recipe: str = "",
    status: str = PARTIAL,
) -> None:
    worker = await run.join(stages=LOOK)
    granted = await worker.lease()
    (item,) = items_of(granted)
    texts = {} if empty else {name: ["a text"] for name in fields}
    row = Row(item, status, texts, recipe=recipe or recipe_of(worker))
    await worker.report(granted.lease, [item], rows=[row], reached=reached, fields=list(fields))
    await refused(worker, reason)


async def test_a_stage_that_nobody_runs_is_named_once_and_in_the_state(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with led(tmp_path, images=2, vllm=VLLM) as run:
            looking = await run.join(stages=LOOK)
            await look(looking, (await looking.lease()).lease, [0, 1])
            assert run.orchestrator.progress.unserved == {"judge": 2}
            await until(lambda: warnings(logs))
            monitor = await run.connect(token=MONITOR_TOKEN)
            await monitor.send(StatusRequest())
            assert (await monitor.expect(Status)).report["unserved"] == {"judge": 2}
            await run.join(stages=JUDGE)
            assert run.orchestrator.progress.unserved == {}
    (warning,) = warnings(logs)
    assert (warning["stage"], warning["items"]) == ("judge", 2)


def warnings(logs: Iterable[Any]) -> list[Any]:
    return [one for one in logs if "that no connected worker runs" in one["event"]]


async def test_a_lease_with_much_to_say_comes_in_several_messages(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("caption_flow.orchestrator.service._GRANT_BYTES", 40)
    async with led(tmp_path, images=5, vllm=VLLM) as run:
        looking, judging = await run.join(stages=LOOK), await run.join(stages=JUDGE)
        await look(looking, (await looking.lease()).lease, range(5))
        await judging.send(Want(1))
        leases = [(await judging.expect(Grant)).leases[0] for _ in range(3)]
        assert len({granted.lease for granted in leases}) == 1
        assert [items_of(granted) for granted in leases] == [[0, 1], [2, 3], [4]]


async def test_a_second_lease_of_a_stage_ends_when_the_first_reaches_the_next(
    tmp_path: Path,
) -> None:
    async with led(tmp_path, images=1, vllm=VLLM) as run:
        slow = await run.join(stages=LOOK)
        granted = await slow.lease()
        await slow.vanish()
        helper = await run.join(stages=LOOK)
        helping = await helper.lease()
        back = await run.join(session=slow.session, stages=LOOK, leases=[granted])
        await look(helper, helping.lease, [0])
        assert (await back.expect(Trim)).items == (0,)
