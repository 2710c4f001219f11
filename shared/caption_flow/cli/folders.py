"""Folders a command is to write into: whether it can, before anything has been done."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from caption_flow.cli.failures import usage_error

DATA_FOLDER: Final = ".caption-flow"
_UNPRINTABLE: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def data_dir_beside(path: Path) -> Path:
    """Return where the results of a folder go: a sibling, so that the dataset stays a dataset."""
    folder = Path(os.path.abspath(path.expanduser()))  # noqa: PTH100  -- resolve() follows links
    return folder.parent / DATA_FOLDER / (folder.name or "root")


def refuse_unwritable(folder: Path, way_out: str) -> None:
    """End the command if ``folder`` is there and cannot be written, or could not be made."""
    absolute = folder.absolute()
    there = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
    if not there.is_dir():
        what = "a file" if there.exists() else "a link to nothing"
        usage_error(f"{for_people(there)} is {what}, where a folder has to be; {way_out}")
    if not os.access(there, os.W_OK | os.X_OK):
        usage_error(
            f"{for_people(folder)} cannot be written (permission denied for "
            f"{for_people(there)}); {way_out}"
        )


def for_people(path: Path | str) -> str:
    r"""Return a path or a file's name as one line that any terminal shows as it is.

    Bytes that are no UTF-8 become ``\xff``; so do control characters, which could move the cursor.
    A path below the working folder is shown from there.
    """
    text = str(path)
    if isinstance(path, Path) and path.is_absolute():
        here = os.path.relpath(path)
        text = text if here.startswith("..") else here
    shown = os.fsencode(text).decode("utf-8", "backslashreplace")
    return _UNPRINTABLE.sub(lambda found: repr(found.group())[1:-1], shown)
