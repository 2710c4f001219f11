"""The one file of a jsonl, csv or parquet export, whole or not at all."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from caption_flow.storage.atomic import closed_after, replaced_file
from caption_flow.storage.exporter.errors import naming


class OutputFile:
    """What a format writes to. Each failure is an `ExportError` that names the file.

    It has as much of a binary file's methods as pyarrow's writers use.
    """

    def __init__(self, path: Path, sink: BinaryIO) -> None:
        self._path = path
        self._sink = sink
        self.closed = False

    def write(self, chunk: bytes) -> int:
        """Write all of the chunk."""
        with naming(self._path):
            return self._sink.write(chunk)

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        with naming(self._path):
            self._sink.flush()


@contextmanager
def output_file(path: Path) -> Iterator[OutputFile]:
    """Yield a file that is at ``path`` once the block has ended without an exception.

    A link stays a link: the file that it points to is replaced. What is no file (a pipe,
    ``/dev/stdout``) is written to as it is. Exceptions of the block that are not about this file
    pass through as they are.
    """
    with ExitStack() as stack:
        with naming(path):
            sink = stack.enter_context(_opened(path))
        output = OutputFile(path, sink)
        yield output
        with naming(path):
            stack.close()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if _is_special(path):
        special = path.open("wb")
        with closed_after(special):
            yield special
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path, durable=True) as sink:
        yield sink


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
