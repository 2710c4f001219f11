"""A program that has images captioned through us, as SimpleTuner does, in whatever it relies on.

A stand-in written from what is known of its behaviour: it starts our commands as they stand, all in
one process group and with SIGINT ignored, looks at nothing but exit codes, one log for each process
and the port, and reads the results through the Python surface. It asks again and again, as the
original does, since it has no other way; so what waits here is the client, not a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from caption_flow.storage import StorageManager
from caption_flow.storage.contents import StorageContents
from tests.support.cli import environment

READY_LINE: Final = "Orchestrator ready for connections"
READY_BYTES: Final = 12_000
READY_SECONDS: Final = 180.0
READY_LOOK_SECONDS: Final = 0.5
EXIT_SECONDS: Final = 30.0
KILL_SECONDS: Final = 5.0
STORAGE_SECONDS: Final = 60.0
STORAGE_LOOK_SECONDS: Final = 1.0
LAST_LINES: Final = 20
WORKERS_NAME: Final = "SimpleTuner caption worker"
_POLL_SECONDS: Final = 0.02
_PROGRESS: Final = re.compile(r"\bstep (\d+)/(\d+)\b")
_FAILURES: Final = ("Error:", "ERROR", "Traceback")
_MARK: Final = "CAPTION_FLOW_CLIENT"
_IGNORING_SIGINT: Final = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
_BROKEN_CV2: Final = """
def __getattr__(name):
    raise RuntimeError(f"cv2.{name} is not to be used here")
"""


class JobFailed(Exception):
    """The job ended badly; says what people are shown."""


@dataclass(frozen=True)
class Started:
    """One of our processes, and the file that takes what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")


@dataclass
class Client:
    """One job. Paths that our commands see are relative to ``home``, their working folder.

    ``orchestrator`` is laid over the configuration that it writes, section by section.
    """

    home: Path
    job: str = "caption job 1"
    images: str = "datasets/my images"
    orchestrator: Mapping[str, Any] = field(default_factory=dict)
    mock_results: bool = True
    worker_name: str = WORKERS_NAME
    env: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    leader: Started | None = None
    workers: list[Started] = field(default_factory=list)

    # ------------------------------------------------------------------ what it writes

    @property
    def workspace(self) -> Path:
        """The job's folder, as our commands are told of it."""
        return Path("jobs") / self.job

    @property
    def data_dir(self) -> Path:
        """Where the results are, for the client itself."""
        return self.home / str(self.configuration()["orchestrator"]["storage"]["data_dir"])

    @property
    def dataset(self) -> Path:
        return self.home / self.images

    def configuration(self) -> dict[str, Any]:
        """Return what it asks for: of our sample values those that its builder has, too."""
        ours: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.port,
            "ssl": None,
            "chunk_size": 256,
            "chunks_per_request": 2,
            "chunk_buffer_multiplier": 3,
            "min_chunk_buffer": 10,
            "dataset": {
                "type": "local_filesystem",
                "processor_type": "local_filesystem",
                "dataset_path": self.images,
                "name": 'my "images", 写真',
                "version": "1.0",
                "recursive": True,
                "follow_symlinks": False,
                "http_bind_address": "127.0.0.1",
                "public_address": "127.0.0.1",
                "http_port": 0,
            },
            "vllm": {
                "model": "Qwen/Qwen2.5-VL-3B-Instruct",
                "tensor_parallel_size": 1,
                "max_model_len": 16384,
                "dtype": "float16",
                "gpu_memory_utilization": 0.92,
                "enforce_eager": True,
                "disable_mm_preprocessor_cache": True,
                "limit_mm_per_prompt": {"image": 1},
                "batch_size": 8,
                "sampling": {"temperature": 0.7, "top_p": 0.95, "max_tokens": 256},
                "inference_prompts": ["Describe this image in detail."],
            },
            "storage": {
                "data_dir": str(self.workspace / "caption_data"),
                "checkpoint_dir": str(self.workspace / "checkpoints"),
                "caption_buffer_size": 100,
                "checkpoint_interval": 30,
            },
            "auth": {
                "worker_tokens": [{"token": self.token, "name": self.worker_name}],
                "admin_tokens": [{"token": secrets.token_urlsafe(24), "name": "SimpleTuner admin"}],
                "monitor_tokens": [],
            },
        }
        if self.mock_results:
            ours["vllm"]["mock_results"] = True
        for key, value in self.orchestrator.items():
            ours[key] = {**ours[key], **value} if isinstance(value, Mapping) else value
        return {"orchestrator": ours}

    def prepare(self) -> None:
        """Write the workspace, and choose a port."""
        self.port = self.port or free_port()
        folder = self.home / self.workspace
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        (self.home / "no cv2" / "cv2").mkdir(parents=True, exist_ok=True)
        (self.home / "no cv2" / "cv2" / "__init__.py").write_text(_BROKEN_CV2)
        (folder / "orchestrator.json").write_text(json.dumps(self.configuration(), indent=2))

    def lay_out_endless_vllm(self) -> None:
        """Let vLLM be something that takes ten minutes to import, and says when it begins."""
        module = self.home / "no cv2" / "vllm" / "__init__.py"
        module.parent.mkdir(parents=True)
        module.write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")

    def environment(self) -> dict[str, str]:
        """Return what our processes are given, the additions to paths first."""
        ours = environment(self.home, {_MARK: self._mark, **self.env})
        ours["PYTHONPATH"] = os.pathsep.join([str(self.home / "no cv2"), ours["PYTHONPATH"]])
        libraries = [str(self.home / "libraries"), ours.get("LD_LIBRARY_PATH", "")]
        ours["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
        return ours

    _mark: str = field(default_factory=lambda: secrets.token_hex(8), init=False)

    # ------------------------------------------------------------------ what it starts

    def start_orchestrator(self) -> None:
        """Start it as the first of the job's process group."""
        config = str(self.workspace / "orchestrator.json")
        self.leader = self._start(
            "orchestrator", "orchestrator", "--config", config, "--no-ssl", "--vllm"
        )

    def wait_until_ready(self) -> None:
        """Wait for the line in what its log ends in, then for the port."""
        leader = self._leader
        deadline = time.monotonic() + READY_SECONDS
        while READY_LINE not in _tail(leader.log, READY_BYTES):
            if leader.process.poll() is not None:
                raise JobFailed(self.failure(leader))
            assert time.monotonic() < deadline, f"never ready, but said\n{leader.said}"
            time.sleep(READY_LOOK_SECONDS)
        while not accepts("127.0.0.1", self.port):
            if leader.process.poll() is not None:
                raise JobFailed(self.failure(leader))
            assert time.monotonic() < deadline, "ready, but the port is closed"
            time.sleep(READY_LOOK_SECONDS)

    def start_workers(self, count: int = 1, *, token: str | None = None) -> None:
        """Start one worker for each GPU, of which there are as many."""
        for number in range(count):
            self.workers.append(
                self._start(
                    f"worker-{number}",
                    *("worker", "--server", f"ws://127.0.0.1:{self.port}"),
                    *("--token", token or self.token),
                    *("--name", f"{self.worker_name} {number}", "--vllm", "--gpu-id", str(number)),
                    *("--when_finished", "shutdown", "--no-verify-ssl"),
                )
            )

    def _start(self, name: str, *arguments: str) -> Started:
        log = self.home / self.workspace / "logs" / f"{name}.log"
        command = [sys.executable, "-m", "caption_flow.cli", *arguments]
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*_IGNORING_SIGINT, *command],
                cwd=self.home,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0 if self.leader is None else self.leader.process.pid,
            )
        return Started(process, log)

    @property
    def _leader(self) -> Started:
        assert self.leader is not None, "not started"
        return self.leader

    # ------------------------------------------------------------------ what it waits for

    def wait_for_workers(self, *, seconds: float = 120.0) -> None:
        """Wait until every worker has exited with 0; anything else fails the job."""
        deadline = time.monotonic() + seconds
        while codes := [worker.process.poll() for worker in self.workers]:
            for worker, code in zip(self.workers, codes, strict=True):
                if code:
                    raise JobFailed(self.failure(worker))
            if all(code == 0 for code in codes):
                return
            if self._leader.process.poll() is not None:
                raise JobFailed("the orchestrator exited before the workers")
            assert time.monotonic() < deadline, f"never ended, but said\n{self.said}"
            time.sleep(_POLL_SECONDS)

    def finish(self) -> float:
        """Interrupt the orchestrator and wait for its end; return the moment, in Unix seconds."""
        leader = self._leader
        leader.process.send_signal(signal.SIGINT)
        code = leader.process.wait(EXIT_SECONDS)
        if code != 0:
            raise JobFailed(self.failure(leader))
        return time.time()

    def contents(self, *, column: str = "captions") -> StorageContents:
        """Open the storage once a second until there is something in it."""
        deadline = time.monotonic() + STORAGE_SECONDS
        while not (contents := asyncio.run(self._read())).columns:
            assert time.monotonic() < deadline, contents.metadata
            time.sleep(STORAGE_LOOK_SECONDS)
        assert column in contents.columns, contents.columns
        return contents

    async def _read(self) -> StorageContents:
        storage = StorageManager(self.data_dir)
        await storage.initialize()
        return await storage.get_shard_contents("default")

    def begin(self, *, workers: int = 1, token: str | None = None) -> None:
        """Start everything."""
        self.prepare()
        self.start_orchestrator()
        self.wait_until_ready()
        self.start_workers(workers, token=token)

    def caption(
        self, *, workers: int = 1, token: str | None = None, seconds: float = 120.0
    ) -> float:
        """Have everything captioned; return the moment of the last exit, in Unix seconds."""
        self.begin(workers=workers, token=token)
        self.wait_for_workers(seconds=seconds)
        return self.finish()

    def cancel(self) -> bool:
        """End the whole group; tell whether nothing was left to be killed."""
        group = self._leader.process.pid
        _signal_group(group, signal.SIGTERM)
        everybody = [self._leader, *self.workers]
        deadline = time.monotonic() + KILL_SECONDS
        while time.monotonic() < deadline and _any_runs(everybody):
            time.sleep(_POLL_SECONDS)
        ended = not _any_runs(everybody)
        _signal_group(group, signal.SIGKILL)
        for one in everybody:
            one.process.wait()
        return ended

    # ------------------------------------------------------------------ what it shows

    @property
    def said(self) -> str:
        """Everything that was logged, for messages of assertions."""
        everybody = [one for one in (self.leader, *self.workers) if one is not None]
        return "\n".join(f"--- {one.log.name}\n{one.said}" for one in everybody)

    def progress(self) -> tuple[int, int] | None:
        """Return N and M of the last ``step N/M`` in the last lines of the newest log."""
        logs = sorted(
            (self.home / self.workspace / "logs").glob("*.log"), key=lambda log: log.stat().st_mtime
        )
        lines = logs[-1].read_text("utf-8", "replace").splitlines()[-LAST_LINES:]
        found = [match for line in lines for match in _PROGRESS.finditer(line)]
        return (int(found[-1][1]), int(found[-1][2])) if found else None

    @staticmethod
    def failure(one: Started) -> str:
        """Return the line that is shown when a process fails."""
        lines = [line for line in one.said.splitlines() if any(sign in line for sign in _FAILURES)]
        return lines[-1] if lines else f"exit code {one.process.poll()}"

    def left(self) -> dict[int, str]:
        """Return the processes that are left of the job: id and command line."""
        wanted = f"{_MARK}={self._mark}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    found[int(entry.name)] = b" ".join(words).decode("utf-8", "replace")
        return found

    def check_paths(self) -> None:
        """See that all that was started, vLLM's own processes included, has the added paths."""
        for pid, command in self.left().items():
            try:
                entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
            except OSError:
                continue  # it has ended meanwhile
            variables = dict(entry.partition("=")[::2] for entry in entries)
            first, *_ = variables["PYTHONPATH"].split(os.pathsep)
            assert first == str(self.home / "no cv2"), command
            assert str(self.home / "libraries") in variables["LD_LIBRARY_PATH"].split(os.pathsep)

    def clean_up(self) -> None:
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for one in (self.leader, *self.workers):
            if one is not None:
                one.process.wait()


@contextlib.contextmanager
def client(home: Path, **options: Any) -> Iterator[Client]:
    """Make a client, and leave none of its processes behind; see `Client` for the options."""
    one = Client(home, **options)
    try:
        yield one
    finally:
        one.clean_up()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def accepts(host: str, port: int) -> bool:
    """Tell whether somebody listens there."""
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def wait_for(condition: Callable[[], object], why_not: Callable[[], str], seconds: float) -> None:
    """Look until something is so, as a client does that watches logs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, why_not()
        time.sleep(_POLL_SECONDS)


def _tail(file: Path, size: int) -> str:
    with file.open("rb") as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - size))
        return opened.read().decode("utf-8", "replace")


def _any_runs(processes: list[Started]) -> bool:
    return any(one.process.poll() is None for one in processes)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
