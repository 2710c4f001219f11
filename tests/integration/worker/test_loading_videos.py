"""How a worker comes by videos: by the same ways as images, within bounds of their own."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from caption_flow.protocol.messages import ItemDescription, LeaseId
from caption_flow.protocol.places import FilePlace, ObjectPlace
from caption_flow.recipe.video import Video
from caption_flow.worker.core.leases import Job
from caption_flow.worker.images.load import ImageError
from caption_flow.worker.images.video import LoadedVideo
from caption_flow.worker.loading import FetchBytes, ImageLoader
from tests.support.videos import colours, make_video, plain, told

SHOWN = colours(6)


def clip() -> bytes:
    return make_video("h264.mp4", [plain(colour) for colour in SHOWN])


def job(number: int, place: FilePlace | ObjectPlace | None, *, is_video: bool = True) -> Job:
    return Job(LeaseId(1), ItemDescription(number, place, is_video=is_video), "recipe")


def frames_of(loaded: object) -> list[int]:
    assert isinstance(loaded, LoadedVideo)
    pixels = [picture.pixels.resize((1, 1)).tobytes() for picture in loaded.video.pictures]
    return [told((one[0], one[1], one[2]), SHOWN) for one in pixels]


async def nothing(_: Job) -> bytes:
    raise AssertionError("nobody is to be asked")


async def loaded_by(fetch: FetchBytes, what: Job, video: Video | None) -> object:
    loader = ImageLoader(fetch, threads=2)
    try:
        return await loader.load(what, video)
    finally:
        await loader.close()


async def test_a_video_is_read_where_it_lies_also_within_another_file(tmp_path: Path) -> None:
    data = clip()
    path = tmp_path / "some.tar"
    path.write_bytes(bytes(512) + data + bytes(512))
    facts = path.stat()
    place = FilePlace(os.fsencode(path), facts.st_size, facts.st_mtime_ns, 512, len(data))
    assert frames_of(await loaded_by(nothing, job(0, place), Video(3))) == [1, 3, 5]


async def test_a_video_that_is_not_here_is_sent(tmp_path: Path) -> None:
    async def fetch(_: Job) -> bytes:
        return clip()

    place = FilePlace(os.fsencode(tmp_path / "absent.mp4"), 1000, 1)
    assert frames_of(await loaded_by(fetch, job(0, place), Video(2))) == [1, 4]


@pytest.mark.parametrize(
    "place",
    [
        FilePlace(b"/nowhere/x.mp4", 2001, 1),
        FilePlace(b"/nowhere/x.tar", 9_000, 1, 512, 2001),
        ObjectPlace("https://127.0.0.1:9/x.mp4", size=2001),
        ObjectPlace("https://127.0.0.1:9/x.tar", 512, 2001, 9_000),
    ],
)
async def test_a_file_beyond_the_limit_is_neither_read_nor_sent(
    place: FilePlace | ObjectPlace,
) -> None:
    with pytest.raises(ImageError) as refused:
        await loaded_by(nothing, job(0, place), Video(max_bytes=2000))
    assert refused.value.kind == "video_too_large"
    assert "2,001 bytes; the limit is 2,000 (dataset.video.max_mib)" in str(refused.value)


async def test_a_file_whose_size_nobody_knew_is_held_to_the_limit_when_it_is_here() -> None:
    async def fetch(_: Job) -> bytes:
        return clip()

    with pytest.raises(ImageError, match="limit is 100") as refused:
        await loaded_by(fetch, job(0, None), Video(max_bytes=100))
    assert refused.value.kind == "video_too_large"


async def test_a_video_that_nobody_asked_for_is_not_looked_at() -> None:
    with pytest.raises(ImageError, match="--video-frames N") as refused:
        await loaded_by(nothing, job(0, None), None)
    assert refused.value.kind == "video_not_asked_for"


async def test_few_videos_are_in_memory_at_a_time_and_images_pass_them() -> None:
    here, most = 0, 0
    data = clip()
    go = asyncio.Event()
    image_came = asyncio.Event()

    async def fetch(what: Job) -> bytes:
        nonlocal here, most
        if not what.item.is_video:
            image_came.set()
            return b"no image"
        here += 1
        most = max(most, here)
        await go.wait()
        here -= 1
        return data

    loader = ImageLoader(fetch, threads=8)
    loading = [asyncio.create_task(loader.load(job(n, None), Video(2))) for n in range(20)]
    with pytest.raises(ImageError):
        await loader.load(job(99, None, is_video=False), Video(2))
    assert image_came.is_set()
    go.set()
    async with asyncio.timeout(30):
        found = await asyncio.gather(*loading)
    await loader.close()
    assert most == 4
    assert [frames_of(one) for one in found] == [[1, 4]] * 20
