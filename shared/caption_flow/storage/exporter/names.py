"""From an image's name to the file beside it, and never to a file outside the folder.

Names come from datasets: they may hold anything, and are refused one by one, with a sentence,
where they cannot be used.
"""

from __future__ import annotations

import os
from pathlib import Path

from caption_flow.storage.contents import displayed
from caption_flow.storage.exporter.errors import naming


class BadNameError(Exception):
    """An item's name that gives no file to write; ``str()`` says why."""


class OutputFolder:
    """A folder that the files of an export stay inside, whatever the items are called.

    Works on plain strings: there are millions of names, few folders, and ``pathlib`` costs more
    than all the rest.
    """

    def __init__(self, root: Path) -> None:
        with naming(root):
            root.mkdir(parents=True, exist_ok=True)
            self.root = root.resolve()
        self._folders: dict[str, str | None] = {}

    def beside(self, filename: object, suffix: str) -> str:
        """Return where the file with this suffix belongs: beside its image, with its stem.

        Only the last suffix is replaced (``a.tar.gz`` gives ``a.tar.txt``); a name without one,
        and a hidden file's (``.photo``), is kept whole. The path is absolute, and without links
        as far as folders go.

        Raises:
            BadNameError: no name, none that a disk can hold, or a way out of the folder.
        """
        folder_name, name = _checked(filename)
        if folder_name not in self._folders:
            self._folders[folder_name] = self._resolved(folder_name)
        folder = self._folders[folder_name]
        if folder is None:
            raise BadNameError(f"{name_for_people(filename)} leads out of the output folder")
        return f"{folder}/{stem(name)}{suffix}"

    def _resolved(self, name: str) -> str | None:
        # Resolved, so that one folder under two names (a symbolic link) is seen to be one.
        if ".." in name.split("/"):
            return None
        try:
            folder = (self.root / name).resolve()
        except (OSError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
            return None
        return str(folder).rstrip("/") if folder.is_relative_to(self.root) else None


def stem(name: str) -> str:
    """Return a file name without its last suffix, as ``os.path.splitext`` does in every version.

    Trainers look for captions by that rule; ``pathlib`` has another for ``photo.``.
    """
    before, _, _ = name.rpartition(".")
    return before if before.strip(".") else name


def name_for_people(filename: object) -> str:
    """Return a name that fits in a sentence: quoted, without line breaks, valid UTF-8."""
    return repr(displayed(filename) if isinstance(filename, str) else filename)


def last_part(path: str) -> str:
    """Return a path's last component."""
    return path.rpartition("/")[2]


def _checked(filename: object) -> tuple[str, str]:
    """Return the folder's part and the file's own; raises `BadNameError`."""
    if not isinstance(filename, str) or not filename:
        raise BadNameError("an item has no file name")
    folder, _, name = filename.rpartition("/")
    if filename.startswith("/") or name == "..":
        raise BadNameError(f"{name_for_people(filename)} leads out of the output folder")
    try:
        usable = name not in {"", "."} and b"\0" not in os.fsencode(filename)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise BadNameError(f"{name_for_people(filename)} is not a file name")
    return folder, name
