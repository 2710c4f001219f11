"""Folders and tars with videos among the images, captioned by real processes.

The synthetic engine tells the colour of each frame that it was shown. Every frame of these videos
has a colour of its own, so a caption proves which frames of which file it is about, and that they
are in order.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.cli import caption_flow, caption_of, make_image, rows_by_name
from tests.support.fleet import Fleet, stored_rows
from tests.support.tars import write_tar
from tests.support.videos import Colour, colours, make_video, plain, sound_alone, told

AMONG = colours(24)
FIRST, SECOND = AMONG[:12], AMONG[12:]


def video(kind: str, of: Sequence[Colour]) -> bytes:
    return make_video(kind, [plain(colour) for colour in of])


def frames_in(caption: str, form: str = "images") -> list[int]:
    """Which frames a caption says it is about, by their colours."""
    found = re.search(rf"Shown as {form}: ((?:#[0-9a-f]{{6}} ?)+)\.", caption)
    assert found is not None, caption
    pixels = [bytes.fromhex(one[1:]) for one in found.group(1).split()]
    return [told((one[0], one[1], one[2]), AMONG) for one in pixels]


def mixed(folder: Path) -> None:
    """Write images and videos into a folder, side by side and in a folder below."""
    make_image(folder / "a.png", 1)
    (folder / "b.mp4").write_bytes(video("h264.mp4", FIRST))
    (folder / "below").mkdir()
    (folder / "below" / "C.WEBM").write_bytes(video("vp9.webm", SECOND))
    (folder / "below" / "d.mov").write_bytes(video("h264.mov", SECOND))
    make_image(folder / "e.png", 2)


def test_images_and_videos_of_a_folder_are_captioned_by_the_right_frames(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    mixed(folder)
    done = caption_flow("run", folder, "--engine", "synthetic", "--video-frames", "4", cwd=tmp_path)
    assert done.code == 0, done.said
    rows = rows_by_name(tmp_path / ".caption-flow" / "set.synthetic")
    assert {row["status"] for row in rows.values()} == {"captioned"}
    for name in ("a.png", "e.png"):
        assert rows[name]["captions"] == [caption_of(folder / name)]
    expected = {"b.mp4": [1, 4, 7, 10], "below/C.WEBM": [13, 16, 19, 22]}
    expected["below/d.mov"] = expected["below/C.WEBM"]
    for name, frames in expected.items():
        (caption,) = rows[name]["captions"]
        assert frames_in(caption) == frames
        assert (folder / name).with_suffix(".txt").read_text("utf-8") == caption
    facts = rows["b.mp4"]
    assert (facts["image_width"], facts["image_height"]) == (96, 64)
    assert facts["image_format"] == "MP4"
    assert facts["file_size"] == (folder / "b.mp4").stat().st_size
    assert "skipped:" not in done.said


def test_a_video_may_be_passed_whole(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    mixed(folder)
    done = caption_flow("run", folder, "--engine", "synthetic", "--video-as", "video", cwd=tmp_path)
    assert done.code == 0, done.said
    rows = rows_by_name(tmp_path / ".caption-flow" / "set.synthetic")
    (caption,) = rows["b.mp4"]["captions"]
    assert frames_in(caption, "one video") == [0, 2, 3, 5, 6, 8, 9, 11], "eight are the default"


def test_videos_that_nobody_asked_for_are_counted_said_and_can_be_asked_for_later(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "set"
    mixed(folder)
    ask = ("run", folder, "--engine", "synthetic")
    sentence = "3 videos skipped: --video-frames N (dataset.video) captions videos"
    dry = caption_flow(*ask, "--dry-run", cwd=tmp_path)
    assert dry.code == 0, dry.said
    assert "Would caption 2 of the 2 images" in dry.out
    assert sentence in dry.out
    done = caption_flow(*ask, cwd=tmp_path)
    assert done.code == 0, done.said
    assert done.out.count(sentence) == 1
    assert len(re.findall(r"videos are skipped: .*--video-frames N.* videos=3", done.err)) == 1
    data_dir = tmp_path / ".caption-flow" / "set.synthetic"
    assert set(rows_by_name(data_dir)) == {"a.png", "e.png"}

    later = caption_flow(*ask, "--video-frames", "2", cwd=tmp_path)
    assert later.code == 0, later.said
    assert "Done: 3 images" in later.out
    assert "another model" not in later.out, "the images are what they were"
    rows = rows_by_name(data_dir)
    assert frames_in(rows["b.mp4"]["captions"][0]) == [3, 9]

    # What was captioned is no longer skipped, nor gone.
    again = caption_flow(*ask, "--existing", "overwrite", cwd=tmp_path)
    assert "skipped:" not in again.out
    assert "gone from the dataset" not in again.said


def test_a_folder_without_videos_is_not_told_about_them(tmp_path: Path) -> None:
    make_image(tmp_path / "set" / "a.png", 1)
    done = caption_flow("run", tmp_path / "set", "--engine", "synthetic", cwd=tmp_path)
    assert done.code == 0, done.said
    assert "video" not in done.said


def test_a_folder_of_videos_alone_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "b.mp4").write_bytes(video("h264.mp4", FIRST))
    done = caption_flow("run", tmp_path / "set", "--engine", "synthetic", cwd=tmp_path)
    assert done.code == 2, done.said
    assert "videos are left out (--video-frames N" in done.errors[0]


def test_other_frames_are_said_to_be_those_of_another_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    mixed(folder)
    ask = ("run", folder, "--engine", "synthetic", "--existing", "overwrite", "--video-frames")
    assert caption_flow(*ask, "2", cwd=tmp_path).code == 0
    again = caption_flow(*ask, "3", cwd=tmp_path)
    assert "Note: 3 of these were asked for with another model" in again.out


def test_hostile_videos_are_failed_rows_and_the_rest_is_captioned(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    mixed(folder)
    good = video("h264.mp4", FIRST)
    bad = {
        "empty.mp4": (b"", "video_empty"),
        "garbage.webm": (b"garbage\n" * 500, "video_unrecognised"),
        "playlist.mp4": (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "video_unrecognised"),
        "cut.mp4": (good[: len(good) // 2], "video_truncated"),
        "no-index.mp4": (good.replace(b"moov", b"xxxx"), "video_corrupt"),
        "sound.mp4": (sound_alone(), "video_without_pictures"),
        "large.mov": (b"\0\0\0\x14ftypqt  " + bytes(2 * 2**20), "video_too_large"),
    }
    for name, (data, _) in bad.items():
        (folder / name).write_bytes(data)
    config = tmp_path / "run.yaml"
    config.write_text(
        "dataset:\n  type: local_filesystem\n  dataset_path: set\n"
        "  video: {frames: 4, max_mib: 1}\n"
        "vllm: {model: none, inference_prompts: [Describe it.]}\n"
        "storage: {data_dir: results}\n"
    )
    done = caption_flow("run", "--config", config, "--engine", "synthetic", cwd=tmp_path)
    assert done.code == 0, done.said
    rows = rows_by_name(tmp_path / "results")
    assert len(rows) == 5 + len(bad)
    found = {name: rows[name]["error_kind"] for name in bad}
    assert found == {name: kind for name, (_, kind) in bad.items()}
    assert "dataset.video.max_mib" in rows["large.mov"]["error"]
    assert frames_in(rows["b.mp4"]["captions"][0]) == [1, 4, 7, 10]
    logs = "".join(path.read_text() for path in (tmp_path / "results" / "logs").iterdir())
    assert "started again" not in logs


async def test_videos_in_tars_are_samples_like_others_and_join_when_asked_for(
    tmp_path: Path,
) -> None:
    root = tmp_path / "set"
    image = make_image(tmp_path / "scratch.png", 1).read_bytes()
    other = make_image(tmp_path / "scratch.png", 2).read_bytes()
    write_tar(
        root / "one.tar",
        [
            ("000.mp4", video("h264.mp4", FIRST)),
            ("000.json", b'{"title": "the first"}'),
            ("001.png", image),
            ("001.json", b'{"title": "the second"}'),
            ("002.webm", video("vp9.webm", SECOND)),
            ("003.png", other),
            ("003.mp4", video("h264.mp4", SECOND)),
        ],
    )
    write_tar(root / "two.tar", [("000.mov", video("h264.mov", FIRST))])

    def fleet(**more: object) -> Fleet:
        dataset = {"type": "webdataset", "dataset_path": str(root), **more}
        prompts = ["Describe {column:title}."]
        return Fleet(
            tmp_path, dataset=dataset, vllm={"model": "none", "inference_prompts": prompts}
        )

    async with fleet() as without:
        said = await run_to_the_end(without)
        assert re.search(r"videos are skipped: .*videos=3", said)
        rows = {row["filename"]: row for row in stored_rows(without.data_dir)}
        assert set(rows) == {"one.tar/001.png", "one.tar/003.png"}
        first = rows["one.tar/001.png"]

    async with fleet(video={"frames": 4}) as with_videos:
        await run_to_the_end(with_videos)
        rows = {row["filename"]: row for row in stored_rows(with_videos.data_dir)}
        assert len(rows) == 5
        assert rows["one.tar/001.png"] == first, "what was captioned stays with its sample"
        expected = {
            "one.tar/000.mp4": [1, 4, 7, 10],
            "one.tar/002.webm": [13, 16, 19, 22],
            "two.tar/000.mov": [1, 4, 7, 10],
        }
        for name, frames in expected.items():
            assert frames_in(rows[name]["captions"][0]) == frames, name
            assert rows[name]["item_key"] == name.rpartition(".")[0]
        assert rows["one.tar/000.mp4"]["title"] == "the first"


async def run_to_the_end(fleet: Fleet) -> str:
    """Return what the orchestrator said."""
    orchestrator = await fleet.orchestrator()
    worker = await fleet.worker("worker")
    assert await worker.exit_code() == 0, worker.tail(40)
    orchestrator.signal(signal.SIGTERM)
    assert await orchestrator.exit_code() == 0, orchestrator.tail(40)
    await fleet.verify()
    return orchestrator.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--engine", "openai", "--base-url", "http://127.0.0.1:9/v1", "--video-as", "video"),
            "passes videos as images alone",
        ),
        (("--engine", "synthetic", "--video-frames", "0"), "--video-frames"),
        (("--engine", "synthetic", "--video-frames", "129"), "--video-frames"),
    ],
)
def test_what_cannot_be_done_with_videos_is_refused_at_start(
    tmp_path: Path, arguments: Sequence[str], sentence: str
) -> None:
    mixed(tmp_path / "set")
    done = caption_flow("run", tmp_path / "set", *arguments, cwd=tmp_path)
    assert done.code == 2, done.said
    assert sentence in done.err


def test_without_the_library_a_run_says_what_to_install_before_it_starts(tmp_path: Path) -> None:
    mixed(tmp_path / "set")
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    # An interpreter that has everything but PyAV.
    (lacking / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "found = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'av' else found(name, *a)\n"
    )
    python = (sys.executable, "-c", _AS_MODULE.format(folder=str(lacking)))
    done = caption_flow(
        "run", "set", "--engine", "synthetic", "--video-frames", "4", cwd=tmp_path, python=python
    )
    assert done.code == 2, done.said
    assert "pip install 'caption-flow[video]'" in done.errors[0]


_AS_MODULE = (
    "import sys, runpy; sys.path.insert(0, {folder!r}); import sitecustomize as _; "
    "exec(open({folder!r} + '/sitecustomize.py').read()); "
    "sys.argv = sys.argv[2:] and ['caption-flow', *sys.argv[3:]]; "
    "runpy.run_module('caption_flow.cli', run_name='__main__')"
)
