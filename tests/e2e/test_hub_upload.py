"""`caption-flow export --format huggingface_hub` with the real library, against a stand-in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.support.cli import caption_flow
from tests.support.hub import TOKEN, Repository
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


async def test_what_is_there_already_is_neither_sent_nor_committed_again(here: Path) -> None:
    async with UploadHub() as hub:
        await uploaded(here, hub, "--license", "mit")
        sent = list(hub.uploads)
        done = await uploaded(here, hub, "--license", "mit", "--json")
        (report,) = json.loads(done.out)
        assert (report["written"], report["unchanged"]) == (0, 300)
        assert report["destination"] == f"{hub.url}/datasets/org/words"
        assert hub.uploads == sent
        assert len(hub.commits) == 1


async def test_a_grown_run_sends_only_what_is_new(here: Path) -> None:
    async with UploadHub() as hub:
        await uploaded(here, hub, "--filter", "item_index < 200")
        before = {path: hub.files("words")[path] for path in shards(hub)}
        await uploaded(here, hub)
        same = [path for path, data in before.items() if hub.files("words")[path] == data]
        assert len(same) >= len(before) - 1
        assert len(hub.uploads) == len(set(hub.uploads))


async def test_a_smaller_export_takes_its_own_files_away_and_nobody_elses(here: Path) -> None:
    async with UploadHub() as hub:
        await uploaded(here, hub)
        hub.files("words").update({"notes.json": b"{}", "captions/extra.md": b"mine"})
        await uploaded(here, hub, "--limit", "20", "--columns", "filename,captions")
        assert shards(hub) == ["captions/train-00000.parquet"]
        assert all(set(row) == {"filename", "captions"} for row in rows_in(hub))
        assert len(rows_in(hub)) == 20
        assert hub.files("words")["notes.json"] == b"{}"
        assert hub.files("words")["captions/extra.md"] == b"mine"
        assert "20 rows, 20 of them captioned" in card(hub)[1]


async def test_what_others_change_meanwhile_is_kept(here: Path) -> None:
    theirs = b"---\nlicense: mit  # ours\npretty_name: Our words\n---\nBy hand.\n"
    async with UploadHub() as hub:
        hub.before_commit = [{"README.md": theirs, "LICENSE.md": b"MIT"}]
        await uploaded(here, hub)
        head, text = card(hub)
        assert (head["license"], head["pretty_name"]) == ("mit", "Our words")
        assert b"# ours" in hub.files("words")["README.md"]
        assert text.startswith("By hand.\n")
        assert "300 rows" in text
        edited = hub.files("words")["README.md"].replace(b"By hand.", b"By our hands.") + b"The end"
        hub.files("words")["README.md"] = edited
        await uploaded(here, hub, "--limit", "30", "--tags", "c")
        head, text = card(hub)
        assert text.startswith("By our hands.\n")
        assert text.endswith("-->\nThe end")
        assert text.count("caption-flow: begin") == 1
        assert "c" in head["tags"]
        assert len(head["configs"]) == 1


async def test_a_private_dataset_stays_private(here: Path) -> None:
    async with UploadHub(words=Repository({"main": {}}, private=True)) as hub:
        done = await uploaded(here, hub)
        assert "org/words is private, and stays so" in done.out
        assert hub.repositories["org/words"].private


async def test_what_is_there_is_left_if_that_is_wanted(here: Path) -> None:
    async with UploadHub() as hub:
        await uploaded(here, hub)
        done = await uploaded(here, hub, "--existing", "skip", "--limit", "1")
        assert "1 skipped (existing)" in done.out
        assert len(hub.commits) == 1


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
