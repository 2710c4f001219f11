"""Models that do not fit on the device together: few swaps, one at a time, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from caption_flow.protocol.messages import LeaseId
from caption_flow.protocol.rows import CAPTIONED, PARTIAL
from caption_flow.recipe.serving import served
from caption_flow.recipe.stages import Stage, build_recipe
from caption_flow.worker.core.leases import Job
from caption_flow.worker.core.placement import place
from caption_flow.worker.core.slabs import Slab
from caption_flow.worker.engines.base import EngineDied, PreparedImage, Request
from caption_flow.worker.garage import Garage
from caption_flow.worker.images.load import LoadedImage
from caption_flow.worker.pipeline import EngineGoneError, Pipeline
from caption_flow.worker.supervision import SupervisedEngine
from tests.support.desk import Earlier, ListedDesk
from tests.support.engines import PATIENCE_SECONDS, ScriptedEngine, ScriptedLoader, loaded_image

LARGE = {"gpu_memory_utilization": 0.9}
CHAINED = (
    Stage("first", "a", ("{column:n}",), output_field="draft", engine=LARGE),
    Stage("second", "b", ("again {draft}",), requires=("first",), engine=LARGE),
)
FREE = (
    Stage("first", "a", ("a {column:n}",), output_field="one", engine=LARGE),
    Stage("second", "b", ("b {column:n}",), output_field="two", engine=LARGE),
)
SLAB = 10


class Device:
    """What engines are loaded on: holds one at a time, and remembers which."""

    def __init__(self) -> None:
        self.holds: str | None = None
        self.loaded: list[str] = []


class LargeEngine(ScriptedEngine):
    """Fills the device; one that is loaded beside another is an error of ours."""

    def __init__(self, model: str, device: Device, **options: Any) -> None:
        super().__init__(model=model, **options)
        self._device = device

    async def start(self) -> None:
        assert self._device.holds in {None, self.model}, "the device is taken"
        self._moved.set()
        await super().start()
        self._device.holds = self.model
        self._device.loaded.append(self.model)

    async def stop(self) -> None:
        await super().stop()
        if self._device.holds == self.model:
            self._device.holds = None

    async def is_loading(self, times: int = 1) -> None:
        """Wait until it has begun to load so many times."""
        await self.until(lambda: self.starts == times)


@dataclass
class Bench:
    pipeline: Pipeline
    garage: Garage
    desk: ListedDesk
    loader: ScriptedLoader
    a: LargeEngine
    b: LargeEngine
    device: Device
    running: asyncio.Task[None]

    async def gone(self) -> EngineGoneError:
        with pytest.raises(EngineGoneError) as caught:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self.running
        return caught.value


def answers(request: Request) -> str:
    return f"<{request.prompt}>"


@contextlib.asynccontextmanager
async def bench(
    stages: Iterable[Stage],
    items: Iterable[int],
    *,
    a: Any = answers,
    b: Any = answers,
    loader: ScriptedLoader | None = None,
    swap_seconds: float = 0.0,
    slab: Slab | None = None,
    serves: Collection[str] = (),
    earlier: Earlier | None = None,
) -> AsyncIterator[Bench]:
    """``swap_seconds`` is what the garage's clock says of each load; really it takes no time."""
    device = Device()
    first, second = LargeEngine("a", device, reply=a), LargeEngine("b", device, reply=b)
    recipe = build_recipe(list(stages))
    time_told = iter(range(10_000))
    garage = Garage(
        {engine.model: SupervisedEngine(engine, backoff_seconds=0.0) for engine in (first, second)},
        place(served(recipe, serves)),
        slab=slab or Slab(min_items=SLAB, max_items=SLAB),
        clock=lambda: next(time_told) * swap_seconds / 3,  # it is looked at four times a load
    )
    desk, loader = ListedDesk(recipe, items, earlier=earlier), loader or ScriptedLoader()
    await garage.load(garage.next_group([(garage.use(served(recipe, serves)), frozenset())]))
    pipeline = Pipeline(desk, loader, garage, serves=serves)
    pipeline.use(recipe)
    running = asyncio.create_task(pipeline.run())
    try:
        yield Bench(pipeline, garage, desk, loader, first, second, device, running)
    finally:
        running.cancel()
        await asyncio.wait([running])
        await garage.stop()


async def test_stages_that_others_run_need_no_engine_here_and_are_not_waited_for() -> None:
    stages = (
        CHAINED[0],
        Stage("second", "b", ("again {draft}",), output_field="text", engine=LARGE),
        Stage("third", "c", ("then {second.text}",), output_field="text", engine=LARGE),
        Stage("fourth", "b", ("last {text}",), output_field="end", engine=LARGE),
    )
    ours = ["first", "second", "fourth"]
    async with bench(stages, range(3), serves=ours) as it:
        rows = await it.desk.has_rows(0, 1, 2)
        assert it.device.loaded == ["a", "b"], "each once: the fourth stage comes another time"
    assert {row.status for row in rows} == {PARTIAL}
    assert rows[1].outputs == {
        "first.draft": ("<item 1>",),
        "second.text": ("<again <item 1>>",),
    }
    earlier: Earlier = {
        "first": {"draft": ("d",)},
        "second": {"text": ("t",)},
        "third": {"text": ("u",)},
    }
    async with bench(stages, [7], serves=ours, earlier=earlier) as it:
        (row,) = await it.desk.has_rows(7)
    assert row.status == CAPTIONED
    assert row.outputs == {"end": ["<last t, u>"]}


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(50):
        await asyncio.sleep(0)


# --------------------------------------------------------------------------- slabs and swaps


async def test_items_pass_in_slabs_through_one_model_after_the_other() -> None:
    async with bench(CHAINED, range(45)) as it:
        rows = await it.desk.has_rows(*range(45))

    assert it.device.loaded == ["a", "b"] * 5, "45 items are five slabs of ten"
    assert all(row.status == "captioned" and row.models == ("a", "b") for row in rows)
    assert rows[7].outputs == {"draft": ["<item 7>"], "captions": ["<again <item 7>>"]}
    assert [len(it.a.seen), len(it.b.seen)] == [45, 45], "nothing is asked twice"


async def test_a_slab_begins_with_the_loaded_model_where_the_order_of_stages_allows() -> None:
    async with bench(FREE, range(45)) as it:
        rows = await it.desk.has_rows(*range(45))

    assert it.device.loaded == ["a", "b", "a", "b", "a", "b"], "one swap a slab"
    assert rows[7].outputs == {"one": ["<a item 7>"], "two": ["<b item 7>"]}
    assert rows[17].outputs == {"one": ["<a item 17>"], "two": ["<b item 17>"]}


async def test_no_more_items_are_begun_than_a_slab_has() -> None:
    async with bench(CHAINED, range(45), b=None) as it:
        await it.b.has_count(4)
        assert len(it.desk.begun) == SLAB
        assert it.pipeline.in_flight == SLAB


async def test_the_last_items_do_not_wait_for_a_slab_to_be_full() -> None:
    async with bench(CHAINED, range(3)) as it:
        await it.desk.has_rows(0, 1, 2)
        assert it.device.loaded == ["a", "b"]

        it.desk.waiting.extend([3, 4])
        it.pipeline.nudge()
        await it.desk.has_rows(3, 4)
        assert it.device.loaded == ["a", "b", "a", "b"]


async def test_an_idle_engine_is_kept_for_items_that_come_soon() -> None:
    async with bench(CHAINED, [0], swap_seconds=6.0) as it:  # 0.3 s of patience
        await it.a.has_seen(1)
        await settle()
        it.desk.waiting.append(1)
        it.pipeline.nudge()
        await it.desk.has_rows(0, 1)
    assert it.device.loaded == ["a", "b"]


async def test_the_engine_of_an_item_that_is_still_at_work_is_not_swapped() -> None:
    async with bench(CHAINED, range(3), a=None) as it:
        await it.a.has_count(3)
        it.a.answer("item 0", "x")
        it.a.answer("item 1", "y")
        await settle()
        assert it.device.loaded == ["a"]
        it.a.answer("item 2", "z")
        await it.desk.has_rows(0, 1, 2)


async def test_pictures_are_not_kept_while_items_wait_for_another_model() -> None:
    pictures: list[weakref.ref[Any]] = []

    class Watched(ScriptedLoader):
        async def load(self, job: Job) -> LoadedImage:
            loaded = loaded_image(job.item.index)
            pictures.append(weakref.ref(loaded.image.pixels))
            return loaded

    async with bench(CHAINED, range(SLAB), loader=Watched()) as it:
        it.b.start_gate = asyncio.Event()
        await it.b.is_loading()
        it.a.seen.clear()
        gc.collect()
        assert len(pictures) == SLAB
        assert [ref for ref in pictures if ref() is not None] == []
        it.b.start_gate.set()
        await it.desk.has_rows(*range(SLAB))
    assert len(pictures) == 2 * SLAB, "decoded once more, for the other model"


async def test_an_image_that_changes_between_its_stages_is_a_failure_that_says_so() -> None:
    class Changing(ScriptedLoader):
        async def load(self, job: Job) -> LoadedImage:
            loaded = await super().load(job)
            if self.asked.count(0) == 2:
                other = PreparedImage(loaded.image.pixels, content_hash="f" * 32)
                return LoadedImage(other, width=8, height=6, format="PNG", file_size=1)
            return loaded

    async with bench(CHAINED, [0], loader=Changing()) as it:
        (row,) = await it.desk.has_rows(0)
    assert (row.status, row.error_kind) == ("failed", "image_changed")
    assert row.outputs == {"draft": ["<item 0>"]}


async def test_the_size_of_slabs_is_learned_from_real_visits_and_loads() -> None:
    async with bench(
        CHAINED, range(30), swap_seconds=3.0, slab=Slab(min_items=1, max_items=1000)
    ) as it:
        await it.desk.has_rows(*range(30))
        assert it.pipeline.slab_items == 1000, "loads take minutes beside items of microseconds"


# --------------------------------------------------------------------------- troubles


async def test_an_engine_that_dies_among_swaps_costs_no_item_and_no_finished_stage() -> None:
    deaths = iter([True, True])

    def dying(request: Request) -> str | Exception:
        return EngineDied("chance") if next(deaths, False) else answers(request)

    async with bench(CHAINED, range(25), b=dying) as it:
        rows = await it.desk.has_rows(*range(25))
    assert [row.status for row in rows] == ["captioned"] * 25
    assert len(it.a.seen) == 25, "the first stage is not repeated"


async def test_an_item_that_kills_the_second_model_is_found_and_the_rest_is_done() -> None:
    def deadly(request: Request) -> str | Exception:
        return EngineDied("it burst") if "item 5>" in request.prompt else answers(request)

    async with bench(CHAINED, range(25), b=deadly) as it:
        rows = await it.desk.has_rows(*range(25))
    assert [row.item_index for row in rows if row.status == "failed"] == [5]
    assert rows[5].error_kind == "quarantined"
    assert rows[5].outputs == {"draft": ["<item 5>"]}


async def test_a_model_that_was_loaded_before_is_tried_again_if_it_does_not_load() -> None:
    async with bench(CHAINED, range(15)) as it:
        it.a.failing_starts.append("the device is not free yet")
        rows = await it.desk.has_rows(*range(15))
    assert [row.status for row in rows] == ["captioned"] * 15
    assert it.a.starts == 3


async def test_a_model_that_can_be_loaded_no_more_ends_the_work_and_blames_nobody() -> None:
    deaths = iter([True])

    def dying(request: Request) -> str | Exception:
        return EngineDied("chance") if next(deaths, False) else answers(request)

    async with bench(CHAINED, range(15), b=dying) as it:
        it.a.failing_starts.extend(["no device"] * 9)
        error = await it.gone()
    assert str(error) == "a cannot be loaded again: no device"
    assert error.suspects == ()


async def test_a_second_model_that_never_loads_is_told_at_once() -> None:
    async with bench(CHAINED, range(15)) as it:
        it.b.failing_starts.append("the weights are missing")
        error = await it.gone()
    assert (str(error), error.suspects, it.b.starts) == ("the weights are missing", (), 1)


# --------------------------------------------------------------------------- stopping


async def test_items_abandoned_while_they_wait_are_not_asked_about_again() -> None:
    async with bench(CHAINED, range(SLAB)) as it:
        it.b.start_gate = asyncio.Event()
        await it.b.is_loading()
        it.pipeline.abandon([(LeaseId(1), item) for item in range(8)])
        assert it.pipeline.in_flight == 2
        it.b.start_gate.set()
        await it.desk.has_rows(8, 9)
        await settle()
    assert set(it.desk.rows) == {8, 9}
    assert len(it.b.seen) == 2


async def test_items_abandoned_while_their_model_is_loaded_but_full_are_not_asked_about() -> None:
    thirty = Slab(min_items=30, max_items=30)
    async with bench(CHAINED, range(30), b=None, slab=thirty) as it:
        await it.b.has_count(4)
        it.pipeline.abandon([(LeaseId(1), 29)])
        it.b.reply = answers
        for prompt in it.b.prompts():
            it.b.answer(prompt)
        await it.desk.has_rows(*range(29))
        await settle()
    assert set(it.desk.rows) == set(range(29))


async def test_a_load_that_nobody_waits_for_any_more_does_no_harm() -> None:
    async with bench(CHAINED, range(SLAB)) as it:
        it.b.start_gate = asyncio.Event()
        await it.b.is_loading()
        it.pipeline.abandon([(LeaseId(1), item) for item in range(SLAB)])
        it.desk.waiting.extend([20, 21])
        it.b.start_gate.set()
        await it.desk.has_rows(20, 21)
    assert it.device.loaded == ["a", "b", "a", "b"]


async def test_what_is_at_no_engine_can_be_given_back_and_nothing_is_loaded_for_it() -> None:
    async with bench(CHAINED, range(SLAB), a=None) as it:
        await it.a.has_count(4)
        for item in range(4):
            it.a.answer(f"item {item}")
        await it.a.has_count(4)
        it.pipeline.may_swap = False

        given = it.pipeline.withdraw_waiting()
        assert given == tuple((1, item) for item in range(4))
        while it.a.prompts():
            it.a.answer(it.a.prompts()[0])
            await settle()
        assert it.pipeline.withdraw_waiting() == tuple((1, item) for item in range(4, SLAB))
        await settle()
    assert (it.device.loaded, it.desk.rows) == (["a"], {})


async def test_half_done_items_are_not_withdrawn_for_others_to_do_anew() -> None:
    async with bench(CHAINED, range(SLAB)) as it:
        it.b.start_gate = asyncio.Event()
        await it.b.is_loading()
        assert it.pipeline.withdraw(5) == ()


async def test_an_item_that_only_waits_for_its_first_model_can_be_withdrawn() -> None:
    async with bench(CHAINED, [0]) as it:
        await it.desk.has_rows(0)
        it.a.start_gate = asyncio.Event()
        it.desk.waiting.append(1)
        it.pipeline.nudge()
        await it.a.is_loading(2)
        assert it.pipeline.withdraw(5) == ((1, 1),)
        assert it.pipeline.in_flight == 0


async def test_a_worker_that_ends_while_a_model_is_loading_ends_at_once() -> None:
    async with bench(CHAINED, range(SLAB)) as it:
        it.b.start_gate = asyncio.Event()
        await it.b.is_loading()
        it.running.cancel()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.wait([it.running])
        assert it.running.cancelled()
        assert it.device.holds is None


# --------------------------------------------------------------------------- another recipe

OTHER = (
    CHAINED[0],
    Stage("second", "c", ("then {draft}",), requires=("first",), engine=LARGE),
)


def go_on_with(it: Bench, stages: Iterable[Stage]) -> LargeEngine:
    """Have the pipeline go on with a recipe whose second model is ``c``; return that engine."""
    recipe, engine = build_recipe(list(stages)), LargeEngine("c", it.device, reply=answers)

    async def refit(garage: Garage) -> None:
        engines = {"a": garage.engines["a"], "c": SupervisedEngine(engine)}
        await garage.refit(engines, place(recipe))

    it.pipeline.renew(recipe, refit)
    it.desk.recipe = recipe
    return engine


async def test_other_engines_are_loaded_when_nobody_is_in_the_old_ones() -> None:
    async with bench(CHAINED, range(3), b=None) as it:
        await it.b.has_count(3)
        go_on_with(it, OTHER)
        it.desk.waiting.extend([7])
        await settle()
        assert it.pipeline.is_renewing
        assert it.desk.begun == [0, 1, 2], "nothing is begun meanwhile"
        assert it.device.holds == "b"
        for item in range(3):
            it.b.answer(f"again <item {item}>", "of old")
        *old, new = await it.desk.has_rows(0, 1, 2, 7)
        assert not it.pipeline.is_renewing
        assert it.device.loaded == ["a", "b", "a", "c"]
    assert [row.outputs["captions"] for row in old] == [["of old"]] * 3
    assert new.outputs["captions"] == ["<then <item 7>>"]
    assert new.models == ("a", "c")
    assert new.recipe != old[0].recipe


async def test_no_old_engine_is_loaded_any_more_for_what_waits_between_two_of_them() -> None:
    def all_but_the_last(request: Request) -> str | None:
        return None if request.prompt == "item 2" else answers(request)

    async with bench(CHAINED, range(3), a=all_but_the_last) as it:
        await it.a.has("item 2")
        await settle()
        go_on_with(it, OTHER)
        waiting = it.pipeline.withdraw_waiting()
        assert sorted(item for _, item in waiting) == [0, 1]
        it.a.answer("item 2")
        await it.a.has_count(0)
        await settle()
        assert [item for _, item in it.pipeline.withdraw_waiting()] == [2]
        it.desk.waiting.extend([7])
        it.pipeline.nudge()
        (row,) = await it.desk.has_rows(7)
    assert row.models == ("a", "c")
    assert it.device.loaded == ["a", "c"], "neither the old one nor, again, the one that stays"


async def test_a_worker_that_is_ending_loads_no_other_engine() -> None:
    async with bench(CHAINED, []) as it:
        it.pipeline.may_swap = False
        engine = go_on_with(it, OTHER)
        await settle()
        assert engine.starts == 0
        assert it.pipeline.is_renewing
