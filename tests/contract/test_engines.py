"""What every engine promises, whichever it is: one suite, passed by all of them.

The tests of one engine share it, because loading a model takes half a minute; a test that stops or
breaks it leaves the next one to start it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from caption_flow.config.secret import Secret
from caption_flow.recipe.structure import Structure
from caption_flow.recipe.video import Form, Video
from caption_flow.worker.engines import guard
from caption_flow.worker.engines.base import (
    Engine,
    EngineDied,
    EngineUnavailable,
    PreparedImage,
    Request,
    RequestRefused,
)
from caption_flow.worker.engines.openai import OpenAIEngine
from caption_flow.worker.engines.synthetic import SyntheticEngine, synthetic_caption
from caption_flow.worker.engines.vllm import VllmEngine
from caption_flow.worker.images.video import prepare_video
from tests.support.openai_server import MODEL, ScriptedServer
from tests.support.pictures import SCENES, caption, picture
from tests.support.videos import make_video

MODEL_FOLDER = Path(__file__).parents[1] / "tiny_vlm" / "model"
PROMPT = "Describe this image."
PATIENCE_SECONDS = 120.0
"""No test waits longer for anything but a model to load; one that gets here has failed."""
LOAD_SECONDS = 300.0
"""On two idle cores a model loads in half a minute."""

VLLM_MARKS = (
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
)
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # torch's own inductor says this while vLLM imports it.
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    # torch's tensors lack a keyword of numpy 2; some versions of transformers make it read them.
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword"
        ":DeprecationWarning:transformers.processing_utils"
    ),
]


@dataclass(frozen=True)
class Kit:
    """An engine, and what the suite needs to know about it."""

    engine: Engine
    expected: Callable[[str], str]
    """The engine's text for `PROMPT` about the picture of this name."""
    unanswerable: Request
    refusal_kind: str
    slow: dict[str, Any]
    """Sampling that keeps a request in the engine until something else happens."""

    def request(self, name: str, **sampling: Any) -> Request:
        settings = {"temperature": 0.0, "max_tokens": 48, **sampling}
        return Request(f"item-{next(_numbers)}", PROMPT, picture(name), settings)


_numbers = itertools.count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def synthetic_kit() -> AsyncIterator[Kit]:
    poison = picture("unanswerable")
    engine = SyntheticEngine(
        "synthetic",
        {"fail_items": [poison.content_hash], "latency_ms": 20, "latency_jitter": 0.5},
    )
    yield Kit(
        engine,
        expected=lambda name: synthetic_caption(picture(name).content_hash, PROMPT),
        unanswerable=Request("refused", PROMPT, poison, {}),
        refusal_kind="synthetic_refusal",
        slow={},
    )
    await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vllm_kit() -> AsyncIterator[Kit]:
    engine = VllmEngine(
        str(MODEL_FOLDER),
        # What a recipe for a GPU says of its memory must not matter on a machine without one.
        {"max_model_len": 512, "enforce_eager": True, "gpu_memory_utilization": 0.3},
    )
    engine.expect([Structure(FACTS).sampling()])
    yield Kit(
        engine,
        expected=caption,
        unanswerable=Request("refused", "word " * 2000, picture("red"), {}),
        refusal_kind="prompt_too_long",
        slow={"ignore_eos": True, "max_tokens": 400},
    )
    await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def openai_kit() -> AsyncIterator[Kit]:
    server = ScriptedServer(key="sesame")
    await server.start()
    engine = OpenAIEngine(MODEL, {"base_url": server.base_url, "api_key": Secret("sesame")})
    yield Kit(
        engine,
        expected=caption,
        unanswerable=Request("refused", "word " * 2000, picture("red"), {}),
        refusal_kind="prompt_too_long",
        slow={"ignore_eos": True, "max_tokens": 400},
    )
    await engine.stop()
    await server.stop()


@pytest.fixture(
    params=[
        pytest.param("synthetic_kit", id="synthetic"),
        pytest.param("openai_kit", id="openai"),
        pytest.param("vllm_kit", id="vllm", marks=VLLM_MARKS),
    ]
)
def chosen_kit(request: pytest.FixtureRequest) -> Kit:
    kit: Kit = request.getfixturevalue(request.param)
    return kit


@pytest_asyncio.fixture(loop_scope="module")
async def kit(chosen_kit: Kit) -> Kit:
    """Each engine in turn, running."""
    return await running(chosen_kit)


@pytest_asyncio.fixture(loop_scope="module")
async def vllm(vllm_kit: Kit) -> VllmKit:
    """VLLM alone, running."""
    await running(vllm_kit)
    assert isinstance(vllm_kit.engine, VllmEngine)
    assert vllm_kit.engine._running is not None
    return VllmKit(vllm_kit, vllm_kit.engine._running._engine, vllm_kit.engine._running._mark)


async def running(kit: Kit) -> Kit:
    """Start the engine unless it answers."""
    with contextlib.suppress(EngineDied):
        await kit.engine.generate(kit.request("red", max_tokens=1))
        return kit
    await kit.engine.stop()
    await kit.engine.start()
    return kit


@dataclass(frozen=True)
class VllmKit:
    """VLLM's engine, and what is inside the adapter."""

    kit: Kit
    inner: Any
    mark: str

    async def says(self, request: Request) -> str:
        return (await self.kit.engine.generate(request)).text.strip()

    async def answers_rightly(self) -> bool:
        return await self.says(self.kit.request("red")) == self.kit.expected("red")


async def entered(tasks: list[asyncio.Task[Any]]) -> None:
    """Return once requests have had the time to reach the engine, none of them answered.

    The port has no way to tell; a turn of the loop for each step of the way is plenty.
    """
    for _ in range(50):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


async def eventually(condition: Callable[[], bool], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Return once another process's doing is done; there is nothing in this one to await."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# --------------------------------------------------------------------------- answering


async def test_an_answer_has_a_text_and_says_what_it_cost(kit: Kit) -> None:
    answer = await kit.engine.generate(kit.request("red"))
    assert answer.text.strip() == kit.expected("red")
    assert answer.tokens_in > 0
    assert answer.tokens_out > 0
    assert answer.finish_reason == "stop"


async def test_the_same_question_gets_the_same_answer(kit: Kit) -> None:
    first, second = [await kit.engine.generate(kit.request("blue")) for _ in range(2)]
    assert first == second


async def test_questions_asked_at_once_are_each_answered_about_their_own_picture(kit: Kit) -> None:
    names = list(SCENES) * 10
    answers = await asyncio.gather(*(kit.engine.generate(kit.request(name)) for name in names))
    assert [answer.text.strip() for answer in answers] == [kit.expected(name) for name in names]


async def test_requests_may_have_the_same_id(kit: Kit) -> None:
    request = kit.request("green")
    answers = await asyncio.gather(*(kit.engine.generate(request) for _ in range(4)))
    assert {answer.text.strip() for answer in answers} == {kit.expected("green")}


async def test_max_tokens_cuts_the_answer_and_says_so(kit: Kit) -> None:
    answer = await kit.engine.generate(kit.request("red", max_tokens=2))
    assert answer.finish_reason == "length"
    assert answer.tokens_out == 2
    assert kit.expected("red").startswith(answer.text.strip())


async def test_more_requests_than_fill_the_engine_are_all_answered(kit: Kit) -> None:
    many = kit.engine.requests_in_flight * 2
    asked = [kit.engine.generate(kit.request("red", max_tokens=2)) for _ in range(many)]
    assert len(await asyncio.gather(*asked)) == many


async def test_the_engine_says_what_keeps_it_full(kit: Kit) -> None:
    assert kit.engine.requests_in_flight >= 1


async def test_the_engine_names_its_model(kit: Kit) -> None:
    assert kit.engine.model


CHOICES = ("a triangle", "no triangle")
FACTS = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 20},
        "tags": {"type": "array", "items": {"enum": ["red", "round"]}, "maxItems": 3},
    },
    "required": ["title", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("structure", [Structure(FACTS), Structure(choice=CHOICES)])
async def test_an_answer_has_the_structure_it_was_asked_for_in(
    kit: Kit, structure: Structure
) -> None:
    names = list(SCENES)
    asked = [kit.engine.generate(kit.request(name, **structure.sampling())) for name in names]
    for answer in await asyncio.gather(*asked):
        structure.read(answer.text.strip())
        assert answer.finish_reason == "stop"


# --------------------------------------------------------------------------- refusing, cancelling


async def test_a_refused_request_says_why_and_harms_no_other(kit: Kit) -> None:
    neighbours = [asyncio.create_task(kit.engine.generate(kit.request("red"))) for _ in range(4)]
    with pytest.raises(RequestRefused) as refused:
        await kit.engine.generate(kit.unanswerable)
    assert refused.value.kind == kit.refusal_kind
    assert str(refused.value)
    assert "\n" not in str(refused.value)
    answers = await asyncio.gather(*neighbours)
    assert {answer.text.strip() for answer in answers} == {kit.expected("red")}


async def test_a_cancelled_request_ends_at_once_and_harms_no_other(kit: Kit) -> None:
    asked = [
        asyncio.create_task(kit.engine.generate(kit.request("blue", **kit.slow))) for _ in range(6)
    ]
    await entered(asked)
    neighbour = asyncio.create_task(kit.engine.generate(kit.request("red")))
    for task in asked:
        task.cancel()
    async with asyncio.timeout(PATIENCE_SECONDS):
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
    assert (await neighbour).text.strip() == kit.expected("red")


# --------------------------------------------------------------------------- ending


async def test_what_is_in_a_stopping_engine_dies_with_it(kit: Kit) -> None:
    asked = [
        asyncio.create_task(kit.engine.generate(kit.request("blue", **kit.slow))) for _ in range(3)
    ]
    await entered(asked)
    beats = kit.engine.beats
    await kit.engine.stop()
    assert kit.engine.beats >= beats, "signs of life are counted over all lives"
    async with asyncio.timeout(PATIENCE_SECONDS):
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {EngineDied}
    with pytest.raises(EngineDied):
        await kit.engine.generate(kit.request("red"))
    await kit.engine.stop()


async def test_an_engine_that_was_stopped_can_be_started_again(kit: Kit) -> None:
    # The fixture started it once more after the test before this one.
    assert (await kit.engine.generate(kit.request("red"))).text.strip() == kit.expected("red")
    await kit.engine.start()
    assert (await kit.engine.generate(kit.request("red"))).text.strip() == kit.expected("red")


async def test_an_engine_never_started_answers_nothing() -> None:
    with pytest.raises(EngineDied):
        await SyntheticEngine("m").generate(Request("r", PROMPT, picture("red"), {}))
    with pytest.raises(EngineDied):
        await VllmEngine("m", {}).generate(Request("r", PROMPT, picture("red"), {}))
    with pytest.raises(EngineDied):
        await OpenAIEngine("m", {"base_url": "http://127.0.0.1:1/v1"}).generate(
            Request("r", PROMPT, picture("red"), {})
        )


# --------------------------------------------------------------------------- vLLM alone


def about_vllm(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a test that only vLLM can pass."""
    for mark in VLLM_MARKS:
        test = mark(test)
    return test


@about_vllm
async def test_vllm_refuses_a_picture_its_processor_cannot_take(vllm: VllmKit) -> None:
    thin = PreparedImage(picture("red").pixels.resize((4, 2000)), "thin")
    with pytest.raises(RequestRefused, match="aspect ratio") as refused:
        await vllm.says(replace(vllm.kit.request("red"), subject=thin))
    assert refused.value.kind == "image_rejected"


@about_vllm
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": -1},
        {"temperature": "hot"},
        {"temprature": 1},
        {"allowed_token_ids": [10**6]},
    ],
)
async def test_vllm_refuses_impossible_sampling_for_that_request_alone(
    vllm: VllmKit, sampling: dict[str, Any]
) -> None:
    with pytest.raises(RequestRefused) as refused:
        await vllm.says(vllm.kit.request("red", **sampling))
    assert refused.value.kind == "engine_rejected"
    assert await vllm.answers_rightly()


@about_vllm
async def test_vllm_keeps_to_a_regex(vllm: VllmKit) -> None:
    pattern = "(circle|square) [0-9]{2}"
    said = await vllm.says(vllm.kit.request("red", **Structure(regex=pattern).sampling()))
    assert re.fullmatch(pattern, said)


@about_vllm
async def test_vllm_shrinks_a_picture_that_does_not_fit_beside_its_prompt(vllm: VllmKit) -> None:
    # 506 tokens with the picture, 499 with a smaller one; 512 are the limit, 8 for the answer.
    request = replace(vllm.kit.request("red", max_tokens=8), prompt="word " * 160)
    answer = await vllm.kit.engine.generate(request)
    assert answer.image_scaled_to is not None
    width, height = answer.image_scaled_to
    assert (width, height) < request.subject.pictures[0].pixels.size
    assert 0.9 < width / height < 1.1
    assert answer.tokens_in <= 512 - 8
    again = await vllm.kit.engine.generate(request)
    assert again == answer
    assert await vllm.answers_rightly(), "the whole picture is another in vLLM's caches"
    whole = await vllm.kit.engine.generate(vllm.kit.request("red"))
    assert whole.image_scaled_to is None


@about_vllm
async def test_vllm_leaves_a_picture_whole_where_shrinking_it_makes_no_room(vllm: VllmKit) -> None:
    request = replace(vllm.kit.request("red", max_tokens=128), prompt="word " * 150)
    answer = await vllm.kit.engine.generate(request)
    assert answer.image_scaled_to is None
    assert answer.tokens_in > 450


@about_vllm
async def test_a_prompt_too_long_for_any_picture_is_refused(vllm: VllmKit) -> None:
    request = replace(vllm.kit.request("red", max_tokens=8), prompt="word " * 165)
    with pytest.raises(RequestRefused, match="as small as it may get") as refused:
        await vllm.kit.engine.generate(request)
    assert refused.value.kind == "prompt_too_long"
    assert await vllm.answers_rightly()


@about_vllm
async def test_control_tokens_in_a_prompt_do_vllm_no_harm(vllm: VllmKit) -> None:
    odd = replace(vllm.kit.request("red"), prompt="<|image_pad|><|vision_start|> <|im_end|> \0 {x}")
    with contextlib.suppress(RequestRefused):
        await vllm.says(odd)
    assert await vllm.answers_rightly()


@about_vllm
async def test_a_seed_does_vllm_no_harm(vllm: VllmKit) -> None:
    requests = [vllm.kit.request(name, seed=7) for name in list(SCENES) * 4]
    assert await asyncio.gather(*map(vllm.says, requests))
    assert await vllm.answers_rightly()


@about_vllm
async def test_vllms_tokens_are_signs_of_life_while_nothing_is_answered(vllm: VllmKit) -> None:
    before = vllm.kit.engine.beats
    asked = asyncio.create_task(vllm.says(vllm.kit.request("red", **vllm.kit.slow)))
    await eventually(lambda: vllm.kit.engine.beats > before + 20)
    assert not asked.done()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked


@about_vllm
async def test_vllm_forgets_a_cancelled_request(vllm: VllmKit) -> None:
    asked = asyncio.create_task(vllm.says(vllm.kit.request("red", **vllm.kit.slow)))
    await eventually(lambda: vllm.inner.output_processor.get_num_unfinished_requests() > 0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert vllm.inner.output_processor.get_num_unfinished_requests() == 0


@about_vllm
async def test_vllm_keeps_out_of_the_workers_process_group(vllm: VllmKit) -> None:
    # So Ctrl-C reaches the worker, which drains, and not the engine it drains from.
    groups = {os.getpgid(pid) for pid in guard.marked(vllm.mark)}
    assert groups
    assert os.getpgid(0) not in groups


@about_vllm
async def test_a_killed_vllm_is_told_from_a_refused_request_and_leaves_nothing(
    vllm: VllmKit,
) -> None:
    requests = [vllm.kit.request("red", **vllm.kit.slow) for _ in range(3)]
    asked = [asyncio.create_task(vllm.says(request)) for request in requests]
    await eventually(
        lambda: vllm.inner.output_processor.get_num_unfinished_requests() == len(asked)
    )
    for child in multiprocessing.active_children():
        child.kill()
    async with asyncio.timeout(PATIENCE_SECONDS):
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {EngineDied}
    await vllm.kit.engine.stop()
    assert guard.marked(vllm.mark) == []
    assert multiprocessing.active_children() == []


LOADS_AND_WAITS = """
import asyncio, sys
from caption_flow.worker.engines.vllm import VllmEngine

async def main():
    engine = VllmEngine(sys.argv[1], {"max_model_len": 256, "enforce_eager": True})
    await engine.start()
    print("MARK", engine._running._mark, flush=True)
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""


@about_vllm
async def test_no_process_of_vllm_outlives_a_worker_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(LOADS_AND_WAITS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    worker = await asyncio.create_subprocess_exec(
        sys.executable, script, MODEL_FOLDER, stdout=subprocess.PIPE, env=environment
    )
    try:
        mark = await _mark_from(worker)
        pids = guard.marked(mark)
        # A process that is stopped cannot end itself: it has to be ended from outside.
        os.kill(pids[0], signal.SIGSTOP)
    finally:
        worker.kill()
        await worker.wait()
    assert pids  # the engine, and from some version on a worker below it
    await eventually(lambda: not guard.marked(mark), seconds=5)


async def _mark_from(worker: asyncio.subprocess.Process) -> str:
    assert worker.stdout is not None
    async with asyncio.timeout(LOAD_SECONDS):
        async for line in worker.stdout:
            if line.startswith(b"MARK "):
                return line.decode().split()[1]
    raise AssertionError("the worker ended before its engine was loaded")


@about_vllm
async def test_a_broken_configuration_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(EngineUnavailable, match=r"config\.json") as unavailable:
        await VllmEngine(str(tmp_path), {}).start()
    assert "\n" not in str(unavailable.value)


@about_vllm
async def test_a_model_that_sees_nothing_is_told_before_it_is_loaded(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((MODEL_FOLDER / name).read_bytes())
    (tmp_path / "config.json").write_text(
        '{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64,'
        ' "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,'
        ' "num_key_value_heads": 1, "vocab_size": 576, "max_position_embeddings": 512}'
    )
    with pytest.raises(EngineUnavailable, match="does not look at pictures"):
        await VllmEngine(str(tmp_path), {}).start()


@about_vllm
@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"presense_penalty": 1}, "did you mean 'presence_penalty'"),
        ({"temperature": -3}, "temperature"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured outputs"),
    ],
)
async def test_sampling_that_no_request_could_come_with_is_refused_before_loading(
    sampling: dict[str, Any], said: str
) -> None:
    engine = VllmEngine(str(MODEL_FOLDER), {"enforce_eager": True})
    engine.expect([{"max_tokens": 8}, sampling])
    with pytest.raises(EngineUnavailable, match=said):
        await engine.start()


@about_vllm
async def test_a_structure_vllm_cannot_keep_to_is_refused_by_the_start(vllm_kit: Kit) -> None:
    await vllm_kit.engine.stop()
    engine = VllmEngine(str(MODEL_FOLDER), {"max_model_len": 512, "enforce_eager": True})
    engine.expect([Structure(regex="(?=a)b").sampling()])
    with pytest.raises(EngineUnavailable, match=r"with .*\(\?=a\)b.*Grammar error"):
        await engine.start()


# --------------------------------------------------------------------------- videos


@pytest.mark.parametrize("passed_as", ["images", "video"])
@about_vllm
async def test_vllm_captions_a_video_of_a_coloured_shape(passed_as: Form) -> None:
    """Frames of a real file, as several pictures and as the model's own video input."""
    data = make_video("h264.mp4", [picture("red").pixels] * 6, pix_fmt="yuv444p")
    video = Video(4, passed_as)
    subject = prepare_video(data, video).subject
    # Of frames that are all alike each counts: they are different moments.
    assert len(subject.pictures) == 4
    engine = VllmEngine(str(MODEL_FOLDER), {"max_model_len": 512, "enforce_eager": True})
    engine.expect([{}, {}], video)
    try:
        await engine.start()
        asked = Request("video", PROMPT, subject, {"temperature": 0.0, "max_tokens": 48})
        alone = replace(asked, subject=picture("blue"))
        first, second, still = await asyncio.gather(
            engine.generate(asked),
            engine.generate(replace(asked, prompt="what is the background color?")),
            engine.generate(alone),
        )
        assert "red circle" in first.text
        assert "white" in second.text
        assert still.text.strip() == caption("blue")
        # Four pictures of 16 tokens, or two for every two frames of a video.
        pictures = 4 if passed_as == "images" else 2
        assert first.tokens_in - still.tokens_in > (pictures - 1) * 12
        # A context that has no room for the frames: all of them shrink together.
        if passed_as == "images":
            # 515 tokens with whole pictures; 512 are the limit, 8 of them for the answer.
            sampling = {"temperature": 0.0, "max_tokens": 8}
            tight = replace(asked, prompt="word " * 145, sampling=sampling)
            crowded = await engine.generate(tight)
            assert crowded.image_scaled_to is not None
            assert crowded.tokens_in <= 512 - 8
    finally:
        await engine.stop()


@about_vllm
async def test_vllm_that_is_allowed_too_few_pictures_says_so_before_it_loads() -> None:
    options = {"max_model_len": 512, "limit_mm_per_prompt": {"image": 2}}
    engine = VllmEngine(str(MODEL_FOLDER), options)
    engine.expect([{}], Video(4))
    with pytest.raises(EngineUnavailable, match="4 frames take 4"):
        await engine.start()
