"""A server with OpenAI's API on a real socket, that sees pictures and can be told to misbehave.

It finds out which of `scenes` a picture shows by looking at the picture it was sent, so that a
right answer proves that the right picture arrived. Written from the API's reference, not from our
engine: it knows nothing of that.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from PIL import Image

from caption_flow.worker.engines.synthetic_structure import structured_answer
from tests.support.pictures import seen

MODEL = "tiny"
CONTEXT_TOKENS = 512
PATIENCE_SECONDS = 30.0

Fault = Callable[["Asked"], Awaitable[web.StreamResponse | None]]
"""Answers one request badly, or returns None to have it answered well."""
Reply = Callable[["Asked"], Awaitable[web.StreamResponse]]


@dataclass
class Asked:
    """One chat request as it arrived."""

    http: web.Request
    body: dict[str, Any] = field(repr=False)
    moment: float

    @property
    def prompt(self) -> str:
        """The text beside the picture."""
        return str(self._parts[-1]["text"])

    @property
    def url(self) -> str:
        """The picture's data URL."""
        return str(self._parts[0]["image_url"]["url"])

    @property
    def picture(self) -> Image.Image:
        """The picture itself."""
        return Image.open(io.BytesIO(base64.b64decode(self.url.split(",", 1)[1])))

    @property
    def shown(self) -> list[Image.Image]:
        """All pictures, in their order; they come before the text."""
        urls = [str(part["image_url"]["url"]) for part in self._parts[:-1]]
        return [Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))) for url in urls]

    @property
    def _parts(self) -> list[dict[str, Any]]:
        (message,) = self.body["messages"]
        parts: list[dict[str, Any]] = message["content"]
        return parts


def says(status: int, body: object = None, **headers: str) -> Reply:
    """Answer with a status and an error of OpenAI's form, or with ``body`` as it is."""

    async def answer(_: Asked) -> web.StreamResponse:
        content = {"error": {"message": f"scripted {status}"}} if body is None else body
        text = content if isinstance(content, str) else json.dumps(content)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, text=text, headers=named)

    return answer


async def drop(asked: Asked) -> web.StreamResponse | None:
    """Break the connection without an answer."""
    assert asked.http.transport is not None
    asked.http.transport.abort()
    return None


async def break_off(asked: Asked) -> web.StreamResponse:
    """Break the connection within an answer."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(asked.http)
    await response.write(b'{"choices": [')
    assert asked.http.transport is not None
    asked.http.transport.close()
    return response


async def stall(_: Asked) -> web.StreamResponse:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError


async def drip(asked: Asked) -> web.StreamResponse:
    """Answer without an end, byte by byte: each of them in time, the whole never."""
    response = web.StreamResponse()
    await response.prepare(asked.http)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)  # the pace of a bad line, not a wait for anything


async def flood(asked: Asked) -> web.StreamResponse:
    """Answer without an end, as fast as it goes."""
    response = web.StreamResponse()
    await response.prepare(asked.http)
    while True:
        await response.write(b" " * 65536)


def whole_answer(text: str, *, finish_reason: str = "stop", **more: Any) -> dict[str, Any]:
    """Return a chat completion."""
    message = {"role": "assistant", "content": text, **more}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 10, "completion_tokens": len(text.split())},
    }


@dataclass
class ScriptedServer:
    """The server. ``script`` is asked of each request in turn and then used up.

    ``rule`` is asked of every request for which the script has nothing.
    """

    models: tuple[str, ...] | None = (MODEL,)
    key: str | None = None
    script: list[Fault] = field(default_factory=list)
    rule: Fault | None = None
    asked: list[Asked] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    base_url: str = ""
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    _runner: web.AppRunner | None = None
    _port: int = 0

    async def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.01
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.base_url = f"http://127.0.0.1:{self._port}/v1"

    async def stop(self) -> None:
        """Break all connections and listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def about(self, prompt: str) -> list[Asked]:
        """Return the requests with this prompt."""
        return [asked for asked in self.asked if asked.prompt == prompt]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds; it is looked at when a request comes or goes."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                self._moved.clear()
                await self._moved.wait()

    async def _models(self, request: web.Request) -> web.StreamResponse:
        if refused := self._refused_key(request):
            return refused
        if self.models is None:
            return web.Response(status=404, text="404 page not found")
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.models]})

    def _refused_key(self, request: web.Request) -> web.Response | None:
        said = request.headers.get("Authorization")
        if self.key is None or said == f"Bearer {self.key}":
            return None
        error = {"message": f"Incorrect API key provided: {said}", "code": "invalid_api_key"}
        return web.json_response({"error": error}, status=401)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        now = asyncio.get_running_loop().time()
        asked = Asked(request, json.loads(await request.read()), now)
        self.asked.append(asked)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self._moved.set()
        try:
            return await self._answer(asked)
        finally:
            self.in_flight -= 1
            self._moved.set()

    async def _answer(self, asked: Asked) -> web.StreamResponse:
        if refused := self._refused_key(asked.http):
            return refused
        fault = self.script.pop(0) if self.script else self.rule
        if fault is not None and (bad := await fault(asked)) is not None:
            return bad
        body = asked.body
        if self.models is not None and body["model"] not in self.models:
            return await says(404, _error(f"The model `{body['model']}` does not exist."))(asked)
        if len(asked.prompt.split()) > CONTEXT_TOKENS:
            sentence = f"This model's maximum context length is {CONTEXT_TOKENS} tokens."
            return await says(400, _error(sentence))(asked)
        if body.get("ignore_eos"):
            return await stall(asked)
        return web.json_response(self._completion(asked))

    def _completion(self, asked: Asked) -> dict[str, Any]:
        text = seen(asked.picture)
        structure = structure_asked_for(asked.body)
        if structure is not None:
            text = structured_answer(structure, text, 0) or text
        words = text.split(" ")
        limit = asked.body["max_tokens"]
        finish_reason = "length" if len(words) > limit else "stop"
        return whole_answer(" ".join(words[:limit]), finish_reason=finish_reason)


def structure_asked_for(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the structure a request asks for, in vLLM's form, or None."""
    if "response_format" in body:
        return {"json": body["response_format"]["json_schema"]["schema"]}
    structure: Mapping[str, Any] | None = body.get("structured_outputs")
    return structure


def _error(message: str) -> Mapping[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}


@contextlib.asynccontextmanager
async def scripted_server(**options: Any) -> AsyncIterator[ScriptedServer]:
    """Serve for as long as the block lasts."""
    server = ScriptedServer(**options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[ScriptedServer]:
    """Serve from a thread of its own, for tests that wait for processes."""
    started, box = threading.Event(), []

    async def serve() -> None:
        async with scripted_server(**options) as server:
            stop = asyncio.Event()
            box.append((server, asyncio.get_running_loop(), stop))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(30)
    server, loop, stop = box[0]
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
