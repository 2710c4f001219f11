"""The worker processes of ``caption-flow run``: started, watched, started again, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

TOKEN_VARIABLE: Final = "CAPTIONFLOW_WORKER_TOKEN"  # noqa: S105  -- its name, not a token
KEY_VARIABLE: Final = "CAPTIONFLOW_API_KEY"
PARENT_VARIABLE: Final = "CAPTIONFLOW_PARENT"
"""The process a worker is to end with, as its number: it may be gone before the worker looks."""
_MOST_RESTARTS: Final = 3
"""Restarts in a row; one that worked for `_STEADY_SECONDS` begins a new row."""
_MOST_RESTARTS_AT_WORK: Final = 16
"""Of one that died with leases: an item may be to blame; 13 deaths find the one in a thousand."""
_STEADY_SECONDS: Final = 600.0
_TAIL_BYTES: Final = 65_536
_LAST_WORD: Final = re.compile(r"(?:^|\] )Error: (.+?)\s*$")
"""How our own commands say why they fail: at the start of a line, or as a log's event."""


@dataclass(slots=True)
class Hand:
    """One worker's process; see `Crew` for ``gpus``."""

    number: int
    gpus: str | None
    log_file: Path
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    started: float = 0.0
    log_begins: int = 0
    failure: str | None = None


@dataclass(slots=True)
class Crew:
    """The workers of a local run.

    ``arguments`` are those of ``caption-flow worker``, ``secrets`` the variables they refer to;
    ``gpus`` has one entry a worker, as `caption_flow.cli.gpus.Shares` has them; ``tell`` takes
    sentences for people; ``is_at_work`` says whether any worker has leases.
    """

    arguments: Sequence[str]
    secrets: Mapping[str, str] = field(repr=False)
    gpus: Sequence[str | None]
    log_dir: Path
    tell: Callable[[str], None]
    is_at_work: Callable[[], bool] = lambda: False
    hands: list[Hand] = field(default_factory=list)
    ending: bool = False

    async def start(self) -> None:
        """Start one worker for each entry of ``gpus``."""
        self.log_dir.mkdir(parents=True, exist_ok=True)
        for number, gpus in enumerate(self.gpus):
            hand = Hand(number, gpus, self.log_dir / f"worker-{number}.log")
            await self._launch(hand)
            self.hands.append(hand)

    async def watch(self) -> str | None:
        """Wait until no worker runs any more; return why they failed if all did, or None.

        A worker that was killed is started again a few times; one that gave up said why, and would
        say it again.
        """
        await asyncio.gather(*(self._watch(hand) for hand in self.hands))
        failures = [hand.failure for hand in self.hands if hand.failure is not None]
        return failures[-1] if len(failures) == len(self.hands) and failures else None

    def terminate(self) -> None:
        """Ask every worker to drain."""
        self.ending = True
        for process in self._running():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End every worker at once, and what belongs to its session."""
        self.ending = True
        for process in self._running():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    async def end(self, patience_seconds: float) -> None:
        """Wait for the workers to exit, then kill what is left of them."""
        running = self._running()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_seconds):
                await asyncio.gather(*(process.wait() for process in running))
        self.kill()
        await asyncio.gather(*(process.wait() for process in running))

    def _running(self) -> list[asyncio.subprocess.Process]:
        return [h.process for h in self.hands if h.process and h.process.returncode is None]

    async def _watch(self, hand: Hand) -> None:
        while hand.process is not None:
            code = await hand.process.wait()
            if code == 0 or self.ending:
                return
            hand.failure = _reason(hand, code)
            if time.monotonic() - hand.started > _STEADY_SECONDS:
                hand.restarts = 0
            most = _MOST_RESTARTS_AT_WORK if self.is_at_work() else _MOST_RESTARTS
            if code > 0 or hand.restarts >= most:
                if len(self.hands) > 1:
                    self.tell(f"Worker {hand.number} is out of the run: {hand.failure}")
                return
            hand.restarts += 1
            self.tell(f"Worker {hand.number} was killed by signal {-code}; it is started again.")
            await self._launch(hand)
            hand.failure = None

    async def _launch(self, hand: Hand) -> None:
        with hand.log_file.open("ab") as output:
            hand.log_begins = output.tell()
            hand.started = time.monotonic()
            hand.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "caption_flow.cli",
                "worker",
                *self.arguments,
                "--name",
                f"worker {hand.number}",
                *_gpu_arguments(hand.gpus),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment(hand.gpus),
                # Of its own: Ctrl-C at the terminal is ours to pass on, and its children are its.
                start_new_session=True,
            )

    def _environment(self, gpus: str | None) -> Mapping[str, str]:
        environment = {
            **os.environ,
            **self.secrets,
            PARENT_VARIABLE: str(os.getpid()),
            "PYTHONUNBUFFERED": "1",
        }
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
            # Numbers as nvidia-smi has them; CUDA's own put the fastest first.
            environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        environment.pop("CAPTIONFLOW_LOG_DIR", None)
        return environment


def _gpu_arguments(gpus: str | None) -> list[str]:
    """Choose all that a worker sees: a file's ``gpu_id`` counts among those of the whole run."""
    if not gpus:
        return []
    return ["--gpu-id", ",".join(str(number) for number, _ in enumerate(gpus.split(",")))]


def last_error(log_file: Path, begins: int = 0) -> str | None:
    """Return what the last line of a log that says what went wrong says, or None.

    ``begins`` is where in the file to begin: what stands before is of earlier days.
    """
    try:
        with log_file.open("rb") as file:
            file.seek(max(begins, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    said = [found.group(1) for line in lines if (found := _LAST_WORD.search(line))]
    return said[-1] if said else None


def _reason(hand: Hand, code: int) -> str:
    if code < 0:
        return f"worker {hand.number} was killed by signal {-code}; its log is {hand.log_file}"
    return last_error(hand.log_file, hand.log_begins) or (
        f"worker {hand.number} ended with exit code {code}; its log is {hand.log_file}"
    )
