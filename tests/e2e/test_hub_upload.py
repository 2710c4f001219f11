"""`caption-flow export --format huggingface_hub` with the real library, against a stand-in."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from tests.support.cli import caption_flow, running
from tests.support.hub import TOKEN, Repository, lfs_facts
from tests.support.hub_uploads import UploadHub
from tests.support.made_run import captioned, make_run
from tests.support.stored import failed
from tests.support.uploading import arguments, card, rows_in, shards, upload, uploaded

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


# ------------------------------------------------------------------------------------- interrupted


async def _killed_while_uploading(here: Path, hub: UploadHub) -> None:
    env = {"HF_ENDPOINT": hub.url}
    hub.faults["put"] = ["", "", "", "", "", "hang"]
    with running(*arguments(), cwd=here, env=env) as process:
        await asyncio.wait_for(hub.is_hanging.wait(), 60)
        process.process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.process.wait)
    hub.go_on.set()
    hub.faults.clear()


async def test_an_upload_that_was_killed_goes_on_where_it_was(here: Path) -> None:
    async with UploadHub() as hub:
        await _killed_while_uploading(here, hub)
        first = list(hub.uploads)
        assert len(first) >= 4
        assert not hub.commits, "nobody sees half a dataset"
        await uploaded(here, hub)
        assert len(hub.uploads) == len(set(hub.uploads)), "nothing is sent twice"
        assert len(hub.uploads) > len(first)
        assert len(hub.commits) == 1
        assert len(rows_in(hub)) == 300
        assert not (here / "run/hub_spool").exists()


async def test_one_folder_is_uploaded_from_once_at_a_time(here: Path) -> None:
    async with UploadHub() as hub:
        hub.faults["put"] = ["hang"]
        with running(*arguments(), cwd=here, env={"HF_ENDPOINT": hub.url}) as process:
            await asyncio.wait_for(hub.is_hanging.wait(), 60)
            second = await upload(here, hub)
            assert second.code == 1
            assert f"another export is uploading from run (pid {process.process.pid}" in second.err
            files = list((here / "run/hub_spool/files").iterdir())
            assert len(files) <= 5, "the disk holds a few files at a time"
            hub.go_on.set()
            done = await asyncio.to_thread(process.ends, seconds=60)
            assert done.code == 0, done.said
        assert len(rows_in(hub)) == 300


TROUBLES: dict[str, dict[str, list[str]]] = {
    "the server fails everywhere": {
        "create": ["500"],
        "preupload": ["503"],
        "batch": ["500"],
        "put": ["500"],
        "commit": ["500"],
        "/api/datasets/org/words": ["503"],
    },
    "too many requests": {"put": ["429"], "commit": ["429"]},
    "connections are cut": {"put": ["reset"], "batch": ["reset"], "commit": ["reset"]},
    "the answer to the commit is lost": {"commit": ["lost"]},
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_what_passes_is_waited_for(here: Path, trouble: str) -> None:
    async with UploadHub() as hub:
        hub.faults = TROUBLES[trouble]
        await uploaded(here, hub)
        assert not any(hub.faults.values()), "each was met"
        assert len(hub.commits) == 1
        assert len(rows_in(hub)) == 300


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


async def test_files_go_up_through_xet_where_it_is_installed(
    here: Path, beside_the_hub: pytest.MonkeyPatch
) -> None:
    beside_the_hub.delenv("HF_HUB_DISABLE_XET")
    (here / "xet").mkdir()
    async with UploadHub(here / "xet") as hub:
        await uploaded(here, hub)
        (commit,) = hub.commits
        assert len(shards(hub)) > 3
        assert commit.added == [*shards(hub), "README.md", ".caption-flow.json"]
        listed = json.loads(hub.files("words")[".caption-flow.json"])["files"]
        at_the_hub = {path: lfs_facts(hub.files("words")[path]) for path in shards(hub)}
        assert at_the_hub == {path: (one["sha256"], one["size"]) for path, one in listed.items()}
        kept = sum(path.stat().st_size for path in (here / "xet").rglob("default.*"))
        assert kept > sum(size for _, size in at_the_hub.values()) / 2, "it compresses them, too"
        begun = hub.begun
        done = await uploaded(here, hub)
        assert "0 written, 300 unchanged" in done.out
        assert (hub.begun, len(hub.commits)) == (begun, 1)


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


# ------------------------------------------------------------------------------------- read back

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
