"""What listing a folder costs: time to the first lease, time of the whole, memory, a rescan.

    python benchmarks/listing.py                     100,000 files, all in one folder
    python benchmarks/listing.py --items 1000000 --folders 1000
    python benchmarks/listing.py --columns           with a prompt that names a column of metadata
    python benchmarks/listing.py --json FILE         keep the figures as well

The files are hard links to a few that hold nothing but a JPEG's first bytes. A real orchestrator
lists them in a process of its own, and a worker on its socket asks for one lease. The second time
everything is listed already: that is what a resumed run pays. The folder is temporary and removed.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.orchestrator.assembly import assemble
from caption_flow.orchestrator.service import Orchestrator
from caption_flow.protocol.codec import decode_from_orchestrator, encode
from caption_flow.protocol.messages import Grant, Hello, Want
from caption_flow.protocol.version import SUBPROTOCOL

LINKS: Final = 30_000
"""File systems allow some 32,000 links to one file at least."""
TOKEN: Final = "a token of this benchmark"  # noqa: S105  -- opens nothing but itself
SESSION: Final = "a-session-of-this-benchmark"
PATIENCE_SECONDS: Final = 3600.0


def make_files(root: Path, items: int, folders: int, *, with_metadata: bool) -> None:
    """Fill a folder with so many images."""
    names = []
    for number in range(items):
        folder = root if folders == 1 else root / f"folder_{number % folders:05d}"
        if number < folders:
            folder.mkdir(parents=True, exist_ok=True)
        source = root.parent / f"source_{number // LINKS}"
        if number % LINKS == 0:
            source.write_bytes(b"\xff\xd8\xff\xe0" + number.to_bytes(8, "big") * 4)
        file = folder / f"image_{number:08d}.jpg"
        os.link(source, file)
        if with_metadata:
            names.append(str(file.relative_to(root)))
    if with_metadata:
        with (root / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file_name", "title"])
            writer.writerows((name, f"picture {at}") for at, name in enumerate(names))


def configuration(root: Path, data_dir: Path, *, with_metadata: bool) -> OrchestratorConfig:
    """Return the configuration of a run that nobody finishes."""
    prompt = "Describe {column:title}." if with_metadata else "Describe."
    return OrchestratorConfig.model_validate(
        {
            "host": "127.0.0.1",
            "port": 0,
            "dataset": {"type": "local_filesystem", "dataset_path": str(root)},
            "vllm": {"model": "none", "inference_prompts": [prompt]},
            "storage": {"data_dir": str(data_dir)},
        }
    )


async def list_once(config: OrchestratorConfig) -> dict[str, Any]:
    """List the dataset to its end, with one worker that takes one lease; return the figures."""
    started_mb = peak_mb()
    began = time.perf_counter()
    orchestrator = await assemble(config, [("worker", "somebody", TOKEN)])
    running = asyncio.create_task(orchestrator.run())
    await orchestrator.ready.wait()
    lease = asyncio.create_task(first_lease(orchestrator, began))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not orchestrator.progress.listed and not running.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    listed = time.perf_counter() - began
    at_lease, found = await lease
    figures = {
        "items": orchestrator.progress.total,
        "first lease after s": round(at_lease, 2),
        "listed by then": found,
        "all listed after s": round(listed, 1),
        "peak MB": peak_mb(),
        "of it before listing": started_mb,
    }
    orchestrator.stop()
    await running
    return figures


async def first_lease(orchestrator: Orchestrator, began: float) -> tuple[float, int]:
    """Ask for a lease; return when it came, in seconds, and how much was listed by then."""
    async with connect(
        f"ws://127.0.0.1:{orchestrator.port}",
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        additional_headers={"Authorization": f"Bearer {TOKEN}"},
        max_size=2**26,
    ) as connection:
        await connection.send(encode(Hello("somebody", SESSION)))
        await connection.send(encode(Want(1)))
        while not isinstance(decode_from_orchestrator(await connection.recv()), Grant):
            pass
        return time.perf_counter() - began, orchestrator.progress.total


def peak_mb() -> int:
    """Return the most memory this process has had resident so far, in MB.

    Not ``getrusage``: what that says of a child begins with what its parent had.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 // 1_000_000


def main() -> None:
    """Measure, each listing in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--folders", type=int, default=1, help="over how many they are spread")
    parser.add_argument("--columns", action="store_true", help="with a metadata.csv that is asked")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--list", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.list is not None:
        config = configuration(*given.list, with_metadata=given.columns)
        print(json.dumps(asyncio.run(list_once(config))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root, data_dir = Path(scratch) / "images", Path(scratch) / "run"
        make_files(root, given.items, given.folders, with_metadata=given.columns)
        figures = {}
        for what in ("new", "again"):
            figures[what] = listed_in_a_process(root, data_dir, columns=given.columns)
            print(what, json.dumps(figures[what]), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2))


def listed_in_a_process(root: Path, data_dir: Path, *, columns: bool) -> Any:
    """List in another process, so that its memory is its own."""
    command = [sys.executable, __file__, "--list", str(root), str(data_dir)]
    done = subprocess.run(
        [*command, *(["--columns"] if columns else [])], check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
