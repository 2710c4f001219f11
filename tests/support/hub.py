"""A stand-in for the hub's API, as far as the real `huggingface_hub` asks it for datasets.

Point ``HF_ENDPOINT`` at `Hub.url` before the library is imported: in processes of their own.
Files are redirected to another address, as the hub's are to its storage.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

TOKEN = "hf_made_up"
STRANGER = "hf_of_somebody_else"
"""A token of an account that may see public datasets, and has accepted no conditions."""
_POINTER = b"version https://git-lfs.github.com/spec/v1"
CONVERTED = "refs/convert/parquet"
_FAULTS = {
    "500": web.HTTPInternalServerError,
    "503": web.HTTPServiceUnavailable,
    "429": web.HTTPTooManyRequests,
}


@dataclass
class Repository:
    """Files by branch; a branch's commit follows from what is in it."""

    branches: dict[str, dict[str, bytes]]
    private: bool = False
    gated: bool = False
    """Whoever has not accepted conditions sees its description and the names of its files."""
    card: Mapping[str, Any] | None = None
    past: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by commit, of every commit that was ever asked for."""

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision in self.branches:
            files = dict(self.branches[revision])
            whole = repr(
                [
                    (name, hashlib.sha1(data, usedforsecurity=False).digest())
                    for name, data in files.items()
                ]
            )
            commit = hashlib.sha1(whole.encode(), usedforsecurity=False).hexdigest()
            self.past[commit] = files
            return commit, files
        return (revision, self.past[revision]) if revision in self.past else None


class Hub:
    """Serves repositories on loopback; remembers what it was asked for."""

    def __init__(self, **repositories: Repository) -> None:
        self.repositories = {f"org/{name}": found for name, found in repositories.items()}
        self.asked: list[str] = []
        self.faults: dict[str, list[str]] = {}
        """What happens to the next reads of a file, or of an API's path: `reset` or a status."""
        self.ranges: list[tuple[str, int, int]] = []
        """Path, first byte and number of bytes of each read."""
        self._runner: web.AppRunner | None = None
        self.url = ""

    @property
    def bytes_read(self) -> int:
        return sum(length for _, _, length in self.ranges)

    def forget(self) -> None:
        self.asked.clear()
        self.ranges.clear()

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**30)
        self.routes(app)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def routes(self, app: web.Application) -> None:
        api = r"/api/datasets/{org}/{name}"
        app.router.add_get(api, self._info)
        app.router.add_get(api + r"/revision/{revision}", self._info)
        app.router.add_get(api + r"/auth-check", self._check)
        app.router.add_get(api + r"/tree/{revision}", self._tree)
        app.router.add_get(api + r"/tree/{revision}/{path:.+}", self._tree)
        app.router.add_post(api + r"/paths-info/{revision}", self._paths)
        app.router.add_get(r"/datasets/{org}/{name}/resolve/{revision}/{path:.+}", self._resolve)
        app.router.add_get(r"/storage/{org}/{name}/{revision}/{path:.+}", self._read)

    def _repository(self, request: web.Request) -> Repository:
        found = self.repositories.get("{org}/{name}".format(**request.match_info))
        given = request.headers.get("Authorization")
        if given not in {None, f"Bearer {TOKEN}", f"Bearer {STRANGER}"}:
            raise _refusal(401, None, "Invalid credentials in Authorization header")
        if found is None or (found.private and given != f"Bearer {TOKEN}"):
            # As the hub does: whoever may not see it does not hear whether it exists.
            raise _refusal(401 if given is None else 404, "RepoNotFound")
        return found

    def _readable(self, request: web.Request) -> Repository:
        found = self._repository(request)
        given = request.headers.get("Authorization")
        if found.gated and given != f"Bearer {TOKEN}":
            raise _refusal(401 if given is None else 403, "GatedRepo")
        return found

    async def _check(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.path}")
        self._readable(request)
        return web.json_response({})

    def _files(self, request: web.Request) -> tuple[str, dict[str, bytes]]:
        self.asked.append(f"{request.method} {request.path}")
        revision = request.match_info.get("revision", "main")
        found = self._repository(request).find(revision)
        if found is None:
            raise _refusal(404, "RevisionNotFound")
        return found

    def _strike(self, request: web.Request, path: str) -> None:
        """Let happen what is to happen to a request."""
        waiting = self.faults.get(path)
        fault = waiting.pop(0) if waiting else ""
        if fault == "reset":
            assert request.transport is not None
            request.transport.abort()
        elif fault:
            raise _FAULTS[fault]

    async def _info(self, request: web.Request) -> web.Response:
        self._strike(request, request.path)
        commit, files = self._files(request)
        repository = self._repository(request)
        return web.json_response(
            {
                "id": "{org}/{name}".format(**request.match_info),
                "sha": commit,
                "private": repository.private,
                "gated": "auto" if repository.gated else False,
                "siblings": [{"rfilename": name} for name in files],
                "cardData": repository.card,
                "tags": [],
            }
        )

    async def _tree(self, request: web.Request) -> web.Response:
        _, files = self._files(request)
        folder = request.match_info.get("path", "")
        prefix = f"{folder}/" if folder else ""
        below = [name for name in files if name.startswith(prefix)]
        if not below and folder:
            raise _refusal(404, "EntryNotFound")
        if request.query.get("recursive", "false").lower() != "true":
            direct = dict.fromkeys(name[len(prefix) :].partition("/")[0] for name in below)
            below = [prefix + name for name in direct]
        return web.json_response([_entry(name, files.get(name)) for name in below])

    async def _paths(self, request: web.Request) -> web.Response:
        _, files = self._files(request)
        form = await request.post()
        return web.json_response(
            [_entry(path, files[path]) for path in map(str, form.getall("paths")) if path in files]
        )

    async def _resolve(self, request: web.Request) -> web.Response:
        self._readable(request)
        commit, files = self._files(request)
        path = request.match_info["path"]
        if path not in files:
            raise _refusal(404, "EntryNotFound")
        where = "/storage/{org}/{name}".format(**request.match_info) + f"/{commit}/{path}"
        headers = {"Location": where, **_marks(commit, files[path])}
        return web.Response(status=302, headers=headers)

    async def _read(self, request: web.Request) -> web.Response:
        name = "{org}/{name}".format(**request.match_info)
        path = request.match_info["path"]
        self._strike(request, path)
        commit = request.match_info["revision"]
        data = self.repositories[name].past[commit][path]
        marks = _marks(commit, data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if asked is None:
            self.ranges.append((path, 0, len(data)))
            return web.Response(body=data, headers=marks)
        first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
        self.ranges.append((path, first, last - first + 1))
        headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}", **marks}
        return web.Response(status=206, body=data[first : last + 1], headers=headers)


def _marks(commit: str, data: bytes) -> dict[str, str]:
    """Return what tells of a file's version, wherever a redirect leads."""
    return {"X-Repo-Commit": commit, "ETag": f'"{git_hash(data)}"'}


def _entry(path: str, data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
    if path.endswith(".parquet"):
        sha256, size = lfs_facts(data)
        found |= {"size": size, "lfs": {"oid": sha256, "size": size, "pointerSize": 130}}
    return found


def lfs_facts(data: bytes) -> tuple[str, int]:
    """Return the SHA-256 and the size of what a file holds, or points to."""
    if not data.startswith(_POINTER):
        return hashlib.sha256(data).hexdigest(), len(data)
    _, oid, size = data.decode().splitlines()
    return oid.removeprefix("oid sha256:"), int(size.removeprefix("size "))


def pointer(sha256: str, size: int) -> bytes:
    """Return what git has of a file that is elsewhere (git-lfs, docs/spec.md)."""
    return _POINTER + f"\noid sha256:{sha256}\nsize {size}\n".encode()


def git_hash(data: bytes) -> str:
    """Return what git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _refusal(status: int, code: str | None, message: str | None = None) -> web.HTTPException:
    kinds = {401: web.HTTPUnauthorized, 403: web.HTTPForbidden, 404: web.HTTPNotFound}
    headers = {"X-Error-Message": message or code or ""}
    return kinds[status](headers={**headers, "X-Error-Code": code} if code else headers)
