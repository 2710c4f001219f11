"""What every format checks before it touches a file."""

from __future__ import annotations

from caption_flow.storage.contents import StorageContents, no_such
from caption_flow.storage.exporter.errors import ExportError


def require(contents: StorageContents, *columns: str) -> None:
    """Refuse contents that could not be read, hold nothing, or lack one of these columns.

    Raises:
        ExportError: with the sentence about it.
    """
    if "error" in contents.metadata:
        raise ExportError(str(contents.metadata["error"]))
    if not contents.columns:
        message = contents.metadata.get("message", "nothing has been written yet")
        raise ExportError(f"there is nothing to export: {message}")
    for name in columns:
        if name not in contents.columns:
            raise ExportError(no_such("column", name, contents.columns))
