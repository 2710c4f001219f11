"""The openai engine against a server that misbehaves, over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from PIL import Image

from caption_flow.config.secret import Secret
from caption_flow.recipe.video import Video
from caption_flow.worker.engines.base import (
    EngineDied,
    EngineUnavailable,
    PreparedImage,
    PreparedVideo,
    Request,
    RequestRefused,
)
from caption_flow.worker.engines.openai import OpenAIEngine
from tests.support.openai_server import (
    MODEL,
    Asked,
    Fault,
    ScriptedServer,
    break_off,
    drip,
    drop,
    flood,
    says,
    scripted_server,
    stall,
    whole_answer,
)
from tests.support.pictures import SCENES, caption, picture

KEY = "sk-open-sesame-0123456789"
PROMPT = "Describe this image."
PATIENCE_SECONDS = 30.0
QUICK = {"retry_seconds": 0.01, "start_seconds": 0.5, "patience_seconds": 20}


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with scripted_server() as server:
        yield server


@pytest.fixture
async def engines() -> AsyncIterator[Callable[..., OpenAIEngine]]:
    """Makes engines and stops them in the end."""
    made: list[OpenAIEngine] = []

    def make(server: ScriptedServer, **options: Any) -> OpenAIEngine:
        model = options.pop("model", MODEL)
        made.append(OpenAIEngine(model, {"base_url": server.base_url, **QUICK, **options}))
        return made[-1]

    yield make
    for engine in made:
        await engine.stop()


@pytest.fixture
async def start(server: ScriptedServer, engines: Callable[..., OpenAIEngine]) -> Callable[..., Any]:
    """Starts an engine on the server, and forgets how they greeted each other."""

    async def started(**options: Any) -> OpenAIEngine:
        engine = engines(server, **options)
        await engine.start()
        server.asked.clear()
        return engine

    return started


def about(name: str, prompt: str = PROMPT, **sampling: Any) -> Request:
    return Request("r", prompt, picture(name), {"temperature": 0, "max_tokens": 48, **sampling})


async def ask(engine: OpenAIEngine, name: str = "red", **sampling: Any) -> str:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return (await engine.generate(about(name, **sampling))).text


# --------------------------------------------------------------------------- what is asked


async def test_the_picture_comes_first_and_the_sampling_as_it_was_written(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    engine = await start()
    sampling = {
        "temperature": 0.2,
        "max_tokens": 30,
        "stop": ["."],
        "repetition_penalty": 1.1,
        "top_k": 20,
        "min_p": 0.05,
        "skip_special_tokens": False,
        "structured_outputs": {"choice": ["yes", "no"]},
    }
    await engine.generate(Request("r", PROMPT, picture("red"), sampling))
    body = server.asked[0].body
    (message,) = body.pop("messages")
    assert body == {"model": MODEL, **sampling}
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert message["content"][1]["text"] == PROMPT


async def test_a_recipe_without_a_longest_answer_gets_one(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    engine = await start()
    await engine.generate(Request("r", PROMPT, picture("red"), {}))
    assert server.asked[0].body["max_tokens"] == 256


@pytest.mark.parametrize("sampling", [{"n": 2}, {"stream": True}, {"model": "other"}])
async def test_what_only_the_worker_may_say_is_refused(
    server: ScriptedServer, start: Callable[..., Any], sampling: dict[str, Any]
) -> None:
    engine = await start()
    with pytest.raises(RequestRefused, match=f"'{next(iter(sampling))}' cannot be set"):
        await ask(engine, **sampling)
    assert server.asked == []


@pytest.mark.parametrize(
    ("options", "kind"), [({}, "JPEG"), ({"image_format": "png"}, "PNG")], ids=["jpeg", "png"]
)
async def test_pictures_are_sent_in_the_format_asked_for(
    server: ScriptedServer, start: Callable[..., Any], options: dict[str, Any], kind: str
) -> None:
    engine = await start(**options)
    await ask(engine, "blue")
    asked = server.asked[0]
    assert asked.url.startswith(f"data:image/{kind.lower()};base64,")
    assert asked.picture.format == kind
    if kind == "PNG":
        assert asked.picture.tobytes() == picture("blue").pixels.tobytes()


async def test_a_picture_is_encoded_once_for_all_its_prompts(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    saved = []

    class Counted(Image.Image):
        def save(self, *arguments: Any, **options: Any) -> None:
            saved.append(self)
            super().save(*arguments, **options)

    original = picture("red")
    pixels = original.pixels.copy()
    pixels.__class__ = Counted
    image = PreparedImage(pixels, original.content_hash)
    engine = await start()
    requests = [Request("r", f"{PROMPT} {number}", image, {}) for number in range(5)]
    await asyncio.gather(*(engine.generate(request) for request in requests))
    await engine.generate(requests[0])
    assert len(server.asked) == 6
    assert len(saved) == 1


async def test_a_picture_that_jpeg_cannot_hold_is_refused_and_no_other(
    start: Callable[..., Any],
) -> None:
    engine = await start()
    wide = PreparedImage(Image.new("RGB", (70_000, 1)), "wide")
    with pytest.raises(RequestRefused) as refused:
        await engine.generate(Request("r", PROMPT, wide, {}))
    assert refused.value.kind == "image_rejected"
    assert await ask(engine) == caption("red")


async def test_no_more_requests_are_in_flight_than_agreed(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    release = asyncio.Event()

    async def hold(asked: Asked) -> None:
        if asked.prompt == PROMPT:
            await release.wait()

    engine, other = await start(requests_in_flight=3), await start()
    server.rule = hold
    names = list(SCENES) * 6
    asked = [asyncio.create_task(ask(engine, name)) for name in names]
    await server.until(lambda: server.in_flight == 3)
    for _ in range(20):  # whatever else had been sent would have arrived before the last of these
        await other.generate(about("red", "meanwhile"))
    assert len(server.about(PROMPT)) == 3
    release.set()
    assert await asyncio.gather(*asked) == [caption(name) for name in names]
    assert server.most_in_flight <= 4


async def test_waiting_for_a_turn_is_not_waiting_for_an_answer(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    async def takes_its_time(_: Asked) -> None:
        await asyncio.sleep(0.3)  # how long this server thinks

    engine = await start(requests_in_flight=1, request_seconds=0.8)
    server.rule = takes_its_time
    assert set(await asyncio.gather(*(ask(engine) for _ in range(4)))) == {caption("red")}
    assert len(server.asked) == 4


async def test_a_cancelled_request_is_taken_back_from_the_server(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    engine = await start()
    asked = asyncio.create_task(ask(engine, ignore_eos=True))
    await server.until(lambda: server.in_flight == 1)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await server.until(lambda: server.in_flight == 0)


# --------------------------------------------------------------------------- troubles that pass


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([says(429)], id="busy"),
        pytest.param([says(500), says(500), says(500)], id="three failures"),
        pytest.param([says(502, "<html>bad gateway</html>")], id="a proxy without a server"),
        pytest.param([says(503)], id="starting"),
        pytest.param([drop], id="a dropped connection"),
        pytest.param([break_off], id="a broken answer"),
        pytest.param([says(200, "<html>welcome</html>")], id="garbage"),
        pytest.param([says(200, '{"choices": []}')], id="no choice"),
        pytest.param([says(200, '{"choices": [{"message": ')], id="half of an answer"),
        pytest.param([says(200, {"error": {"message": "upstream"}})], id="an error that is fine"),
        pytest.param([flood], id="an answer without an end"),
        pytest.param([drop, says(500), says(429), break_off], id="one after the other"),
    ],
)
async def test_a_trouble_that_passes_costs_nothing_but_time(
    server: ScriptedServer, start: Callable[..., Any], faults: list[Fault]
) -> None:
    engine = await start()
    server.script = list(faults)
    assert await ask(engine) == caption("red")
    assert len(server.asked) == len(faults) + 1
    assert {json.dumps(asked.body) for asked in server.asked} == {json.dumps(server.asked[0].body)}


@pytest.mark.parametrize("fault", [stall, drip], ids=["stall", "slow stream"])
async def test_an_answer_that_does_not_come_to_its_end_is_asked_for_again(
    server: ScriptedServer, start: Callable[..., Any], fault: Fault
) -> None:
    engine = await start(request_seconds=0.5)
    server.script = [fault]
    assert await ask(engine) == caption("red")
    assert server.asked[1].moment - server.asked[0].moment >= 0.5
    await server.until(lambda: server.in_flight == 0)


async def test_a_slow_answer_in_time_is_taken(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    async def slow(asked: Asked) -> Any:
        return await _in_pieces(asked, json.dumps(whole_answer("a slow one")).encode())

    engine = await start()
    server.script = [slow]
    assert await ask(engine) == "a slow one"
    assert len(server.asked) == 1


async def _in_pieces(asked: Asked, whole: bytes) -> Any:
    response = web.StreamResponse()
    await response.prepare(asked.http)
    for start in range(0, len(whole), 20):
        await response.write(whole[start : start + 20])
        await asyncio.sleep(0.01)  # the pace of a bad line
    return response


@pytest.mark.parametrize("as_date", [False, True], ids=["seconds", "date"])
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_waited_for(
    server: ScriptedServer, start: Callable[..., Any], status: int, as_date: bool
) -> None:
    async def later(asked: Asked) -> Any:
        # Dates have whole seconds: two ahead are one at least.
        value = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        return await says(status, Retry_After=value if as_date else "1")(asked)

    engine = await start()
    server.script = [later]
    assert await ask(engine) == caption("red")
    assert server.asked[1].moment - server.asked[0].moment >= 0.99


async def test_others_go_on_while_one_waits(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    engine = await start(requests_in_flight=1)
    server.script = [says(429, Retry_After="60")]
    waiting = asyncio.create_task(ask(engine, "blue"))
    await server.until(lambda: len(server.asked) == 1 and server.in_flight == 0)
    assert await ask(engine, "red") == caption("red")
    waiting.cancel()


async def test_a_server_that_restarts_is_waited_for(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    engine = await start()
    asked = [asyncio.create_task(ask(engine, name, ignore_eos=True)) for name in SCENES]
    await server.until(lambda: server.in_flight == len(asked))
    server.rule = answer_all
    await server.stop()
    await server.start()
    assert await asyncio.gather(*asked) == ["all is well"] * len(asked)


async def answer_all(asked: Asked) -> Any:
    return await says(200, whole_answer("all is well"))(asked)


# --------------------------------------------------------------------------- the request's fault


@pytest.mark.parametrize(
    ("fault", "kind", "told"),
    [
        (
            says(400, {"error": {"message": "This model's maximum context length is 9 tokens."}}),
            "prompt_too_long",
            "maximum context length is 9",
        ),
        (
            says(400, {"error": {"message": "too long", "code": "context_length_exceeded"}}),
            "prompt_too_long",
            "too long",
        ),
        (
            says(400, {"object": "error", "message": "cannot identify image file"}),
            "image_rejected",
            "cannot identify image file",
        ),
        (says(413, "<html>Request Entity Too Large</html>"), "image_rejected", "413"),
        (
            says(422, {"detail": [{"loc": ["body", "top_q"], "msg": "Extra inputs"}]}),
            "engine_rejected",
            r"body\.top_q: Extra inputs",
        ),
        (says(400, {"error": "no such option"}), "engine_rejected", "no such option"),
        (says(400, "nope"), "engine_rejected", "nope"),
        (
            says(400, {"error": {"message": "Blocked", "code": "content_policy_violation"}}),
            "content_refused",
            "Blocked",
        ),
        (
            says(403, {"error": {"message": "Your input was flagged by moderation"}}),
            "content_refused",
            "flagged",
        ),
        (
            says(200, whole_answer("", finish_reason="content_filter")),
            "content_refused",
            "content filter",
        ),
        (
            says(200, whole_answer("", refusal="I can't help with that.")),
            "content_refused",
            "I can't help",
        ),
    ],
)
async def test_what_is_the_requests_fault_is_asked_once_and_harms_no_other(
    server: ScriptedServer, start: Callable[..., Any], fault: Fault, kind: str, told: str
) -> None:
    engine = await start()
    server.script = [fault]
    with pytest.raises(RequestRefused, match=told) as refused:
        await ask(engine)
    assert refused.value.kind == kind
    assert "\n" not in str(refused.value)
    assert len(server.asked) == 1
    assert await ask(engine) == caption("red")


async def test_a_parameter_the_server_does_not_take_is_named_with_what_to_do(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    engine = await start()
    server.rule = rejecting("top_k")
    with pytest.raises(RequestRefused, match="take 'top_k' out of the recipe's sampling") as told:
        await ask(engine, top_k=5)
    assert told.value.kind == "engine_rejected"
    assert "Unrecognized request argument supplied: top_k" in str(told.value)
    assert await ask(engine) == caption("red")


def rejecting(*names: str, unless: Any = None) -> Fault:
    """Refuse requests with one of these parameters, in the words of OpenAI's own servers."""

    async def reject(asked: Asked) -> Any:
        for name in names:
            if asked.body.get(name, unless) != unless:
                sentence = f"Unrecognized request argument supplied: {name}"
                return await says(400, {"error": {"message": sentence}})(asked)
        return None

    return reject


async def test_defaults_that_nobody_wrote_are_left_out_where_they_are_not_taken(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    engine = await start()
    server.rule = rejecting("repetition_penalty", "skip_special_tokens")
    defaults: dict[str, Any] = {"repetition_penalty": 1.05, "skip_special_tokens": True}
    with structlog.testing.capture_logs() as logs:
        answers = await asyncio.gather(*(ask(engine, name, **defaults) for name in SCENES))
    assert answers == [caption(name) for name in SCENES]
    assert len([line for line in logs if "does not take" in line["event"]]) == 2
    server.asked.clear()
    assert await ask(engine, **defaults) == caption("red")
    assert len(server.asked) == 1, "what was learnt is remembered"
    with pytest.raises(RequestRefused, match="take 'repetition_penalty' out"):
        await ask(engine, repetition_penalty=1.2)


async def test_a_server_that_calls_the_longest_answer_otherwise_gets_its_word(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    async def modern(asked: Asked) -> Any:
        if "max_tokens" in asked.body:
            sentence = (
                "Unsupported parameter: 'max_tokens' is not supported with this model. "
                "Use 'max_completion_tokens' instead."
            )
            return await says(400, {"error": {"message": sentence}})(asked)
        assert asked.body["max_completion_tokens"] in {16, 48}
        return await answer_all(asked)

    server.rule = modern
    engine = await start()
    assert await ask(engine) == "all is well"
    assert len(server.asked) == 1


async def test_a_request_on_which_the_server_fails_while_it_answers_others_is_refused(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    async def fails_on_poison(asked: Asked) -> Any:
        return await says(500)(asked) if asked.prompt == "poison" else None

    engine = await start(retry_seconds=0.05)
    server.rule = fails_on_poison
    poison = asyncio.create_task(engine.generate(about("red", "poison")))
    while not poison.done():
        assert await ask(engine) == caption("red")
        await asyncio.wait([poison], timeout=0.01)
    with pytest.raises(RequestRefused, match="4 times, while it answered other") as refused:
        await poison
    assert refused.value.kind == "server_fault"
    assert len(server.about("poison")) == 4


# --------------------------------------------------------------------------- the server's end


async def test_a_server_that_is_gone_is_borne_with_and_then_given_up(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    engine = await start(patience_seconds=0.3)
    asked = [asyncio.create_task(ask(engine, name, ignore_eos=True)) for name in SCENES]
    await server.until(lambda: server.in_flight == len(asked))
    address = server.base_url
    await server.stop()
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {EngineUnavailable}
    assert f"the server at {address} cannot be reached (" in str(outcomes[0])


@pytest.mark.parametrize(
    ("rule", "end", "told"),
    [
        (says(429), EngineUnavailable, r"answered 429: .* 429 \(asked \d+ times in \d+ s\)"),
        (says(503, Retry_After="30"), EngineUnavailable, "answered 503"),
        (says(500), EngineDied, r"answered 500: scripted 500 \(7 times in a row\)"),
        (says(200, "<html>hello</html>"), EngineDied, "no chat completion: <html>hello</html>"),
        (drop, EngineDied, r"broke the connection \(3 times with the same request\)"),
        (stall, EngineDied, "gave no answer within 0.4 s"),
    ],
    ids=["busy", "starting", "broken", "garbage", "dropping", "hung"],
)
async def test_a_server_that_answers_nobody_is_given_up(
    server: ScriptedServer,
    start: Callable[..., Any],
    rule: Fault,
    end: type[Exception],
    told: str,
) -> None:
    engine = await start(patience_seconds=0.4, request_seconds=0.4, retry_seconds=0.001)
    server.rule = rule
    with pytest.raises(end, match=told):
        await ask(engine)


async def test_a_key_that_is_taken_back_ends_it_at_once(
    server: ScriptedServer, engines: Callable[..., OpenAIEngine], tmp_path: Path
) -> None:
    server.key = KEY
    (tmp_path / "key").write_text(f"{KEY}\n")
    engine = engines(server, api_key=Secret(f"file:{tmp_path / 'key'}"))
    await engine.start()
    assert await ask(engine) == caption("red")
    server.key = "another"
    server.asked.clear()
    with pytest.raises(EngineUnavailable, match=r"refuses the key file:.*key \(it answered 401"):
        await ask(engine)
    assert len(server.asked) == 1


# --------------------------------------------------------------------------- starting


async def refusal(engine: OpenAIEngine) -> str:
    with pytest.raises(EngineUnavailable) as refused:
        await engine.start()
    assert "\n" not in str(refused.value)
    return str(refused.value)


async def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as taken:  # bound, and listening to nobody
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        engine = OpenAIEngine(MODEL, {"base_url": address, **QUICK})
        assert f"the server at {address} cannot be reached (" in await refusal(engine)
    with pytest.raises(EngineDied):
        await ask(engine)


async def test_a_server_that_comes_up_late_is_waited_for(
    engines: Callable[..., OpenAIEngine],
) -> None:
    server = ScriptedServer()
    await server.start()
    await server.stop()
    engine = engines(server, start_seconds=20)
    starting = asyncio.create_task(engine.start())
    await asyncio.wait([starting], timeout=0.1)
    assert not starting.done()
    await server.start()
    await starting
    assert await ask(engine) == caption("red")
    await server.stop()


async def test_a_model_the_server_lacks_is_told_with_those_it_has(
    server: ScriptedServer, engines: Callable[..., OpenAIEngine]
) -> None:
    server.models = ("llava", "qwen")
    told = await refusal(engines(server, model="lava"))
    assert "has no model 'lava'" in told
    assert told.endswith("; it has llava, qwen")


async def test_a_model_that_goes_away_is_told_with_those_there_are(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    engine = await start()
    server.models = ("other",)
    with pytest.raises(EngineUnavailable, match=f"has no model '{MODEL}' .*; it has other$"):
        await ask(engine)


async def test_a_server_without_a_list_of_models_will_do(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    server.models = None
    assert await ask(await start()) == caption("red")


async def test_a_model_known_by_another_name_than_listed_will_do(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    server.rule = answer_all
    assert await ask(await start(model="alias")) == "all is well"


async def test_an_address_without_its_path_is_told(server: ScriptedServer) -> None:
    root = server.base_url.removesuffix("/v1")
    told = await refusal(OpenAIEngine(MODEL, {"base_url": root, **QUICK}))
    assert told.endswith(f": is it {server.base_url}?")


async def test_an_address_may_end_in_a_slash(server: ScriptedServer) -> None:
    engine = OpenAIEngine(MODEL, {"base_url": f"{server.base_url}/", **QUICK})
    await engine.start()
    assert await ask(engine) == caption("red")
    await engine.stop()


async def test_a_server_that_sends_us_elsewhere_does_not_get_the_key_there(
    server: ScriptedServer, engines: Callable[..., OpenAIEngine]
) -> None:
    async with scripted_server() as elsewhere:
        server.rule = says(307, "", Location=f"{elsewhere.base_url}/chat/completions")
        told = await refusal(engines(server, api_key=Secret(KEY)))
        assert elsewhere.asked == []
    assert f"redirects (307) to {elsewhere.base_url}/chat/completions" in told


async def test_a_model_that_does_not_look_at_pictures_is_told_at_once(
    server: ScriptedServer, engines: Callable[..., OpenAIEngine]
) -> None:
    server.rule = says(400, {"error": {"message": "tiny is not a multimodal model"}})
    told = await refusal(engines(server))
    assert told.startswith(f"model '{MODEL}' cannot be asked about a picture: ")
    assert "is not a multimodal model" in told


async def test_a_server_that_wants_a_key_is_told_from_one_that_refuses_it(
    server: ScriptedServer,
    engines: Callable[..., OpenAIEngine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.key = "another"
    monkeypatch.setenv("THE_KEY", KEY)
    assert "wants a key (it answered 401" in await refusal(engines(server))
    told = await refusal(engines(server, api_key=Secret("env:THE_KEY")))
    assert "refuses the key env:THE_KEY (it answered 401" in told


async def test_a_key_is_never_shown_even_if_the_server_repeats_it(
    server: ScriptedServer, engines: Callable[..., OpenAIEngine]
) -> None:
    server.key = "another"
    with structlog.testing.capture_logs() as logs:
        engine = engines(server, api_key=Secret(KEY))
        told = await refusal(engine)
    assert "Incorrect API key provided: Bearer ********" in told
    assert KEY not in f"{told} {logs} {vars(engine)!r} {engine._options!r}"
    server.key = KEY
    await engine.start()
    server.script = [says(400, {"error": {"message": f"what is {KEY}?"}}), says(500, KEY)]
    with structlog.testing.capture_logs() as logs:
        with pytest.raises(RequestRefused, match=r"what is \*{8}\?"):
            await ask(engine)
        await ask(engine)
    assert any("answered 500: ********" in str(line) for line in logs)
    assert KEY not in f"{logs} {engine._conversation._server.peer!r}"  # type: ignore[union-attr]


async def test_an_account_without_credit_is_told(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    engine = await start(api_key=Secret("env:PATH"))
    server.rule = says(429, {"error": {"message": "quota", "code": "insufficient_quota"}})
    with pytest.raises(EngineUnavailable, match=r"refuses the key env:PATH .*429: quota"):
        await ask(engine)


async def test_trouble_is_told_once_and_its_end_too(
    server: ScriptedServer, start: Callable[..., Any]
) -> None:
    engine = await start()
    server.script = [says(503)] * 8
    with structlog.testing.capture_logs() as logs:
        await asyncio.gather(*(ask(engine, name) for name in SCENES))
    told = [line["event"] for line in logs if line["log_level"] != "debug"]
    assert told == ["asking again", "the server answers again"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "base_url"),
        ({"base_url": "http://h/v1", "patience": 1}, "did you mean 'patience_seconds'"),
        ({"base_url": "http://h/v1", "requests_in_flight": 0}, "requests_in_flight"),
        ({"base_url": "http://h/v1", "image_format": "gif"}, "image_format"),
        ({"base_url": "http://h/v1", "request_seconds": 0}, "request_seconds"),
    ],
)
def test_an_impossible_option_is_told_before_anything_starts(
    options: dict[str, Any], told: str
) -> None:
    with pytest.raises(EngineUnavailable, match=told):
        OpenAIEngine("m", options)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (Secret("env:NO_SUCH_VARIABLE"), "NO_SUCH_VARIABLE is not set"),
        (Secret("two\nlines"), r"the key \*{8} has characters that no key has"),
    ],
)
async def test_a_key_that_cannot_be_had_is_told(key: Secret, told: str) -> None:
    engine = OpenAIEngine("m", {"base_url": "http://127.0.0.1:1/v1", "api_key": key})
    with pytest.raises(EngineUnavailable, match=told):
        await engine.start()


async def test_the_frames_of_a_video_are_so_many_pictures_before_the_text(
    server: ScriptedServer, engines: Callable[..., OpenAIEngine]
) -> None:
    engine = engines(server, image_format="png")
    engine.expect([{}], Video(4))
    await engine.start()
    assert [len(asked.shown) for asked in server.asked] == [1, 4], "greeted with both"
    server.asked.clear()
    pictures = tuple(replace(picture(name), content_hash=f"video:{name}") for name in SCENES)
    video = PreparedVideo(pictures, "video", "images", (0.0, 1.0, 2.0, 3.0), 4.0, 4)
    await engine.generate(Request("1", PROMPT, video, {}))
    (asked,) = server.asked
    for shown, frame in zip(asked.shown, pictures, strict=True):
        assert shown.tobytes() == frame.pixels.tobytes()
