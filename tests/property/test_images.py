"""Whatever bytes a file has, `prepare` gives a picture within the limits or an `ImageError`."""

import io
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from caption_flow.protocol.identity import content_hash
from caption_flow.worker.images import load
from caption_flow.worker.images.load import ImageError, LoadedImage, prepare

MAX_IN, MAX_OUT = 1_000_000, 900


def _seed_files() -> list[bytes]:
    picture = Image.radial_gradient("L").resize((48, 40))
    rgb = Image.merge("RGB", (picture, picture.rotate(90), picture.rotate(180)))
    exif = Image.Exif()
    exif[0x0112] = 6
    variants: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "JPEG", {"exif": exif}),
        (rgb.convert("CMYK"), "JPEG", {"progressive": True}),
        (rgb, "PNG", {"exif": exif}),
        (rgb.convert("RGBA"), "PNG", {}),
        (rgb.quantize(16), "PNG", {"transparency": 3}),
        (rgb.quantize(16), "GIF", {"save_all": True, "append_images": [rgb, rgb.rotate(90)]}),
        (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        (rgb, "TIFF", {"exif": exif}),
        (picture.convert("I"), "TIFF", {}),
        (picture.convert("F"), "TIFF", {}),
        (picture.convert("1"), "TIFF", {"compression": "group4"}),
        (rgb, "BMP", {}),
        (rgb.quantize(16), "PCX", {}),
        (rgb, "AVIF", {}),
        (rgb, "JPEG2000", {}),
        (rgb.convert("RGBA"), "ICO", {"sizes": [(16, 16), (32, 32)]}),
        (rgb.convert("RGBA"), "TGA", {"compression": "tga_rle"}),
        (rgb, "PPM", {}),
        (rgb, "SGI", {}),
        (rgb.convert("RGBA"), "DDS", {}),
    ]
    files = []
    for image, file_format, options in variants:
        buffer = io.BytesIO()
        image.save(buffer, file_format, **options)
        files.append(buffer.getvalue())
    return files


SEEDS = _seed_files()


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    """A real file with some bytes changed, cut out, put in, or its end missing."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        # Most of what a decoder can be led astray by stands at the beginning.
        place = place % 128 if draw(st.booleans()) else place
        match draw(st.sampled_from(["set", "insert", "delete", "cut", "fill"])):
            case "set":
                data[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del data[place : place + draw(st.integers(1, 32))]
            case "cut":
                del data[max(1, place) :]
            case "fill":
                data[place : place + 4] = draw(st.sampled_from([b"\0" * 4, b"\xff" * 4]))
    return bytes(data)


def outcome(data: bytes) -> LoadedImage | ImageError:
    """Return what `prepare` makes of the bytes, and let anything else through."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            return prepare(data, max_pixels_in=MAX_IN, max_pixels_out=MAX_OUT)
        except ImageError as error:
            return error
        finally:
            assert not seen


def check(data: bytes) -> None:
    result = outcome(data)
    if isinstance(result, ImageError):
        assert result.kind in load.IMAGE_ERROR_KINDS
        assert str(result)
        assert "\n" not in str(result)
        return
    pixels = result.image.pixels
    assert pixels.mode == "RGB"
    assert 1 <= pixels.width * pixels.height <= MAX_OUT
    assert 1 <= result.width * result.height <= MAX_IN
    assert pixels.tobytes()
    assert not pixels.info
    assert result.file_size == len(data)
    assert result.content_hash == content_hash(data)


@settings(deadline=None, max_examples=400)
@given(mutated_files())
def test_a_damaged_file_is_a_picture_or_an_image_error(data: bytes) -> None:
    check(data)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=256))
def test_any_bytes_are_a_picture_or_an_image_error(data: bytes) -> None:
    check(data)


@pytest.mark.parametrize("data", SEEDS)
def test_every_file_the_mutations_start_from_is_a_picture(data: bytes) -> None:
    assert isinstance(outcome(data), LoadedImage)
    check(data)


@settings(deadline=None, max_examples=100)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    limit=st.integers(1, 20_000),
    file_format=st.sampled_from(["JPEG", "PNG"]),
)
def test_a_resize_stays_within_the_limit_and_close_to_the_shape(
    width: int, height: int, limit: int, file_format: str
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, file_format)
    loaded = prepare(buffer.getvalue(), max_pixels_out=limit)
    new_width, new_height = loaded.image.pixels.size
    assert (loaded.width, loaded.height) == (width, height)
    assert new_width * new_height <= limit
    assert new_width <= width
    assert new_height <= height
    if width * height <= limit:
        assert (new_width, new_height) == (width, height)
    else:
        # Rounding moves each side by less than a pixel, except that no side vanishes.
        scale = (limit / (width * height)) ** 0.5
        assert new_width == limit or abs(new_width - max(1, width * scale)) <= 1
        assert new_height == limit or abs(new_height - max(1, height * scale)) <= 1
