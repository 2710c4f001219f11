"""What `images.load.prepare` promises for every kind of file people keep pictures in."""

import io
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from caption_flow.protocol.identity import content_hash
from caption_flow.worker.images import load
from caption_flow.worker.images.load import ImageError, prepare

RGB = tuple[int, int, int]
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def corners(*, width: int = 64, height: int = 32) -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right."""
    image = Image.new("RGB", (width, height), WHITE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    return image


def noise(width: int, height: int) -> Image.Image:
    return Image.effect_noise((width, height), 80).convert("RGB")


def near(pixel: object, expected: tuple[int, int, int], tolerance: int = 12) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, expected, strict=True))


def refused(data: bytes, **limits: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        prepare(data, **limits)
    return caught.value


# --------------------------------------------------------------------------- what a row records


def test_a_small_picture_is_handed_on_unchanged() -> None:
    loaded = prepare(encode(corners(), "PNG"))
    assert loaded.image.pixels.tobytes() == corners().tobytes()
    assert loaded.image.pixels.mode == "RGB"
    assert (loaded.width, loaded.height) == (64, 32)


def test_the_row_learns_format_size_and_hash_of_the_file() -> None:
    data = encode(corners(), "WEBP")
    loaded = prepare(data)
    assert loaded.format == "WEBP"
    assert loaded.file_size == len(data)
    assert loaded.content_hash == loaded.image.content_hash == content_hash(data)


def test_the_content_hash_is_the_one_b2sum_prints() -> None:
    assert content_hash(b"abc") == "cf4ab791c62b8d2b2109c90275287816"


def test_equal_pictures_in_different_files_have_different_hashes() -> None:
    one, other = encode(corners(), "PNG"), encode(corners(), "PNG", compress_level=0)
    assert prepare(one).content_hash != prepare(other).content_hash


@pytest.mark.parametrize(
    "file_format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA"]
)
def test_every_common_format_is_read(file_format: str) -> None:
    loaded = prepare(encode(corners(), file_format))
    assert near(loaded.image.pixels.getpixel((4, 4)), RED, 40)
    assert near(loaded.image.pixels.getpixel((60, 28)), WHITE, 40)


def test_apples_format_is_read_where_its_library_is() -> None:
    pytest.importorskip("pillow_heif")
    prepare(encode(corners(), "PNG"))  # teaches Pillow the format
    for orientation, top_left, size in [(1, RED, (64, 32)), (6, BLUE, (32, 64))]:
        exif = Image.Exif()
        exif[0x0112] = orientation
        loaded = prepare(encode(corners(), "HEIF", exif=exif.tobytes(), quality=95))
        assert loaded.format == "HEIF"
        assert (loaded.width, loaded.height) == loaded.image.pixels.size == size
        assert near(loaded.image.pixels.getpixel((4, 4)), top_left, 40)
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    assert near(prepare(encode(clear, "HEIF")).image.pixels.getpixel((9, 9)), WHITE, 4)


def test_apples_format_cut_short_is_a_typed_failure() -> None:
    pytest.importorskip("pillow_heif")
    prepare(encode(corners(), "PNG"))
    data = encode(noise(256, 256), "HEIF")
    assert refused(data[: len(data) // 2]).kind in {load.TRUNCATED, load.CORRUPT}


def test_apples_format_without_its_library_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load, "_formats", lambda: ("JPEG", "PNG"))
    error = refused(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(64))
    assert error.kind == load.UNRECOGNISED
    assert "caption-flow[heic]" in str(error)


def test_a_phones_multi_picture_jpeg_is_a_jpeg() -> None:
    data = encode(corners(), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 32))])
    loaded = prepare(data, max_pixels_out=600)
    assert loaded.format == "JPEG"
    assert near(loaded.image.pixels.getpixel((2, 2)), RED, 40)


# --------------------------------------------------------------------------- orientation


@pytest.mark.parametrize(
    ("orientation", "top_left", "size"),
    [
        (1, RED, (64, 32)),
        (2, GREEN, (64, 32)),
        (3, WHITE, (64, 32)),
        (4, BLUE, (64, 32)),
        (5, RED, (32, 64)),
        (6, BLUE, (32, 64)),
        (7, WHITE, (32, 64)),
        (8, GREEN, (32, 64)),
    ],
)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied(
    orientation: int, top_left: RGB, size: tuple[int, int], file_format: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = prepare(encode(corners(), file_format, exif=exif, quality=95))
    assert loaded.image.pixels.size == size
    assert (loaded.width, loaded.height) == size
    assert near(loaded.image.pixels.getpixel((4, 4)), top_left, 40)


def test_the_recorded_size_is_upright_and_from_before_the_resize() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(corners(width=640, height=320), "JPEG", exif=exif)
    loaded = prepare(data, max_pixels_out=2_000)
    assert (loaded.width, loaded.height) == (320, 640)
    assert loaded.image.pixels.size == (31, 63)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_impossible_orientation_is_ignored(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert prepare(encode(corners(), "JPEG", exif=exif)).image.pixels.size == (64, 32)


def test_broken_exif_does_not_cost_the_picture() -> None:
    data = encode(corners(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    assert prepare(data).image.pixels.size == (64, 32)


# --------------------------------------------------------------------------- colours


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_on_white(file_format: str) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 8, 16))
    pixels = prepare(encode(image, file_format, lossless=True)).image.pixels
    assert pixels.getpixel((2, 2)) == RED
    assert pixels.getpixel((12, 2)) == WHITE


def test_half_transparent_black_is_grey() -> None:
    pixels = prepare(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")).image.pixels
    assert near(pixels.getpixel((0, 0)), (127, 127, 127), 1)


def test_grey_with_alpha_is_laid_on_white() -> None:
    data = encode(Image.new("LA", (4, 4), (0, 0)), "PNG")
    assert prepare(data).image.pixels.getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_the_transparent_colour_of_a_palette_is_white(file_format: str) -> None:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (0, 0, 8, 16))
    pixels = prepare(encode(image, file_format, transparency=0)).image.pixels
    assert pixels.getpixel((2, 2)) == RED
    assert pixels.getpixel((12, 2)) == WHITE


def test_the_transparent_colour_of_an_rgb_png_is_white() -> None:
    image = Image.new("RGB", (8, 8), RED)
    loaded = prepare(encode(image, "PNG", transparency=RED))
    assert loaded.image.pixels.getpixel((0, 0)) == WHITE
    assert "transparency" not in loaded.image.pixels.info


def test_resizing_does_not_bleed_the_colour_under_transparency() -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 255, 0))
    image.paste((255, 0, 0, 255), (0, 0, 31, 64))
    pixels = prepare(encode(image, "PNG"), max_pixels_out=16 * 16).image.pixels
    edge = pixels.getpixel((7, 8))
    assert isinstance(edge, tuple)
    assert edge[2] <= edge[0]  # blue, invisible in the file, never shows


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(file_format: str) -> None:
    image = Image.new("I;16", (2, 1))
    image.putpixel((0, 0), 0x4000)
    image.putpixel((1, 0), 0xC000)
    pixels = prepare(encode(image, file_format)).image.pixels
    assert pixels.getpixel((0, 0)) == (0x40, 0x40, 0x40)
    assert pixels.getpixel((1, 0)) == (0xC0, 0xC0, 0xC0)


def test_floating_point_grey_from_zero_to_one_is_scaled() -> None:
    image = Image.new("F", (2, 1))
    image.putpixel((1, 0), 1.0)
    pixels = prepare(encode(image, "TIFF")).image.pixels
    assert pixels.getpixel((0, 0)) == (0, 0, 0)
    assert pixels.getpixel((1, 0)) == WHITE


def test_floating_point_nonsense_is_still_a_picture() -> None:
    image = Image.new("F", (2, 1), float("nan"))
    assert prepare(encode(image, "TIFF")).image.pixels.mode == "RGB"


def test_one_bit_pictures_are_black_and_white() -> None:
    image = Image.new("1", (9, 1), 0)
    image.putpixel((8, 0), 1)
    pixels = prepare(encode(image, "TIFF")).image.pixels
    assert (pixels.getpixel((0, 0)), pixels.getpixel((8, 0))) == ((0, 0, 0), WHITE)


def test_one_bit_pictures_are_smoothed_when_they_shrink() -> None:
    image = Image.new("1", (64, 64), 0)
    for x in range(0, 64, 2):
        image.paste(1, (x, 0, x + 1, 64))
    pixels = prepare(encode(image, "PNG"), max_pixels_out=64).image.pixels
    assert near(pixels.getpixel((4, 4)), (128, 128, 128), 30)


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_print_colours_become_screen_colours(file_format: str) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert near(prepare(encode(image, file_format)).image.pixels.getpixel((8, 8)), RED)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(file_format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert near(prepare(data).image.pixels.getpixel((8, 8)), RED)


# --------------------------------------------------------------------------- size


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_large_picture_shrinks_to_the_limit_and_keeps_its_shape(file_format: str) -> None:
    loaded = prepare(encode(corners(width=1200, height=800), file_format), max_pixels_out=60_000)
    assert (loaded.width, loaded.height) == (1200, 800)
    assert loaded.image.pixels.size == (300, 200)
    assert near(loaded.image.pixels.getpixel((10, 10)), RED)
    assert near(loaded.image.pixels.getpixel((290, 190)), WHITE)


def test_without_a_limit_nothing_is_resized() -> None:
    loaded = prepare(encode(corners(width=2000, height=1000), "JPEG"), max_pixels_out=None)
    assert loaded.image.pixels.size == (2000, 1000)


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1)])
def test_an_extreme_shape_is_kept_for_the_engine_to_judge(size: tuple[int, int]) -> None:
    data = encode(Image.new("RGB", size), "PNG")
    assert prepare(data).image.pixels.size == size
    width, height = prepare(data, max_pixels_out=1_000).image.pixels.size
    assert min(width, height) == 1
    assert max(width, height) <= 1_000


def test_a_picture_is_never_enlarged() -> None:
    assert prepare(encode(Image.new("RGB", (1, 1)), "PNG")).image.pixels.size == (1, 1)


def test_more_pixels_than_allowed_are_refused_before_they_are_decoded() -> None:
    error = refused(encode(noise(400, 300), "JPEG")[:2_000], max_pixels_in=100_000)
    assert error.kind == load.TOO_LARGE
    assert "400 x 300" in str(error)
    assert "100,000" in str(error)


def test_a_decompression_bomb_is_refused() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    )
    assert refused(data).kind == load.TOO_LARGE


def test_a_picture_that_pillow_alone_would_warn_about_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert prepare(encode(corners(), "PNG")).image.pixels.size == (64, 32)


# --------------------------------------------------------------------------- what is refused


def test_an_empty_file_is_told_as_such() -> None:
    assert refused(b"").kind == load.EMPTY


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"hello",
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"{}",
        bytes(4096),
        b"BMWs, old",
    ],
    ids=["nul", "text", "html", "json", "zeros", "cars"],
)
def test_what_is_not_a_picture_is_told_as_such(data: bytes) -> None:
    assert refused(data).kind == load.UNRECOGNISED


def test_the_sentence_shows_how_the_file_begins() -> None:
    assert "<!DOCTYPE html>" in str(refused(b"<!DOCTYPE html><html>Not found</html>"))


def test_a_postscript_program_is_never_run() -> None:
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert refused(data).kind == load.UNRECOGNISED


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_cut_short_is_told_as_such(file_format: str, share: float) -> None:
    data = encode(noise(256, 256), file_format)
    error = refused(data[: int(len(data) * share)])
    assert error.kind == load.TRUNCATED


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
@pytest.mark.parametrize("length", [12, 16, 24])
def test_a_file_cut_within_its_header_is_told_as_such(file_format: str, length: int) -> None:
    assert refused(encode(noise(64, 64), file_format)[:length]).kind == load.TRUNCATED


def test_a_damaged_picture_is_told_as_such() -> None:
    data = bytearray(encode(noise(256, 256), "PNG"))
    data[200:400] = bytes(200)
    assert refused(bytes(data)).kind == load.CORRUPT


def test_a_picture_without_width_is_told_as_such() -> None:
    data = bytearray(encode(corners(), "PNG"))
    data[16:20] = bytes(4)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    assert refused(bytes(data)).kind == load.CORRUPT


@pytest.mark.parametrize("length", [0, 1, 3, 20, 200, 600])
def test_every_refusal_is_one_sentence_of_a_known_kind(length: int) -> None:
    error = refused(encode(noise(64, 64), "JPEG")[:length])
    assert error.kind in load.IMAGE_ERROR_KINDS
    assert str(error)
    assert "\n" not in str(error)


# --------------------------------------------------------------------------- warnings and threads


def test_pillows_warnings_neither_leak_nor_turn_into_errors() -> None:
    data = encode(corners(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\xff\xff")
    with pytest.warns(UserWarning, match="EXIF"), Image.open(io.BytesIO(data)) as image:
        image.getexif()  # Pillow does warn about this file
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        prepare(data)
    assert not seen


def test_many_threads_prepare_at_once_without_a_warning_between_them() -> None:
    files = [encode(corners(), name) for name in ("JPEG", "PNG", "GIF", "WEBP")] * 8
    start = threading.Barrier(4)

    def work(files: list[bytes]) -> list[tuple[int, int]]:
        start.wait()
        return [prepare(data).image.pixels.size for data in files]

    with warnings.catch_warnings(record=True) as seen, ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("always")
        sizes = [size for batch in pool.map(work, [files] * 4) for size in batch]
    assert set(sizes) == {(64, 32)}
    assert not seen
