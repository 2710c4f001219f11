"""Where an item's bytes are, as the orchestrator tells its workers.

A place is only ever told by an orchestrator to its own workers, never the other way round. Whoever
reads one decides for itself whether it can, and may (see `caption_flow.places`); what it
cannot read it asks the orchestrator for.
"""

from __future__ import annotations

import msgspec


class FilePlace(msgspec.Struct, frozen=True, array_like=True, tag="file"):
    """A file, or ``length`` bytes of it from ``offset``; the very one only if size and time agree.

    ``path`` is absolute and as the file system has it: it need not be valid UTF-8. ``size`` is the
    whole file's, in bytes, ``mtime_ns`` the time of its last change.
    """

    path: bytes
    size: int
    mtime_ns: int
    offset: int = 0
    length: int | None = None


class ObjectPlace(msgspec.Struct, frozen=True, array_like=True, tag="object"):
    """An object of the dataset's own storage, or ``length`` bytes of it from ``offset``.

    ``url`` is ``https://``, ``s3://``, ``hf://`` or of another storage; ``size`` is the whole
    object's, where it is known: one of another size is another object. So is one of another
    ``etag``, which is what its storage calls this version of it, where it names versions.
    """

    url: str
    offset: int = 0
    length: int | None = None
    size: int | None = None
    etag: str | None = None


class CellPlace(msgspec.Struct, frozen=True, array_like=True, tag="cell"):
    """The bytes in one cell of a Parquet file: those of ``row`` of a row group, in ``column``.

    The column holds binary values, or structs with a field ``bytes`` (and, where that is null, a
    ``path``), as datasets of the Hugging Face hub have them.
    """

    file: FilePlace | ObjectPlace
    row_group: int
    row: int
    column: str


class LinkPlace(msgspec.Struct, frozen=True, array_like=True, tag="link"):
    """An address that stands in the dataset itself: whoever wrote the dataset chose it."""

    url: str


Place = FilePlace | ObjectPlace | CellPlace | LinkPlace
