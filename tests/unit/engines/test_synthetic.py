"""What the synthetic engine does beyond the contract all engines share."""

import asyncio
import hashlib
import os
import re
import subprocess
import sys
import time
from typing import Any

import pytest
from PIL import Image

from caption_flow.recipe.structure import Structure
from caption_flow.worker.engines.base import (
    EngineDied,
    EngineUnavailable,
    PreparedImage,
    Request,
    RequestRefused,
)
from caption_flow.worker.engines.synthetic import REFUSED, SyntheticEngine, synthetic_caption
from tests.support.cli import ROOTS

PIXELS = Image.new("RGB", (1, 1))
A, B = "a1" * 16, "b2" * 16


def request(content_hash: str = A, prompt: str = "Describe it.", **sampling: Any) -> Request:
    return Request("r", prompt, PreparedImage(PIXELS, content_hash), sampling)


async def started(**options: Any) -> SyntheticEngine:
    engine = SyntheticEngine("synthetic", options)
    await engine.start()
    return engine


def hashes(count: int) -> list[str]:
    return [
        hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest() for number in range(count)
    ]


def test_the_caption_is_the_same_everywhere_and_for_ever() -> None:
    # Recorded once: rehearsals are compared across versions and machines.
    assert synthetic_caption(A, "Describe it.") == (
        "A painting of a striped violin in a crowded market under an overcast sky. "
        "A second figure waits in the background. [a1a1a1a1-0fe9bb8f]"
    )


def test_the_caption_ends_in_a_proof_of_picture_and_prompt() -> None:
    one, other = synthetic_caption(A, "x"), synthetic_caption(A, "y")
    assert one.endswith("]")
    assert f"[{A[:8]}-" in one
    assert one.rsplit("-", 1)[1] != other.rsplit("-", 1)[1]


def test_captions_of_different_pictures_differ() -> None:
    assert len({synthetic_caption(content_hash, "x") for content_hash in hashes(2_000)}) == 2_000


def test_captions_read_like_prose_of_some_variety() -> None:
    captions = [synthetic_caption(content_hash, "x") for content_hash in hashes(500)]
    assert len({caption.rsplit(" [", 1)[0] for caption in captions}) > 450
    assert all(10 < len(caption.split()) < 40 for caption in captions)


def test_any_prompt_can_be_answered() -> None:
    assert synthetic_caption("", "")
    assert synthetic_caption(A, "\udcff \0 \U0001f600")


async def test_the_engine_answers_the_public_function() -> None:
    engine = await started()
    assert (await engine.generate(request())).text == synthetic_caption(A, "Describe it.")


@pytest.mark.parametrize("tokens", [1, 2, 7, 64, 300])
async def test_tokens_sets_the_length_of_the_answer_and_keeps_the_proof(tokens: int) -> None:
    engine = await started(tokens=tokens)
    answer = await engine.generate(request())
    assert answer.tokens_out == tokens == len(answer.text.split())
    assert answer.text.endswith(synthetic_caption(A, "Describe it.").split()[-1])


async def test_fail_items_are_refused_and_no_others() -> None:
    engine = await started(fail_items=["a1"])
    with pytest.raises(RequestRefused) as refused:
        await engine.generate(request(A))
    assert refused.value.kind == REFUSED
    assert (await engine.generate(request(B))).text


async def test_fail_rate_refuses_about_that_share_and_always_the_same_pictures() -> None:
    async def refused(engine: SyntheticEngine) -> set[str]:
        found = set()
        for content_hash in hashes(1_000):
            try:
                await engine.generate(request(content_hash))
            except RequestRefused:
                found.add(content_hash)
        return found

    first, second = (
        await refused(await started(fail_rate=0.2)),
        await refused(await started(fail_rate=0.2)),
    )
    assert first == second
    assert 150 < len(first) < 250


async def test_fail_rate_refuses_all_or_nothing_at_its_ends() -> None:
    with pytest.raises(RequestRefused):
        await (await started(fail_rate=1.0)).generate(request())
    assert await (await started(fail_rate=0.0)).generate(request())


async def test_empty_on_answers_nothing_at_all() -> None:
    answer = await (await started(empty_on=["a1"])).generate(request(A))
    assert (answer.text, answer.tokens_out) == ("", 0)


@pytest.mark.parametrize(("sampling", "words"), [({"max_tokens": 7}, 7), ({}, 256)])
async def test_endless_on_never_ends_by_itself(sampling: dict[str, Any], words: int) -> None:
    engine = await started(endless_on=["a1"])
    answer = await engine.generate(request(A, **sampling))
    assert (answer.tokens_out, answer.finish_reason) == (words, "length")
    assert len(answer.text.split()) == words
    assert (await engine.generate(request(B, max_tokens=40))).finish_reason == "stop"


async def test_hang_on_is_never_answered_and_holds_up_no_other() -> None:
    engine = await started(hang_on=["a1"], latency_ms=1)
    hanging = asyncio.create_task(engine.generate(request(A)))
    answers = await asyncio.gather(*(engine.generate(request(B)) for _ in range(20)))
    assert {answer.text for answer in answers} == {synthetic_caption(B, "Describe it.")}
    assert not hanging.done()
    await engine.stop()
    with pytest.raises(EngineDied):
        await hanging


async def test_a_hanging_request_can_be_cancelled() -> None:
    engine = await started(hang_on=["a1"])
    hanging = asyncio.create_task(engine.generate(request(A)))
    await engine.generate(request(B))
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert await engine.generate(request(B))


async def test_die_on_takes_everything_in_flight_along() -> None:
    engine = await started(die_on=["b2"], latency_ms=10_000)
    neighbours = [asyncio.create_task(engine.generate(request(A))) for _ in range(3)]
    quick = SyntheticEngine("synthetic", {"die_on": ["b2"]})
    quick._ended = engine._ended  # the same life, without the latency
    with pytest.raises(EngineDied, match="b2b2b2b2"):
        await quick.generate(request(B))
    outcomes = await asyncio.gather(*neighbours, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {EngineDied}


async def test_hang_on_never_answers_but_ends_with_the_engine() -> None:
    engine = await started(hang_on=["b2"])
    hanging = asyncio.create_task(engine.generate(request(B)))
    assert await engine.generate(request(A)), "others are answered"
    for _ in range(10):  # as many turns as any answer takes
        await asyncio.sleep(0)
    assert not hanging.done()
    await engine.stop()
    with pytest.raises(EngineDied):
        await hanging


async def test_a_dead_engine_stays_dead_until_it_is_started_again() -> None:
    engine = await started(die_on=["b2"])
    for content_hash in (B, A):
        with pytest.raises(EngineDied):
            await engine.generate(request(content_hash))
    await engine.start()
    assert await engine.generate(request(A))


async def test_latency_is_waited_for() -> None:
    engine = await started(latency_ms=30, latency_jitter=0.5)
    began = time.monotonic()
    await engine.generate(request())
    assert 0.014 < time.monotonic() - began < 5


async def test_jitter_varies_by_picture_within_its_bounds() -> None:
    engine = await started(latency_ms=100, latency_jitter=0.25)
    seconds = {engine._latency_seconds(bytes.fromhex(content_hash)) for content_hash in hashes(300)}
    assert len(seconds) > 100
    assert all(0.075 <= value <= 0.125 for value in seconds)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"latency": 5}, "did you mean 'latency_ms'"),
        ({"gibberish": 5}, "unknown option 'gibberish'"),
        ({"fail_rate": 2}, "fail_rate"),
        ({"latency_ms": -1}, "latency_ms"),
        ({"tokens": 0}, "tokens"),
        ({"latency_ms": "slow"}, "latency_ms"),
        ({"requests_in_flight": 0}, "requests_in_flight"),
    ],
)
def test_an_impossible_option_is_told_before_anything_starts(
    options: dict[str, Any], told: str
) -> None:
    with pytest.raises(EngineUnavailable, match=told):
        SyntheticEngine("m", options)


def test_requests_in_flight_is_an_option() -> None:
    assert SyntheticEngine("m").requests_in_flight == 64
    assert SyntheticEngine("m", {"requests_in_flight": 3}).requests_in_flight == 3


async def test_without_latency_it_answers_thousands_a_second() -> None:
    engine = await started()
    one = request()

    async def worker() -> None:
        for _ in range(100):
            await engine.generate(one)

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(32)))
    # A tenth of what an idle core does, so that a busy machine passes too.
    assert 3_200 / (time.perf_counter() - began) > 4_000


SCHEMA = {
    "type": "object",
    "$defs": {"Mood": {"enum": ["calm", "wild"]}},
    "properties": {
        "title": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 3, "maxItems": 5},
        "mood": {"$ref": "#/$defs/Mood"},
        "people": {"type": "integer", "minimum": 0, "maximum": 9},
        "score": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "sure": {"type": ["boolean", "null"]},
        "place": {"type": "object", "properties": {"indoors": {"const": True}}},
    },
    "required": ["title", "tags", "mood", "people", "score", "sure", "place"],
    "additionalProperties": False,
}


async def test_a_structure_is_kept_to() -> None:
    engine = SyntheticEngine("m")
    engine.expect([{"structured_outputs": {"json": SCHEMA}}])
    await engine.start()
    for number in range(20):
        picture = PreparedImage(Image.new("RGB", (8, 8)), f"{number:032x}")
        structures = [Structure(SCHEMA), Structure(choice=("photo", "drawing"))]
        for structure in structures:
            request = Request("r", "p", picture, structure.sampling())
            first, again = [(await engine.generate(request)).text for _ in range(2)]
            assert first == again
            structure.read(first)


REGEXES = (
    r"[A-C]-[0-9]{2}",
    r"(yes|no)",
    r"(?i)^\w+(, \w+){2,4}\.?$",
    r"[^,]+, [^\W\d]+",
    r"\s*.+",
    r"(a|b)\1+",
    r"(?P<hour>[01]\d|2[0-3]):[0-5]\d",
    r"(?!a)[a-d]c",
)


@pytest.mark.parametrize("regex", REGEXES)
async def test_a_regex_is_matched(regex: str) -> None:
    structure = Structure(regex=regex)
    engine = SyntheticEngine("m")
    engine.expect([structure.sampling()])
    await engine.start()
    said = set()
    for number in range(20):
        picture = PreparedImage(Image.new("RGB", (8, 8)), f"{number:032x}")
        request = Request("r", "p", picture, structure.sampling())
        first, again = [(await engine.generate(request)).text for _ in range(2)]
        assert first == again
        assert first == first.strip(), "what it is stored as would not match"
        structure.read(first)
        said.add(first)
    assert len(said) > 1


def test_what_matches_a_regex_is_the_same_in_every_process() -> None:
    source = (
        "from caption_flow.worker.engines.synthetic_structure import structured_answer as say;"
        r"print(say({'regex': r'[^a-f]{30}\W{5}.{5}\D{5}x'}, 'seed', 0).encode())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", source],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(ROOTS), "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1, said


@pytest.mark.parametrize("regex", [r"(?<=a)b", r"(?>a|b)c", r"a{100000}", r"\s*"])
async def test_a_structure_that_cannot_be_made_up_is_refused_at_the_start(regex: str) -> None:
    engine = SyntheticEngine("m")
    engine.expect([{}, {"structured_outputs": {"regex": regex}}])
    with pytest.raises(EngineUnavailable, match=re.escape(f"structured output by regex {regex!r}")):
        await engine.start()
