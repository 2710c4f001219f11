"""From a file's bytes to an upright RGB picture of bounded size, or a reason why not.

Pure and blocking: callers run `prepare` in a thread. Whatever the bytes are, the outcome is a
`LoadedImage` or an `ImageError`; Pillow's own exceptions and warnings stop here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import math
import warnings
from dataclasses import dataclass
from typing import BinaryIO, Final

from PIL import ExifTags, Image, UnidentifiedImageError

from caption_flow.protocol.identity import content_hash
from caption_flow.worker.engines.base import PreparedImage
from caption_flow.worker.images.cost import (
    MOST_PIXELS_OF_ICONS,
    DecodingMemory,
    bytes_to_decode,
    largest_icon,
    largest_size,
    takes_too_long,
)
from caption_flow.worker.images.wholeness import format_of, is_cut_off

EMPTY: Final = "image_empty"
UNRECOGNISED: Final = "image_unrecognised"
TRUNCATED: Final = "image_truncated"
CORRUPT: Final = "image_corrupt"
TOO_LARGE: Final = "image_too_large"
IMAGE_ERROR_KINDS: Final = frozenset({EMPTY, UNRECOGNISED, TRUNCATED, CORRUPT, TOO_LARGE})

DEFAULT_MAX_PIXELS_IN: Final = 250_000_000
"""Largest picture that is decoded, in pixels; how large it may be in its format, `cost` says."""

MEMORY: Final = DecodingMemory()
"""Of this process, whoever decodes in it."""

DEFAULT_MAX_PIXELS_OUT: Final = 2048 * 28 * 28
"""Largest picture handed to an engine, in pixels (1.6 megapixels).

Qwen2.5-VL spends one token on 28 x 28 pixels, so this is 2,048 tokens: more detail than a caption
tells, and room for prompt and answer in a context of 4,096. Models that see less (Gemma 3: 0.8
megapixels) shrink further themselves. Unlimited, a 12-megapixel photograph costs 15,000 tokens and
five times the processor time beside the engine, where one thread does it for all requests.
"""

_NEVER_OPENED: Final = frozenset(
    {
        "BLP", "ICNS", "IPTC",  # hold pictures of other formats and sizes than their headers tell
        "EPS",  # Pillow runs Ghostscript on it: a program's source from strangers is not a picture
        "BUFR", "GRIB", "HDF5", "MPEG", "WMF",  # recognised by Pillow, but it cannot decode them
    }
)  # fmt: skip

_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF 2.3, tag 0x0112 "Orientation": what makes the picture upright."""


class ImageError(Exception):
    """The file gives no picture; ``kind`` is the row's ``error_kind``.

    It is one of `IMAGE_ERROR_KINDS`, or one of a video's or a place's.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """A file's picture and what a row records of it.

    ``width`` and ``height`` are the upright picture's own, in pixels, before any resize;
    ``format`` is Pillow's name (``JPEG``, ``PNG``, ...); ``file_size`` is in bytes.
    """

    image: PreparedImage
    width: int
    height: int
    format: str
    file_size: int

    @property
    def content_hash(self) -> str:
        """The file's hash, see `content_hash`."""
        return self.image.content_hash

    @property
    def subject(self) -> PreparedImage:
        """What prompts are about."""
        return self.image


def prepare(
    data: bytes,
    *,
    max_pixels_in: int = DEFAULT_MAX_PIXELS_IN,
    max_pixels_out: int | None = DEFAULT_MAX_PIXELS_OUT,
) -> LoadedImage:
    """Decode a file's bytes into an upright RGB picture of at most ``max_pixels_out`` pixels.

    Waits while other threads decode so much that there is no memory for it. Transparency is laid on
    white; of an animation the first frame is taken; 16-bit samples are
    scaled to 8 bits. The shape is kept however extreme: whether an engine accepts it is its own
    affair. ``max_pixels_out=None`` never resizes.

    Raises:
        ImageError: the bytes give no picture, or one of more than ``max_pixels_in`` pixels, or one
            that takes too much memory or time to decode.
    """
    if not data:
        raise ImageError(EMPTY, "the file is empty (0 bytes)")
    _keep_pillow_quiet(max_pixels_in)
    try:
        return _load(data, max_pixels_in, max_pixels_out)
    except ImageError:
        raise
    except Exception as error:  # decoders raise whatever their parsing trips over
        raise _diagnose(error, data) from error


def measure(file: BinaryIO) -> tuple[int, int, str] | None:
    """Return width, height and format that `prepare` would tell of a file, by its header alone.

    None where the header tells none; whether the picture can be decoded, nobody has looked.
    """
    _keep_pillow_quiet(DEFAULT_MAX_PIXELS_IN)
    try:
        with Image.open(file, formats=_formats()) as image:
            width, height = image.size
            if _TURNS.get(_orientation(image)) in _SWAPS_SIDES:
                width, height = height, width
            return width, height, _kind_of(image)
    except Exception:  # noqa: BLE001  -- decoders raise whatever their parsing trips over
        return None


def _kind_of(file: Image.Image) -> str:
    # A JPEG from a phone may be called MPO: a JPEG with more pictures behind the first.
    return "JPEG" if file.format == "MPO" else file.format or "unknown"


def _keep_pillow_quiet(max_pixels_in: int) -> None:
    """Make the limits of this module the ones that count, and Pillow's warnings nobody's problem.

    Both switches belong to the process. `warnings.catch_warnings` is not safe in threads, so the
    filter is put (back) in front and stays; Pillow's limit is only ever raised, and still guards
    against pictures nested in others. It refuses what is twice as large.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels_in > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = (max_pixels_in + 1) // 2


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    _add_heif()
    return tuple(name for name in Image.ID if name not in _NEVER_OPENED)


def _add_heif() -> None:
    """Teach Pillow HEIC, the format of Apple's photographs, where the extra `heic` is installed."""
    try:
        pillow_heif = importlib.import_module("pillow_heif")
    except ImportError:
        return
    pillow_heif.register_heif_opener()


def _load(data: bytes, max_pixels_in: int, max_pixels_out: int | None) -> LoadedImage:
    _check_size(largest_icon(data), MOST_PIXELS_OF_ICONS)
    with Image.open(io.BytesIO(data), formats=_formats()) as file:
        kind = _kind_of(file)
        with MEMORY.taken(_affordable(file, data, max_pixels_in)):
            pixels, size = _upright(file, max_pixels_in, max_pixels_out)
    prepared = PreparedImage(pixels=pixels, content_hash=content_hash(data))
    return LoadedImage(prepared, width=size[0], height=size[1], format=kind, file_size=len(data))


def _affordable(file: Image.Image, data: bytes, max_pixels_in: int) -> int:
    """Return the bytes that decoding may take; raises `ImageError` if they, or time, are many."""
    _check_size(largest_size(file), max_pixels_in)
    reason = takes_too_long(file, data)
    if reason is not None:
        raise ImageError(TOO_LARGE, reason)
    size = bytes_to_decode(file)
    if size > MEMORY.most:
        raise ImageError(
            TOO_LARGE,
            f"the picture has {file.width} x {file.height} pixels: decoding such a {file.format} "
            f"may take {size / 2**30:.1f} GiB of memory; the limit is {MEMORY.most / 2**30:.1f}",
        )
    return size


def _upright(
    file: Image.Image, max_pixels_in: int, max_pixels_out: int | None
) -> tuple[Image.Image, tuple[int, int]]:
    """Decode; return the picture and the size it had before it was shrunk, both upright."""
    size = _decode(file, max_pixels_out)
    _check_size(size, max_pixels_in)
    turn = _TURNS.get(_orientation(file))
    # From the stored size, which a draft is only near.
    pixels = _flatten(_shrink(_to_eight_bits(file), fit(size, max_pixels_out)))
    if turn is not None:
        pixels = pixels.transpose(turn)
        if turn in _SWAPS_SIDES:
            size = (size[1], size[0])
    # What is left in `info` (a transparent colour, say) no longer describes these pixels.
    pixels.info.clear()
    return pixels, size


_SWAPS_SIDES: Final = frozenset(_TURNS[orientation] for orientation in (5, 6, 7, 8))


def _check_size(size: tuple[int, int] | None, max_pixels_in: int) -> None:
    if size is None:
        return
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(CORRUPT, f"the picture claims to have {width} x {height} pixels")
    if width * height > max_pixels_in:
        raise ImageError(
            TOO_LARGE,
            f"the picture has {width} x {height} pixels; the limit is {max_pixels_in:,} in all",
        )


def _decode(file: Image.Image, max_pixels_out: int | None) -> tuple[int, int]:
    """Decode in place and return the picture's own size, as stored (not yet turned)."""
    stored = file.size
    # JPEG decodes straight to a half, quarter or eighth: cheaper, and its scaled transform is a
    # proper low-pass, so nothing is lost that the resize after it would have kept.
    file.draft(None, fit(stored, max_pixels_out))
    drafted = file.size != stored
    file.load()
    # A TIFF learns its size while decoding: Pillow turns those upright itself.
    return stored if drafted else file.size


def _orientation(file: Image.Image) -> int:
    with contextlib.suppress(Exception):  # broken EXIF is no reason to lose the picture
        return int(file.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Return a picture with eight bits a channel that can be resized (no palette, no bitmap)."""
    if image.mode.startswith("I;16"):
        return _scaled(image.convert("I"), 1 / 256)
    if image.mode == "I":
        return _scaled(image, _integer_scale(image))
    if image.mode == "F":
        return _scaled(image, _float_scale(image))
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in {"L", "RGB"}:
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    # Pillow converts "I" and "F" to "L" by clipping, so the scaling has to come first.
    return image.point(lambda sample: sample * scale + 0).convert("L")


def _integer_scale(image: Image.Image) -> float:
    highest = _highest(image)
    if highest <= 255:
        return 1.0
    return 1 / 256 if highest <= 65535 else 255 / highest


def _float_scale(image: Image.Image) -> float:
    highest = _highest(image)
    if not math.isfinite(highest) or 1 < highest <= 255:
        return 1.0
    return 255.0 if highest <= 1 else 255 / highest


def _highest(image: Image.Image) -> float:
    extrema = image.getextrema()
    highest = extrema[1]
    return float(highest) if isinstance(highest, int | float) else math.nan


def _shrink(image: Image.Image, target: tuple[int, int]) -> Image.Image:
    if target == image.size:
        return image
    return image.resize(target, Image.Resampling.BICUBIC, reducing_gap=3.0)


def fit(size: tuple[int, int], max_pixels: int | None) -> tuple[int, int]:
    """Return the largest size of the same shape within ``max_pixels``; never enlarges."""
    width, height = size
    if max_pixels is None or width * height <= max_pixels:
        return size
    scale = math.sqrt(max_pixels / (width * height))
    # A side that would vanish stays one pixel; the other then takes what the limit leaves.
    fitted_width, fitted_height = max(1, int(width * scale)), max(1, int(height * scale))
    return (min(fitted_width, max_pixels), min(fitted_height, max_pixels))


def _flatten(image: Image.Image) -> Image.Image:
    """Return a new RGB picture that holds on to nothing of the file."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


# --------------------------------------------------------------------------- what went wrong


def _diagnose(error: Exception, data: bytes) -> ImageError:
    """Return the `ImageError` that tells a person what is wrong with the file."""
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return ImageError(TOO_LARGE, f"the picture is too large to decode ({_first_line(error)})")
    if is_cut_off(data) or "truncated" in str(error).lower():
        return ImageError(TRUNCATED, f"the file ends too early, after {len(data):,} bytes")
    kind = format_of(data)
    if isinstance(error, UnidentifiedImageError) and kind == "HEIF" and "HEIF" not in _formats():
        return ImageError(
            UNRECOGNISED, "the file is HEIC: the worker needs `pip install 'caption-flow[heic]'`"
        )
    if isinstance(error, UnidentifiedImageError) and kind is None:
        return ImageError(
            UNRECOGNISED, f"the file is not a picture that can be read; it begins {data[:16]!r}"
        )
    return ImageError(CORRUPT, f"the file is damaged ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return "its header cannot be read" if isinstance(error, UnidentifiedImageError) else text
