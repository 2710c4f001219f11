"""What stops an export, and the one place where an `OSError` becomes a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from caption_flow.storage.contents import displayed


class ExportError(Exception):
    """An export that cannot be made or finished; ``str()`` is one sentence a person can act on.

    What was written before it is whole, and what was not is as it was.
    """


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Turn an `OSError` of the block into an `ExportError` that names ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ExportError(f"cannot write {displayed(str(path))!r}: {reason}") from error
