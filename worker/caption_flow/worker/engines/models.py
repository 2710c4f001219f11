"""Model names: which are folders, and whether those exist. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path


def looks_like_folder(model: str) -> bool:
    """Tell whether ``model`` means a folder on this machine and not a hub's ``org/name``."""
    if model.startswith(("/", "./", "../", "~")) or model in {".", ".."}:
        return True
    return model.count("/") > 1 or (os.sep != "/" and os.sep in model)


def model_path(model: str) -> str:
    """Return ``model`` with ``~`` replaced by the home folder if it means a folder."""
    if not model.startswith("~"):
        return model
    with contextlib.suppress(RuntimeError):  # there is no such user
        return str(Path(model).expanduser())
    return model


def missing_model_folder(model: str) -> str | None:
    """Return a sentence when ``model`` names a folder that cannot hold a model, else None.

    A hub name (``org/name``) gives None: whether the hub has it, only loading tells. A remote
    location (``s3://bucket/model``) does too. Takes milliseconds; nothing is loaded.
    """
    if "://" in model:
        return None
    path = Path(model_path(model))
    kind = _kind(path)
    if kind == stat.S_IFDIR:
        return _incomplete(model, path)
    if kind == stat.S_IFREG:
        # GGUF, the one kind of model that is a single file.
        return None if path.suffix == ".gguf" else f"model '{model}' is a file, not a folder"
    if looks_like_folder(model):
        where = "" if path.is_absolute() else f" (looked in {Path.cwd()})"
        return f"model folder '{model}' does not exist{where}"
    return None


def _kind(path: Path) -> int | None:
    """Return the file's type as in ``st_mode``, None if there is no such file."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return None


def _incomplete(model: str, path: Path) -> str | None:
    if any((path / name).is_file() for name in ("config.json", "params.json")):
        return None
    if any(path.glob("*.gguf")):
        return None
    return f"model folder '{model}' has no config.json: it does not hold a model"
