"""The texts of a run on this machine: what its end writes for trainers to read."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from caption_flow.cli.failures import CommandFailed
from caption_flow.cli.folders import for_people
from caption_flow.cli.plan import Plan
from caption_flow.cli.present import PresentRows
from caption_flow.storage.contents import Selection, StorageContents
from caption_flow.storage.errors import StorageError
from caption_flow.storage.exported import Exported, exported_from
from caption_flow.storage.exporter.errors import ExportError
from caption_flow.storage.exporter.jsonl import export_jsonl
from caption_flow.storage.exporter.report import ExportReport
from caption_flow.storage.exporter.texts import Wording
from caption_flow.storage.exporter.txt import export_txt
from caption_flow.storage.reader import StorageReader


def write_texts(plan: Plan, tell: Callable[[str], None]) -> ExportReport | None:
    """Write a ``.txt`` beside each image of a folder, or all rows of another dataset into one file.

    ``tell`` takes sentences for people. Returns None if there are no rows yet.

    Raises:
        CommandFailed: not all could be written.
    """
    try:
        if plan.texts_file is not None:
            contents = _contents(plan, partial(StorageReader, plan.data_dir))
            return None if contents is None else export_jsonl(contents, plan.texts_file)
        return _export_texts(plan, plan.folder or plan.destination, tell)
    except (ExportError, StorageError, OSError) as error:
        raise CommandFailed(
            f"the captions are safe in {for_people(plan.data_dir)}, but the "
            f"{'.txt files' if plan.texts_file is None else 'texts'} "
            f"could not all be written: {error}"
        ) from error


def _contents(plan: Plan, read: Callable[[], StorageReader]) -> StorageContents | None:
    """Return the run's rows, as ``read`` has them; None if there are none yet."""
    with contextlib.closing(StorageReader(plan.data_dir)) as reader:
        if not reader.columns:
            return None
        return StorageContents.reading(
            Selection(read),
            columns=list(reader.columns),
            output_fields=list(reader.output_fields),
            total_rows=reader.count_rows(),
        )


def _export_texts(plan: Plan, folder: Path, tell: Callable[[str], None]) -> ExportReport | None:
    """Write a ``.txt`` for each image that is still in a folder."""
    contents = _contents(plan, partial(PresentRows, plan.data_dir, folder))
    if contents is None:
        return None
    with _earlier_texts(plan.data_dir, tell) as earlier:
        return export_txt(
            contents,
            plan.destination,
            wording=Wording((plan.export_column,)),
            existing=plan.existing,  # type: ignore[arg-type]  # one of the four by its enum
            earlier=earlier,
        )


@contextlib.contextmanager
def _earlier_texts(data_dir: Path, tell: Callable[[str], None]) -> Iterator[Exported | None]:
    """Open the record of texts this run has written; without it, none of them is replaced."""
    with contextlib.ExitStack() as stack:
        earlier: Exported | None = None
        try:
            earlier = stack.enter_context(exported_from(data_dir))
        except sqlite3.DatabaseError as error:
            tell(f"Which texts are ours is not known ({error}): all are left as they are")
        yield earlier
