"""Videos in a tar: last in its order, so that leaving them out moves nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from caption_flow.config.dataset import DatasetConfig
from caption_flow.orchestrator.sources.base import Listed, RunFolder, SourceError
from caption_flow.orchestrator.sources.tar_index import Index, index_from_webshart, index_tar
from caption_flow.orchestrator.sources.tars import TarSource
from caption_flow.storage.opening import KnownShard
from caption_flow.storage.writer import Write
from tests.support.tars import webshart_index, write_tar

import msgspec  # isort: skip

MIXED = [
    ("a.mp4", b"a video"),
    ("a.txt", b"about it"),
    ("b.jpg", b"an image"),
    ("c.WEBM", b"a video"),
    ("d.txt", b"neither"),
    ("e.mp4", b"a video"),
    ("e.jpg", b"and its image"),
]


def indexed(path: Path) -> Index:
    with path.open("rb") as file:
        return index_tar(file, path.stat().st_size)


def test_samples_that_are_videos_come_last_and_one_with_an_image_is_that(tmp_path: Path) -> None:
    path = tmp_path / "one.tar"
    write_tar(path, MIXED)
    index = indexed(path)
    assert [sample.key for sample in index.samples] == ["b", "d", "e", "a", "c"]
    assert [sample.is_video for sample in index.samples] == [False, False, False, True, True]
    assert index.videos == 2
    image = index.samples[2].image
    assert image is not None
    assert image.suffix == "jpg"
    assert index.samples[2].others == ("mp4",)
    assert index.samples[3].texts[0].name == "a.txt"
    same = index_from_webshart(msgspec.json.encode(webshart_index(path)), path.stat().st_size)
    assert [sample.key for sample in same.samples] == ["b", "d", "e", "a", "c"]


async def forget(_: Write) -> None:
    """Keep nothing."""


async def listed(
    root: Path, scratch: Path, shards: dict[str, KnownShard], **dataset: object
) -> tuple[TarSource, dict[str, Listed]]:
    config = DatasetConfig.model_validate(
        {"type": "webdataset", "dataset_path": str(root), **dataset}
    )
    source = TarSource.open(config, RunFolder(scratch, forget, shards=shards))
    found = [finding async for finding in source.listing()]
    source.close()
    return source, {one.shard: one for one in found if isinstance(one, Listed)}


async def test_a_run_that_captions_videos_later_has_them_behind_all_others(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_tar(root / "one.tar", MIXED)
    source, without = await listed(root, tmp_path, {})
    assert (without["one.tar"].count, source.videos_left_out) == (3, 2)
    known = {"one.tar": KnownShard(3, without["one.tar"].facts)}
    source, again = await listed(root, tmp_path, known)
    assert (again["one.tar"].count, source.videos_left_out) == (3, 2), "counted each time"
    source, taken = await listed(root, tmp_path, known, video={})
    assert (taken["one.tar"].count, source.videos_left_out) == (5, 0)
    known = {"one.tar": KnownShard(5, taken["one.tar"].facts)}
    source, after = await listed(root, tmp_path, known)
    assert (after["one.tar"].count, source.videos_left_out) == (5, 0), "counts never fall"


async def test_what_is_a_video_is_said_of_it(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_tar(root / "one.tar", MIXED)
    source, _ = await listed(root, tmp_path, {}, video={})
    items = source.describe("one.tar", range(5))
    assert [item.is_video for item in items] == [False, False, False, True, True]
    assert [item.key for item in items][3:] == ["one.tar/a", "one.tar/c"]


async def test_tars_of_videos_alone_are_refused_with_the_way_out(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_tar(root / "one.tar", [("a.mp4", b"a video")])
    with pytest.raises(SourceError, match=r"only videos, .*--video-frames N"):
        await listed(root, tmp_path, {})
