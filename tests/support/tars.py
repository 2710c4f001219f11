"""Tars in WebDataset's form, whose images are known."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.support.fleet import write_image


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], *, form: int = -1) -> None:
    """Write a tar with these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT if form < 0 else form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_shards(root: Path, shards: int, samples: int) -> dict[str, bytes]:
    """Write tars of small pictures with JSON and text; return the pictures by tar and member."""
    root.mkdir(parents=True, exist_ok=True)
    scratch = root / "scratch.bmp"
    written: dict[str, bytes] = {}
    for shard in range(shards):
        members = []
        for sample in range(samples):
            number = shard * samples + sample
            data = write_image(scratch, number)
            facts = json.dumps({"title": f"title {number}", "number": number}).encode()
            members += [
                (f"{number:06d}.bmp", data),
                (f"{number:06d}.json", facts),
                (f"{number:06d}.txt", f"text {number}\n".encode()),
            ]
            written[f"shard-{shard:06d}.tar/{number:06d}.bmp"] = data
        write_tar(root / f"shard-{shard:06d}.tar", members)
    scratch.unlink()
    return written


def webshart_index(path: Path) -> Mapping[str, object]:
    """What webshart would write about a tar."""
    with tarfile.open(path, "r:") as tar:
        files = {one.name: {"offset": one.offset_data, "length": one.size} for one in tar}
    return {"path": path.name, "filesize": path.stat().st_size, "files": files}
