"""The stand-in for the hub with what uploads need: repositories made, files taken, commits.

Files go through LFS, as `huggingface_hub` does it where Xet is switched off (`HF_HUB_DISABLE_XET`),
or through Xet into a folder that `hf_xet` takes for its storage; from there none can be read back.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from tests.support.hub import TOKEN, Hub, Repository, git_hash, lfs_facts, pointer

LICENSES = {"cc-by-4.0", "mit", "apache-2.0"}
OWN = {"org"}
"""Accounts that `TOKEN` may write for."""


@dataclass
class Commit:
    """What a commit changed."""

    repository: str
    message: str
    added: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)


class UploadHub(Hub):
    """Takes uploads, too. Faults for ``create``, ``preupload``, ``batch``, ``put``, ``commit``.

    Besides those of `Hub` there are ``lost`` (done, but the answer is not heard) and, for ``put``,
    ``hang`` (until `go_on` is set).
    """

    def __init__(self, xet: Path | None = None, **repositories: Repository) -> None:
        super().__init__(**repositories)
        self.xet = xet
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []
        """SHA-256 of each object that was taken whole."""
        self.begun = 0
        self.commits: list[Commit] = []
        self.is_hanging = asyncio.Event()
        self.go_on = asyncio.Event()
        self.before_commit: list[dict[str, bytes]] = []
        """Files that somebody else commits just before the next commits arrive."""
        self.invisible: set[str] = set()
        """Names that are taken by what nobody may see."""

    def routes(self, app: web.Application) -> None:
        super().routes(app)
        api = r"/api/datasets/{org}/{name}"
        app.router.add_post("/api/repos/create", self._create)
        app.router.add_post("/api/validate-yaml", self._validate)
        app.router.add_post(api + r"/preupload/{revision}", self._preupload)
        app.router.add_post(api + r"/commit/{revision}", self._commit)
        app.router.add_post(r"/datasets/{org}/{name}.git/info/lfs/objects/batch", self._batch)
        app.router.add_get(api + r"/xet-write-token/{revision}", self._xet_token)
        app.router.add_put(r"/lfs/{oid}", self._put)
        app.router.add_post(r"/lfs/verify", self._verify)

    def files(self, name: str) -> dict[str, bytes]:
        return self.repositories[f"org/{name}"].branches["main"]

    def _writable(self, request: web.Request) -> Repository:
        found = self._repository(request)
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _no(403, "you don't have the required permissions")
        if request.match_info["org"] not in OWN:
            raise _no(403, "Forbidden: pass `create_pr=1` as a query parameter")
        return found

    async def _create(self, request: web.Request) -> web.Response:
        self._strike(request, "create")
        asked = await request.json()
        given = request.headers.get("Authorization")
        name = f"{asked['organization']}/{asked['name']}"
        if given is None or "mistyped" in given:
            raise _no(401, "Invalid username or password.")
        if given != f"Bearer {TOKEN}" or asked["organization"] not in OWN:
            raise _no(403, "You don't have the rights to create a dataset under the namespace")
        if name in self.repositories or name in self.invisible:
            raise _no(409, "You already created this dataset repo")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repositories[name] = Repository(
            {"main": {".gitattributes": b"*.parquet filter=lfs\n"}}, private=private
        )
        return web.json_response({"url": f"{self.url}/datasets/{name}"})

    async def _validate(self, request: web.Request) -> web.Response:
        asked = await request.json()
        _, head, _ = asked["content"].split("---\n", 2)
        license_ = yaml.safe_load(head).get("license")
        if license_ is not None and license_ not in LICENSES:
            problem = {"message": f'"license" must be one of {sorted(LICENSES)}'}
            return web.json_response({"errors": [problem], "warnings": []}, status=400)
        return web.json_response({"errors": [], "warnings": []})

    async def _preupload(self, request: web.Request) -> web.Response:
        self._strike(request, "preupload")
        files = self._writable(request).branches["main"]
        asked = await request.json()
        return web.json_response(
            {
                "files": [
                    {
                        "path": one["path"],
                        "uploadMode": "lfs" if is_lfs(one["path"]) else "regular",
                        "shouldIgnore": False,
                        "oid": _identity(one["path"], files.get(one["path"])),
                    }
                    for one in asked["files"]
                ]
            }
        )

    async def _batch(self, request: web.Request) -> web.Response:
        self._strike(request, "batch")
        self._writable(request)
        asked = await request.json()
        objects: list[dict[str, Any]] = []
        for one in asked["objects"]:
            there = one["oid"] in self.objects
            actions = {
                "upload": {"href": f"{self.url}/lfs/{one['oid']}"},
                "verify": {"href": f"{self.url}/lfs/verify"},
            }
            objects.append({**one, **({} if there else {"actions": actions})})
        return web.json_response({"transfer": "basic", "objects": objects})

    async def _xet_token(self, request: web.Request) -> web.Response:
        self._strike(request, "xet")
        self._writable(request)
        self.begun += 1
        until = int(time.time()) + 3600
        found = {"casUrl": f"local://{self.xet}", "accessToken": "t", "exp": until}
        return web.json_response(found)

    async def _put(self, request: web.Request) -> web.Response:
        self.begun += 1
        waiting = self.faults.get("put")
        if waiting and waiting[0] == "hang":
            waiting.pop(0)
            await request.content.read(16)
            self.is_hanging.set()
            await self.go_on.wait()
        self._strike(request, "put")
        data = await request.read()
        oid = hashlib.sha256(data).hexdigest()
        assert oid == request.match_info["oid"]
        self.objects[oid] = data
        self.uploads.append(oid)
        return web.Response()

    async def _verify(self, request: web.Request) -> web.Response:
        asked = await request.json()
        assert len(self.objects[asked["oid"]]) == asked["size"]
        return web.json_response({})

    async def _commit(self, request: web.Request) -> web.Response:
        lost = self.faults.get("commit", [])[:1] == ["lost"]
        if lost:
            self.faults["commit"].pop(0)
        self._strike(request, "commit")
        found = self._writable(request)
        files = found.branches["main"]
        if self.before_commit:
            files.update(self.before_commit.pop(0))
        name = "{org}/{name}".format(**request.match_info)
        lines = [json.loads(line) for line in (await request.text()).splitlines()]
        header, *operations = lines
        current, _ = found.find("main") or ("", {})
        if header["value"].get("parentCommit") not in {None, current}:
            raise _no(412, "A commit has happened since. Please refresh and try again.")
        done = Commit(name, header["value"]["summary"])
        for operation in operations:
            self._apply(files, done, operation["key"], operation["value"])
        self.commits.append(done)
        commit, _ = found.find("main") or ("", {})
        if lost:
            assert request.transport is not None
            request.transport.abort()
        url = f"{self.url}/datasets/{name}/commit/{commit}"
        return web.json_response({"commitUrl": url, "commitOid": commit})

    def _apply(
        self, files: dict[str, bytes], done: Commit, key: str, value: dict[str, Any]
    ) -> None:
        path = value["path"]
        match key:
            case "file":
                files[path] = base64.b64decode(value["content"])
                done.added.append(path)
            case "lfsFile":
                files[path] = self._object(value["oid"], value["size"])
                done.added.append(path)
            case "deletedFile":
                del files[path]
                done.deleted.append(path)
            case _:
                raise AssertionError(key)

    def _object(self, sha256: str, size: int) -> bytes:
        if self.xet is not None:
            return pointer(sha256, size)
        assert len(self.objects[sha256]) == size
        return self.objects[sha256]


def is_lfs(path: str) -> bool:
    return path.endswith(".parquet")


def _identity(path: str, data: bytes | None) -> str | None:
    if data is None:
        return None
    return lfs_facts(data)[0] if is_lfs(path) else git_hash(data)


def _no(status: int, message: str) -> web.HTTPException:
    kinds = {
        401: web.HTTPUnauthorized,
        403: web.HTTPForbidden,
        409: web.HTTPConflict,
        412: web.HTTPPreconditionFailed,
    }
    body = json.dumps({"error": message})
    return kinds[status](text=body, content_type="application/json")
