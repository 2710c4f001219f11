"""Taking an export of texts back: files get what they held before it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from caption_flow.storage.atomic import replace_bytes
from caption_flow.storage.contents import displayed
from caption_flow.storage.exported import UNDO_FILE, Replaced, replaced_by_export
from caption_flow.storage.exporter.errors import ExportError, naming


@contextmanager
def kept_for_undo(data_dir: Path, export: int | None = None) -> Iterator[Replaced]:
    """Open the record that `undo_export` goes by; see `replaced_by_export`.

    Raises:
        ExportError: it cannot be opened, so nothing should be replaced.
    """
    with ExitStack() as stack:
        try:
            record = stack.enter_context(replaced_by_export(data_dir, export))
        except (sqlite3.DatabaseError, OSError) as error:
            raise ExportError(
                "what files hold before they are replaced cannot be kept in "
                f"{displayed(str(data_dir / UNDO_FILE))}: {error}"
            ) from error
        yield record


@dataclass(slots=True)
class UndoReport:
    """What was put back, and which files were left as they are since they changed after it."""

    restored: int = 0
    left: list[str] = field(default_factory=list)


def undo_export(data_dir: Path) -> UndoReport:
    """Put back what the last export that replaced files replaced; done once, there is nothing left.

    A file that was edited since, or is gone, is left as it is.

    Raises:
        ExportError: a file cannot be written; those before it are restored, and the rest still can
            be.
        sqlite3.DatabaseError: the record is damaged.
    """
    report = UndoReport()
    with replaced_by_export(data_dir) as replaced:
        for path, before in replaced:
            with naming(path):
                try:
                    ours = replaced.still_ours(path)
                except FileNotFoundError:
                    ours = False
                if ours:
                    replace_bytes(path, before)
                    report.restored += 1
                else:
                    report.left.append(displayed(str(path)))
    return report
