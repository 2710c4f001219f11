"""Items flow: no barrier, bounded everywhere, and nothing is lost when an engine dies."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from caption_flow.protocol.messages import LeaseId
from caption_flow.protocol.rows import CAPTIONED, PARTIAL, Row, StageStats
from caption_flow.recipe.quality import Quality, Retry
from caption_flow.recipe.stages import Stage, build_recipe
from caption_flow.recipe.structure import Structure
from caption_flow.recipe.video import Video
from caption_flow.worker.core.leases import Job
from caption_flow.worker.core.placement import Placement
from caption_flow.worker.core.starvation import Cause
from caption_flow.worker.engines.base import Completion, EngineDied, Request, RequestRefused
from caption_flow.worker.garage import Garage
from caption_flow.worker.images.load import ImageError, LoadedImage
from caption_flow.worker.pipeline import EngineGoneError, Pipeline
from caption_flow.worker.supervision import SupervisedEngine
from tests.support.desk import Earlier, ListedDesk
from tests.support.engines import PATIENCE_SECONDS, ScriptedEngine, ScriptedLoader, loaded_image

ONE_STAGE = (Stage("default", "m", ("{column:n}",)),)
TWO_STAGES = (
    Stage("first", "m", ("{column:n}",), output_field="draft"),
    Stage("second", "m", ("again {draft}",), requires=("first",)),
)


class Bench:
    """A pipeline under test, with what it stands on."""

    def __init__(self, pipeline: Pipeline, desk: ListedDesk, loader: ScriptedLoader) -> None:
        self.pipeline, self.desk, self.loader = pipeline, desk, loader
        self.running = asyncio.create_task(pipeline.run())


@contextlib.asynccontextmanager
async def bench(
    stages: Iterable[Stage],
    items: Iterable[int],
    *engines: ScriptedEngine,
    loader: ScriptedLoader | None = None,
    columns: Mapping[int, Any] | None = None,
    earlier: Earlier | None = None,
    supervision: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Bench]:
    recipe = build_recipe(list(stages))
    desk = ListedDesk(recipe, items, columns, earlier)
    loader = loader or ScriptedLoader()
    supervised = {
        engine.model: SupervisedEngine(engine, **{"backoff_seconds": 0.0, **(supervision or {})})
        for engine in engines
    }
    garage = Garage(supervised, Placement((tuple(supervised),), dict.fromkeys(supervised, 0.1)))
    await garage.load(0)
    pipeline = Pipeline(desk, loader, garage, **options)
    pipeline.use(recipe)
    it = Bench(pipeline, desk, loader)
    try:
        yield it
    finally:
        it.running.cancel()
        await asyncio.wait([it.running])
        for engine in supervised.values():
            await engine.stop()


# --------------------------------------------------------------------------- flow


async def test_a_fast_item_finishes_stage_two_while_a_slow_one_is_in_stage_one() -> None:
    engine = ScriptedEngine(width=2)
    async with bench(TWO_STAGES, [0, 1], engine) as it:
        await engine.has("item 0", "item 1")

        engine.answer("item 1", "fast")
        await engine.has("item 0", "again fast")
        engine.answer("again fast", "done")

        (row,) = await it.desk.has_rows(1)
        assert row.outputs == {"draft": ["fast"], "captions": ["done"]}
        assert engine.prompts() == ["item 0"], "the slow one is where it was"


async def test_an_item_leaves_before_a_stage_that_this_worker_does_not_run() -> None:
    engine = ScriptedEngine()
    first, _ = TWO_STAGES
    async with bench(TWO_STAGES, [0], engine, serves=[first.name]) as it:
        await engine.has("item 0")
        engine.answer("item 0", "a draft")
        (row,) = await it.desk.has_rows(0)

    assert row.status == PARTIAL
    assert row.outputs == {f"{first.name}.draft": ("a draft",)}
    assert [stats.stage for stats in row.stage_stats] == [first.name]
    assert it.pipeline.tally.done == 1


async def test_an_item_goes_on_where_another_worker_left_it_and_its_row_says_only_what_is_new() -> (
    None
):
    engine = ScriptedEngine()
    first, last = TWO_STAGES
    earlier: Earlier = {first.name: {"draft": ("a draft",)}}
    async with bench(TWO_STAGES, [0], engine, earlier=earlier, serves=[last.name]) as it:
        await engine.has("again a draft")
        engine.answer("again a draft", "done")
        (row,) = await it.desk.has_rows(0)

    assert row.status == CAPTIONED
    assert row.outputs == {"captions": ["done"]}
    assert [stats.stage for stats in row.stage_stats] == [last.name]


async def test_an_items_next_stage_goes_before_the_first_stage_of_younger_items() -> None:
    engine = ScriptedEngine(width=2)
    async with bench(TWO_STAGES, range(6), engine) as it:
        await engine.has("item 0", "item 1")
        await engine.until(lambda: len(it.loader.asked) == 6)

        engine.answer("item 0", "a")
        await engine.has("again a", "item 1")
        engine.answer("again a")
        await engine.has("item 1", "item 2")


async def test_a_next_stage_with_more_prompts_is_not_overtaken_by_younger_items() -> None:
    stages = [
        Stage("first", "m", ("{column:n}",), output_field="draft"),
        Stage("second", "m", ("a {draft}", "b {draft}")),
    ]
    engine = ScriptedEngine(width=2)
    async with bench(stages, range(6), engine) as it:
        await engine.has("item 0", "item 1")
        await engine.until(lambda: len(it.loader.asked) == 6)

        engine.answer("item 1", "one")
        await engine.has("item 0")
        engine.answer("item 0", "nought")
        await engine.has("a nought", "b nought")
        engine.answer("a nought")
        engine.answer("b nought")
        await engine.has("a one", "b one")


async def test_items_that_are_in_no_engine_are_given_up_the_youngest_first() -> None:
    engine = ScriptedEngine(width=2)
    async with bench(ONE_STAGE, range(6), engine) as it:
        await engine.has("item 0", "item 1")
        await engine.until(lambda: len(it.loader.asked) == 6)

        assert it.pipeline.withdraw(3) == ((LeaseId(1), 5), (LeaseId(1), 4), (LeaseId(1), 3))
        assert it.pipeline.withdraw(9) == ((LeaseId(1), 2),), "what is in an engine stays"
        assert it.pipeline.withdraw(9) == ()

        engine.answer("item 0")
        engine.answer("item 1")
        await it.desk.has_rows(0, 1)
        assert engine.prompts() == []
        assert set(it.desk.rows) == {0, 1}


async def test_an_item_between_its_stages_is_not_given_up() -> None:
    engine = ScriptedEngine(width=1)
    async with bench(TWO_STAGES, [0, 1], engine) as it:
        await engine.has("item 0")
        engine.answer("item 0", "a")

        assert it.pipeline.withdraw(9) == ((LeaseId(1), 1),)

        await engine.has("again a")
        engine.answer("again a")
        await it.desk.has_rows(0)


async def test_the_engine_is_full_and_never_overfull() -> None:
    engine = ScriptedEngine(width=3)
    async with bench(ONE_STAGE, range(20), engine) as it:
        for index in range(20):
            await engine.has_count(min(3, 20 - index))
            engine.answer(engine.prompts()[0])
        await it.desk.has_rows(*range(20))
    assert engine.most_in_flight == 3


async def test_an_owners_limit_makes_the_engine_narrower() -> None:
    engine = ScriptedEngine(width=8)
    async with bench(ONE_STAGE, range(9), engine, supervision={"max_requests": 2}) as it:
        for index in range(9):
            await engine.has_count(min(2, 9 - index))
            engine.answer(engine.prompts()[0])
        await it.desk.has_rows(*range(9))


async def test_prompts_of_one_stage_are_asked_together_and_answered_in_order() -> None:
    stages = [Stage("s", "m", ("a {column:n}", "b {column:n}", "c {column:n}"))]
    engine = ScriptedEngine(width=4)
    async with bench(stages, [0], engine) as it:
        await engine.has("a item 0", "b item 0", "c item 0")
        assert len({id(request.subject) for request in engine.seen}) == 1, "one picture for all"
        for prompt in ("c item 0", "a item 0", "b item 0"):
            engine.answer(prompt, f" {prompt[0].upper()}\n")

        (row,) = await it.desk.has_rows(0)
        assert row.outputs == {"captions": ["A", "B", "C"]}


async def test_slots_of_answered_prompts_are_used_at_once() -> None:
    stages = [Stage("s", "m", ("a {column:n}", "b {column:n}"))]
    engine = ScriptedEngine(width=3)
    async with bench(stages, [0, 1], engine):
        await engine.has("a item 0", "b item 0")
        engine.answer("a item 0")
        await engine.has("b item 0", "a item 1", "b item 1")


async def test_more_prompts_than_the_engine_takes_still_get_their_answers() -> None:
    stages = [Stage("s", "m", tuple(f"{{column:n}} {letter}" for letter in "abcd"))]
    engine = ScriptedEngine(width=2, reply=lambda request: request.prompt)
    async with bench(stages, range(3), engine) as it:
        rows = await it.desk.has_rows(0, 1, 2)
    assert all(len(row.outputs["captions"]) == 4 for row in rows)


async def test_loading_runs_ahead_but_only_so_far() -> None:
    engine = ScriptedEngine(width=2)
    async with bench(ONE_STAGE, range(50), engine, look_ahead_items=3) as it:
        await engine.has("item 0", "item 1")
        await it.desk.has_begun(5)
        for index in range(5):
            engine.answer(engine.prompts()[0])
            await it.desk.has_begun(6 + index)
            assert it.pipeline.in_flight <= 5


async def test_loading_is_bounded_in_bytes_too() -> None:
    engine = ScriptedEngine(width=1)
    loader = ScriptedLoader(size=(1000, 1000))  # three million bytes each
    limit = 10_000_000
    async with bench(ONE_STAGE, range(50), engine, loader=loader, look_ahead_bytes=limit) as it:
        for index in range(30):
            await engine.has_prompt(f"item {index}")
            await asyncio.sleep(0)
            assert it.pipeline.in_flight <= 1 + 4
            engine.answer(f"item {index}")
            await it.desk.has_rows(index)
        assert len(it.desk.begun) > 31, "it did run ahead"


async def test_an_image_larger_than_the_bound_is_loaded_alone() -> None:
    engine = ScriptedEngine(width=1, reply=lambda _: "text")
    loader = ScriptedLoader(size=(1000, 1000))
    async with bench(ONE_STAGE, range(3), engine, loader=loader, look_ahead_bytes=1000) as it:
        await it.desk.has_rows(0, 1, 2)


async def test_items_between_two_engines_count_as_prepared_ahead() -> None:
    stages = (
        Stage("first", "quick", ("{column:n}",), output_field="draft"),
        Stage("second", "slow", ("again {draft}",), requires=("first",)),
    )
    quick = ScriptedEngine(model="quick", width=2, reply=lambda request: request.prompt)
    slow = ScriptedEngine(model="slow", width=1)
    async with bench(stages, range(100), quick, slow, look_ahead_items=4) as it:
        for index in range(20):
            await slow.has_seen(index + 1)
            assert it.pipeline.in_flight <= 1 + 2 + 4
            slow.answer(slow.prompts()[0])
        assert it.pipeline.tally.failed == 0


async def test_a_slow_load_holds_up_nobody_else() -> None:
    engine = ScriptedEngine(width=2)
    loader = ScriptedLoader()
    loader.hold(0)
    async with bench(ONE_STAGE, range(3), engine, loader=loader) as it:
        await engine.has("item 1", "item 2")
        engine.answer("item 1")
        await it.desk.has_rows(1)
        loader.release(0)
        await engine.has("item 2", "item 0")


async def test_pictures_of_finished_items_are_not_kept() -> None:
    pictures: list[weakref.ref[Any]] = []

    class Watched(ScriptedLoader):
        async def load(self, job: Job, video: Video | None) -> LoadedImage:
            del video
            loaded = loaded_image(job.item.index)
            pictures.append(weakref.ref(loaded.image.pixels))
            return loaded

    engine = ScriptedEngine(reply=lambda _: "text")
    async with bench(ONE_STAGE, range(20), engine, loader=Watched()) as it:
        await it.desk.has_rows(*range(20))
        engine.seen.clear()
        await asyncio.sleep(0)
        gc.collect()
        assert len(pictures) == 20
        assert [ref for ref in pictures if ref() is not None] == []


async def test_stages_of_different_models_go_to_their_engines() -> None:
    stages = [
        Stage("first", "m", ("{column:n}",), output_field="draft"),
        Stage("second", "large", ("again {draft}",)),
    ]
    small, large = ScriptedEngine(width=1), ScriptedEngine(model="large", width=1)
    async with bench(stages, [0, 1], small, large) as it:
        await small.has("item 0")
        small.answer("item 0", "x")
        await large.has("again x")
        await small.has("item 1")
        large.answer("again x", "y")
        (row,) = await it.desk.has_rows(0)
    assert row.models == ("m", "large")


async def test_a_row_records_what_became_of_its_item() -> None:
    engine = ScriptedEngine(reply=lambda request: f"  {request.prompt}  ")
    async with bench(TWO_STAGES, [7], engine) as it:
        (row,) = await it.desk.has_rows(7)
        recipe = it.desk.recipe

    assert row.status == "captioned"
    assert row.outputs == {"draft": ["item 7"], "captions": ["again item 7"]}
    assert (row.image_width, row.image_height, row.image_format) == (8, 6, "PNG")
    assert (row.file_size, row.content_hash) == (100, f"{7:032d}")
    assert (row.recipe, row.models) == (recipe.fingerprint, ("m",))
    assert [(s.stage, s.tokens_in, s.tokens_out) for s in row.stage_stats] == [
        ("first", 10, 2),
        ("second", 10, 3),
    ]
    assert all(isinstance(stats, StageStats) for stats in row.stage_stats)
    assert it.pipeline.tally.captioned == 1
    assert it.pipeline.tally.tokens_in == 20


async def test_sampling_reaches_the_engine() -> None:
    stages = [Stage("s", "m", ("{column:n}",), sampling={"temperature": 0.1})]
    engine = ScriptedEngine()
    async with bench(stages, [0], engine):
        await engine.has("item 0")
    assert engine.seen[0].sampling == {"temperature": 0.1}


# --------------------------------------------------------------------------- failures of one item


async def test_a_bad_image_is_a_failed_row_of_its_kind() -> None:
    engine = ScriptedEngine(reply=lambda _: "text")
    loader = ScriptedLoader({1: ImageError("image_truncated", "the file ends too early")})
    async with bench(ONE_STAGE, range(3), engine, loader=loader) as it:
        rows = await it.desk.has_rows(0, 1, 2)

    assert [row.status for row in rows] == ["captioned", "failed", "captioned"]
    assert (rows[1].error_kind, rows[1].error) == ("image_truncated", "the file ends too early")
    assert rows[1].recipe
    assert it.pipeline.tally.failed == 1


async def test_items_that_never_reach_the_engine_leave_their_place_in_the_look_ahead() -> None:
    engine = ScriptedEngine(reply=lambda _: "text")
    loader = ScriptedLoader({item: ImageError("image_empty", "0 bytes") for item in range(9)})
    async with bench(ONE_STAGE, range(10), engine, loader=loader, look_ahead_items=2) as it:
        rows = await it.desk.has_rows(*range(10))
    assert [row.status for row in rows] == ["failed"] * 9 + ["captioned"]


async def test_a_refusal_names_its_stage_and_keeps_earlier_outputs() -> None:
    engine = ScriptedEngine(width=1)
    async with bench(TWO_STAGES, [0, 1], engine) as it:
        await engine.has("item 0")
        engine.answer("item 0", "draft")
        await engine.has("again draft")
        engine.refuse("again draft", "prompt_too_long", "9000 tokens; the limit is 4096")
        (row,) = await it.desk.has_rows(0)
        await engine.has("item 1")

    assert (row.status, row.error_kind) == ("failed", "prompt_too_long")
    assert row.error == "stage 'second': 9000 tokens; the limit is 4096"
    assert row.outputs == {"draft": ["draft"]}


async def test_a_refusal_of_one_prompt_aborts_its_siblings() -> None:
    stages = [Stage("s", "m", ("a {column:n}", "b {column:n}"))]
    engine = ScriptedEngine()
    async with bench(stages, [0], engine) as it:
        await engine.has("a item 0", "b item 0")
        engine.refuse("b item 0", "refused", "no")
        (row,) = await it.desk.has_rows(0)
        await engine.has()
    assert (row.error_kind, row.outputs) == ("refused", {})


@pytest.mark.parametrize("text", ["", "  \n\t "])
async def test_an_empty_answer_is_a_failure_that_says_so(text: str) -> None:
    engine = ScriptedEngine(reply=lambda _: text)
    async with bench(ONE_STAGE, [0], engine) as it:
        (row,) = await it.desk.has_rows(0)

    assert (row.status, row.error_kind) == ("failed", "empty_caption")
    assert "stage 'default'" in (row.error or "")
    assert len(row.stage_stats) == 1, "what it cost is known all the same"


async def test_an_unexpected_error_costs_one_item() -> None:
    engine = ScriptedEngine(reply=lambda r: ZeroDivisionError("oops") if "1" in r.prompt else "ok")
    async with bench(ONE_STAGE, range(3), engine) as it:
        rows = await it.desk.has_rows(0, 1, 2)

    assert [row.status for row in rows] == ["captioned", "failed", "captioned"]
    assert (rows[1].error_kind, rows[1].error) == ("internal_error", "ZeroDivisionError: oops")


async def test_what_a_model_says_is_always_valid_text() -> None:
    engine = ScriptedEngine(reply=lambda _: "half a \ud83d pair")
    async with bench(ONE_STAGE, [0], engine) as it:
        (row,) = await it.desk.has_rows(0)
    assert row.outputs == {"captions": ["half a ? pair"]}


async def test_abandoned_items_get_no_row_and_free_their_places() -> None:
    engine = ScriptedEngine(width=1)
    async with bench(ONE_STAGE, range(4), engine) as it:
        await engine.has("item 0")
        it.pipeline.abandon([(LeaseId(1), 0), (LeaseId(1), 1), (LeaseId(1), 99)])
        await engine.has("item 2")
        engine.answer("item 2")
        await it.desk.has_rows(2)
        await engine.has("item 3")
        assert set(it.desk.rows) == {2}
        assert it.pipeline.in_flight == 1


async def test_an_item_abandoned_before_its_first_step_leaves_nothing_behind() -> None:
    engine = ScriptedEngine(width=1)
    async with bench(ONE_STAGE, [], engine) as it:
        await asyncio.sleep(0)
        it.desk.waiting.extend([0, 1])
        begun = it.desk.next_job

        def next_job_and_abandon() -> Job | None:
            it.pipeline.abandon([(LeaseId(1), 0)])
            return begun()

        it.desk.next_job = next_job_and_abandon  # type: ignore[method-assign]  # steps in between
        it.pipeline.nudge()
        await engine.has("item 1")
        assert it.pipeline.in_flight == 1


# --------------------------------------------------------------------------- deaths of the engine


async def test_an_engines_death_costs_no_item_and_no_finished_stage() -> None:
    engine = ScriptedEngine(width=2)
    async with bench(TWO_STAGES, [0, 1, 2], engine) as it:
        await engine.has("item 0", "item 1")
        engine.answer("item 0", "kept")
        await engine.has("again kept", "item 1")
        engine.die()

        await engine.until(lambda: engine.starts == 2)
        assert engine.stops == 1, "stopped before it is started again"
        engine.reply = lambda request: f"answer to {request.prompt}"
        rows = await it.desk.has_rows(0, 1, 2)

    assert [row.status for row in rows] == ["captioned"] * 3
    assert rows[0].outputs["draft"] == ["kept"]
    assert [request.prompt for request in engine.seen].count("item 0") == 1, "not asked again"


async def test_an_engine_that_hangs_is_restarted_and_costs_no_item_and_no_finished_stage() -> None:
    engine = ScriptedEngine(width=2)
    async with bench(TWO_STAGES, [0, 1, 2], engine, supervision={"stall_seconds": 0.05}) as it:
        await engine.has("item 0", "item 1")
        engine.answer("item 0", "kept")
        await engine.until(lambda: engine.starts == 2)
        assert engine.stops == 1, "stopped before it is started again"
        engine.reply = lambda request: f"answer to {request.prompt}"
        rows = await it.desk.has_rows(0, 1, 2)
    assert [row.status for row in rows] == ["captioned"] * 3
    assert rows[0].outputs["draft"] == ["kept"]
    assert [request.prompt for request in engine.seen].count("item 0") == 1, "not asked again"


async def test_an_engine_that_hangs_so_that_nothing_can_be_cancelled_is_restarted_too() -> None:
    engine = DeafEngine(width=1)
    async with bench(ONE_STAGE, [0], engine, supervision={"stall_seconds": 0.05}) as it:
        await engine.has("item 0")
        engine.reply = lambda _: "text"
        (row,) = await it.desk.has_rows(0)
        engine.let_go.set()
    assert row.status == "captioned"
    assert engine.starts == 2


class DeafEngine(ScriptedEngine):
    """Goes on with requests that were cancelled, until it may let go."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.let_go = asyncio.Event()

    async def generate(self, request: Request) -> Completion:
        try:
            return await super().generate(request)
        except asyncio.CancelledError:
            await self.let_go.wait()
            raise

    def die(self, reason: str = "killed") -> None:
        """Say nothing: not even of its end."""


async def test_tokens_are_life_however_long_a_request_takes() -> None:
    engine = ScriptedEngine(width=1)
    async with bench(ONE_STAGE, [0], engine, supervision={"stall_seconds": 0.1}) as it:
        await engine.has("item 0")
        async with asyncio.timeout(PATIENCE_SECONDS):
            for _ in range(60):  # tokens, for three times as long as a stall
                engine.beats += 1
                await asyncio.sleep(0.005)
        assert engine.starts == 1
        engine.answer("item 0")
        await it.desk.has_rows(0)


async def test_answers_and_refusals_to_others_are_life() -> None:
    """Engines that count no tokens, and runs of items that are all refused, are no stalls."""
    engine = ScriptedEngine(width=2)
    async with bench(ONE_STAGE, range(61), engine, supervision={"stall_seconds": 0.1}) as it:
        await engine.has("item 0", "item 1")
        for index in range(1, 61):
            await engine.has_prompt(f"item {index}")
            if index % 2:
                engine.answer(f"item {index}")
            else:
                engine.refuse(f"item {index}", "refused", "no")
            await asyncio.sleep(0.005)
        assert engine.starts == 1
        engine.answer("item 0")
        await it.desk.has_rows(*range(61))


async def test_neither_idling_nor_loading_is_a_stall() -> None:
    engine = ScriptedEngine(width=1)
    async with bench(ONE_STAGE, [], engine, supervision={"stall_seconds": 0.02}) as it:
        await asyncio.sleep(0.1)
        assert engine.starts == 1, "idle"
        engine.start_gate = asyncio.Event()
        it.desk.waiting.extend([0, 1])
        it.pipeline.nudge()
        await engine.has("item 0")
        engine.die()
        await engine.until(lambda: engine.starts == 2)
        await asyncio.sleep(0.1)
        assert engine.starts == 2, "loading"
        engine.reply = lambda _: "text"
        engine.start_gate.set()
        rows = await it.desk.has_rows(0, 1)
    assert [row.status for row in rows] == ["captioned"] * 2


async def test_an_engine_that_was_restarted_has_all_its_time_again() -> None:
    engine = ScriptedEngine(width=1)
    async with bench(ONE_STAGE, [0], engine, supervision={"stall_seconds": 0.4}) as it:
        await engine.until(lambda: engine.starts == 2)
        await engine.has("item 0")
        await asyncio.sleep(0.15)
        assert engine.starts == 2
        engine.answer("item 0")
        await it.desk.has_rows(0)


async def test_an_item_that_makes_engines_hang_is_found_and_fails_with_the_evidence() -> None:
    def reply(request: Request) -> str | None:
        return None if request.prompt == "item 5" else "text"

    engine = ScriptedEngine(width=16, reply=reply)
    async with bench(ONE_STAGE, range(20), engine, supervision={"stall_seconds": 0.05}) as it:
        rows = await it.desk.has_rows(*range(20))
    assert [row.item_index for row in rows if row.status == "failed"] == [5]
    assert rows[5].error_kind == "quarantined"
    assert "no token for 0.05 s: it hangs" in (rows[5].error or "")


async def test_an_engine_that_hangs_again_and_again_is_given_up() -> None:
    engine = ScriptedEngine(width=2)
    supervision = {"stall_seconds": 0.02, "max_restarts": 1}
    async with bench(ONE_STAGE, [0, 1], engine, supervision=supervision) as it:
        with pytest.raises(EngineGoneError, match="a restart did not help: no token"):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await it.running
        assert it.desk.rows == {}
    assert engine.starts == 2


def deadly(*items: int) -> Callable[[Request], str | Exception]:
    """Return a reply that dies of these items and answers all others."""
    prompts = {f"item {item}" for item in items}

    def reply(request: Request) -> str | Exception:
        return EngineDied("it burst") if request.prompt in prompts else "text"

    return reply


async def test_an_item_that_kills_engines_is_found_and_fails_with_the_evidence() -> None:
    engine = ScriptedEngine(width=16, reply=deadly(5))
    async with bench(ONE_STAGE, range(40), engine) as it:
        rows = await it.desk.has_rows(*range(40))

    assert [row.item_index for row in rows if row.status == "failed"] == [5]
    assert rows[5].error_kind == "quarantined"
    assert rows[5].error == (
        "stage 'default': given up after 3 attempts that ended with the engine; the last one, with "
        "nothing else in it: it burst"
    )
    assert engine.starts == 4


@pytest.mark.parametrize(("max_attempts", "deaths"), [(1, 3), (5, 5)])
async def test_an_item_has_as_many_attempts_as_the_run_allows_the_last_one_alone(
    max_attempts: int, deaths: int
) -> None:
    engine = ScriptedEngine(width=4, reply=deadly(2))
    async with bench(ONE_STAGE, range(4), engine, max_attempts=max_attempts) as it:
        rows = await it.desk.has_rows(*range(4))

    assert rows[2].error_kind == "quarantined"
    assert f"after {deaths} attempts" in (rows[2].error or "")


async def test_several_killers_are_all_found() -> None:
    engine = ScriptedEngine(width=16, reply=deadly(3, 4, 21))
    async with bench(ONE_STAGE, range(40), engine) as it:
        rows = await it.desk.has_rows(*range(40))

    failed = [row.item_index for row in rows if row.status == "failed"]
    assert failed == [3, 4, 21]


async def test_a_suspect_is_tried_with_nothing_else_in_the_engine() -> None:
    company: list[int] = []
    engine = ScriptedEngine(width=8)

    def reply(request: Request) -> str | Exception:
        if request.prompt == "item 0":
            company.append(len(engine.in_flight))
            return EngineDied("it burst")
        return "text"

    engine.reply = reply
    async with bench(ONE_STAGE, range(30), engine) as it:
        await it.desk.has_rows(*range(30))

    assert company[0] == 8
    assert 1 < company[1] <= 4, "in a smaller group"
    assert company[2] == 1, "alone"


async def test_a_suspect_is_alone_until_its_last_prompt_is_answered() -> None:
    stages = [
        Stage("first", "m", ("{column:n}",), output_field="draft"),
        Stage("second", "m", ("a {draft}", "b {draft}")),
    ]
    engine = ScriptedEngine(width=2)
    async with bench(stages, [0], engine) as it:
        await engine.has("item 0")
        engine.answer("item 0", "x")
        for _ in range(2):
            await engine.has("a x", "b x")
            engine.die()
        await engine.has("a x", "b x")
        it.desk.waiting.append(1)
        it.pipeline.nudge()
        await it.desk.has_begun(2)

        engine.answer("a x")
        for _ in range(10):  # item 1 gets as far as it can
            await asyncio.sleep(0)
        assert engine.prompts() == ["b x"]
        engine.answer("b x")
        await engine.has("item 1")


async def test_answers_that_came_before_a_death_are_kept() -> None:
    stages = [Stage("s", "m", ("a {column:n}", "b {column:n}"))]
    engine = ScriptedEngine()
    async with bench(stages, [0], engine) as it:
        await engine.has("a item 0", "b item 0")
        engine.answer("a item 0", "early")
        await engine.has("b item 0")
        engine.die()
        await engine.until(lambda: engine.starts == 2)
        await engine.has("b item 0")
        engine.answer("b item 0", "late")
        (row,) = await it.desk.has_rows(0)
    assert row.outputs == {"captions": ["early", "late"]}


async def test_an_innocent_item_that_was_there_twice_is_captioned() -> None:
    deaths = iter([True, True])
    engine = ScriptedEngine(
        width=1, reply=lambda _: EngineDied("chance") if next(deaths, False) else "text"
    )
    async with bench(ONE_STAGE, range(3), engine) as it:
        rows = await it.desk.has_rows(0, 1, 2)
    assert [row.status for row in rows] == ["captioned"] * 3


def starved_by(it: Bench) -> set[Cause]:
    """What the engine is waiting for at this very moment."""
    before = it.pipeline.gauge.seconds()
    while (after := it.pipeline.gauge.seconds()) == before and it.pipeline.gauge.is_starved:
        pass  # the clock's next tick
    return {cause for cause in Cause if after[cause] > before[cause]}


async def test_what_the_engine_waits_for_follows_the_items() -> None:
    engine, loader = ScriptedEngine(width=2), ScriptedLoader()
    loader.hold(0, 1)
    async with bench(ONE_STAGE, [0, 1], engine, loader=loader, look_ahead_items=2) as it:
        assert starved_by(it) == {Cause.NO_LEASE}
        await it.desk.has_begun(2)
        await asyncio.sleep(0)
        assert starved_by(it) == {Cause.DECODE}
        loader.release(0)
        loader.release(1)
        await engine.has("item 0", "item 1")
        assert starved_by(it) == set()
        with engine.seen[0].rendering(), engine.seen[1].rendering():
            assert starved_by(it) == {Cause.RENDER}
        engine.answer("item 0")
        engine.answer("item 1")
        await it.desk.has_rows(0, 1)
        it.desk.is_held_back = True
        it.pipeline.nudge()
        await asyncio.sleep(0)
        assert starved_by(it) == {Cause.BACK_PRESSURE}
        it.desk.is_held_back, it.desk.all_handed_out = False, True
        it.pipeline.nudge()
        await asyncio.sleep(0)
        assert starved_by(it) == set(), "nobody has any more"
        assert it.pipeline.gauge.idle_at_end() > 0.0


async def test_an_engine_that_always_dies_is_given_up_and_no_item_is_blamed() -> None:
    engine = ScriptedEngine(width=4, reply=lambda _: EngineDied("no device"))
    async with bench(ONE_STAGE, range(8), engine) as it:
        with pytest.raises(EngineGoneError, match="3 restarts did not help: no device") as error:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await it.running
        assert it.desk.rows == {}
        assert it.pipeline.in_flight == 0
        assert set(error.value.suspects) <= {(1, item) for item in range(8)}
    assert engine.starts == 4


async def test_an_engine_that_does_not_come_back_is_given_up() -> None:
    engine = ScriptedEngine(width=2)
    async with bench(ONE_STAGE, range(3), engine) as it:
        await engine.has("item 0", "item 1")
        engine.failing_starts.extend(["out of memory"] * 3)
        engine.die()
        with pytest.raises(EngineGoneError, match="out of memory") as error:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await it.running
        assert set(error.value.suspects) == {(1, 0), (1, 1)}


async def test_an_engine_that_hangs_while_it_is_loaded_again_is_given_up() -> None:
    engine = ScriptedEngine(width=1)
    supervision = {"restart_seconds": 0.02, "max_restarts": 2}
    async with bench(ONE_STAGE, [0], engine, supervision=supervision) as it:
        await engine.has("item 0")
        engine.start_gate = asyncio.Event()
        engine.die()
        with pytest.raises(
            EngineGoneError, match="2 restarts did not help: it did not start again"
        ):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await it.running
    assert engine.starts == 3


async def test_an_answer_ends_a_run_of_trouble() -> None:
    deaths = 0

    def reply(request: Request) -> str | Exception:
        nonlocal deaths
        # Every third request dies once: far more deaths than restarts in a row are allowed.
        if request.prompt not in tried and int(request.prompt.split()[1]) % 3 == 0:
            tried.add(request.prompt)
            deaths += 1
            return EngineDied("again")
        return "text"

    tried: set[str] = set()
    engine = ScriptedEngine(width=1, reply=reply)
    async with bench(ONE_STAGE, range(30), engine) as it:
        rows = await it.desk.has_rows(*range(30))
    assert deaths == 10
    assert all(row.status == "captioned" for row in rows)


async def test_refusals_beside_a_dying_engine_do_not_count_as_life() -> None:
    def reply(request: Request) -> Exception:
        if request.prompt == "item 0":
            return RequestRefused("refused", "no")
        return EngineDied("no device")

    engine = ScriptedEngine(width=2, reply=reply)
    async with bench(ONE_STAGE, range(4), engine) as it:
        with pytest.raises(EngineGoneError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await it.running


# --------------------------------------------------------------------------- form and quality

SCHEMA = {"properties": {"title": {"type": "string"}, "tags": {"type": "array"}}}
FACTS = Stage(
    "facts",
    "m",
    ("{column:n}",),
    output_field="facts",
    structure=Structure(SCHEMA, columns=("title", "tags")),
)


async def row_of(stages: Iterable[Stage], *replies: str | tuple[str, str]) -> tuple[Row, list[Any]]:
    """Return an item's row when the engine gives these answers (and reasons), one by one."""
    engine = ScriptedEngine(reply=lambda _: texts[len(engine.seen) - 1])
    texts = [reply if isinstance(reply, str) else reply[0] for reply in replies]
    engine.finish_reasons = [None if isinstance(r, str) else r[1] for r in replies]
    async with bench(stages, [0], engine) as it:
        (row,) = await it.desk.has_rows(0)
    assert len(engine.seen) == len(replies)
    return row, engine.seen


async def test_columns_of_a_json_answer_are_fields_and_later_prompts_have_them() -> None:
    later = Stage("use", "m", ("{title} with {tags}",))
    text = '{"title": "Dawn", "tags": ["sky", "sea"]}'
    row, seen = await row_of([FACTS, later], text, "a caption")
    assert row.outputs == {
        "facts": [text],
        "title": ["Dawn"],
        "tags": ["sky", "sea"],
        "captions": ["a caption"],
    }
    assert seen[0].sampling["structured_outputs"] == {"json": SCHEMA}
    assert "structured_outputs" not in seen[1].sampling
    assert seen[1].prompt == "Dawn with sky, sea"


async def test_json_that_was_cut_off_is_a_typed_failure_that_says_why() -> None:
    row, _ = await row_of([FACTS], ('{"title": "Da', "length"))
    assert (row.status, row.error_kind) == ("failed", "invalid_json")
    assert row.error is not None
    assert "stage 'facts'" in row.error
    assert "raise max_tokens" in row.error
    assert row.flags == ("length",)


async def test_an_answer_that_is_no_choice_is_a_typed_failure() -> None:
    stage = Stage("kind", "m", ("?",), structure=Structure(choice=("photo", "drawing")))
    row, _ = await row_of([stage], "phot")
    assert (row.status, row.error_kind) == ("failed", "invalid_answer")
    row, _ = await row_of([stage], "photo")
    assert row.outputs == {"captions": ["photo"]}


async def test_flags_are_in_the_row_and_the_text_is_as_it_was() -> None:
    refusal = "I'm sorry, but I cannot assist with that."
    row, _ = await row_of(TWO_STAGES, "A cat. " * 40, (refusal, "length"))
    assert row.outputs == {"draft": [("A cat. " * 40).strip()], "captions": [refusal]}
    assert row.status == "captioned"
    assert row.flags == ("length", "repetition", "refusal")


async def test_only_the_flags_asked_for_are_given() -> None:
    stage = replace(ONE_STAGE[0], quality=Quality(flags=("length",)))
    row, _ = await row_of([stage], "A cat. " * 40)
    assert row.flags == ()


async def test_an_empty_answer_is_flagged_and_failed() -> None:
    row, _ = await row_of(ONE_STAGE, " ")
    assert (row.error_kind, row.flags) == ("empty_caption", ("empty",))


RETRY = Retry(2, flags=("empty", "repetition"), sampling={"temperature": 1.0})
RETRYING = replace(ONE_STAGE[0], sampling={"top_p": 0.5}, quality=Quality(retry=RETRY))


async def test_a_flagged_answer_is_asked_for_again_with_other_sampling() -> None:
    row, seen = await row_of([RETRYING], "", "a caption")
    assert row.outputs == {"captions": ["a caption"]}
    assert row.flags == ()
    assert [request.sampling for request in seen] == [
        {"top_p": 0.5},
        {"top_p": 0.5, "temperature": 1.0},
    ]
    (stats,) = row.stage_stats
    assert stats.tokens_in == 20, "both attempts cost something"


async def test_attempts_end_and_the_first_of_the_best_is_kept() -> None:
    loop = "A cat. " * 40
    row, _ = await row_of([RETRYING], (loop, "length"), loop + "1", loop + "2")
    assert row.outputs == {"captions": [loop + "1"]}
    assert row.flags == ("repetition",)


async def test_a_flag_that_is_not_worth_an_attempt_gets_none() -> None:
    row, _ = await row_of([RETRYING], ("a caption", "length"))
    assert row.flags == ("length",)


async def test_the_tally_counts_flags() -> None:
    engine = ScriptedEngine(reply=lambda _: "A cat. " * 40)
    async with bench(ONE_STAGE, range(3), engine) as it:
        await it.desk.has_rows(0, 1, 2)
        assert it.pipeline.tally.flags == {"repetition": 3}


async def test_a_row_says_the_smallest_size_its_picture_was_shrunk_to() -> None:
    engine = ScriptedEngine(reply=lambda _: "a caption")
    engine.scaled = {"item 0": (70, 40), "again a caption": (35, 20)}
    async with bench(TWO_STAGES, [0, 1], engine) as it:
        shrunk, whole = await it.desk.has_rows(0, 1)
    assert shrunk.image_scaled_to == "35x20"
    assert (shrunk.image_width, shrunk.image_height) == (8, 6), "the picture's own size stays"
    assert whole.image_scaled_to == "35x20"
