"""Tars on disk, on a web server and in a bucket, captioned by real processes.

The synthetic engine's texts name the picture and the prompt they were made from: a right text
beside a sample proves that these very bytes were captioned.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import Fleet, check_captions, expected_captions, stored_rows
from tests.support.hub import TOKEN, Hub, Repository
from tests.support.object_server import object_server, s3_server
from tests.support.tars import write_shards, write_tar

SHARDS = 4
SAMPLES = 8


def fleet_for(tmp_path: Path, location: str | Path, prompt: str = "Describe.") -> Fleet:
    return Fleet(
        tmp_path,
        dataset={"type": "webdataset", "dataset_path": str(location)},
        vllm={"model": "none", "inference_prompts": [prompt]},
        chunk_size=5,
    )


async def run_to_the_end(fleet: Fleet) -> str:
    orchestrator = await fleet.orchestrator()
    worker = await fleet.worker("worker")
    assert await worker.exit_code() == 0, worker.tail(40)
    orchestrator.signal(signal.SIGTERM)
    assert await orchestrator.exit_code() == 0, orchestrator.tail(40)
    await fleet.verify()
    return worker.output


def by_name(fleet: Fleet) -> dict[str | None, dict[str, Any]]:
    return {row["filename"]: row for row in stored_rows(fleet.data_dir)}


def contents(root: Path, prefix: str) -> Mapping[str, bytes]:
    return {f"{prefix}{path.name}": path.read_bytes() for path in root.iterdir()}


async def test_local_tars_are_captioned_once_and_taken_up_again(tmp_path: Path) -> None:
    root = tmp_path / "set"
    written = write_shards(root, SHARDS, SAMPLES)
    expected = expected_captions(written, "Describe.")
    async with fleet_for(tmp_path, root) as fleet:
        await run_to_the_end(fleet)
        rows = stored_rows(fleet.data_dir)
        check_captions(rows, expected)
        assert {row["item_key"] for row in rows} == {name[: -len(".bmp")] for name in written}
        # Later there are a tar with a sample without an image, and one fewer of the old ones.
        (root / "shard-000000.tar").unlink()
        write_tar(
            root / "later.tar", [("1.txt", b"alone"), ("2.bmp", next(iter(written.values())))]
        )
        await run_to_the_end(fleet)
        found = by_name(fleet)
        assert len(stored_rows(fleet.data_dir)) == len(written) + 2
        assert (
            found["later.tar/2.bmp"]["captions"] == found["shard-000000.tar/000000.bmp"]["captions"]
        )
        (failed,) = [row for row in found.values() if row["status"] != "captioned"]
        assert (failed["error_kind"], failed["item_key"]) == ("image_missing", "later.tar/1")
        assert "has no image, only txt" in failed["error"]


async def test_tars_on_a_web_server_are_read_by_the_worker_itself(tmp_path: Path) -> None:
    written = write_shards(tmp_path / "set", SHARDS, SAMPLES)
    prompt = "Describe {column:title}."
    async with object_server(dict(contents(tmp_path / "set", "/data/"))) as server:
        server.faults.extend(["", "", "500", "", "cut", "", "reset", "", "429"] * 4)
        location = f"{server.url}/data/shard-{{000000..{SHARDS - 1:06d}}}.tar"
        async with fleet_for(tmp_path, location, prompt) as fleet:
            said = await run_to_the_end(fleet)
            assert "the orchestrator is asked for its bytes" not in said
            expected = {
                name: expected_captions({name: data}, f"Describe title {number}.")[name]
                for number, (name, data) in enumerate(written.items())
            }
            check_captions(stored_rows(fleet.data_dir), expected)


async def test_tars_in_a_bucket_are_captioned(tmp_path: Path) -> None:
    written = write_shards(tmp_path / "set", SHARDS, SAMPLES)
    with s3_server(contents(tmp_path / "set", "some/set/")) as bucket:
        async with fleet_for(tmp_path, f"{bucket}/some/set") as fleet:
            await run_to_the_end(fleet)
            check_captions(stored_rows(fleet.data_dir), expected_captions(written, "Describe."))


async def test_tars_on_the_hub_are_captioned_at_one_commit(
    tmp_path: Path, beside_the_hub: pytest.MonkeyPatch
) -> None:
    written = write_shards(tmp_path / "set", SHARDS, SAMPLES)
    files = dict(contents(tmp_path / "set", "data/"))
    repository = Repository({"main": files}, private=True)
    async with Hub(tars=repository) as hub:
        beside_the_hub.setenv("HF_ENDPOINT", hub.url)
        beside_the_hub.setenv("HF_TOKEN", TOKEN)
        where = "hf://datasets/org/tars/data"
        for number, location in enumerate((f"{where}/shard-{{000000..000003}}.tar", where)):
            folder = tmp_path / str(number)
            folder.mkdir()
            async with fleet_for(folder, location, "Describe {column:title}.") as fleet:
                orchestrator = await fleet.orchestrator()
                await orchestrator.says("the dataset is listed")
                # What is uploaded meanwhile is another commit's.
                repository.branches["main"] = dict.fromkeys(files, b"newer")
                worker = await fleet.worker("worker")
                assert await worker.exit_code() == 0, worker.tail(40)
                orchestrator.signal(signal.SIGTERM)
                assert await orchestrator.exit_code() == 0, orchestrator.tail(40)
                assert "read where the dataset lies" in worker.output
                expected = {
                    name: expected_captions({name: data}, f"Describe title {at}.")[name]
                    for at, (name, data) in enumerate(written.items())
                }
                check_captions(stored_rows(fleet.data_dir), expected)
            repository.branches["main"] = files
