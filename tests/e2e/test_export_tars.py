"""`caption-flow export --format webdataset`: images come from wherever they were captioned.

That a text is with its image is proved through pixels: those of each decoded sample belong to one
picture of the dataset only, and the synthetic engine's texts name the picture they were made from.
"""

from __future__ import annotations

import json
import shutil
import signal
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support import parquet
from tests.support.cli import (
    Finished,
    caption_flow,
    caption_of,
    content_hash,
    make_image,
    rows,
)
from tests.support.fleet import Fleet, expected_captions
from tests.support.hub import Hub, Repository
from tests.support.hub_runs import caption_all, files_in
from tests.support.hub_runs import fleet_for as hub_fleet
from tests.support.object_server import object_server
from tests.support.samples import read_samples
from tests.support.tars import write_shards

NAMES = ("a.png", "sub/a.png", "A.PNG", "b.v2.jpg", "猫/two\nlines.png", "%41.png", "a.jpg")


def pixels(picture: bytes) -> bytes:
    with Image.open(BytesIO(picture)) as opened:
        return opened.convert("RGB").tobytes()


def image_of(sample: Mapping[str, Any]) -> bytes:
    (suffix,) = [name for name in sample if name in {"png", "jpg", "bmp"}]
    data: bytes = sample[suffix]
    return data


def members_of(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def texts_by_pixels(folder: Path) -> dict[bytes, str]:
    return {pixels(image_of(one)): one["txt"].decode() for one in read_samples(folder)}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, captioned into `results`; nobody changes them."""
    folder = tmp_path_factory.mktemp("here")
    for number, name in enumerate(NAMES):
        make_image(folder / "photos" / name, number, kind="JPEG" if "v2" in name else "PNG")
    (folder / "photos" / "broken.jpg").write_bytes(b"")
    arguments = ("run", "photos", "--engine", "synthetic", "--data-dir", "results")
    ran = caption_flow(*arguments, "--output", "elsewhere", cwd=folder)
    assert ran.code == 0, ran.said
    return folder


def export(here: Path, output: Path, *arguments: str, format_: str = "webdataset") -> Finished:
    where = ("--data-dir", "results", "--output", output)
    return caption_flow("export", "--format", format_, *where, *arguments, cwd=here)


def test_a_folder_goes_into_tars_and_these_can_be_captioned_again(
    here: Path, tmp_path: Path
) -> None:
    done = export(here, tmp_path / "tars", "--shard-size", "3", "--json")
    assert done.code == 0, done.said
    (report,) = json.loads(done.out)
    assert (report["written"], report["skipped"]) == (len(NAMES), {"failed": 1})
    tars = sorted((tmp_path / "tars").glob("*.tar"))
    assert [path.name for path in tars] == [f"default-{number:06d}.tar" for number in range(3)]

    sources = [here / "photos" / name for name in NAMES]
    expected = {pixels(path.read_bytes()): caption_of(path) for path in sources}
    assert len(expected) == len(NAMES)
    assert texts_by_pixels(tmp_path / "tars") == expected
    found = read_samples(tmp_path / "tars")
    assert {image_of(one) for one in found} == {path.read_bytes() for path in sources}
    by_key = {one["__key__"]: one for one in found}
    assert {"sub/a", "A", "b%2Ev2", "猫/two%0Alines", "%2541"} < set(by_key)
    assert by_key["b%2Ev2"]["jpg"]
    assert {json.loads(one["json"])["filename"] for one in found} == set(NAMES)
    assert len({name for path in tars for name in members_of(path)}) == 3 * len(NAMES)

    again = {
        "dataset": {"type": "webdataset", "dataset_path": "tars"},
        "vllm": {"inference_prompts": ["again: {column:captions}"], "mock_results": True},
    }
    (tmp_path / "again.json").write_text(json.dumps({"orchestrator": again}))
    ran = caption_flow("run", "--config", "again.json", "--data-dir", "second", cwd=tmp_path)
    assert ran.code == 0, ran.said
    captions = {row["content_hash"]: row["captions"] for row in rows(tmp_path / "second")}
    for path in sources:
        prompt = f"again: {caption_of(path)}"
        assert captions.pop(content_hash(path)) == [caption_of(path, prompt)]
    assert not captions


def test_a_dataset_that_was_moved_is_asked_for_and_then_found(here: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    refused = export(here, tmp_path / "tars", "--dataset", str(moved))
    assert refused.code == 2
    assert "there is no folder" in refused.errors[0]
    assert "--dataset PLACE" in refused.errors[0]
    assert not (tmp_path / "tars").exists()
    shutil.copytree(here / "photos", moved)
    done = export(here, tmp_path / "tars", "--dataset", str(moved))
    assert done.code == 0, done.said
    assert len(read_samples(tmp_path / "tars")) == len(NAMES)


def test_images_that_changed_since_are_left_out_and_said(here: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(here / "photos", changed)
    make_image(changed / "a.png", 99)
    (changed / "sub/a.png").unlink()
    choice = ("--filter", "filename < 'c'")
    done = export(here, tmp_path / "tars", "--dataset", str(changed), *choice)
    assert done.code == 1
    assert "1 skipped (changed)" in done.out
    assert "'a.png' is in no tar: other bytes were captioned" in done.out
    assert "1 image is left out" in done.errors[0]
    kept = {json.loads(one["json"])["filename"] for one in read_samples(tmp_path / "tars")}
    assert kept == {"A.PNG", "b.v2.jpg", "%41.png", "a.jpg"}


def test_all_formats_leave_copies_of_images_out(here: Path, tmp_path: Path) -> None:
    done = export(here, tmp_path, format_="all")
    assert done.code == 0, done.said
    assert (tmp_path / "default.jsonl").exists()
    assert not list(tmp_path.rglob("*.tar"))
    refused = export(here, tmp_path, "--shard-size", "3", format_="all")
    assert refused.code == 2
    assert "--shard-size means nothing with --format all" in refused.errors[0]


async def exported(fleet: Fleet, *arguments: str, code: int = 0) -> dict[str, Any]:
    where = ("--data-dir", str(fleet.data_dir), "--output", str(fleet.folder / "out"))
    made = ("export", "--format", "webdataset", "--shard-size", "10", "--json")
    ended, said = await fleet.command(*made, *where, *arguments)
    assert ended == code, said
    (line,) = [line for line in said.splitlines() if line.startswith("[{")]
    (report,) = json.loads(line)
    found: dict[str, Any] = report
    return found


async def test_tars_on_a_web_server_are_read_by_ranges_and_never_in_another_version(
    tmp_path: Path,
) -> None:
    written = write_shards(tmp_path / "set", 3, 8)
    files = {f"/data/{path.name}": path.read_bytes() for path in (tmp_path / "set").iterdir()}
    async with object_server(files) as server:
        location = f"{server.url}/data/shard-{{000000..000002}}.tar"
        fleet = Fleet(
            tmp_path,
            dataset={"type": "webdataset", "dataset_path": location},
            vllm={"model": "none", "inference_prompts": ["Describe."]},
        )
        async with fleet:
            orchestrator = await fleet.orchestrator()
            worker = await fleet.worker("worker")
            assert await worker.exit_code() == 0, worker.tail(40)
            orchestrator.signal(signal.SIGTERM)
            assert await orchestrator.exit_code() == 0, orchestrator.tail(40)
            server.faults.extend(["", "500", "", "cut", "", "reset"])
            report = await exported(fleet)
            assert (report["written"], report["skipped"]) == (24, {})
            captions = expected_captions(written, "Describe.")
            by_pixels = {pixels(data): captions[name] for name, data in written.items()}
            assert texts_by_pixels(tmp_path / "out") == by_pixels

            # A picture in a tar that looks the same is another now, and so is all of another tar.
            name = "/data/shard-000001.tar"
            files[name] = files[name][:600] + b"\xff" + files[name][601:]
            files["/data/shard-000002.tar"] = files[name]
            changed = await exported(fleet, "--prefix", "x ", code=1)
            assert (changed["written"], changed["skipped"]) == (15, {"changed": 9})
            texts = texts_by_pixels(tmp_path / "out")
            assert len(texts) == 15
            assert all(text == f"x {by_pixels[key]}" for key, text in texts.items())


async def test_rows_on_the_hub_are_read_cell_by_cell(
    tmp_path: Path, beside_the_hub: pytest.MonkeyPatch
) -> None:
    files = files_in(parquet.dataset(tmp_path / "set", 2, 10))
    async with (
        Hub(pictures=Repository({"main": files})) as hub,
        hub_fleet(tmp_path, "org/pictures") as fleet,
    ):
        beside_the_hub.setenv("HF_ENDPOINT", hub.url)
        await caption_all(fleet)
        report = await exported(fleet)
        assert (report["written"], report["skipped"]) == (20, {})
        pictures = [parquet.png(number) for number in range(20)]
        assert texts_by_pixels(tmp_path / "out") == {
            pixels(picture): parquet.caption(picture, f"Describe title {number}.")
            for number, picture in enumerate(pictures)
        }
        facts = [json.loads(one["json"]) for one in read_samples(tmp_path / "out")]
        assert {one["title"] for one in facts} == {f"title {number}" for number in range(20)}


async def test_addresses_are_fetched_again_and_what_they_answer_now_is_looked_at(
    tmp_path: Path,
) -> None:
    files = {f"/{number}.png": parquet.png(number) for number in range(6)}
    async with object_server(files) as server:
        links = [f"{server.url}{name}" for name in files]
        titles = [f"title {number}" for number in range(6)]
        parquet.write(tmp_path / "set/train.parquet", url=links, title=titles)
        async with hub_fleet(tmp_path, str(tmp_path / "set"), dataset_url_column="url") as fleet:
            fleet.env["CAPTIONFLOW_ALLOW_PRIVATE_URLS"] = "1"
            await caption_all(fleet)
            files["/2.png"] = parquet.png(99)
            del files["/4.png"]
            report = await exported(fleet, code=1)
        assert (report["written"], report["skipped"]) == (4, {"changed": 1, "unreadable": 1})
        assert texts_by_pixels(tmp_path / "out") == {
            pixels(parquet.png(number)): parquet.caption(
                parquet.png(number), f"Describe title {number}."
            )
            for number in (0, 1, 3, 5)
        }
