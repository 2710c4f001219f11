"""Items with their texts, one by one: what formats that list captions for trainers share.

Owns which items are in such a list, and counts why the others are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from caption_flow.protocol.rows import FAILED
from caption_flow.storage.contents import Row, StorageContents
from caption_flow.storage.exporter.columns import require
from caption_flow.storage.exporter.names import name_for_people
from caption_flow.storage.exporter.report import ExportReport, Skip
from caption_flow.storage.exporter.texts import Wording, caption_lines

TAGS: Final = "tags"


@dataclass(frozen=True, slots=True)
class Listing:
    """What a list of captions is made of.

    ``filename_column`` has the images' paths within the dataset, ``wording`` says which texts an
    item has. Items without any are left out, unless ``include_empty`` asks for them.
    """

    wording: Wording = field(default_factory=Wording)
    filename_column: str = "filename"
    include_empty: bool = False

    def check(self, contents: StorageContents) -> None:
        """Raise `ExportError` if there is nothing to list, or no column that it takes."""
        require(contents, self.filename_column)
        self.wording.check(contents)


@dataclass(frozen=True, slots=True)
class Captioned:
    """One captioned item: the image's path within the dataset, its texts, and its row."""

    name: str
    lines: list[str]
    row: Row

    @property
    def text(self) -> str:
        """All texts as one."""
        return ", ".join(self.lines)


def captioned(
    contents: StorageContents, listing: Listing, report: ExportReport, more: Sequence[str] = ()
) -> Iterator[Captioned]:
    """Yield the captioned items, whose rows have the columns ``more`` too; count all others."""
    columns = dict.fromkeys(("status", listing.filename_column, *listing.wording.reads, *more))
    for row in contents.iter_rows(tuple(columns)):
        name = row[listing.filename_column]
        if row["status"] == FAILED:
            report.skip(Skip.FAILED)
        elif not isinstance(name, str) or not name:
            report.skip(Skip.BAD_NAME, "an item has no file name")
        elif not _is_unicode(name):
            problem = f"{name_for_people(name)} is not valid UTF-8: no such list can name it"
            report.skip(Skip.BAD_NAME, problem)
        elif not (lines := listing.wording.lines(row)) and not listing.include_empty:
            report.skip(Skip.EMPTY)
        else:
            yield Captioned(name, lines, row)


def tags_beside(contents: StorageContents, wording: Wording) -> str | None:
    """Return the column of tags that trainers know by name, unless the texts have it already."""
    return TAGS if TAGS in contents.columns and TAGS not in wording.reads else None


def joined(value: object) -> str:
    """Return a column's value as one text."""
    return ", ".join(caption_lines(value))


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
