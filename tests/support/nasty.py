"""Everything in a folder of images that has ever gone wrong, and what must become of it.

Each case is a few files of a folder, with what must happen to each of them. Pictures say which
one they are in their pixels (`tests.support.identities`), so that a right text proves that the
engine saw the right one, upright and in its own colours.
"""

from __future__ import annotations

import io
import itertools
import os
import random
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import ExifTags, Image

from tests.support.identities import Ink, caption, drawn


@dataclass(frozen=True)
class Captioned:
    """An item that gets this text, in the file beside it."""

    text: str


@dataclass(frozen=True)
class Homeless:
    """An item that gets this text in its row, and no file: people are told, in these words."""

    text: str
    why: str


@dataclass(frozen=True)
class Failed:
    """An item that becomes a failed row of this kind, with these words in its reason."""

    kind: str
    why: str


@dataclass(frozen=True)
class HasText:
    """An image that has a text already, which is ``theirs``; ours would be ``text``."""

    text: str
    theirs: str


@dataclass(frozen=True)
class NoItem:
    """What is none of our business, and stays as it is."""


Fate = Captioned | Homeless | Failed | HasText | NoItem


@dataclass(frozen=True)
class Thing:
    """One file of a case: its path within the folder, what puts it there, what becomes of it."""

    name: bytes
    put: Callable[[Path], None]
    fate: Fate

    @property
    def shown(self) -> str:
        """The name as rows have it."""
        return self.name.decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Case:
    """What is nasty about it, and the files that show it."""

    what: str
    things: tuple[Thing, ...]

    def fates(self, kind: type[Fate]) -> list[Thing]:
        """Return the files that end so."""
        return [thing for thing in self.things if isinstance(thing.fate, kind)]

    @property
    def items(self) -> list[Thing]:
        """Return the files that are images, or pass for such."""
        return [thing for thing in self.things if not isinstance(thing.fate, NoItem)]


def build(folder: Path, *cases: Case) -> None:
    """Put the files of these cases into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for thing in (thing for case in cases for thing in case.things):
        path = path_of(folder, thing.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        thing.put(path)


def path_of(folder: Path, name: bytes) -> Path:
    """Return where a file of this name is."""
    return folder / os.fsdecode(name)


def text_beside(path: Path) -> Path:
    """Return where trainers look for a file's text."""
    return Path(os.path.splitext(path)[0] + ".txt")  # noqa: PTH122  -- trainers' own rule


# ------------------------------------------------------------------- what files are made of

_numbers: Final = itertools.count()


def _file(data: bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(data))


def void(_: object) -> None:
    """Return nothing, whatever was given."""


def _image(
    name: str | bytes,
    kind: str = "PNG",
    *,
    ink: Ink = "colour",
    size: tuple[int, int] = (96, 120),
    made: Callable[[Image.Image], Image.Image] = lambda image: image,
    fate: Callable[[str], Fate] = Captioned,
    **options: Any,
) -> Thing:
    """Return an image with a number of its own; ``made`` gives it the mode it is saved in."""
    number = next(_numbers)

    def put(path: Path) -> None:
        path.write_bytes(_saved(made(drawn(number, ink, size)), kind, **options))

    return Thing(_raw(name), put, fate(caption(number, ink)))


def _raw(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode()


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _whole(kind: str, **options: Any) -> bytes:
    """Return a picture for a file that will not be one: large enough to be cut anywhere."""
    noise = Image.frombytes("RGB", (200, 200), random.Random(1).randbytes(120_000))
    return _saved(noise, kind, **options)


def _other(image: Image.Image) -> Image.Image:
    """Return what stands behind the first frame, and must not be what is seen."""
    return image.transpose(Image.Transpose.ROTATE_180)


def _broken(name: str | bytes, data: bytes, kind: str, why: str) -> Thing:
    return Thing(_raw(name), _file(data), Failed(kind, why))


def _no_item(name: str | bytes, put: Callable[[Path], None]) -> Thing:
    return Thing(_raw(name), put, NoItem())


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _with_text(name: str, theirs: str) -> Thing:
    image = _image(name)

    def put(path: Path) -> None:
        image.put(path)
        text_beside(path).write_text(theirs)

    assert isinstance(image.fate, Captioned)
    return Thing(image.name, put, HasText(image.fate.text, theirs))


# ------------------------------------------------------------------- modes


def _see_through(mode: str) -> Callable[[Image.Image], Image.Image]:
    """Make white out of nothing at all, on black: who forgets about it sees black."""

    def made(image: Image.Image) -> Image.Image:
        mask = image.convert("L").point(lambda value: 0 if value == 255 else 255)
        ground = Image.new(mode, image.size)
        ground.paste(image.convert(mode), mask=mask)
        return ground

    return made


def _see_through_palette(image: Image.Image) -> Image.Image:
    """As `_see_through`, with one colour of a palette declared to be nothing."""
    indexed = image.quantize(16)
    flat = indexed.getpalette() or []
    white = next(n for n in range(16) if flat[3 * n : 3 * n + 3] == [255, 255, 255])
    flat[3 * white : 3 * white + 3] = [0, 0, 0]
    indexed.putpalette(flat)
    indexed.info["transparency"] = white
    return indexed


def _sixteen_bits(mode: str = "I;16") -> Callable[[Image.Image], Image.Image]:
    def made(image: Image.Image) -> Image.Image:
        order = ">" if mode.endswith("B") else "<"
        values = [value * 257 for value in image.tobytes()]
        return Image.frombytes(mode, image.size, struct.pack(f"{order}{len(values)}H", *values))

    return made


def _floats(image: Image.Image) -> Image.Image:
    values = [value / 255 for value in image.tobytes()]
    return Image.frombytes("F", image.size, struct.pack(f"{len(values)}f", *values))


def _with_deep_colours(name: str) -> Thing:
    """Return a PNG with 16 bits a colour, which Pillow reads and cannot write."""
    number = next(_numbers)

    def put(path: Path) -> None:
        image = drawn(number)
        deep = b"".join(bytes([value, value]) for value in image.tobytes())
        row = 6 * image.width
        rows = b"".join(b"\0" + deep[at : at + row] for at in range(0, len(deep), row))
        head = struct.pack(">IIBBBBB", *image.size, 16, 2, 0, 0, 0)
        chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks))

    return Thing(_raw(name), put, Captioned(caption(number)))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_LAID_DOWN: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera lays a picture down that is upright again when it is turned as EXIF says."""


def _turned(name: str, kind: str, orientation: int, **options: Any) -> Thing:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    said = exif.tobytes()  # as bytes: of an object, Pillow takes the orientation when it saves AVIF
    turn = _LAID_DOWN[orientation]
    return _image(name, kind, made=lambda image: image.transpose(turn), exif=said, **options)


def _frames(name: str, kind: str, **options: Any) -> Thing:
    number = next(_numbers)

    def put(path: Path) -> None:
        first = drawn(number)
        more = [_other(first), _other(first).convert("L").convert("RGB")]
        path.write_bytes(_saved(first, kind, save_all=True, append_images=more, **options))

    return Thing(_raw(name), put, Captioned(caption(number)))


# ------------------------------------------------------------------- the cases

CJK: Final = "\N{CJK UNIFIED IDEOGRAPH-5199}"
_TRUNCATED: Final = "the file ends too early"
_DAMAGED: Final = "the file is damaged"
_NOT_A_PICTURE: Final = "not a picture that can be read"
_NO_FILE_OF_ITS_OWN: Final = "has no file of its own"


def _names() -> Iterator[Case]:
    yield Case(
        "sub-folders, with the same stem in each",
        tuple(_image(f"{folder}one.png") for folder in ("", "a/", "b/", "b/c/d/e/")),
    )
    yield Case(
        "one stem with two suffixes",
        (
            _image("x.jpg", "JPEG"),
            _image("x.png", fate=lambda text: Homeless(text, _NO_FILE_OF_ITS_OWN)),
        ),
    )
    yield Case(
        "one stem with and without a suffix",
        (
            _image("y"),
            _image("y.webp", "WEBP", fate=lambda text: Homeless(text, _NO_FILE_OF_ITS_OWN)),
        ),
    )
    yield Case(
        "one stem, of a broken image and a whole one",
        (
            _broken("z.jpg", b"", "image_empty", "0 bytes"),
            # The name stays the first one's: it may be captioned when it is tried again.
            _image("z.png", fate=lambda text: Homeless(text, _NO_FILE_OF_ITS_OWN)),
        ),
    )
    yield Case("the same name in other cases", (_image("Case.png"), _image("case.png")))
    yield Case("Chinese and Japanese", (_image("写真/東京の夜.jpg", "JPEG"), _image("图.png")))
    yield Case("emoji", (_image("🐱/👩‍👩‍👧.png"),))
    composed, decomposed = "caf\N{LATIN SMALL LETTER E WITH ACUTE}.png", "cafe\u0301.png"
    assert unicodedata.normalize("NFD", composed) == decomposed
    yield Case("NFC and NFD of one name", (_image(composed), _image(decomposed)))
    yield Case("line breaks", (_image("two\nlines/a\r\nb\n.png"),))
    yield Case("no UTF-8", (_image(b"latin-\xe9\xff/caf\xe9.png"), _image(b"\xff\xfe.jpg", "JPEG")))
    yield Case(
        "what URLs, shells and formats mind",
        (
            _image("%41#?&'\";[]{}/%.png"),
            _image('a&b=c;d\'s "e" [f] {g} #h ?i %20.jpg', "JPEG"),
            _image("$(x)`y`\\|<>*!~.png"),
            _image("{caption}{}{0}%s%n.png"),
            _image("-rf.png"),
            _image(" \t .png"),
            _image("\x1b[2J\x07\x7f.png"),
            _image("\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe\N{ZERO WIDTH JOINER}.png"),
        ),
    )
    yield Case(
        "names of 244 bytes",
        (
            _image("n" * 240 + ".jpg", "JPEG"),
            _image(CJK * 80 + ".jpg", "JPEG"),
            _image(("f" * 244 + "/") * 3 + "m" * 240 + ".png"),
        ),
    )
    yield Case(
        "names as long as can be",
        (
            _image("l" * 251 + ".png"),
            _image("k" * 250 + ".jpeg", "JPEG"),
            _image("t" * 255, fate=lambda text: Homeless(text, "gives no usable file name")),
        ),
    )
    yield Case(
        "no suffix",
        (
            *(_image(f"bare-{kind.lower()}", kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")),
            *(_image(f"bare-{kind.lower()}", kind) for kind in ("BMP", "TIFF", "AVIF")),
            _no_item("README", _file(b"Once upon a time")),
            _no_item("BMW", _file(b"BMWs of the nineties, a list of those that I have had.\n")),
            _no_item("GIFTS", _file(b"GIF8s are what we call them")),
            _no_item("nothing", _file(b"")),
        ),
    )
    yield Case("dots", (_image("v1.2.final.png"), _image("x...png"), _image("dots.png.png")))
    yield Case(
        "suffixes in upper case",
        (_image("LOUD.JPG", "JPEG"), _image("Loud.PnG"), _image("loud.JPEG", "JPEG")),
    )
    yield Case(
        "another suffix than what it is",
        (_image("is-jpeg.png", "JPEG"), _image("is-png.gif", "PNG")),
    )
    yield Case(
        "hidden",
        tuple(_no_item(name, _file(_whole("PNG"))) for name in (".hidden.png", ".git/a.png")),
    )
    yield Case(
        "no images, whatever they are called",
        (
            _no_item("a.md", _file(b"# not an image")),
            _no_item("pipe.png", os.mkfifo),
            _image("folder.png/real.png"),
        ),
    )
    yield Case(
        "links",
        (
            _image("linked/real.png"),
            _no_item("dangling.png", _link("nowhere.png")),
            _no_item("itself.png", _link("itself.png")),
            _no_item("there.png", _link("back.png")),
            _no_item("back.png", _link("there.png")),
            _no_item("linked/round", _link("..")),
            _no_item("twice.png", _link("linked/real.png")),
        ),
    )
    yield Case("a text that is there already", (_with_text("mine.png", "by hand\n"),))


def _pictures() -> Iterator[Case]:
    yield Case("RGBA", (_image("rgba.png", made=_see_through("RGBA")),))
    yield Case("RGBA, half see-through", (_image("opaque.png", made=lambda i: i.convert("RGBA")),))
    yield Case("LA", (_image("la.png", ink="grey", made=_see_through("LA")),))
    yield Case("L", (_image("l-png.png", ink="grey"), _image("l-jpeg.jpg", "JPEG", ink="grey")))
    yield Case(
        "16 bits",
        (
            _image("16.png", ink="grey", made=_sixteen_bits()),
            _image("16-tiff.tif", "TIFF", ink="grey", made=_sixteen_bits()),
            _image("16-big.tif", "TIFF", ink="grey", made=_sixteen_bits("I;16B")),
            _with_deep_colours("48.png"),
        ),
    )
    yield Case("floats", (_image("floats.tif", "TIFF", ink="grey", made=_floats),))
    yield Case(
        "CMYK",
        (
            _image("cmyk.jpg", "JPEG", made=lambda image: image.convert("CMYK")),
            _image("cmyk-tiff.tif", "TIFF", made=lambda image: image.convert("CMYK")),
        ),
    )
    yield Case(
        "YCbCr and Lab",
        (
            _image("ycbcr.tif", "TIFF", made=lambda image: image.convert("YCbCr")),
            _image("grey-jp2.jp2", "JPEG2000", ink="grey"),
        ),
    )
    yield Case(
        "palette",
        (
            _image("p-png.png", made=lambda image: image.quantize(16)),
            _image("p-nothing.png", made=_see_through_palette),
            _image("p-bmp.bmp", "BMP", made=lambda image: image.quantize(256)),
            _image("p-tiff.tif", "TIFF", made=lambda image: image.quantize(16)),
        ),
    )
    yield Case(
        "1 bit",
        (
            _image("1-png.png", ink="bits", made=lambda image: image.convert("1")),
            _image("1-bmp.bmp", "BMP", ink="bits", made=lambda image: image.convert("1")),
            _image(
                "1-tiff.tif",
                "TIFF",
                ink="bits",
                made=lambda image: image.convert("1"),
                compression="group4",
            ),
            _image("1-gif.gif", "GIF", ink="bits", made=lambda image: image.convert("1")),
            _image("1-pbm.pbm", "PPM", ink="bits", made=lambda image: image.convert("1")),
        ),
    )
    yield Case("BMP", (_image("plain-bmp.bmp", "BMP"), _image("plain-dib.dib", "DIB")))
    yield Case(
        "TIFF",
        (
            _image("strips.tif", "TIFF"),
            _image("lzw.tiff", "TIFF", compression="tiff_lzw"),
            _image("jpeg-in.tiff", "TIFF", compression="jpeg"),
            _frames("pages.tiff", "TIFF"),
        ),
    )
    yield Case(
        "GIF",
        (
            _image("still.gif", "GIF"),
            _image("see-through-gif.gif", "GIF", made=_see_through_palette),
            _frames("moving-gif.gif", "GIF", duration=50, loop=0),
        ),
    )
    yield Case(
        "APNG", (_frames("moving-png.png", "PNG"), _frames("moving-apng.apng", "PNG", duration=50))
    )
    yield Case(
        "WebP",
        (
            _image("lossy.webp", "WEBP"),
            _image("lossless.webp", "WEBP", lossless=True, made=_see_through("RGBA")),
            _frames("moving-webp.webp", "WEBP", duration=50),
        ),
    )
    yield Case(
        "AVIF",
        (
            _image("opaque-avif.avif", "AVIF"),
            _image("see-through-avif.avif", "AVIF", made=_see_through("RGBA")),
            _frames("moving-avif.avif", "AVIF"),
        ),
    )
    yield Case(
        "JPEG 2000 and others",
        (_image("plain-jp2.jp2", "JPEG2000"), _image("plain-tga.tga", "TGA")),
    )
    yield Case(
        "JPEG", (_image("baseline.jpg", "JPEG"), _image("prog.jpg", "JPEG", progressive=True))
    )
    yield Case("turned JPEG", tuple(_turned(f"turned-{n}.jpg", "JPEG", n) for n in range(2, 9)))
    yield Case(
        "turned, of other formats",
        (
            _turned("turned-png.png", "PNG", 6),
            _turned("turned-webp.webp", "WEBP", 8),
            _turned("turned-tiff.tif", "TIFF", 6),
            *(_turned(f"turned-avif-{n}.avif", "AVIF", n) for n in range(2, 9)),
        ),
    )


def _large() -> Iterator[Case]:
    square = (6000, 6000)
    yield Case(
        "6000x6000",
        (
            _image("square.jpg", "JPEG", size=square),
            _image("square-2.png", size=square, compress_level=1),
            _turned("square-turned.jpg", "JPEG", 6, size=square),
            _image(
                "square-see-through.png",
                size=square,
                made=lambda image: image.convert("RGBA"),
                compress_level=1,
            ),
            _image("square-5.webp", "WEBP", size=square, quality=50, method=0),
        ),
    )
    yield Case(
        "128x6400",
        (
            _image("tall.jpg", "JPEG", size=(128, 6400)),
            _image("tall-2.png", size=(128, 6400)),
            _turned("tall-3.jpg", "JPEG", 8, size=(128, 6400)),
            _image("wide.jpg", "JPEG", size=(6400, 128)),
            _image("thin.png", size=(8, 30_000)),
        ),
    )
    yield Case("tiny", (_image("tiny.png", size=(4, 5)), _image("small.png", size=(8, 10))))


def _broken_ones() -> Iterator[Case]:
    noise = random.Random(3).randbytes(4000)
    yield Case(
        "0 bytes",
        tuple(_broken(f"empty{end}", b"", "image_empty", "0 bytes") for end in (".png", ".JPG")),
    )
    yield Case(
        "garbage",
        tuple(
            _broken(f"garbage.{end}", noise, "image_unrecognised", _NOT_A_PICTURE)
            for end in ("png", "jpg", "webp", "gif", "bmp", "tiff", "avif")
        ),
    )
    yield Case("zeros", (_broken("zeros.jpg", bytes(4000), "image_unrecognised", _NOT_A_PICTURE),))
    yield Case(
        "text called an image",
        (
            _broken("prose.jpg", b"Once upon a time", "image_unrecognised", _NOT_A_PICTURE),
            _broken("page.png", b"<!DOCTYPE html>\n", "image_unrecognised", _NOT_A_PICTURE),
            _broken("drawing.png", b"<svg/>", "image_unrecognised", _NOT_A_PICTURE),
        ),
    )
    kinds = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP"}
    kinds |= {"tiff": "TIFF", "avif": "AVIF"}
    yield Case(
        "cut off in the middle",
        tuple(
            _broken(f"cut.{end}", _half(_whole(kind)), "image_truncated", _TRUNCATED)
            for end, kind in kinds.items()
        ),
    )
    yield Case(
        "nothing but a header",
        tuple(
            _broken(f"head.{end}", _whole(kind)[:64], "image_truncated", _TRUNCATED)
            for end, kind in kinds.items()
        ),
    )
    yield Case(
        "nothing but a signature",
        tuple(
            _broken(f"signature.{end}", _whole(kind)[:12], "image_truncated", _TRUNCATED)
            for end, kind in kinds.items()
        ),
    )
    damaged = bytearray(_whole("PNG"))
    damaged[1000:1100] = bytes(100)
    yield Case(
        "damaged in the middle",
        (_broken("damaged.png", bytes(damaged), "image_corrupt", _DAMAGED),),
    )


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


CASES: Final = (*_names(), *_pictures(), *_large(), *_broken_ones())
"""Each in files of its own: all of them can be in one folder."""

_THINGS: Final = [thing.name for case in CASES for thing in case.things]
assert len(set(_THINGS)) == len(_THINGS), "a name is in two cases"
_TEXTS: Final = [
    text_beside(path_of(Path(), thing.name)) for case in CASES for thing in case.fates(Captioned)
]
assert len(set(_TEXTS)) == len(_TEXTS), "a text is wanted by two cases"
