"""From a video file's bytes to some of its frames, upright and of bounded size, or why not.

Blocking: callers run `prepare_video` in a thread. Whatever the bytes are, the outcome is a
`LoadedVideo` or an `ImageError`. PyAV brings FFmpeg; it is imported when the first video comes.

What strangers' files may cost is bounded: FFmpeg is told which of two containers to read (left to
guess, it would also follow playlists to other files), decodes no picture of more than
`MAX_PIXELS_IN`, and stops after `MAX_CPU_SECONDS` or `MAX_FRAMES`.
"""

from __future__ import annotations

import io
import re
import struct
import time
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from caption_flow.protocol.identity import content_hash
from caption_flow.recipe.video import Video
from caption_flow.worker.core.frames import choose_frames
from caption_flow.worker.engines.base import PreparedImage, PreparedVideo
from caption_flow.worker.images.library import MISSING_LIBRARY, can_decode_videos
from caption_flow.worker.images.load import ImageError, LoadedImage, fit

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

EMPTY: Final = "video_empty"
UNRECOGNISED: Final = "video_unrecognised"
TRUNCATED: Final = "video_truncated"
CORRUPT: Final = "video_corrupt"
TOO_LARGE: Final = "video_too_large"
TOO_SLOW: Final = "video_too_slow"
NO_PICTURES: Final = "video_without_pictures"
NOT_ASKED_FOR: Final = "video_not_asked_for"
VIDEO_ERROR_KINDS: Final = frozenset(
    {EMPTY, UNRECOGNISED, TRUNCATED, CORRUPT, TOO_LARGE, TOO_SLOW, NO_PICTURES, NOT_ASKED_FOR}
)

MAX_PIXELS_IN: Final = 8192 * 4608
"""Largest picture that is decoded: 8K in any of its forms. A decoder keeps up to 17 of them."""
MAX_PIXELS_OUT: Final = 768 * 28 * 28
"""Largest frame handed to an engine, in pixels: 768 tokens of Qwen2.5-VL, whose own tools take no
more. Eight are 6,144 tokens, or half of that as one video."""
MAX_FRAMES: Final = 1_000_000
"""Most frames of a file: four and a half hours at 60 in a second."""
MAX_CPU_SECONDS: Final = 120.0
"""Longest time of one processor that a file may take. Frames between keyframes are decoded to get
at one of them: eight frames of a film in 4K with keyframes ten seconds apart take half of it."""
_MAX_STREAMS: Final = 64
_WIDEST_PIXEL: Final = 4

_BOXES: Final = re.compile(
    rb"ftyp|moov|mdat|free|skip|wide|pnot|moof|mfra|uuid|meta|sidx|styp|udta|emsg"
)
_EBML: Final = b"\x1a\x45\xdf\xa3"
_SEGMENT: Final = b"\x18\x53\x80\x67"


@dataclass(frozen=True, slots=True)
class LoadedVideo:
    """A file's frames and what a row records of it.

    ``width`` and ``height`` are the upright video's own, in pixels, before any resize; ``format``
    is ``MP4``, ``MOV``, ``WEBM`` or ``MKV``; ``file_size`` is in bytes.
    """

    video: PreparedVideo
    width: int
    height: int
    format: str
    file_size: int

    @property
    def content_hash(self) -> str:
        """The file's hash, see `content_hash`."""
        return self.video.content_hash

    @property
    def subject(self) -> PreparedVideo:
        """What prompts are about."""
        return self.video


Loaded = LoadedImage | LoadedVideo


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """What one file may cost: pixels, frames, seconds of one processor."""

    pixels_in: int = MAX_PIXELS_IN
    pixels_out: int = MAX_PIXELS_OUT
    frames: int = MAX_FRAMES
    cpu_seconds: float = MAX_CPU_SECONDS


_LIMITS: Final = VideoLimits()


def prepare_video(data: bytes, video: Video, *, limits: VideoLimits = _LIMITS) -> LoadedVideo:
    """Decode the frames of a video that the model is to be shown (see `choose_frames`).

    They are upright RGB with square pixels, transparency laid on white, each of at most
    ``limits.pixels_out`` pixels.

    Raises:
        ImageError: the bytes give no pictures, or would cost more than the limits allow; the kind
            is one of `VIDEO_ERROR_KINDS`.
    """
    if not data:
        raise ImageError(EMPTY, "the file is empty (0 bytes)")
    demuxer, name = _container_of(data)
    if _is_cut_off(data, demuxer):
        raise ImageError(TRUNCATED, f"the file ends too early, after {len(data):,} bytes")
    if not can_decode_videos():
        raise ImageError(UNRECOGNISED, f"the file is a video: {MISSING_LIBRARY}")
    try:
        with _opened(data, demuxer, limits) as file:
            return _load(file, data, name, video, limits)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(TOO_LARGE, "the video is too large to decode") from error
    except Exception as error:  # decoders raise whatever their parsing trips over
        raise ImageError(CORRUPT, f"the file is damaged ({_first_line(error)})") from error


def _opened(data: bytes, demuxer: str, limits: VideoLimits) -> InputContainer:
    import av  # noqa: PLC0415  -- an extra

    return av.open(
        io.BytesIO(data),
        "r",
        format=demuxer,
        metadata_errors="replace",
        container_options={"max_streams": str(_MAX_STREAMS)},
        # Also for the pictures that FFmpeg decodes while it finds out what there is.
        options={"max_pixels": str(limits.pixels_in), "threads": "1"},
    )


def _load(
    file: InputContainer, data: bytes, name: str, video: Video, limits: VideoLimits
) -> LoadedVideo:
    stream = _stream_of(file)
    _check_size(stream.codec_context.width, stream.codec_context.height, limits)
    reading = _Reading(file, stream, limits)
    listed = reading.list_frames()
    chosen = choose_frames(listed.starts, listed.end, video.frames)
    frames = {frame.pts: frame for frame in reading.frames_at([listed.starts[at] for at in chosen])}
    digest = content_hash(data)
    numbers = [bisect_right(listed.starts, pts) - 1 for pts in frames]
    pictures = tuple(
        PreparedImage(frame.pixels, f"{digest}:{number}")
        for frame, number in zip(frames.values(), numbers, strict=True)
    )
    unit, first = stream.time_base or Fraction(1), listed.starts[0]
    prepared = PreparedVideo(
        pictures,
        digest,
        passed_as=video.passed_as,
        seconds=tuple(float((pts - first) * unit) for pts in frames),
        duration=float((listed.end - first) * unit),
        total=len(listed.starts),
    )
    width, height = next(iter(frames.values())).size
    return LoadedVideo(prepared, width=width, height=height, format=name, file_size=len(data))


def _stream_of(file: InputContainer) -> VideoStream:
    """Return the stream of pictures, which is not an audio file's cover, and mute all others."""
    from av.stream import Discard, Disposition  # noqa: PLC0415  -- an extra

    cover = Disposition.attached_pic
    moving = [one for one in file.streams.video if not one.disposition & cover]
    if not moving:
        there = sorted({one.type for one in file.streams})
        raise ImageError(
            NO_PICTURES, f"the file has no video, only {', '.join(there) or 'nothing'}"
        )
    for other in file.streams:
        if other is not moving[0]:
            other.discard = Discard.all
    moving[0].codec_context.thread_count = 1
    return moving[0]


def _check_size(width: int, height: int, limits: VideoLimits) -> None:
    if width * height > limits.pixels_in:
        raise ImageError(
            TOO_LARGE,
            f"its pictures have {width} x {height} pixels; the limit is {limits.pixels_in:,}",
        )


@dataclass(slots=True)
class _Listed:
    """When each frame is shown, in the stream's unit, and from where those can be decoded."""

    starts: array[int] = field(default_factory=lambda: array("q"))
    end: int = 0
    keys: array[int] = field(default_factory=lambda: array("q"))
    seek_to: array[int] = field(default_factory=lambda: array("q"))


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame as the engine gets it; ``size`` is its own, upright and with square pixels."""

    pts: int
    pixels: Image.Image
    size: tuple[int, int]


class _Reading:
    """One file being read: packets are listed without decoding, then frames sought and decoded."""

    def __init__(self, file: InputContainer, stream: VideoStream, limits: VideoLimits) -> None:
        self._file = file
        self._stream = stream
        self._limits = limits
        self._ends_at = time.thread_time() + limits.cpu_seconds
        self._listed = _Listed()
        self._decoding: Iterator[av.VideoFrame] = iter(())
        self._shown: av.VideoFrame | None = None
        """The last frame that was decoded since frames were last sought."""

    def list_frames(self) -> _Listed:
        """Read every packet's header: durations in files are estimates, or missing."""
        frames: list[tuple[int, int]] = []
        keys: list[tuple[int, int]] = []
        for packet in self._file.demux(self._stream):
            self._keep_time()
            start = packet.dts if packet.pts is None else packet.pts
            if start is None or packet.is_discard:
                continue
            if len(frames) == self._limits.frames:
                raise ImageError(
                    TOO_LARGE, f"the video has more than {self._limits.frames:,} frames"
                )
            frames.append((start, packet.duration or 0))
            if packet.is_keyframe:
                keys.append((start, start if packet.dts is None else min(packet.dts, start)))
        if not frames:
            raise ImageError(NO_PICTURES, "the video has not one frame")
        frames.sort()
        keys.sort()
        listed = self._listed
        listed.starts.extend(dict.fromkeys(start for start, _ in frames))
        listed.end = max(start + duration for start, duration in frames)
        if listed.end == listed.starts[-1] and len(listed.starts) > 1:
            spacing = (listed.starts[-1] - listed.starts[0]) // (len(listed.starts) - 1)
            listed.end += spacing  # the last frame is shown as long as frames are on average
        listed.keys.extend(start for start, _ in keys)
        listed.seek_to.extend(seek_to for _, seek_to in keys)
        return listed

    def frames_at(self, starts: list[int]) -> Iterator[_Frame]:
        """Yield what is shown at ascending times."""
        position: int | None = None
        for start in starts:
            key = bisect_right(self._listed.keys, start) - 1
            if position is None or (key >= 0 and self._listed.keys[key] > position):
                self._seek(self._listed.seek_to[key] if key >= 0 else self._listed.starts[0])
            shown = self._shown_at(start)
            if shown is None:  # decoding began behind it: an index that is wrong
                self._seek(min([*self._listed.seek_to[:1], self._listed.starts[0]]))
                shown = self._shown_at(start) or self._shown
            if shown is None or shown.pts is None:
                raise ImageError(CORRUPT, f"no picture at {self._seconds(start):.3f} s")
            position = shown.pts
            yield self._frame(shown)

    def _seek(self, offset: int) -> None:
        self._file.seek(offset, stream=self._stream, backward=True)
        self._decoding = self._decoded()
        self._shown = None

    def _decoded(self) -> Iterator[av.VideoFrame]:
        for packet in self._file.demux(self._stream):
            self._keep_time()
            yield from (frame for frame in packet.decode() if frame.pts is not None)

    def _shown_at(self, start: int) -> av.VideoFrame | None:
        """Decode on to the frame that begins then, or to the last one before."""
        if self._shown is not None and (self._shown.pts or 0) >= start:
            return self._shown
        for frame in self._decoding:
            self._keep_time()
            before, self._shown = self._shown, frame
            if frame.pts == start:
                return frame
            if (frame.pts or 0) > start:
                return before
        return self._shown

    def _keep_time(self) -> None:
        if time.thread_time() > self._ends_at:
            raise ImageError(
                TOO_SLOW,
                f"decoding the video took more than {self._limits.cpu_seconds:g} s of a processor",
            )

    def _seconds(self, start: int) -> float:
        return float((start - self._listed.starts[0]) * (self._stream.time_base or 1))

    def _frame(self, frame: av.VideoFrame) -> _Frame:
        _check_size(frame.width, frame.height, self._limits)
        size = _square(frame.width, frame.height, self._stream.sample_aspect_ratio)
        pixels = _pixels(frame, fit(size, self._limits.pixels_out))
        for turn in _turns(frame):
            pixels = pixels.transpose(turn)
            if turn in {Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270}:
                size = (size[1], size[0])
        return _Frame(frame.pts or 0, pixels, size)


def _square(width: int, height: int, pixel: Fraction | None) -> tuple[int, int]:
    """Return the size of a picture with square pixels, which a video's need not be."""
    if not pixel or not 1 / _WIDEST_PIXEL <= pixel <= _WIDEST_PIXEL:
        return width, height
    return max(1, round(width * pixel)), height


def _pixels(frame: av.VideoFrame, size: tuple[int, int]) -> Image.Image:
    is_transparent = any(one.is_alpha for one in frame.format.components)
    mode, layout = ("RGBA", "rgba") if is_transparent else ("RGB", "rgb24")
    shown: Any = frame.reformat(*size, format=layout, interpolation="BICUBIC")
    plane = shown.planes[0]
    picture = Image.frombytes(mode, size, bytes(plane), "raw", mode, plane.line_size, 1)
    if not is_transparent:
        return picture
    canvas = Image.new("RGB", size, "white")
    canvas.paste(picture, mask=picture.getchannel("A"))
    return canvas


def _turns(frame: av.VideoFrame) -> list[Image.Transpose]:
    """Return what makes a frame upright, by its display matrix.

    ISO/IEC 14496-12, 6.2.2: of ((a, b, u), (c, d, v), (x, y, w)), (a, b) is where the picture's
    right goes, and (c, d) where its bottom goes.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return []
    a, b, _, c, d = struct.unpack("<5i", bytes(matrix)[:20])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        turns = [Image.Transpose.FLIP_LEFT_RIGHT] if a < 0 else []
        return [*turns, Image.Transpose.FLIP_TOP_BOTTOM] if d < 0 else turns
    # Right goes to the bottom, or to the top.
    turns = [Image.Transpose.ROTATE_270 if b > 0 else Image.Transpose.ROTATE_90]
    is_mirrored = (b > 0) == (c > 0)
    return [*turns, Image.Transpose.FLIP_LEFT_RIGHT] if is_mirrored else turns


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# --------------------------------------------------------------------------- containers


def _container_of(data: bytes) -> tuple[str, str]:
    """Return FFmpeg's name of the container and people's. Raises `ImageError`."""
    if data[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}:
        return "mov", "MOV" if data[4:8] != b"ftyp" or data[8:12] == b"qt  " else "MP4"
    if data.startswith(_EBML):
        return "matroska", "WEBM" if b"webm" in data[:64] else "MKV"
    raise ImageError(
        UNRECOGNISED, f"the file is not a video that can be read; it begins {data[:16]!r}"
    )


def _is_cut_off(data: bytes, demuxer: str) -> bool:
    """Tell whether the container says that the file is longer than it is."""
    return _mov_end(data) > len(data) if demuxer == "mov" else _matroska_end(data) > len(data)


def _mov_end(data: bytes) -> int:
    """Return where the last box ends (ISO/IEC 14496-12, 4.2); 0 stands for the end of the file."""
    at = 0
    while at + 8 <= len(data) and _BOXES.fullmatch(data, at + 4, at + 8):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:
            return 0
        at += size
    return at


def _matroska_end(data: bytes) -> int:
    """Return where the segment ends (RFC 8794, 4 to 6); 0 where that is unknown."""
    size, at = _vint(data, 4)
    at += size
    if data[at : at + 4] != _SEGMENT:
        return 0
    size, at = _vint(data, at + 4)
    return at + size


def _vint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of variable length, 0 for an unknown one, and where it ends."""
    first = data[at] if at < len(data) else 0
    length = 9 - first.bit_length()
    value = int.from_bytes(data[at : at + length], "big")
    most = (1 << 7 * length) - 1
    return (0 if value & most == most else value & most), at + length
