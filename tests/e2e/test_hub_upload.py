"""`caption-flow export --format huggingface_hub` with the real library, against a stand-in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.support.cli import caption_flow
from tests.support.hub import TOKEN
from tests.support.hub_uploads import UploadHub
from tests.support.made_run import captioned, make_run
from tests.support.stored import failed
from tests.support.uploading import card, rows_in, shards, uploaded

STAGES = [{"name": "s", "model": "m", "prompts": ["Say <it> `so`."], "output_field": "captions"}]


@pytest.fixture(autouse=True)
def _alone(beside_the_hub: pytest.MonkeyPatch) -> None:
    beside_the_hub.setenv("HF_HUB_DISABLE_XET", "1")
    beside_the_hub.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a run of 300 rows, one of which failed."""
    rows = [captioned(number) for number in range(299)]
    make_run(tmp_path / "run", [*rows, failed(299)], stages=json.dumps(STAGES))
    return tmp_path


async def test_rows_go_up_whole_with_a_card_in_one_commit(here: Path) -> None:
    async with UploadHub() as hub:
        words = ("--license", "mit", "--tags", "a,b", "--nsfw", "--private")
        done = await uploaded(here, hub, *words)
        assert f"{hub.url}/datasets/org/words: 300 written" in done.out
        assert "org/words is new, and private" in done.out
        assert hub.repositories["org/words"].private
        (commit,) = hub.commits
        assert len(shards(hub)) > 3
        assert commit.added == [*shards(hub), "README.md", ".caption-flow.json"]
        names = [row["filename"] for row in rows_in(hub)]
        assert names == [f"a/{number}.jpg" for number in range(300)]
        head, text = card(hub)
        assert (head["license"], head["size_categories"]) == ("mit", ["n<1K"])
        assert {"a", "b", "not-for-all-audiences"} <= set(head["tags"])
        (config,) = head["configs"]
        assert config["data_files"] == [{"split": "train", "path": "captions/train-*.parquet"}]
        assert "300 rows, 299 of them captioned" in text
        assert "Captioned by Ada (299), somebody" in text
        assert "Say <it> `so`." in text
        assert "corrupt\\_image (1)" in text
        assert not (here / "run/hub_spool").exists()


async def test_all_formats_include_the_hub_only_where_a_repository_is_named(here: Path) -> None:
    common = ("export", "--data-dir", "run", "--format", "all", "--output", "out")
    async with UploadHub() as hub:
        env = {"HF_ENDPOINT": hub.url}
        without = await asyncio.to_thread(lambda: caption_flow(*common, cwd=here, env=env))
        assert without.code == 0, without.said
        assert "huggingface_hub was left out: --hf-dataset names no repository" in without.out
        assert not hub.asked
        both = (*common, "--hf-dataset", "org/words")
        done = await asyncio.to_thread(lambda: caption_flow(*both, cwd=here, env=env))
        assert done.code == 0, done.said
        assert len(rows_in(hub)) == 300
