"""Items that kill: found, put aside with the evidence, and tried again when somebody asks."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from caption_flow.protocol.identity import content_hash
from tests.chaos.deadly_pictures import MAGIC, teach
from tests.support.fleet import (
    PROMPT,
    TOKEN,
    Fleet,
    Process,
    check_captions,
    expected_captions,
    stored_rows,
    write_images,
)

COUNT = 60
LEASE_SECONDS = 3.0
"""A worker whose libraries are imported for its first picture may say nothing for a second or two,
and an item alone with it would be blamed for that."""
POISONED = "folder 1/000041.bmp"


def poison(written: dict[str, bytes]) -> str:
    return content_hash(written[POISONED])[:16]


def split(rows: list[dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The failed rows by file, and the others."""
    failed = {row["filename"]: row for row in rows if row["status"] == "failed"}
    return failed, [row for row in rows if row["status"] != "failed"]


def without(expected: dict[str, str], *names: str) -> dict[str, str]:
    return {name: caption for name, caption in expected.items() if name not in names}


async def finish(leader: Process) -> None:
    leader.signal(signal.SIGINT)
    assert await leader.exit_code(30) == 0, leader.tail()


async def try_again(fleet: Fleet, kind: str, expected: dict[str, str]) -> None:
    """``retry-failed`` and a run with a worker whom nothing kills: every file has its caption."""
    code, said = await fleet.command(
        "retry-failed", "--data-dir", str(fleet.data_dir), "--kind", kind
    )
    assert code == 0, said
    assert f"1 items put back ({kind}: 1)" in said
    leader = await fleet.orchestrator()
    healthy = await fleet.worker("healthy")
    assert await healthy.exit_code() == 0, healthy.tail()
    await finish(leader)
    check_captions(stored_rows(fleet.data_dir), expected)
    await fleet.verify()


async def test_an_item_that_kills_the_engine_is_put_aside_and_all_others_are_captioned(
    tmp_path: Path,
) -> None:
    written = write_images(tmp_path / "images", COUNT)
    expected = expected_captions(written)
    async with Fleet(tmp_path, chunk_size=32, lease_seconds=5) as fleet:
        leader = await fleet.orchestrator()
        engine = {"latency_ms": 10, "requests_in_flight": 4, "die_on": [poison(written)]}
        workers = [await fleet.worker(f"worker {number}", engine=engine) for number in (1, 2)]
        codes = await asyncio.gather(*(worker.exit_code() for worker in workers))
        assert codes == [0, 0], "\n".join(worker.tail() for worker in workers)
        await finish(leader)
        failed, others = split(stored_rows(fleet.data_dir))
        assert set(failed) == {POISONED}
        row = failed[POISONED]
        assert row["error_kind"] == "quarantined"
        assert "as it was told to" in row["error"]  # the engine's own last words
        assert "after 3 attempts" in row["error"]
        assert row["worker"] in {"worker 1", "worker 2"}
        check_captions(others, without(expected, POISONED))
        await fleet.verify()
        await try_again(fleet, "quarantined", expected)


async def test_an_item_that_kills_the_worker_is_found_by_halving_and_quarantined(
    tmp_path: Path,
) -> None:
    written = write_images(tmp_path / "images", COUNT)
    expected = expected_captions(written)
    async with Fleet(tmp_path, chunk_size=16, lease_seconds=LEASE_SECONDS) as fleet:
        leader = await fleet.orchestrator()
        deaths = await keep_manned(fleet, poison(written))
        await finish(leader)
        failed, others = split(stored_rows(fleet.data_dir))
        assert set(failed) == {POISONED}, [row["error"] for row in failed.values()]
        row = failed[POISONED]
        assert row["error_kind"] == "quarantined"
        assert "attempts" in row["error"]
        assert "deadly" in row["error"], "the worker is named"
        check_captions(others, without(expected, POISONED))
        # At most the halvings that isolate one item of 16, and its own attempts.
        assert deaths <= 4 + 3
        await fleet.verify()
        await try_again(fleet, "quarantined", expected)


async def keep_manned(fleet: Fleet, deadly: str) -> int:
    """Keep two deadly workers running until both leave in peace; return how many died."""

    async def man(number: int) -> int:
        deaths = 0
        while True:
            worker = await fleet.start_module(
                f"deadly {number}",
                "tests.chaos.deadly_worker",
                f"ws://127.0.0.1:{fleet.port}",
                TOKEN,
                f"deadly {number}",
                deadly,
            )
            code = await worker.exit_code()
            if code == 0:
                return deaths
            assert code == -signal.SIGKILL, worker.tail()
            deaths += 1
            assert deaths < 20, worker.tail()

    return sum(await asyncio.gather(man(1), man(2)))


async def test_a_picture_whose_decoding_kills_the_worker_is_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_images(tmp_path / "images", COUNT)
    expected = expected_captions(written)
    deadly = tmp_path / "images" / POISONED
    deadly.write_bytes(MAGIC + bytes(100))
    monkeypatch.setenv("PYTHONPATH", teach(tmp_path / "plugin"))
    async with Fleet(tmp_path, chunk_size=16, lease_seconds=LEASE_SECONDS) as fleet:
        leader = await fleet.orchestrator()
        deaths = 0
        while (code := await (await fleet.worker(f"worker {deaths}")).exit_code()) != 0:
            assert code == -signal.SIGSEGV
            deaths += 1
            assert deaths <= 4 + 3, "the halvings that isolate one of 16, and its own attempts"
        await finish(leader)
        failed, others = split(stored_rows(fleet.data_dir))
        assert set(failed) == {POISONED}, [row["error"] for row in failed.values()]
        assert failed[POISONED]["error_kind"] == "quarantined"
        check_captions(others, without(expected, POISONED))
        assert deaths >= 3
        await fleet.verify()


async def test_run_ends_although_a_picture_kills_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More deaths in a row than a worker is allowed that dies of itself."""
    written = write_images(tmp_path / "images", 32)
    (tmp_path / "images" / "folder 1/000006.bmp").write_bytes(MAGIC + bytes(100))
    monkeypatch.setenv("PYTHONPATH", teach(tmp_path / "plugin"))
    config = tmp_path / "config.json"
    settings = {
        "lease_seconds": LEASE_SECONDS,
        "vllm": {"model": "m", "inference_prompts": [PROMPT]},
    }
    config.write_text(json.dumps({**settings, "storage": {"data_dir": str(tmp_path / "run")}}))
    async with Fleet(tmp_path) as fleet:
        run = await fleet.start(
            *("run", "run", str(fleet.images), "--config", str(config), "--engine", "synthetic")
        )
        code = await run.exit_code(150)
        assert code == 0, run.tail(40)
        assert "quarantined: 1" in run.output
        assert run.output.count("was killed by signal 11; it is started again") > 3
        assert len(list(fleet.images.rglob("*.txt"))) == len(written) - 1


async def test_retrying_failures_of_a_kind_nobody_had_is_a_mistake_of_the_caller(
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "images", 10)
    async with Fleet(tmp_path) as fleet:
        leader = await fleet.orchestrator()
        worker = await fleet.worker("worker 1", engine={"fail_rate": 1.0})
        assert await worker.exit_code() == 0
        code, said = await fleet.command("retry-failed", "--data-dir", str(fleet.data_dir))
        assert code != 0
        assert f"pid {leader.pid}" in said  # the orchestrator still owns the folder
        await finish(leader)
        arguments = ("retry-failed", "--data-dir", str(fleet.data_dir))
        code, said = await fleet.command(*arguments, "--kind", "quarantined")
        assert code == 2
        assert "there are synthetic_refusal" in said
        code, said = await fleet.command(*arguments)
        assert code == 0
        assert "10 items put back (synthetic_refusal: 10)" in said


@pytest.mark.parametrize("empty", [True, False])
async def test_refused_and_empty_answers_are_rows_with_reasons(tmp_path: Path, empty: bool) -> None:
    written = write_images(tmp_path / "images", 20)
    chosen = "folder 2/000007.bmp"
    option = {"empty_on" if empty else "fail_items": [content_hash(written[chosen])]}
    async with Fleet(tmp_path) as fleet:
        leader = await fleet.orchestrator()
        worker = await fleet.worker("worker 1", engine=option)
        assert await worker.exit_code() == 0, worker.tail()
        await finish(leader)
        failed, others = split(stored_rows(fleet.data_dir))
        assert {name: row["error_kind"] for name, row in failed.items()} == {
            chosen: "empty_caption" if empty else "synthetic_refusal"
        }
        check_captions(others, without(expected_captions(written), chosen))
