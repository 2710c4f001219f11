"""What decoding takes: memory and processor time a pixel, beside what `images/cost.py` assumes.

    python benchmarks/decoding.py               pictures of 16 megapixels
    python benchmarks/decoding.py --side 8000   of 64

Each picture is made, then decoded by `prepare` in a process of its own. The picture is smooth, so
that files are small and decoders, not disks, are what counts.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from PIL import Image

from caption_flow.worker.images.cost import bytes_to_decode
from caption_flow.worker.images.load import ImageError, prepare

MADE: Final[tuple[tuple[str, str, str, dict[str, Any]], ...]] = (
    ("JPEG", "RGB", "JPEG", {}),
    ("JPEG, progressive", "RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    ("JPEG, CMYK", "CMYK", "JPEG", {}),
    ("PNG", "RGB", "PNG", {"compress_level": 1}),
    ("PNG, transparent", "RGBA", "PNG", {"compress_level": 1}),
    ("GIF", "P", "GIF", {}),
    ("WebP", "RGB", "WEBP", {"method": 0}),
    ("TIFF", "RGB", "TIFF", {}),
    ("TIFF, floats", "F", "TIFF", {}),
    ("BMP", "RGB", "BMP", {}),
    ("TGA, transparent", "RGBA", "TGA", {"compression": "tga_rle"}),
    ("AVIF", "RGB", "AVIF", {"speed": 10}),
    ("JPEG 2000", "RGB", "JPEG2000", {}),
    ("JPEG 2000, transparent", "RGBA", "JPEG2000", {}),
)


def picture(side: int, mode: str) -> Image.Image:
    """Return a smooth picture; transparent ones are partly so."""
    grey = Image.radial_gradient("L").resize((side, side))
    if mode == "F":
        return grey.convert("F")
    rgb = Image.merge("RGB", (grey, grey.rotate(90), grey.rotate(180)))
    if mode == "RGBA":
        rgb.putalpha(grey)
        return rgb
    return rgb.quantize(64) if mode == "P" else rgb.convert(mode)


def _kilobytes(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def decode(path: Path) -> str:
    """Decode one file in this process, and say what it took."""
    small = io.BytesIO()
    Image.new("RGB", (64, 64)).save(small, "JPEG")
    prepare(small.getvalue())
    data = path.read_bytes()
    with Image.open(path) as file:
        pixels = file.width * file.height
        assumed = bytes_to_decode(file) / pixels
    before = _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.process_time()
    try:
        prepare(data)
    except ImageError as error:
        return str(error)
    took = time.process_time() - began
    peak = (_kilobytes("VmHWM") - before) * 1024 / pixels
    return (
        f"{peak:5.1f} bytes a pixel ({assumed:.0f} assumed), {took / pixels * 1e9:6.1f} ns a pixel"
    )


def main() -> None:
    """Make and decode a picture of each kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4000)
    parser.add_argument("--decode", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.decode is not None:
        print(decode(asked.decode))
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, mode, file_format, options in MADE:
            path = Path(folder) / "picture"
            picture(asked.side, mode).save(path, file_format, **options)
            command = [sys.executable, __file__, "--decode", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"{name:24}{done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
