"""What was uploaded to the hub, read by others: `datasets`, and a run of ours."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from tests.support.cli import caption_flow
from tests.support.hub import TOKEN
from tests.support.hub_uploads import UploadHub
from tests.support.made_run import captioned, make_run
from tests.support.uploading import card, shards, uploaded


@pytest.fixture(autouse=True)
def _alone(beside_the_hub: pytest.MonkeyPatch) -> None:
    beside_the_hub.setenv("HF_HUB_DISABLE_XET", "1")
    beside_the_hub.setenv("HF_TOKEN", TOKEN)


LOAD = """
import json, sys
from datasets import load_dataset
found = load_dataset(sys.argv[1])
print(json.dumps({split: rows["filename"][:] for split, rows in found.items()}))
"""


async def _loaded(here: Path, hub: UploadHub, name: str) -> dict[str, list[str]]:
    def load() -> str:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(here / "hf"), "PATH": "/usr/bin:/bin"}
        env |= {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", LOAD, name], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    found: dict[str, list[str]] = json.loads((await asyncio.to_thread(load)).splitlines()[-1])
    return found


def _split_run(here: Path) -> None:
    kinds = ("train", "test", None)
    rows = [captioned(number, split=kinds[number % 3]) for number in range(90)]
    make_run(here / "run", rows, columns={"split": pa.string()})


async def test_splits_are_kept_and_read_by_datasets(tmp_path: Path) -> None:
    _split_run(tmp_path)
    async with UploadHub() as hub:
        await uploaded(tmp_path, hub)
        found = await _loaded(tmp_path, hub, "org/words")
    assert set(found) == {"train", "test"}
    assert found["test"] == [f"a/{number}.jpg" for number in range(1, 90, 3)]
    assert len(found["train"]) == 60


async def test_the_sources_own_split_is_kept_unless_another_is_named(tmp_path: Path) -> None:
    source = "them/pictures (validation, large) at v1"
    make_run(tmp_path / "run", [captioned(number) for number in range(3)], dataset=source)
    async with UploadHub() as hub:
        await uploaded(tmp_path, hub)
        assert shards(hub) == ["captions/validation-00000.parquet"]
        assert "Captions of [them/pictures](" in card(hub)[1]
        await uploaded(tmp_path, hub, "--split", "mine")
        assert shards(hub) == ["captions/mine-00000.parquet"]
        found = await _loaded(tmp_path, hub, "org/words")
    assert found == {"mine": ["a/0.jpg", "a/1.jpg", "a/2.jpg"]}


async def test_captions_can_be_a_source_again(tmp_path: Path) -> None:
    rows = [captioned(number, url=f"https://example.org/{number}.jpg") for number in range(7)]
    make_run(tmp_path / "run", rows)
    dataset = {"type": "huggingface", "dataset_path": "org/words", "dataset_url_column": "url"}
    vllm = {"model": "none", "inference_prompts": ["Shorten {column:captions}."]}
    config = {"orchestrator": {"dataset": dataset, "vllm": vllm}}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(config))
    async with UploadHub() as hub:
        await uploaded(tmp_path, hub)
        done = await asyncio.to_thread(
            lambda: caption_flow(
                "run",
                "--config",
                "again.yaml",
                "--dry-run",
                cwd=tmp_path,
                env={"HF_ENDPOINT": hub.url},
            )
        )
    assert done.code == 0, done.said
    assert "7" in done.out
