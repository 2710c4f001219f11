"""Storages on loopback: an HTTP server that can be told to misbehave, and one that speaks S3."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping
from hashlib import md5
from typing import Final
from xml.sax.saxutils import escape

import boto3
import pytest
from aiohttp import web
from moto.server import ThreadedMotoServer

MODIFIED: Final = "Wed, 25 Nov 2026 14:00:00 GMT"
BAD_STATUS: Final = re.compile(r"\d{3}")


def etag_of(data: bytes) -> str:
    return f'"{md5(data, usedforsecurity=False).hexdigest()}"'


class ObjectServer:
    """Serves ``files`` with ranges; ``faults`` are had in turn by the requests that come.

    A fault is a status, ``reset`` (no answer), ``stall`` (no end), ``cut`` (half the body),
    ``whole`` (the range is ignored), ``shifted`` (another range, honestly said), ``short`` (less
    than was asked for, honestly said), or empty; ``always`` is had when there is none in turn.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.faults: deque[str] = deque()
        self.always = ""
        self.has_etags = True
        self.has_weak_etags = False
        self.requests: Counter[str] = Counter()
        self.url = ""
        self._stopping = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests[request.method] += 1
        fault = self.faults.popleft() if self.faults else self.always
        if BAD_STATUS.fullmatch(fault):
            return web.Response(status=int(fault), text="told to")
        if request.query.get("comp") == "list":
            return self._listing(request)
        data = self.files.get(request.path)
        if data is None:
            return web.Response(status=404)
        if fault == "reset":
            return await self._reset(request)
        etag = etag_of(data)
        headers = {"Accept-Ranges": "bytes", "Last-Modified": MODIFIED}
        if self.has_etags:
            headers["ETag"] = f"W/{etag}" if self.has_weak_etags else etag
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if asked is None or fault == "whole":
            return await self._send(request, 200, headers, data, fault)
        first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
        if fault == "short":
            last -= 1
        if fault == "shifted":
            first, last = first + 1, last + 1
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return await self._send(request, 206, headers, data[first : last + 1], fault)

    def _listing(self, request: web.Request) -> web.Response:
        """List the objects of a container as Azure's blob storage does."""
        folder = request.path.rstrip("/") + "/"
        blobs = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{MODIFIED}</Last-Modified>"
            f"<Content-Length>{len(data)}</Content-Length><Content-Type>image/jpeg</Content-Type>"
            f"<Etag>{escape(etag_of(data))}</Etag></Properties></Blob>"
            for path, data in sorted(self.files.items())
            if (name := path.removeprefix(folder)) != path
            and name.startswith(request.query.get("prefix", ""))
        )
        text = f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker /></EnumerationResults>"
        return web.Response(text=text, content_type="application/xml")

    async def _send(
        self, request: web.Request, status: int, headers: dict[str, str], body: bytes, fault: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = len(body)
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        if fault in {"cut", "stall"}:
            await response.write(body[: len(body) // 2])
            if fault == "stall":
                await self._stopping.wait()
            return await self._reset(request)
        await response.write(body)
        return response

    async def _reset(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("told to")

    async def stop(self, runner: web.AppRunner) -> None:
        self._stopping.set()
        await runner.cleanup()


@contextlib.asynccontextmanager
async def object_server(files: dict[str, bytes]) -> AsyncIterator[ObjectServer]:
    """Serve files, by path with a slash before it, on a port of its own."""
    server = ObjectServer(files)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await server.stop(runner)


@contextlib.contextmanager
def s3_server(objects: Mapping[str, bytes], *, as_google: bool = False) -> Iterator[str]:
    """Serve objects over the S3 protocol; yield their bucket's URL, the environment being set.

    Google's storage is read by the same requests, here without a signature.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "key")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            client = boto3.client("s3")
            client.create_bucket(Bucket="pictures")
            for name, data in objects.items():
                client.put_object(Bucket="pictures", Key=name, Body=data, ACL="public-read")
            client.close()
            if as_google:
                patch.setenv("GOOGLE_BASE_URL", f"http://{host}:{port}")
                patch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
            yield "gs://pictures" if as_google else "s3://pictures"
    finally:
        server.stop()
