"""Which source reads which kind of dataset. Each is imported when it is asked for.

Kinds that are not here are looked for among those that installed packages bring: see
``docs/sources.md``.
"""

from __future__ import annotations

from contextlib import closing
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Final

from caption_flow.config.dataset import DatasetConfig
from caption_flow.config.plugins import plugged_in
from caption_flow.orchestrator.sources.base import Source, SourceError
from caption_flow.storage.database import open_for_reading, read_meta

_HERE: Final = "caption_flow.orchestrator.sources"
_SOURCES: Final = {
    "local_filesystem": (f"{_HERE}.local", "LocalSource"),
    "huggingface_datasets": (f"{_HERE}.hub", "HubSource"),
    "webdataset": (f"{_HERE}.tars", "TarSource"),
}


def source_for(kind: str) -> type[Source]:
    """Return the source that reads a kind of dataset. Raises `SourceError`."""
    if kind not in _SOURCES and (plugged := plugged_in(kind)) is not None:
        return _loaded(kind, plugged)
    if kind not in _SOURCES:
        raise SourceError(
            f"a dataset of the kind {kind} cannot be read by this release yet: "
            "put the images into a folder and use type: local_filesystem"
        )
    module, name = _SOURCES[kind]
    source: type[Source] = getattr(import_module(module), name)
    return source


def refuse_other_dataset(dataset: DatasetConfig, data_dir: Path) -> None:
    """Look before a run's folder is opened: whoever is refused has changed nothing; blocking.

    Raises:
        SourceError: the folder is about another dataset.
        StorageError: its ledger cannot be read.
    """
    connection = open_for_reading(data_dir)
    if connection is None:
        return
    with closing(connection):
        remembered = read_meta(connection, "dataset")
    if remembered is not None:
        source_for(dataset.processor_type).check_same(dataset, remembered, data_dir)


def _loaded(kind: str, plugged: EntryPoint) -> type[Source]:
    """Return the class that a package calls a source. Raises `SourceError`."""
    try:
        found = plugged.load()
    except Exception as error:  # whatever somebody else's module does when it is imported
        raise SourceError(
            f"the source {kind} ({plugged.value}) cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Source)):
        raise SourceError(f"the source {kind} ({plugged.value}) is no subclass of Source")
    return found
