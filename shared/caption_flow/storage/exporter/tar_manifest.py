"""``NAME.tars.json``: what is in each tar of an export, so that the next one knows what is whole.

It says that a tar is not whole before the tar is touched, and that it is when it is on disk. Tars
that it does not name are somebody else's.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from caption_flow.storage.atomic import replaced_file
from caption_flow.storage.contents import displayed
from caption_flow.storage.exporter.errors import ExportError, naming

_VERSION: Final = 1


class TarFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tar.

    ``plan`` is a digest of what it is to hold, or empty while it is being written; ``left_out`` is
    how many samples belong in it whose images could not be had.
    """

    file: str
    plan: str = ""
    samples: int = 0
    bytes: int = 0
    left_out: int = 0


class _Content(msgspec.Struct, frozen=True):
    version: int
    tars: list[TarFacts]


class Manifest:
    """The tars of one export, in their order."""

    def __init__(self, path: Path) -> None:
        """Read it; raises `ExportError` if it is damaged or of a later release."""
        self._path = path
        self._tars: dict[str, TarFacts] = {}
        with naming(path):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                return
        try:
            content = msgspec.json.decode(data, type=_Content)
        except msgspec.MsgspecError as error:
            raise ExportError(f"{displayed(str(path))!r} is not a list of tars: {error}") from error
        if content.version != _VERSION:
            raise ExportError(f"{displayed(str(path))!r} is of another release of caption-flow")
        self._tars = {tar.file: tar for tar in content.tars}

    def get(self, file: str) -> TarFacts | None:
        """Return what is known of a tar; None if it is none of this export's."""
        return self._tars.get(file)

    def set(self, facts: TarFacts) -> None:
        """Note the state of a tar, on disk when this returns."""
        self._tars[facts.file] = facts
        self._save()

    def forget(self, file: str) -> None:
        """Note that a tar is gone."""
        del self._tars[file]
        self._save()

    def others(self, files: Collection[str]) -> list[str]:
        """Return the tars that are none of these."""
        return [file for file in self._tars if file not in files]

    def _save(self) -> None:
        tars = sorted(self._tars.values(), key=lambda tar: (len(tar.file), tar.file))
        self._tars = {tar.file: tar for tar in tars}
        data = msgspec.json.encode(_Content(_VERSION, tars))
        with naming(self._path), replaced_file(self._path, durable=True) as sink:
            sink.write(msgspec.json.format(data, indent=1) + b"\n")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder against other exports of tars; raises `ExportError` if one is at work there."""
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportError(
                f"another export is writing tars into {displayed(str(folder))!r}: wait for its end"
            ) from None
        yield
    finally:
        os.close(descriptor)
