"""Uploads to the hub that are killed, cut off, refused for a moment, or made twice at once."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from tests.support.cli import running
from tests.support.hub import TOKEN, lfs_facts
from tests.support.hub_uploads import UploadHub
from tests.support.made_run import captioned, make_run
from tests.support.stored import failed
from tests.support.uploading import arguments, rows_in, shards, upload, uploaded


@pytest.fixture(autouse=True)
def _alone(beside_the_hub: pytest.MonkeyPatch) -> None:
    beside_the_hub.setenv("HF_HUB_DISABLE_XET", "1")
    beside_the_hub.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a run of 300 rows, one of which failed."""
    rows = [captioned(number) for number in range(299)]
    make_run(tmp_path / "run", [*rows, failed(299)])
    return tmp_path


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
