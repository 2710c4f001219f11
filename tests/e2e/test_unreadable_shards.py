"""Shards that cannot be read, as the command line tells of them: hub datasets and tars alike."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import parquet
from tests.support.cli import Finished, caption_flow, make_images, rows
from tests.support.fleet import Fleet
from tests.support.tars import write_shards

PROSE = b"prose " * 1000
BROKEN = "broken"


def hub_dataset(root: Path) -> str:
    parquet.dataset(root, 3, 4)
    return "data/train-00001-of-00003.parquet"


def tars(root: Path) -> str:
    write_shards(root, 3, 4)
    return "shard-000001.tar"


KINDS: dict[str, Callable[[Path], str]] = {"huggingface": hub_dataset, "webdataset": tars}


def run(workspace: Path, kind: str, *arguments: str, prompt: str = "Describe.") -> Finished:
    section = {
        "dataset": {"type": kind, "dataset_path": "set"},
        "vllm": {"model": "none", "inference_prompts": [prompt]},
        "storage": {"data_dir": "results"},
    }
    (workspace / "run.json").write_text(json.dumps({"orchestrator": section}))
    flags = ("run", "--config", "run.json", "--engine", "synthetic")
    return caption_flow(*flags, *arguments, cwd=workspace)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_cannot_be_read_is_named_at_the_end_and_tried_again(
    kind: str, tmp_path: Path
) -> None:
    broken = KINDS[kind](tmp_path / "set")
    whole = (tmp_path / "set" / broken).read_bytes()
    (tmp_path / "set" / broken).write_bytes(PROSE)

    told = run(tmp_path, kind, "--dry-run")
    assert told.code == 0, told.said
    assert f"1 shard cannot be read, or not wholly:\n  {broken}: " in told.out

    first = run(tmp_path, kind)
    assert first.code == 1, first.said
    assert "Done: 8 images" in first.out
    assert "  not read   1 shard, or not wholly" in first.out
    assert f"Not read, or not wholly:\n  {broken}: " in first.out
    assert first.errors[-1].startswith("a shard could not be read, or not wholly; all others are")
    assert broken in first.errors[-1]
    assert len(rows(tmp_path / "results")) == 8

    again = run(tmp_path, kind)
    assert again.code == 1, again.said
    assert "Nothing new: 8 images were done already, and 1 shard could not be read" in again.out

    (tmp_path / "set" / broken).write_bytes(whole)
    mended = run(tmp_path, kind)
    assert mended.code == 0, mended.said
    assert "not read" not in mended.said.lower()
    found = rows(tmp_path / "results")
    assert len({row["item_key"] for row in found}) == len(found) == 12
    assert {row["status"] for row in found} == {"captioned"}


@pytest.mark.parametrize("kind", KINDS)
async def test_an_orchestrator_that_passed_over_a_shard_says_so_with_its_exit_code(
    kind: str, tmp_path: Path
) -> None:
    broken = KINDS[kind](tmp_path / "set")
    (tmp_path / "set" / broken).write_bytes(PROSE)
    dataset = {"type": kind, "dataset_path": str(tmp_path / "set")}
    async with Fleet(tmp_path, dataset=dataset) as fleet:
        orchestrator = await fleet.orchestrator()
        worker = await fleet.worker("worker")
        assert await worker.exit_code() == 0, worker.tail()
        orchestrator.signal(signal.SIGTERM)
        assert await orchestrator.exit_code() == 1, orchestrator.tail()
        last = orchestrator.output.splitlines()[-1]
        assert last.startswith("Error: a shard could not be read, or not wholly; all others are")
        assert broken in last
        await fleet.verify()


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_no_item_has_is_refused_also_by_a_dry_run(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path / "set")
    for arguments in (["--dry-run"], []):
        refused = run(tmp_path, kind, *arguments, prompt="Describe {column:titel}.")
        assert refused.code == 2, refused.said
        assert "prompts ask for {column:titel}, " in refused.errors[-1]
        assert "did you mean 'title'?" in refused.errors[-1]
        assert not (tmp_path / "results" / "captions").exists()


def test_a_column_that_no_image_of_a_folder_has_is_refused_by_a_dry_run(tmp_path: Path) -> None:
    for image in make_images(tmp_path / "images", 2):
        image.with_suffix(".json").write_text('{"title": "A cat"}')
    engine = ("--engine", "synthetic", "--dry-run")
    good = caption_flow("run", "images", *engine, "--prompt", "{column:title}", cwd=tmp_path)
    assert good.code == 0, good.said
    wrong = caption_flow("run", "images", *engine, "--prompt", "{column:titel}", cwd=tmp_path)
    assert wrong.code == 2, wrong.said
    assert "prompts ask for {column:titel}, and none of the first 2 images" in wrong.errors[-1]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [
        *("000.json", "000.png", "001.json", "001.png")
    ]
