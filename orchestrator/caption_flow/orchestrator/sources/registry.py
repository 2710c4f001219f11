"""Which source reads which kind of dataset. Each is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from caption_flow.orchestrator.sources.base import Source, SourceError

_HERE: Final = "caption_flow.orchestrator.sources"
_SOURCES: Final = {
    "local_filesystem": (f"{_HERE}.local", "LocalSource"),
    "huggingface_datasets": (f"{_HERE}.hub", "HubSource"),
    "webdataset": (f"{_HERE}.tars", "TarSource"),
}


def source_for(kind: str) -> type[Source]:
    """Return the source that reads a kind of dataset. Raises `SourceError`."""
    if kind not in _SOURCES:
        raise SourceError(
            f"a dataset of the kind {kind} cannot be read by this release yet: "
            "put the images into a folder and use type: local_filesystem"
        )
    module, name = _SOURCES[kind]
    source: type[Source] = getattr(import_module(module), name)
    return source
