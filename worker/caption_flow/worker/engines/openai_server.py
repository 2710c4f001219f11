"""An OpenAI-compatible server as this side of the wire sees it: requests out, answers in.

The only module that knows the HTTP library. Every wait has a deadline and every answer a largest
size; whatever goes wrong on the way is a `Trouble` or an `EngineUnavailable`. The key leaves this
module in one header and nowhere else.
"""

from __future__ import annotations

from typing import Final
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from caption_flow.worker.engines.base import EngineUnavailable
from caption_flow.worker.engines.openai_answers import Answer, Peer
from caption_flow.worker.engines.openai_patience import Trouble, TroubleKind

MAX_ANSWER_BYTES: Final = 16 * 2**20
_KEEP_ALIVE_SECONDS: Final = 4.0
"""Less than servers keep an idle connection (uvicorn: 5): else requests run into its closing."""
_CHUNK_BYTES: Final = 2**16


class Server:
    """One server. Made and used within one event loop."""

    def __init__(self, peer: Peer, *, connect_seconds: float, request_seconds: float) -> None:
        self.peer = peer
        self._url = URL(peer.address)
        self._request_seconds = request_seconds
        headers = {"User-Agent": "caption-flow", "Content-Type": "application/json"}
        if peer.secret:
            headers["Authorization"] = f"Bearer {peer.secret}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            # No limit here: who waits for a turn does so before the time for an answer begins.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Not `trust_env`: that would also take passwords from ~/.netrc, in place of the key.
            proxy=_proxy(self._url),
            timeout=aiohttp.ClientTimeout(total=request_seconds, sock_connect=connect_seconds),
        )

    async def models(self) -> Answer:
        """Ask for the list of models. Raises `Trouble`, `EngineUnavailable`."""
        return await self._exchange("GET", "models", None)

    async def chat(self, body: bytes) -> Answer:
        """Ask for a chat completion. Raises `Trouble`, `EngineUnavailable`."""
        return await self._exchange("POST", "chat/completions", body)

    async def close(self) -> None:
        """Close all connections, and with them what is in flight."""
        await self._session.close()

    async def _exchange(self, method: str, path: str, body: bytes | None) -> Answer:
        try:
            # Redirects are not followed: they would take the key to wherever they like.
            async with self._session.request(
                method, self._url / path, data=body, allow_redirects=False
            ) as response:
                content = await self._bounded(response.content)
                return Answer(self.peer, response.status, response.headers, content)
        except aiohttp.ClientSSLError as error:
            raise EngineUnavailable(
                f"the certificate of {self.peer} cannot be verified ({_reason(error)}): "
                "SSL_CERT_FILE names other authorities"
            ) from error
        except aiohttp.InvalidURL as error:
            raise EngineUnavailable(f"base_url {self.peer.address} is no address") from error
        except (TimeoutError, aiohttp.ClientError) as error:
            raise self._trouble(error) from error

    def _trouble(self, error: Exception) -> Trouble:
        match error:
            case aiohttp.ConnectionTimeoutError():
                return Trouble(TroubleKind.AWAY, f"{self.peer} cannot be reached (no connection)")
            case aiohttp.ClientConnectorError():
                reason = error.os_error.strerror or str(error.os_error)
                return Trouble(TroubleKind.AWAY, f"{self.peer} cannot be reached ({reason})")
            case TimeoutError():
                seconds = self._request_seconds
                return Trouble(
                    TroubleKind.TIMEOUT,
                    f"{self.peer} gave no answer within {seconds:g} s",
                    lasted_seconds=seconds,
                )
            case aiohttp.ServerConnectionError() | aiohttp.ClientOSError():
                return Trouble(TroubleKind.BROKEN, f"{self.peer} broke the connection")
            case aiohttp.ClientPayloadError():
                return Trouble(
                    TroubleKind.BROKEN, f"{self.peer} broke off in the midst of an answer"
                )
            case _:
                reason = self.peer.hide(_reason(error))
                return Trouble(TroubleKind.FAULT, f"{self.peer} does not speak HTTP ({reason})")

    async def _bounded(self, content: aiohttp.StreamReader) -> bytes:
        """Read a body to its end, or to what no chat completion has."""
        read = bytearray()
        async for piece in content.iter_chunked(_CHUNK_BYTES):
            read += piece
            if len(read) > MAX_ANSWER_BYTES:
                size = f"{MAX_ANSWER_BYTES // 2**20} MiB"
                raise Trouble(TroubleKind.FAULT, f"{self.peer} answered with more than {size}")
        return bytes(read)


def _proxy(url: URL) -> str | None:
    """Return the proxy that the environment names for this address (HTTPS_PROXY, NO_PROXY)."""
    if url.host is None or proxy_bypass(url.host):
        return None
    return getproxies().get(url.scheme)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
