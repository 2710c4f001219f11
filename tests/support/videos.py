"""Videos made frame by frame, each frame of one colour that no other has, so that it can be told.

Codecs change colours a little: `told` says which of the colours one is.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from PIL import Image

Colour = tuple[int, int, int]

KINDS: Mapping[str, tuple[str, str]] = {
    "h264.mp4": ("mp4", "libx264"),
    "mpeg4.mp4": ("mp4", "mpeg4"),
    "vp9.webm": ("webm", "libvpx-vp9"),
    "vp8.webm": ("webm", "libvpx"),
    "h264.mov": ("mov", "libx264"),
    "h264.mkv": ("matroska", "libx264"),
    "hevc.mp4": ("mp4", "libx265"),
    "av1.webm": ("webm", "libsvtav1"),
}
SIZE = (96, 64)
UNIT = Fraction(1, 1000)


def colours(count: int) -> list[Colour]:
    """Return so many colours, as far apart as hues can be."""
    hues = (colorsys.hsv_to_rgb(number / count, 1.0, 0.8) for number in range(count))
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in hues]


def told(colour: Colour, among: Sequence[Colour]) -> int:
    """Return the number of the colour that another is most like."""
    return min(
        range(len(among)),
        key=lambda at: sum(abs(a - b) for a, b in zip(among[at], colour, strict=True)),
    )


def plain(colour: Colour, size: tuple[int, int] = SIZE) -> Image.Image:
    """Return a picture of one colour."""
    return Image.new("RGB", size, colour)


def make_video(
    kind: str,
    pictures: Sequence[Image.Image],
    *,
    times: Sequence[int] | None = None,
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    change: Callable[[Any], None] | None = None,
    with_sound: bool = False,
    unit: Fraction = UNIT,
    path: Path | None = None,
) -> bytes:
    """Return a file that shows each picture for 100 ms, or at ``times`` in ``unit``.

    ``change`` may change the stream before anything is written to it.
    """
    container, codec = KINDS.get(kind, (kind, kind))
    buffer: Any = io.BytesIO() if path is None else path
    options_of_container = dict(container_options or {})
    with av.open(buffer, "w", format=container, container_options=options_of_container) as file:
        stream: Any = file.add_stream(codec, rate=10, options=dict(options or {}))
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = unit
        if change is not None:
            change(stream)
        sound = _add_sound(file, container) if with_sound else None
        for number, picture in enumerate(pictures):
            frame = _frame(picture)
            frame.pts = 100 * number if times is None else times[number]
            frame.time_base = unit
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if sound is not None:
            _play(file, sound, seconds=2 + len(pictures) // 10)
    return path.read_bytes() if path is not None else bytes(buffer.getvalue())


def sound_alone(container: str = "mp4", *, cover: Image.Image | None = None) -> bytes:
    """Return a file with sound and no video; ``cover`` is a still picture attached to it."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        sound = _add_sound(file, container)
        still: Any = None
        if cover is not None:
            still = file.add_stream("mjpeg")
            still.width, still.height = cover.size
            still.pix_fmt = "yuvj420p"
            still.disposition = av.stream.Disposition.attached_pic
        _play(file, sound, seconds=1)
        if still is not None and cover is not None:
            file.mux(still.encode(_frame(cover)))
    return buffer.getvalue()


def _frame(picture: Image.Image) -> Any:
    make: Any = av.VideoFrame
    if picture.mode != "RGBA":
        return make.from_image(picture)
    return make.from_bytes(picture.tobytes(), *picture.size, format="rgba")


def _add_sound(file: Any, container: str) -> Any:
    return file.add_stream("libopus" if container == "webm" else "aac", rate=48_000)


def _play(file: Any, stream: Any, *, seconds: int) -> None:
    samples = stream.codec_context.frame_size or 960
    silence = bytes(samples * 2)
    for number in range(seconds * 48_000 // samples):
        frame = av.AudioFrame(format="s16", layout="mono", samples=samples)
        frame.planes[0].update(silence)
        frame.sample_rate = 48_000
        frame.pts = number * samples
        file.mux(stream.encode(frame))
    file.mux(stream.encode())
