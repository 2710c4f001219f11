"""Engines that die or hang below a real worker: restarted, given up, or ended with it.

With vLLM, what is killed and stopped here are its own processes, in the middle of a run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import make_images
from tests.support.fleet import (
    TOKEN,
    Fleet,
    Process,
    check_captions,
    expected_captions,
    stored_items,
    stored_rows,
    until,
    write_images,
)
from tests.tiny_vlm.serving import MODEL_FOLDER

VLLM = (
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
)
LOAD_SECONDS = 600.0
"""A model loads in half a minute on two idle cores, in minutes on busy ones."""
COUNT = 48
STALL_SECONDS = 10
LONG_LEASES: dict[str, Any] = {"lease_seconds": 3600}
RECIPE = {
    "model": str(MODEL_FOLDER),
    "dtype": "bfloat16",
    "max_model_len": 512,
    "enforce_eager": True,
    "max_num_seqs": 4,
    # Long answers, so that there is a middle of the run.
    "sampling": {"temperature": 0, "max_tokens": 150, "ignore_eos": True},
    "stages": [
        {"name": "long", "prompts": ["describe this image in detail"], "output_field": "detailed"},
        {"name": "short", "prompts": ["Condense: {detailed}"], "output_field": "caption"},
    ],
}


# --------------------------------------------------------------------------- any engine


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [("hang_on", "no token for 0.5 s: it hangs"), ("die_on", "the synthetic engine died")],
)
async def test_a_worker_whose_engine_cannot_be_helped_leaves_with_a_sentence_and_its_leases_go_back(
    tmp_path: Path, trouble: str, reason: str
) -> None:
    written = write_images(tmp_path / "images", COUNT)
    async with Fleet(tmp_path, chunk_size=8, **LONG_LEASES) as fleet:
        leader = await fleet.orchestrator()
        options = {"type": "synthetic", trouble: [""]}  # every picture's hash begins like that
        lost = await started(
            fleet, "lost", engine=options, engine_stall_seconds=0.5, max_engine_restarts=1
        )
        assert await lost.exit_code() == 1, lost.tail()
        last = lost.output.splitlines()[-1]
        assert "Error: the engine of none died and a restart did not help: " in last
        assert reason in last
        # Leases of an hour: this one finishes only because the other's are back already.
        healthy = await fleet.worker("healthy")
        assert await healthy.exit_code() == 0, healthy.tail()
        await ended(leader)
        check_captions(stored_rows(fleet.data_dir), expected_captions(written))


async def started(fleet: Fleet, name: str, *flags: str, **section: Any) -> Process:
    """Start a worker that has this section and these flags."""
    config = fleet.folder / f"{name}.json"
    server = f"ws://127.0.0.1:{fleet.port}"
    known = {"server": server, "token": TOKEN, "name": name, "when_finished": "shutdown"}
    config.write_text(json.dumps({"worker": {**known, **section}}))
    return await fleet.start(name, "worker", "--config", str(config), *flags)


async def ended(leader: Process) -> None:
    leader.signal(signal.SIGINT)
    assert await leader.exit_code() == 0, leader.tail()


# --------------------------------------------------------------------------- vLLM


@pytest.fixture
def vllm_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)


def about_vllm(test: Any) -> Any:
    """Mark a test that needs vLLM."""
    for mark in (*VLLM, pytest.mark.usefixtures("vllm_environment")):
        test = mark(test)
    return test


def engine_processes(worker: int) -> dict[int, str]:
    """Return what bears the mark of an engine of this worker: id and title of each process."""
    mark = f"CAPTION_FLOW_ENGINE={worker}-".encode()
    return {
        pid: title
        for pid, variables, title in processes()
        if any(variable.startswith(mark) for variable in variables)
    }


def processes() -> Iterator[tuple[int, list[bytes], str]]:
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            yield int(entry.name), (entry / "environ").read_bytes().split(b"\0"), title


def core_of(worker: Process) -> int:
    """Return the process in which vLLM's scheduler runs."""
    found = engine_processes(worker.pid)
    cores = [pid for pid, title in found.items() if "EngineCore" in title]
    assert len(cores) == 1, found
    return cores[0]


async def has_rows(fleet: Fleet, count: int) -> None:
    await until(lambda: len(stored_items(fleet.data_dir)) >= count, seconds=LOAD_SECONDS)


async def says_times(worker: Process, text: str, times: int) -> None:
    await until(lambda: worker.output.count(text) == times, worker.tail, LOAD_SECONDS)


def check_all_captioned(rows: Sequence[Mapping[str, Any]]) -> None:
    assert len(rows) == COUNT
    assert len({row["filename"] for row in rows}) == COUNT
    assert {row["status"] for row in rows} == {"captioned"}
    assert all(row["detailed"] and row["caption"] for row in rows)


@about_vllm
async def test_a_run_survives_that_vllm_is_killed_and_that_it_hangs(tmp_path: Path) -> None:
    make_images(tmp_path / "images", COUNT)
    async with Fleet(tmp_path, vllm=RECIPE, chunk_size=8, **LONG_LEASES) as fleet:
        leader = await fleet.orchestrator()
        worker = await started(fleet, "worker", "--engine-stall-seconds", str(STALL_SECONDS))
        await has_rows(fleet, 4)

        killed = engine_processes(worker.pid)
        os.kill(core_of(worker), signal.SIGKILL)
        await says_times(worker, "engine is up again", 1)
        assert "engine died" in worker.output
        assert not killed.keys() & engine_processes(worker.pid).keys(), "the old ones are gone"
        await has_rows(fleet, len(stored_items(fleet.data_dir)) + 4)

        stopped = engine_processes(worker.pid)
        os.kill(core_of(worker), signal.SIGSTOP)
        await says_times(worker, "engine is up again", 2)
        assert f"no token for {STALL_SECONDS} s: it hangs" in worker.output
        assert not stopped.keys() & engine_processes(worker.pid).keys(), "the old ones are gone"

        assert await worker.exit_code(LOAD_SECONDS) == 0, worker.tail()
        await ended(leader)
        check_all_captioned(stored_rows(fleet.data_dir))


@about_vllm
async def test_no_process_of_vllm_outlives_a_killed_worker_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    make_images(tmp_path / "images", COUNT)
    async with Fleet(tmp_path, vllm=RECIPE, chunk_size=8, lease_seconds=5) as fleet:
        leader = await fleet.orchestrator()
        killed = await started(fleet, "killed")
        await has_rows(fleet, 4)
        left_behind = engine_processes(killed.pid)
        assert len(left_behind) >= 2, "the engine's core and its worker"
        await killed.kill()
        await until(
            lambda: not engine_processes(killed.pid),
            lambda: f"left behind: {engine_processes(killed.pid)}",
            seconds=5,
        )
        other = await fleet.worker("other")
        assert await other.exit_code() == 0, other.tail()
        await ended(leader)
        check_all_captioned(stored_rows(fleet.data_dir))
