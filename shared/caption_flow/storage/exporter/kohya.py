"""``metadata.json`` as kohya's sd-scripts read it (``--in_json``, ``metadata_file``): one object.

``{"IMAGE": {"caption": "...", "tags": "..."}, ...}``. IMAGE is the image's absolute path where the
images' folder is known; otherwise its path within the dataset without its suffix, which sd-scripts
look for below ``image_dir``. Both are understood by every version of theirs. Several texts are
joined by ", ". ``tags`` is the column of that name, where there is one that is not in the caption
already: sd-scripts add it after the caption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exporter.captioned import (
    TAGS,
    Captioned,
    Listing,
    captioned,
    joined,
    tags_beside,
)
from caption_flow.storage.exporter.claims import Claim, Claims
from caption_flow.storage.exporter.encoding import json_bytes
from caption_flow.storage.exporter.names import name_for_people, stem
from caption_flow.storage.exporter.output_file import OutputFile, output_file
from caption_flow.storage.exporter.report import ExportReport, Skip


def export_kohya(
    contents: StorageContents,
    output_path: Path,
    listing: Listing | None = None,
    *,
    images: Path | None = None,
) -> ExportReport:
    """Write every captioned item to one file; ``images`` is the folder the dataset lies in.

    Where two images have one key (``a.jpg`` and ``a.png``, without ``images``), the first by item
    key has it.

    Raises:
        ExportError: no such column, nothing to export, or the file cannot be written; one that was
            there is as it was.
    """
    listing = listing or Listing()
    listing.check(contents)
    key = _path_in(images) if images is not None else _without_suffix
    report = ExportReport(output_path)
    claims = Claims(lambda: _claims(contents, listing, key))
    with output_file(output_path) as sink:
        _write(_entries(contents, listing, report), sink, report, key, claims)
    return report


def _write(
    entries: Iterator[tuple[Captioned, dict[str, Any]]],
    sink: OutputFile,
    report: ExportReport,
    key: Callable[[str], str],
    claims: Claims,
) -> None:
    sink.write(b"{")
    for item, entry in entries:
        claim = Claim(str(item.row["item_key"] or item.name), key(item.name), item.name)
        owner = claims.take(claim)
        if owner is not None:
            problem = (
                f"{name_for_people(item.name)} has no key of its own: "
                f"{name_for_people(claim.target)} belongs to {name_for_people(owner.name)}"
            )
            report.skip(Skip.CONFLICT, problem)
            continue
        separator = b",\n" if report.written else b"\n"
        sink.write(separator + json_bytes(claim.target) + b": " + json_bytes(entry))
        report.written += 1
    sink.write(b"\n}\n")


def _entries(
    contents: StorageContents, listing: Listing, report: ExportReport
) -> Iterator[tuple[Captioned, dict[str, Any]]]:
    tags = tags_beside(contents, listing.wording)
    more = ("item_key",) if tags is None else ("item_key", tags)
    for item in captioned(contents, listing, report, more):
        entry = {"caption": item.text}
        if tags is not None and (said := joined(item.row[tags])):
            entry[TAGS] = said
        yield item, entry


def _claims(
    contents: StorageContents, listing: Listing, key: Callable[[str], str]
) -> Iterator[Claim]:
    # What the report counts is counted when it is written.
    for item in captioned(contents, listing, ExportReport(Path()), ("item_key",)):
        yield Claim(str(item.row["item_key"] or item.name), key(item.name), item.name)


def _path_in(images: Path) -> Callable[[str], str]:
    folder = str(images.absolute()).rstrip("/")
    return lambda name: f"{folder}/{name}"


def _without_suffix(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + stem(last)
