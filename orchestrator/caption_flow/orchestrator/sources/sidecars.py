"""The dataset's own columns of an image in a folder: what lies beside it, and what metadata says.

For ``x.jpg`` that is ``x.json`` (its keys), ``x.txt`` (column ``text``) and the folders' metadata
files (see `metadata`), in this order of precedence. Only what prompts name is looked for, and
nothing is kept in memory. Blocking; callable from any thread.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import structlog

from caption_flow.orchestrator.sources.column_text import LONGEST, column_text
from caption_flow.orchestrator.sources.metadata import MetadataIndex

log = structlog.get_logger()

TEXT_COLUMN: Final = "text"
_LARGEST: Final = 16 * 2**20
_NAMED: Final = 5
_NO_SUCH_NAME: Final = frozenset({errno.ENOENT, errno.ENAMETOOLONG})

IsOurs = Callable[[Path, bytes], bool]


class Sidecars:
    """Reads the columns in ``names`` of images below ``root``."""

    def __init__(self, root: bytes, names: Sequence[str], metadata: MetadataIndex) -> None:
        self._root = root
        self.names = tuple(names)
        self.metadata = metadata
        self._lock = threading.Lock()
        self._broken = 0

    def columns_of(
        self, path: bytes, recorded: Mapping[str, str | None] | None, is_ours: IsOurs
    ) -> dict[str, str | None]:
        """Return a value for each name, None where there is none.

        A recorded ``text`` stays: by now the file may hold a caption of this run. One that
        ``is_ours`` says to hold a caption of this run counts as absent.
        """
        found = self.metadata.find(path)
        if TEXT_COLUMN in self.names:
            if recorded is not None and TEXT_COLUMN in recorded:
                found[TEXT_COLUMN] = recorded[TEXT_COLUMN]
            elif (text := self._text(path, is_ours)) is not None:
                found[TEXT_COLUMN] = text
        found.update(self._json(path))
        return {**(recorded or {}), **{name: found.get(name) for name in self.names}}

    def missing(self, paths: Iterable[bytes]) -> tuple[set[str], set[str]]:
        """Return the names that none of some images has, and the columns that they do have."""
        there: set[str] = set(self.metadata.columns)
        for path in paths:
            there.update(self._keys(path))
            if os.path.exists(self._beside(path, b".txt")):  # noqa: PTH110  -- bytes
                there.add(TEXT_COLUMN)
            if there.issuperset(self.names):
                break
        return set(self.names) - there, there

    def close(self) -> None:
        """Say how much could not be read, and close the index; idempotent."""
        self.metadata.close()
        broken, self._broken = self._broken, 0
        if broken:
            log.warning("files beside images could not be used: columns are empty", times=broken)

    def _beside(self, path: bytes, suffix: bytes) -> bytes:
        stem = os.path.splitext(path)[0]  # noqa: PTH122  -- bytes
        return os.path.join(self._root, stem + suffix)  # noqa: PTH118  -- bytes

    def _keys(self, path: bytes) -> set[str]:
        data = self._read(self._beside(path, b".json"), _LARGEST)
        return set() if data is None else set(self._object(path, data))

    def _json(self, path: bytes) -> dict[str, str | None]:
        data = self._read(self._beside(path, b".json"), _LARGEST)
        values = {} if data is None else self._object(path, data)
        return {name: column_text(values[name]) for name in self.names if name in values}

    def _object(self, path: bytes, data: bytes) -> dict[str, object]:
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            self._complain(self._beside(path, b".json"), f"no valid JSON: {error}")
            return {}
        if not isinstance(values, dict):
            self._complain(self._beside(path, b".json"), "no JSON object")
            return {}
        return values

    def _text(self, path: bytes, is_ours: IsOurs) -> str | None:
        file = self._beside(path, b".txt")
        data = self._read(file, LONGEST)
        if data is None or is_ours(Path(os.fsdecode(file)), data):
            return None
        return column_text(data.decode("utf-8-sig", "replace").strip())

    def _read(self, file: bytes, largest: int) -> bytes | None:
        try:
            with open(file, "rb") as stream:  # noqa: PTH123  -- bytes
                data = stream.read(largest + 1)
        except OSError as error:
            if error.errno not in _NO_SUCH_NAME:
                self._complain(file, error.strerror or str(error))
            return None
        if len(data) > largest:
            self._complain(file, f"larger than {largest} bytes")
            return None
        return data

    def _complain(self, file: bytes, reason: str) -> None:
        with self._lock:
            self._broken += 1
            named = self._broken <= _NAMED
        if named:
            name = file.decode("utf-8", "backslashreplace")
            log.warning("a file beside an image is passed over", file=name, reason=reason)
