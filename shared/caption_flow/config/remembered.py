"""A `dataset` section as a run's folder keeps it, so that the images are found again later.

Whoever comes back stands elsewhere: paths are made absolute.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from caption_flow.config.dataset import LOCAL, DatasetConfig

DATASET_SECTION: Final = "dataset_section"
"""What the ledger calls it among its facts."""

_SEPARATOR: Final = "::"
_FILES_OF_THIS_MACHINE: Final = frozenset({LOCAL, "webdataset"})


def to_text(dataset: DatasetConfig) -> str:
    """Return the section as ASCII, whatever bytes its paths have."""
    section: dict[str, Any] = dataset.model_dump(exclude_defaults=True)
    section["dataset_path"] = _absolute(dataset)
    if dataset.metadata_path is not None:
        section["metadata_path"] = str(dataset.metadata_path.absolute())
    return json.dumps(section, default=str)


def from_text(text: str) -> DatasetConfig:
    """Return the section that `to_text` was given, with absolute paths."""
    return DatasetConfig.model_validate(json.loads(text))


def _absolute(dataset: DatasetConfig) -> str:
    if dataset.processor_type == LOCAL:
        return str(Path(dataset.dataset_path).absolute())
    places = (part.strip() for part in dataset.dataset_path.split(_SEPARATOR))
    return _SEPARATOR.join(_place(part, dataset.processor_type) for part in places)


def _place(place: str, kind: str) -> str:
    """Return one place; what is no path of this machine stays as it is."""
    if "://" in place or not place:
        return place
    path = Path(place).expanduser()
    # A pattern, or a folder that is gone for the moment, is there by its parent at least.
    is_here = path.exists() or (kind in _FILES_OF_THIS_MACHINE and path.parent.exists())
    return str(path.absolute()) if is_here else place
