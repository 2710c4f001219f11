"""Videos become frames that can be told apart, or a typed reason why not; made with PyAV itself."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import pytest
from PIL import Image

from caption_flow.protocol.identity import content_hash
from caption_flow.recipe.video import Video
from caption_flow.worker.images import video as module
from caption_flow.worker.images.load import ImageError
from caption_flow.worker.images.video import (
    VIDEO_ERROR_KINDS,
    LoadedVideo,
    VideoLimits,
    prepare_video,
)
from tests.support.videos import (
    KINDS,
    SIZE,
    UNIT,
    Colour,
    colours,
    make_video,
    plain,
    sound_alone,
    told,
)

TWELVE = colours(12)


def frames_of(loaded: LoadedVideo, among: list[Colour]) -> list[int]:
    """Which frames these are, told by the pixel in their middle."""
    found = []
    for picture in loaded.video.pictures:
        width, height = picture.pixels.size
        pixel: Any = picture.pixels.getpixel((width // 2, height // 2))
        found.append(told(pixel, among))
    return found


def refused(data: bytes, video: Video | None = None, **limits: Any) -> ImageError:
    with pytest.raises(ImageError) as error:
        prepare_video(data, video or Video(4), limits=VideoLimits(**limits))
    assert error.value.kind in VIDEO_ERROR_KINDS
    return error.value


# --------------------------------------------------------------------------- which frames


@pytest.mark.parametrize("kind", KINDS)
def test_evenly_spaced_frames_of_every_kind_are_the_right_ones(kind: str) -> None:
    data = make_video(kind, [plain(colour) for colour in TWELVE])
    loaded = prepare_video(data, Video(4))
    assert frames_of(loaded, TWELVE) == [1, 4, 7, 10]
    assert loaded.video.seconds == pytest.approx((0.1, 0.4, 0.7, 1.0))
    assert loaded.video.duration == pytest.approx(1.2)
    assert loaded.video.total == 12
    assert (loaded.width, loaded.height) == SIZE
    name, _, suffix = kind.rpartition(".")
    assert loaded.format == suffix.upper(), name
    assert loaded.file_size == len(data)
    assert loaded.content_hash == content_hash(data)


@pytest.mark.parametrize("kind", ["h264.mp4", "vp9.webm"])
def test_frames_far_from_keyframes_are_the_right_ones(kind: str) -> None:
    among = colours(90)
    pictures = [plain(colour) for colour in among]
    data = make_video(
        kind, pictures, options={"g": "25", "bf": "3"} if "h264" in kind else {"g": "25"}
    )
    loaded = prepare_video(data, Video(9))
    assert frames_of(loaded, among) == [5, 15, 25, 35, 45, 55, 65, 75, 85]


def test_only_what_lies_between_a_keyframe_and_a_frame_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    among = colours(100)
    data = make_video("h264.mp4", [plain(c) for c in among], options={"g": "10", "bf": "0"})
    decoded = []
    original = module._Reading._decoded

    def counted(self: Any) -> Any:
        for frame in original(self):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(module._Reading, "_decoded", counted)
    assert frames_of(prepare_video(data, Video(2)), among) == [25, 75]
    assert len(decoded) <= 14, "it decoded far more than it had to"


def test_a_variable_frame_rate_is_told_by_time_and_not_by_number() -> None:
    # Ten frames in the first second, then two that last ten seconds each.
    times = [*range(0, 1000, 100), 1000, 11_000]
    data = make_video("h264.mp4", [plain(colour) for colour in TWELVE], times=times)
    loaded = prepare_video(data, Video(4))
    assert frames_of(loaded, TWELVE) == [10, 11] or frames_of(loaded, TWELVE) == [10]
    data = make_video("vp9.webm", [plain(colour) for colour in TWELVE], times=times)
    assert set(frames_of(prepare_video(data, Video(4)), TWELVE)) <= {10, 11}


def test_fewer_frames_than_asked_for_are_each_passed_once() -> None:
    data = make_video("h264.mp4", [plain(colour) for colour in TWELVE[:3]])
    loaded = prepare_video(data, Video(8))
    assert frames_of(loaded, TWELVE) == [0, 1, 2]
    assert len({picture.content_hash for picture in loaded.video.pictures}) == 3


def test_a_frame_is_named_by_file_and_place_however_many_are_asked_for() -> None:
    data = make_video("h264.mp4", [plain(colour) for colour in TWELVE])
    few = [one.content_hash for one in prepare_video(data, Video(4)).video.pictures]
    all_of_them = [one.content_hash for one in prepare_video(data, Video(12)).video.pictures]
    assert few == [all_of_them[at] for at in (1, 4, 7, 10)]
    other = make_video("vp8.webm", [plain(colour) for colour in TWELVE])
    assert not {one.content_hash for one in prepare_video(other, Video(12)).video.pictures} & set(
        few
    )


def test_a_missing_duration_is_found_out() -> None:
    """What browsers record has neither a duration nor an index."""
    data = make_video(
        "vp8.webm", [plain(colour) for colour in TWELVE], container_options={"live": "1"}
    )
    with av.open(io.BytesIO(data), "r") as file:
        assert file.duration is None
    assert frames_of(prepare_video(data, Video(4)), TWELVE) == [1, 4, 7, 10]


def test_sound_that_goes_on_does_not_stretch_the_video() -> None:
    data = make_video("vp9.webm", [plain(colour) for colour in TWELVE], with_sound=True)
    assert frames_of(prepare_video(data, Video(4)), TWELVE) == [1, 4, 7, 10]


def test_fragmented_files_are_read() -> None:
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    data = make_video(
        "h264.mp4",
        [plain(colour) for colour in TWELVE],
        options={"g": "4"},
        container_options=options,
    )
    assert frames_of(prepare_video(data, Video(4)), TWELVE) == [1, 4, 7, 10]


def test_a_video_that_begins_late_is_looked_at_from_there() -> None:
    times = [5000 + 100 * number for number in range(12)]
    data = make_video("vp9.webm", [plain(colour) for colour in TWELVE], times=times)
    assert frames_of(prepare_video(data, Video(4)), TWELVE) == [1, 4, 7, 10]


# --------------------------------------------------------------------------- pixels


RED, GREEN, BLUE, WHITE = (220, 20, 20), (20, 200, 20), (20, 20, 220), (250, 250, 250)


def quartered(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A picture with another colour in each corner: red, green; blue, white."""
    width, height = size
    picture = plain(RED, size)
    picture.paste(GREEN, (width // 2, 0, width, height // 2))
    picture.paste(BLUE, (0, height // 2, width // 2, height))
    picture.paste(WHITE, (width // 2, height // 2, width, height))
    return picture


def corners(picture: Image.Image) -> list[str]:
    """The colours of the corners, clockwise from the top left."""
    width, height = picture.size
    names = ["red", "green", "blue", "white"]
    places = [(8, 8), (width - 8, 8), (width - 8, height - 8), (8, height - 8)]
    pixels: list[Any] = [picture.getpixel(place) for place in places]
    return [names[told(pixel, [RED, GREEN, BLUE, WHITE])] for pixel in pixels]


@pytest.mark.parametrize(
    ("degrees", "size", "expected"),
    [
        (0, (96, 64), ["red", "green", "white", "blue"]),
        # FFmpeg turns counter-clockwise by so much to show it.
        (90, (64, 96), ["green", "white", "blue", "red"]),
        (180, (96, 64), ["white", "blue", "red", "green"]),
        (-90, (64, 96), ["blue", "red", "green", "white"]),
    ],
)
def test_rotated_recordings_are_upright(
    degrees: int, size: tuple[int, int], expected: list[str]
) -> None:
    data = make_video(
        "h264.mp4",
        [quartered()] * 4,
        change=lambda stream: stream.set_display_rotation(degrees) if degrees else None,
    )
    loaded = prepare_video(data, Video(2))
    for picture in loaded.video.pictures:
        assert corners(picture.pixels) == expected
        assert picture.pixels.size == size
    assert (loaded.width, loaded.height) == size


ONE = 1 << 16


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((-ONE, 0, 0, ONE), ["green", "red", "blue", "white"]),
        ((ONE, 0, 0, -ONE), ["blue", "white", "green", "red"]),
        # Mirrored along its diagonals: the left edge becomes the top, or the bottom.
        ((0, ONE, ONE, 0), ["red", "blue", "white", "green"]),
        ((0, -ONE, -ONE, 0), ["white", "green", "red", "blue"]),
    ],
)
def test_mirrored_recordings_are_as_they_are_shown(
    matrix: tuple[int, int, int, int], expected: list[str]
) -> None:
    data = make_video("h264.mp4", [quartered()] * 2)
    # The track's matrix (ISO/IEC 14496-12, 8.3.2) stands 40 bytes behind its header's version.
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (number.to_bytes(4, "big", signed=True) for number in matrix)
    turned = data[:at] + a + b + bytes(4) + c + d + bytes(4) + data[at + 24 :]
    assert corners(prepare_video(turned, Video(1)).video.pictures[0].pixels) == expected


@pytest.mark.parametrize(
    ("kind", "pix_fmt", "options"),
    [
        ("h264.mp4", "yuv444p", {}),
        ("h264.mp4", "yuv422p10le", {}),
        ("h264.mov", "yuvj420p", {}),
        ("av1.webm", "yuv420p10le", {}),
        ("vp9.webm", "gbrp", {}),
    ],
)
def test_odd_pixel_formats_show_the_same_colours(
    kind: str, pix_fmt: str, options: dict[str, str]
) -> None:
    data = make_video(kind, [quartered()] * 2, pix_fmt=pix_fmt, options=options)
    (picture, *_) = prepare_video(data, Video(2)).video.pictures
    assert corners(picture.pixels) == ["red", "green", "white", "blue"]
    assert picture.pixels.mode == "RGB"


def test_transparency_is_laid_on_white(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast("dict[str, Any]", KINDS), "clear.mov", ("mov", "qtrle"))
    clear = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    data = make_video("clear.mov", [clear] * 2, pix_fmt="argb")
    (picture, *_) = prepare_video(data, Video(1)).video.pictures
    assert picture.pixels.getpixel((5, 5)) == (255, 255, 255)


def test_pixels_that_are_not_square_are_made_so() -> None:
    def wide(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    data = make_video("h264.mp4", [quartered()] * 2, change=wide)
    loaded = prepare_video(data, Video(1))
    assert (loaded.width, loaded.height) == (128, 64)
    assert loaded.video.pictures[0].pixels.size == (128, 64)


def test_frames_are_shrunk_to_the_limit_and_the_row_tells_the_videos_size() -> None:
    data = make_video("h264.mp4", [quartered((1280, 960))] * 2)
    loaded = prepare_video(data, Video(2))
    width, height = loaded.video.pictures[0].pixels.size
    assert width * height <= 768 * 28 * 28 < 1.01 * width * height
    assert (loaded.width, loaded.height) == (1280, 960)
    assert corners(loaded.video.pictures[0].pixels) == ["red", "green", "white", "blue"]


# --------------------------------------------------------------------------- what is wrong


def whole(kind: str = "h264.mp4", **options: Any) -> bytes:
    return make_video(kind, [plain(colour) for colour in TWELVE], **options)


def test_an_empty_file_is_told() -> None:
    error = refused(b"")
    assert (error.kind, str(error)) == ("video_empty", "the file is empty (0 bytes)")


@pytest.mark.parametrize(
    "data", [b"garbage\n" * 100, b"\0" * 4096, b"RIFF\0\0\0\0AVI LIST", b"\x89PNG\r\n\x1a\n" * 9]
)
def test_garbage_is_told_from_videos(data: bytes) -> None:
    error = refused(data)
    assert error.kind == "video_unrecognised"
    assert "it begins" in str(error)


@pytest.mark.parametrize(
    "script",
    [b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n%b\n", b"ffconcat version 1.0\nfile %b\n"],
)
def test_a_playlist_called_mp4_makes_nobody_open_other_files(tmp_path: Path, script: bytes) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(whole())
    assert refused(script % bytes(secret)).kind == "video_unrecognised"


def test_sound_alone_is_told() -> None:
    for data in (sound_alone(), sound_alone("webm"), sound_alone(cover=plain(TWELVE[0]))):
        error = refused(data)
        assert error.kind == "video_without_pictures"
        assert "audio" in str(error)


@pytest.mark.parametrize("kind", ["h264.mp4", "vp9.webm", "h264.mov"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_file_that_is_cut_short_is_told(kind: str, share: float) -> None:
    data = whole(kind)
    error = refused(data[: int(len(data) * share)])
    assert error.kind == "video_truncated"
    assert "ends too early" in str(error)


def test_a_file_whose_index_comes_first_and_is_cut_short_is_told(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"  # what comes last is moved to the front, which takes a real file
    data = whole(container_options={"movflags": "faststart"}, path=path)
    assert data.index(b"moov") < data.index(b"mdat")
    assert refused(data[:-10]).kind == "video_truncated"


def test_a_file_without_its_index_is_damaged() -> None:
    data = whole()
    assert refused(data.replace(b"moov", b"xxxx")).kind == "video_corrupt"


def test_a_picture_with_too_many_pixels_is_not_decoded() -> None:
    error = refused(whole(), pixels_in=96 * 64 - 1)
    assert error.kind == "video_too_large"
    assert "96 x 64" in str(error)
    assert prepare_video(whole(), Video(1), limits=VideoLimits(pixels_in=96 * 64))


def test_a_picture_larger_than_its_header_says_is_not_decoded() -> None:
    """The header says one thing, the stream another: FFmpeg believes the stream."""
    data = make_video("h264.mp4", [plain(TWELVE[0], (640, 480))] * 3)
    size = (640).to_bytes(2, "big") + (480).to_bytes(2, "big")
    lying = data.replace(size, (16).to_bytes(2, "big") * 2)
    assert lying != data
    error = refused(lying, pixels_in=100_000)
    assert error.kind in {"video_too_large", "video_corrupt"}


def test_too_many_frames_are_not_counted_to_the_end() -> None:
    error = refused(whole(), frames=11)
    assert error.kind == "video_too_large"
    assert "more than 11 frames" in str(error)


def test_a_video_that_takes_too_long_is_given_up() -> None:
    error = refused(whole(), cpu_seconds=0.0)
    assert error.kind == "video_too_slow"


def test_samples_that_are_said_to_be_there_cost_bounded_memory() -> None:
    """A file of a few kilobytes may say that it has a quarter of a billion samples."""
    data = whole()
    at = data.index(b"stsz") + 8
    huge = data[:at] + (1).to_bytes(4, "big") + (2**28).to_bytes(4, "big") + data[at + 8 :]
    code = (
        "from caption_flow.recipe.video import Video\n"
        "from caption_flow.worker.images.video import ImageError, prepare_video\n"
        "import resource, sys\n"
        "try: prepare_video(sys.stdin.buffer.read(), Video(4))\n"
        "except ImageError as error: print(error.kind, file=sys.stderr)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    most = []
    for file in (data, huge):
        done = subprocess.run(
            [sys.executable, "-c", code], input=file, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        most.append(int(done.stdout))
    assert most[1] - most[0] < 512 * 1024, "KiB beyond what any video takes"


@pytest.mark.parametrize("kind", ["h264.mp4", "mpeg4.mp4", "vp9.webm", "vp8.webm", "h264.mov"])
def test_whatever_is_done_to_the_bytes_the_outcome_is_frames_or_a_typed_reason(kind: str) -> None:
    data = whole(kind)
    rng = random.Random(kind)
    outcomes: dict[str, str] = {}
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(rng.choice([1, 3, 30, 300])):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            loaded = prepare_video(bytes(broken), Video(4), limits=VideoLimits(cpu_seconds=10))
        except ImageError as error:
            outcomes[error.kind] = str(error)
        else:
            assert 1 <= len(loaded.video.pictures) <= 4
            outcomes["frames"] = ""
    assert len(outcomes) > 1, "nothing was broken, or everything"
    assert outcomes.keys() <= VIDEO_ERROR_KINDS | {"frames"}
    assert all(len(said) < 1000 for said in outcomes.values())


def test_many_threads_decode_at_once() -> None:
    data = {kind: whole(kind) for kind in ("h264.mp4", "vp9.webm", "mpeg4.mp4")}
    started = threading.Barrier(4)

    def decode(_: int) -> list[list[int]]:
        started.wait(timeout=10)
        return [frames_of(prepare_video(one, Video(4)), TWELVE) for one in data.values()]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(decode, range(4)):
            assert found == [[1, 4, 7, 10]] * 3


def test_nothing_of_ffmpegs_complaints_is_printed() -> None:
    code = (
        "from caption_flow.recipe.video import Video\n"
        "from caption_flow.worker.images.video import prepare_video\n"
        "import sys\n"
        "try: prepare_video(sys.stdin.buffer.read(), Video(4))\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    broken = bytearray(whole())
    at = broken.index(b"mdat") + 4
    broken[at + 40 : at + 400] = random.Random(1).randbytes(360)
    done = subprocess.run(
        [sys.executable, "-c", code], input=bytes(broken), capture_output=True, check=True
    )
    assert done.stderr == b""


def test_without_the_library_the_reason_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "can_decode_videos", lambda: False)
    assert "pip install 'caption-flow[video]'" in str(refused(whole()))


def test_limits_are_as_documented() -> None:
    limits = VideoLimits()
    assert (limits.pixels_in, limits.pixels_out) == (8192 * 4608, 768 * 28 * 28)
    assert (limits.frames, limits.cpu_seconds) == (1_000_000, 120.0)
    assert replace(limits, frames=1).frames == 1
    assert Fraction(1, 1000) == UNIT
