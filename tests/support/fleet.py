"""Datasets of tiny files, and a run's real processes: started, watched, killed, read back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Self

import pyarrow.dataset as ds

from caption_flow.protocol.identity import content_hash
from caption_flow.storage.database import PARTS_FOLDER, open_for_reading
from caption_flow.storage.reader import StorageReader
from caption_flow.worker.engines.synthetic import synthetic_caption
from tests.support.certificates import Pair

PATIENCE_SECONDS: Final = 60.0
"""No test waits longer for any one thing; one that gets here has failed."""
READY_LINE: Final = "Orchestrator ready for connections"
TOKEN: Final = "a worker's token, with spaces"
PROMPT: Final = "Describe this picture."
_BETWEEN: Final = "SELECT item_index, stage FROM partials"
_PIXELS: Final = 4 * 4 * 3


def write_image(path: Path, number: int) -> bytes:
    """Write a picture of 4 by 4 that no other number has (BMP, 102 bytes); return its bytes."""
    pixels = struct.pack("<Q", number * 2_654_435_761 + 1) * (_PIXELS // 8)
    size = 54 + len(pixels)
    head = struct.pack("<2sIHHI", b"BM", size, 0, 0, 54)
    info = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 24, 0, len(pixels), 2835, 2835, 0, 0)
    data = head + info + pixels
    path.write_bytes(data)
    return data


def write_images(root: Path, count: int, *, folders: int = 5, first: int = 0) -> dict[str, bytes]:
    """Write so many pictures into several folders; return their bytes by path below ``root``."""
    for folder in range(folders):
        (root / f"folder {folder}").mkdir(parents=True, exist_ok=True)
    written = {}
    for number in range(first, first + count):
        name = f"folder {number % folders}/{number:06d}.bmp"
        written[name] = write_image(root / name, number)
    return written


def expected_captions(written: Mapping[str, bytes], prompt: str = PROMPT) -> dict[str, str]:
    """What the synthetic engine says of each file."""
    return {name: synthetic_caption(content_hash(data), prompt) for name, data in written.items()}


# ---------------------------------------------------------------- reading back


def stored_rows(data_dir: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Every row, as a reader sees it beside or after a run."""
    with closing(StorageReader(data_dir)) as reader:
        if not reader.columns:
            return []
        return [row for batch in reader.batches(columns=columns) for row in batch.to_pylist()]


def stored_items(data_dir: Path) -> set[int]:
    """The items that have a row; fails if one has two."""
    items = [row["item_index"] for row in stored_rows(data_dir, ["item_index"])]
    assert len(items) == len(set(items)), "an item has two rows"
    return set(items)


def rows_of_parts(data_dir: Path) -> list[dict[str, Any]]:
    """Every row in ``captions/`` alone, as any program without us sees it."""
    folder = data_dir / PARTS_FOLDER
    if not folder.is_dir():
        return []
    rows: list[dict[str, Any]] = ds.dataset(folder, format="parquet").to_table().to_pylist()
    return rows


def items_between_stages(data_dir: Path) -> dict[int, int]:
    """The items that have a stage behind them and no row, with the stage that comes next."""
    connection = open_for_reading(data_dir)
    if connection is None:
        return {}
    with closing(connection), closing(connection.execute(_BETWEEN)) as rows:
        return dict(rows)


def check_captions(rows: Sequence[Mapping[str, Any]], expected: Mapping[str, str]) -> None:
    """Every file exactly once, captioned, with the caption that belongs to its content."""
    found = [row["filename"] for row in rows]
    assert len(found) == len(set(found)), "a file has two rows"
    assert set(found) == set(expected), "files without a row, or rows without a file"
    wrong = [
        (row["filename"], row["status"], row["error_kind"], row["error"])
        for row in rows
        if row["captions"] != [expected[row["filename"]]] or row["status"] != "captioned"
    ]
    assert not wrong, f"{len(wrong)} rows are not what they should be, such as {wrong[:3]}"


# ---------------------------------------------------------------- processes


class Process:
    """One process of ours, its output in a file."""

    def __init__(self, name: str, log: Path, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._offset = log.stat().st_size

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._process.returncode

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        """What this very process has written so far."""
        with self.log.open("rb") as file:
            file.seek(self._offset)
            return file.read().decode(errors="replace")

    def signal(self, number: int) -> None:
        if self.code is None:
            self._process.send_signal(number)

    async def exited(self) -> None:
        """Wait until it is gone, however that comes about."""
        await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        await self._process.wait()

    async def exit_code(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait until it ends by itself."""
        try:
            async with asyncio.timeout(seconds):
                return await self._process.wait()
        except TimeoutError:
            raise AssertionError(f"{self.name} does not end:\n{self.tail()}") from None

    async def says(self, text: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until it has written ``text``."""
        await until(lambda: text in self.output or self.code is not None, self.tail, seconds)
        assert text in self.output, f"{self.name} ended without {text!r}:\n{self.tail()}"

    def tail(self, lines: int = 15) -> str:
        return "\n".join([f"--- {self.name}", *self.output.splitlines()[-lines:]])


async def until(
    condition: Callable[[], object],
    explain: Callable[[], str] = str,
    seconds: float = PATIENCE_SECONDS,
) -> None:
    """Wait until a condition holds that other processes bring about."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110  -- other processes set no event
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"never came true within {seconds:.0f} s\n{explain()}") from None


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Fleet:
    """One run: a dataset, a data_dir, an orchestrator on a port that stays, and workers.

    Leave it as a context manager: whatever still runs is killed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        data_dir: Path | None = None,
        certificate: Pair | None = None,
        **settings: Any,
    ) -> None:
        """``certificate`` is served, and workers know it; else all is plain."""
        self.folder = folder
        self.certificate = certificate
        self.images = folder / "images"
        self.data_dir = data_dir or folder / "run"
        self.port = free_port()
        self._settings = settings
        self._processes: list[Process] = []
        self._numbers: dict[str, int] = {}
        self.env: dict[str, str] = {"CAPTIONFLOW_LOG_LEVEL": "INFO"}
        """What processes that are started find in their environment, besides our own."""
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self.write_configuration()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            process.signal(signal.SIGCONT)
            await process.kill()

    @property
    def config(self) -> Path:
        return self.folder / "orchestrator.json"

    @property
    def scheme(self) -> str:
        return "ws" if self.certificate is None else "wss"

    def write_configuration(self, **settings: Any) -> None:
        """Write the orchestrator's configuration; ``settings`` replace keys of it."""
        storage = {
            "data_dir": str(self.data_dir),
            **self._settings.get("storage", {}),
            **settings.pop("storage", {}),
        }
        orchestrator = {
            "host": "127.0.0.1",
            "port": self.port,
            "dataset": {"type": "local_filesystem", "dataset_path": str(self.images)},
            "vllm": {"model": "none", "inference_prompts": [PROMPT]},
            "auth": {"worker_tokens": [{"token": TOKEN, "name": "somebody"}]},
            **self._settings,
            **settings,
            "storage": storage,
        }
        if self.certificate is not None:
            files = {"cert": str(self.certificate.cert), "key": str(self.certificate.key)}
            orchestrator["ssl"] = files
        self.config.write_text(json.dumps({"orchestrator": orchestrator}))

    async def orchestrator(self, *arguments: str, ready: bool = True) -> Process:
        """Start the orchestrator, and wait until it accepts workers."""
        process = await self.start(
            "orchestrator", "orchestrator", "--config", str(self.config), *arguments
        )
        if ready:
            await process.says(READY_LINE)
        return process

    async def worker(
        self,
        name: str,
        url: str | None = None,
        *,
        engine: Mapping[str, Any] | None = None,
        when_finished: str = "shutdown",
        stages: Sequence[str] = (),
        connect_seconds: float = PATIENCE_SECONDS,
        token: str = TOKEN,
    ) -> Process:
        """Start a worker; ``engine`` are the synthetic engine's options."""
        config = self.folder / f"{name}.json"
        section = {"engine": {"type": "synthetic", **(engine or {})}, "token": token, "name": name}
        section["server"] = url or f"{self.scheme}://127.0.0.1:{self.port}"
        if self.certificate is not None:
            section["tls_fingerprint"] = self.certificate.fingerprint.hex()
        config.write_text(json.dumps({"worker": section}))
        return await self.start(
            name,
            *("worker", "--config", str(config), "--when_finished", when_finished),
            *("--connect-seconds", str(connect_seconds)),
            *(("--stages", ",".join(stages)) if stages else ()),
        )

    async def start(self, name: str, *arguments: str) -> Process:
        """Start ``python -m caption_flow.cli`` with these arguments."""
        return await self.start_module(name, "caption_flow.cli", *arguments)

    async def start_module(self, name: str, module: str, *arguments: str) -> Process:
        """Start ``python -m`` with these arguments."""
        log = self.folder / "logs" / f"{name}.log"
        with log.open("ab") as output:
            started = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.env},
            )
        process = Process(name, log, started)
        self._processes.append(process)
        return process

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Run a command of ours to its end; return its exit code and output."""
        process = await self.start("command", *arguments)
        return await process.exit_code(), process.output

    async def verify(self) -> str:
        """Run ``caption-flow verify``; every promise must hold."""
        code, output = await self.command("verify", "--data-dir", str(self.data_dir))
        assert code == 0, output
        return output
