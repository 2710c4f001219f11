"""Captions in webshart's metadata: the JSON file that lies beside each tar, or in their place.

``{"files": {"MEMBER": {"offset": N, "length": N, "captions": "..."}, ...}, ...}``; several texts
are a list. Offsets come from the tars, which an export does not read: files that exist get
captions, and whatever else they hold stays. ``webshart extract-metadata`` makes them.

A run's rows lie in the order in which they were captioned, and a file wants all those of its tar:
they are sorted in a temporary database on disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec

from caption_flow.storage.atomic import replace_bytes
from caption_flow.storage.contents import StorageContents, displayed
from caption_flow.storage.exported import Replaced
from caption_flow.storage.exporter.captioned import Listing, captioned
from caption_flow.storage.exporter.encoding import json_bytes
from caption_flow.storage.exporter.errors import ExportError, naming
from caption_flow.storage.exporter.names import last_part, stem
from caption_flow.storage.exporter.report import ExportReport, Skip
from caption_flow.storage.exporter.sidecars import keep_beside

HOW_TO_MAKE: Final = "webshart extract-metadata --source TARS --destination FOLDER makes them"

Existing = Literal["overwrite", "skip", "backup"]
"""What to do about captions that are there already; backup keeps the whole file as NAME.bak."""


def export_webshart(
    contents: StorageContents,
    metadata_path: Path,
    listing: Listing | None = None,
    *,
    existing: Existing = "overwrite",
    replaced: Replaced | None = None,
) -> ExportReport:
    """Write each captioned item's texts into its tar's metadata, and count samples.

    ``metadata_path`` is a folder with ``TAR_NAME.json`` for each tar, in the tars' folders or all
    in one, or the file of a single tar. For ``replaced`` see `write_sidecars`.

    Raises:
        ExportError: no such column, nothing to export, no metadata there, or a file that is none or
            cannot be written; those before it are whole.
    """
    listing = listing or Listing()
    listing.check(contents)
    report = ExportReport(metadata_path)
    with closing(_sorted_by_shard(contents, listing, report)) as rows:
        shards = _shards(rows)
        with naming(metadata_path):
            files = _files(metadata_path, list(shards))
        if shards and not files:
            raise ExportError(_missing(metadata_path, tuple(shards)))
        for shard, items in shards.items():
            if shard in files:
                _Shard(shard, files[shard], existing, replaced, report).write(_of(rows, shard))
            else:
                report.skip(Skip.BAD_NAME, f"the shard {displayed(shard)!r} has no metadata file")
                report.skipped[Skip.BAD_NAME] += items - 1
    return report


def require_metadata(folder: Path) -> None:
    """Raise `ExportError` if a folder has nothing that might be webshart's metadata."""
    if next(folder.rglob("*.json"), None) is None:
        raise ExportError(_missing(folder))


def has_metadata(folder: Path, shards: Iterable[str]) -> bool:
    """Tell whether a folder has the metadata of any of these shards."""
    return bool(_files(folder, list(shards)))


class _Shard:
    """One tar's metadata file, which gets captions."""

    def __init__(
        self,
        shard: str,
        path: Path,
        existing: Existing,
        replaced: Replaced | None,
        report: ExportReport,
    ) -> None:
        self._shard = shard
        self._path = path
        self._existing = existing
        self._replaced = replaced
        self._report = report

    def write(self, captions: Iterator[tuple[str, list[str]]]) -> None:
        with naming(self._path):
            before = self._path.read_bytes()
            metadata, entries = _parsed(self._path, before)
            changed = 0
            for name, lines in captions:
                changed += self._caption(entries, name, lines)
            if not changed:
                return
            after = json_bytes(metadata)
            if self._replaced is not None:
                self._replaced.note(self._path, before, after)
            if self._existing == "backup":
                self._report.backed_up += keep_beside(self._path)
            replace_bytes(self._path, after)

    def _caption(self, entries: Mapping[str, dict[str, Any]], name: str, lines: list[str]) -> bool:
        """Give a sample its captions; return whether it had others."""
        report = self._report
        member = name.removeprefix(f"{self._shard}/")
        entry = entries.get(member, entries.get(last_part(member)))
        if entry is None:
            problem = f"{displayed(str(self._path))} has no file {displayed(member)!r}"
            report.skip(Skip.BAD_NAME, problem)
            return False
        ours = lines[0] if len(lines) == 1 else lines
        had = entry.get("captions", entry.get("caption"))
        if had == ours and "captions" in entry:
            report.unchanged += 1
            return False
        if had is not None and self._existing == "skip":
            report.skip(Skip.EXISTING)
            return False
        entry.pop("caption", None)  # webshart's older name, which it takes out itself
        entry["captions"] = ours
        report.written += 1
        report.replaced += had is not None
        return True


def _missing(path: Path, shards: Sequence[str] = ()) -> str:
    whose = f" for {', '.join(shards[:3])}{', …' if len(shards) > 3 else ''}" if shards else ""
    return f"there is no webshart metadata at {displayed(str(path))!r}{whose}: {HOW_TO_MAKE}"


def _files(metadata_path: Path, shards: Sequence[str]) -> dict[str, Path]:
    """Return the metadata file of each shard that has one."""
    if metadata_path.is_dir():
        found = ((shard, _file_in(metadata_path, shard, shards)) for shard in shards)
        return {shard: path for shard, path in found if path is not None}
    if not metadata_path.is_file():
        return {}
    named = [shard for shard in shards if last_part(_bare(shard)) == stem(metadata_path.name)]
    whose = named if named or len(shards) > 1 else shards
    return dict.fromkeys(whose, metadata_path) if len(whose) == 1 else {}


def _file_in(folder: Path, shard: str, shards: Sequence[str]) -> Path | None:
    name = _bare(shard)
    if ".." in name.split("/") or name.startswith("/"):
        return None
    namesakes = sum(last_part(other) == last_part(shard) for other in shards)
    for candidate in (name, last_part(name)) if namesakes == 1 else (name,):
        path = folder / f"{candidate}.json"
        if path.is_file():
            return path
    return None


def _bare(shard: str) -> str:
    return shard.removesuffix(".tar")


def _parsed(path: Path, content: bytes) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Return all of a metadata file, and the entries in it by their member's name."""
    try:
        metadata = cast("dict[str, Any]", msgspec.json.decode(content))
        files = metadata["files"]
        named = files.items() if isinstance(files, dict) else ((one["path"], one) for one in files)
        entries = {str(name): cast("dict[str, Any]", entry) for name, entry in named}
        for entry in entries.values():
            entry.get("captions")
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{displayed(str(path))!r} is no webshart metadata: {error!r}") from error
    return metadata, entries


def _sorted_by_shard(
    contents: StorageContents, listing: Listing, report: ExportReport
) -> sqlite3.Connection:
    # An empty name is a database in a temporary file, which is gone when it is closed.
    rows = sqlite3.connect("", isolation_level=None)
    try:
        rows.execute("PRAGMA journal_mode = OFF")
        rows.execute("CREATE TABLE items (shard TEXT, name TEXT, lines BLOB)")
        rows.execute("BEGIN")
        rows.executemany(
            "INSERT INTO items VALUES (?, ?, ?)",
            (
                (str(item.row["shard"] or ""), item.name, msgspec.json.encode(item.lines))
                for item in captioned(contents, listing, report, ("shard",))
            ),
        )
        rows.execute("CREATE INDEX by_shard ON items (shard)")
    except BaseException:
        rows.close()
        raise
    return rows


def _of(rows: sqlite3.Connection, shard: str) -> Iterator[tuple[str, list[str]]]:
    query = "SELECT name, lines FROM items WHERE shard = ? ORDER BY rowid"
    for name, lines in rows.execute(query, (shard,)):
        yield name, msgspec.json.decode(lines, type=list[str])


def _shards(rows: sqlite3.Connection) -> dict[str, int]:
    """Return how many captioned items each shard has."""
    query = "SELECT shard, COUNT(*) FROM items GROUP BY shard ORDER BY shard"
    return {str(shard): int(items) for shard, items in rows.execute(query)}
