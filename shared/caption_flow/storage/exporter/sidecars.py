"""One file per item, beside its image: what the txt and json formats share.

Owns which items get a file, what happens to files that exist, and that each is replaced whole.
What a file holds is the format's.
"""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from caption_flow.storage.atomic import replace_bytes, replaced_file
from caption_flow.storage.contents import Row, StorageContents
from caption_flow.storage.exported import Exported, Replaced
from caption_flow.storage.exporter.claims import Claim, Claims
from caption_flow.storage.exporter.errors import ExportError, naming
from caption_flow.storage.exporter.names import (
    BadNameError,
    OutputFolder,
    last_part,
    name_for_people,
)
from caption_flow.storage.exporter.report import ExportReport, Skip

Existing = Literal["overwrite", "skip", "append", "backup"]
"""What to do where there is a file already: replace it, leave it, add our lines after it, or
replace it and keep what it was beside it."""

BACKUP_SUFFIX: Final = ".bak"

_BAD_NAME_ERRORS: Final = frozenset(
    {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.EILSEQ, errno.EINVAL}
)
"""The disk's way of saying that it cannot hold a file of that name; other items' it can."""


_NOT_A_FILE: Final = -1


@dataclass(frozen=True, slots=True)
class SidecarFormat:
    """How one format's files look.

    ``columns`` are read for `render`, which returns a file's bytes or why the item gets none.
    """

    suffix: str
    columns: Sequence[str]
    render: Callable[[Row], bytes | Skip]


def write_sidecars(
    contents: StorageContents,
    output_dir: Path,
    format_: SidecarFormat,
    *,
    filename_column: str,
    existing: Existing,
    earlier: Exported | None = None,
    replaced: Replaced | None = None,
) -> ExportReport:
    """Write each item's file beside its image under ``output_dir``; see `ExportReport`.

    With ``earlier``, a file that still holds what an earlier export wrote is replaced also where
    existing files are left alone, and what is written now is remembered. With ``replaced``, what
    files held before is noted there before they are replaced.

    Raises:
        ExportError: a file cannot be written (full disk, no permission); those before it are whole.
    """
    if existing not in get_args(Existing):
        raise ExportError(f"existing={existing!r}: choose one of {', '.join(get_args(Existing))}")
    folder = OutputFolder(output_dir)
    writer = _SidecarWriter(
        folder, format_, filename_column, existing, earlier=earlier, replaced=replaced
    )
    return writer.write_all(contents)


class _SidecarWriter:
    def __init__(
        self,
        folder: OutputFolder,
        format_: SidecarFormat,
        filename_column: str,
        existing: Existing,
        *,
        earlier: Exported | None,
        replaced: Replaced | None,
    ) -> None:
        self._folder = folder
        self._format = format_
        self._filename_column = filename_column
        self._existing = existing
        self._earlier = earlier
        self._replaced = replaced
        self._report = ExportReport(folder.root)

    def write_all(self, contents: StorageContents) -> ExportReport:
        names = ("item_key", self._filename_column)
        claims = Claims(lambda: self._claims(contents.iter_rows(names)))
        columns = tuple(dict.fromkeys((*names, *self._format.columns)))
        for row in contents.iter_rows(columns):
            self._write_item(row, claims)
        return self._report

    def _claims(self, rows: Iterator[Row]) -> Iterator[Claim]:
        for row in rows:
            try:
                yield self._claim(row)
            except BadNameError:
                continue  # said, and counted, when its turn to be written comes

    def _claim(self, row: Row) -> Claim:
        name = row[self._filename_column]
        target = self._folder.beside(name, self._format.suffix)
        # An image that is called like a caption file keeps its name before all who want it.
        item_key = "" if _is_own_name(target, name) else str(row["item_key"] or name)
        return Claim(item_key, target, name)

    def _write_item(self, row: Row, claims: Claims) -> None:
        rendered = self._format.render(row)
        if isinstance(rendered, Skip):
            self._report.skip(rendered)
            return
        try:
            claim = self._claim(row)
        except BadNameError as error:
            self._report.skip(Skip.BAD_NAME, str(error))
            return
        owner = claims.take(claim)
        if _is_own_name(claim.target, claim.name):
            problem = f"{name_for_people(claim.name)}: its file would replace the image itself"
            self._report.skip(Skip.BAD_NAME, problem)
        elif owner is None:
            self._write_file(Path(claim.target), rendered, claim.name)
        else:
            self._report.skip(Skip.CONFLICT, self._conflict(claim, owner))

    def _conflict(self, claim: Claim, owner: Claim) -> str:
        target = name_for_people(str(Path(claim.target).relative_to(self._folder.root)))
        return (
            f"{name_for_people(claim.name)} has no file of its own: "
            f"{target} belongs to {name_for_people(owner.name)}"
        )

    def _write_file(self, path: Path, ours: bytes, name: str) -> None:
        with naming(path):
            try:
                self._place(path, ours)
            except OSError as error:
                if error.errno not in _BAD_NAME_ERRORS:
                    raise
                problem = f"{name_for_people(name)} gives no usable file name: {error.strerror}"
                self._report.skip(Skip.BAD_NAME, problem)

    def _place(self, path: Path, ours: bytes) -> None:
        """Put our bytes where they belong, as ``existing`` says, and count what was done."""
        report = self._report
        before = _size_of(path)
        if before == _NOT_A_FILE:
            report.skip(Skip.CONFLICT, f"{name_for_people(str(path))} exists and is not a file")
        elif before is None and path.is_symlink() and self._existing == "skip":
            report.skip(Skip.EXISTING)  # a link that leads nowhere is somebody's all the same
        elif before is None:
            _make(path, ours)
            self._remember(path, ours)
            report.written += 1
        elif self._existing == "append":
            self._append(path, ours)
        elif before == len(ours) and path.read_bytes() == ours:
            self._remember(path, ours)
            report.unchanged += 1
        elif self._existing == "skip" and not self._is_ours(path):
            report.skip(Skip.EXISTING)
        else:
            self._replace(path, ours)
            self._remember(path, ours)
            report.written += 1
            report.replaced += 1

    def _replace(self, path: Path, ours: bytes) -> None:
        """Put our bytes in place of a file's, which are noted and kept as far as was asked for."""
        if self._replaced is not None:
            self._replaced.note(path, path.read_bytes(), ours)
        if self._existing == "backup" and not self._is_ours(path):
            self._report.backed_up += keep_beside(path)
        replace_bytes(path, ours)

    def _is_ours(self, path: Path) -> bool:
        return self._earlier is not None and self._earlier.is_ours(path, path.read_bytes())

    def _remember(self, path: Path, ours: bytes) -> None:
        if self._earlier is not None:
            self._earlier.remember(path, ours)

    def _append(self, path: Path, ours: bytes) -> None:
        before = path.read_bytes()
        after = appended(before, ours)
        if after == before:
            self._report.unchanged += 1
            return
        if self._replaced is not None and before:
            self._replaced.note(path, before, after)
        replace_bytes(path, after)
        self._report.written += 1
        self._report.appended += bool(before)


def keep_beside(path: Path) -> bool:
    """Keep a copy of a file as ``NAME.bak``; a backup that is there is never replaced.

    Returns whether there is a new one: what an existing one holds already is not kept twice.
    """
    number = 0
    while True:
        ending = BACKUP_SUFFIX if number == 0 else f"{BACKUP_SUFFIX}{number}"
        backup = path.with_name(path.name + ending)
        if not os.path.lexists(backup):
            with replaced_file(backup) as sink, path.open("rb") as source:
                shutil.copyfileobj(source, sink)
            shutil.copystat(path, backup)
            return True
        if backup.is_file() and filecmp.cmp(path, backup, shallow=False):
            return False
        number += 1


def _make(path: Path, ours: bytes) -> None:
    try:
        replace_bytes(path, ours)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, ours)


def _is_own_name(target: str, filename: str) -> bool:
    return last_part(target) == last_part(filename)


def appended(before: bytes, ours: bytes) -> bytes:
    r"""Return the text with our lines after its own, or as it is when it ends with them already.

    Line ends of the existing text may be ``\n`` or ``\r\n``; ours are ``\n``.
    """
    if not before.strip():
        return ours
    lines = before.replace(b"\r\n", b"\n").rstrip(b"\n")
    if lines == ours or lines.endswith(b"\n" + ours):
        return before
    return before.rstrip(b"\r\n") + b"\n" + ours


def _size_of(path: Path) -> int | None:
    """Return the size of the file there, None when there is none, or -1 for what is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else _NOT_A_FILE
