"""Workers that see nothing of the owner's files caption them all the same, on bytes sent to them.

The synthetic engine's texts name the bytes of the picture: a right text proves that they came.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cli import (
    Finished,
    as_a_user,
    caption_flow,
    caption_of,
    make_images,
    rows_by_name,
    running,
)
from tests.support.videos import colours, make_video, plain, told

READY = "Orchestrator ready for connections"
TOKEN = "a token"
PROMPT = "Describe this image."
IMAGES = 40
STRANGER = 65534
"""The user id of ``nobody``, whose files they are where the worker is not their owner."""


@dataclass(frozen=True)
class Place:
    """Where a worker is: how to start Python there, and where the orchestrator is from there."""

    python: Sequence[str]
    host: str


def _has_namespaces() -> bool:
    """Tell whether this process may make networks and mounts of its own."""
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("unshare")):
        return False
    test = ["unshare", "--net", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(test, check=False, capture_output=True).returncode == 0


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def in_namespaces(dataset: Path) -> Iterator[Place]:
    """A machine of its own, as far as network and files go: one wire, and no dataset."""
    number = os.getpid() % 16000
    name, here, there = f"cf{number}", f"cfa{number}", f"cfb{number}"
    network = f"10.{200 + number // 4096}.{number // 16 % 256}.{number % 16 * 16}"
    ours, theirs = (network.rpartition(".")[0] + f".{number % 16 * 16 + one}" for one in (1, 2))
    with contextlib.ExitStack() as undo:
        _ip("netns", "add", name)
        undo.callback(_ip, "netns", "del", name)
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        _ip("addr", "add", f"{ours}/28", "dev", here)
        _ip("link", "set", here, "up")
        _ip("-n", name, "addr", "add", f"{theirs}/28", "dev", there)
        _ip("-n", name, "link", "set", there, "up")
        # Its own mounts: an empty folder lies where the dataset is elsewhere.
        script = 'mount -t tmpfs none "$0" && exec "$@"'
        inside = ("unshare", "--mount", "sh", "-c", script, str(dataset), sys.executable)
        yield Place(("ip", "netns", "exec", name, *inside), ours)


@contextlib.contextmanager
def without_rights(dataset: Path) -> Iterator[Place]:
    """Somebody who may neither list the folder nor read what is in it."""
    python = as_a_user()
    assert python is not None
    for path in (*dataset.rglob("*"), dataset):
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.chown(path, STRANGER, STRANGER)
    yield Place(python, "127.0.0.1")


needs_namespaces = pytest.mark.skipif(
    not _has_namespaces(), reason="making a network and mounts needs root, ip and unshare"
)
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or as_a_user() is None,
    reason="giving files to another user needs root, and setpriv to be bound by it",
)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _caption(workspace: Path, dataset: Path, place: Place) -> Finished:
    """Caption the dataset with one worker at a place; return how the worker ended."""
    port = _free_port(place.host)
    config = workspace / "orchestrator.json"
    section = {
        "host": place.host,
        "port": port,
        "chunk_size": 8,
        "dataset": {
            "type": "local_filesystem",
            "dataset_path": str(dataset),
            "video": {"frames": 3},
        },
        "vllm": {"model": "none", "inference_prompts": [PROMPT]},
        "storage": {"data_dir": str(workspace / "results")},
        "auth": {"worker_tokens": [{"token": TOKEN, "name": "far away"}]},
    }
    config.write_text(json.dumps({"orchestrator": section}))
    with running("orchestrator", "--config", config, "--insecure", cwd=workspace) as leader:
        leader.says(rf"^{READY}$")
        worker = caption_flow(
            *("worker", "--no-config", "--insecure", "--server", f"ws://{place.host}:{port}"),
            *("--token", TOKEN, "--engine", "synthetic", "--when-finished", "shutdown"),
            cwd=workspace,
            python=place.python,
            env={"no_proxy": "*"},
        )
        leader.interrupt()
        leader.ends(seconds=30)
    return worker


@pytest.mark.parametrize(
    "somewhere",
    [
        pytest.param(in_namespaces, marks=needs_namespaces, id="in its own network and mounts"),
        pytest.param(without_rights, marks=needs_root, id="without the right to read"),
    ],
)
def test_a_worker_that_cannot_see_the_files_captions_them(
    tmp_path: Path, somewhere: Callable[[Path], contextlib.AbstractContextManager[Place]]
) -> None:
    dataset = tmp_path / "photos"
    images = make_images(dataset, IMAGES)
    expected = {path.name: caption_of(path, PROMPT) for path in images}
    shown = colours(9)
    clip = make_video("h264.mp4", [plain(colour) for colour in shown])
    (dataset / "clip.mp4").write_bytes(clip)
    with somewhere(dataset) as place:
        seen = subprocess.run(
            [*place.python, "-c", "import sys; open(sys.argv[1]).close()", str(images[0])],
            check=False,
            capture_output=True,
        )
        assert seen.returncode != 0, "the worker sees the files after all"
        worker = _caption(tmp_path, dataset, place)
    assert worker.code == 0, worker.said
    found = rows_by_name(tmp_path / "results")
    (caption,) = found.pop("clip.mp4")["captions"]
    frames = [bytes.fromhex(one) for one in re.findall(r"#([0-9a-f]{6})", caption)]
    assert [told((one[0], one[1], one[2]), shown) for one in frames] == [1, 4, 7]
    assert {name: row["captions"] for name, row in found.items()} == {
        name: [text] for name, text in expected.items()
    }
    assert f"images: {IMAGES + 1} sent by the orchestrator" in worker.said
