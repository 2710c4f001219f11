"""Samples of tars as trainers get them: by the ``webdataset`` package."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import webdataset


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """Return the samples of all tars in a folder, with undecoded members."""
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the package leaves tars open
        found = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
        gc.collect()
    return found
