"""Which files of a repository make up which split: the hub's conventions. Pure.

https://huggingface.co/docs/hub/datasets-manual-configuration and -file-names-and-splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fsspec.utils import glob_translate

from caption_flow.orchestrator.sources.base import SourceError

Splits = dict[str, list[str]]
"""Files by split, in the order in which they are read."""

_DEFAULT: Final = "default"
_SUFFIX: Final = ".parquet"
_SHARDED: Final = re.compile(r"(?:.*/)?(?P<split>\w[\w.]*?)-\d{5,}-of-\d{5,}[^/]*\.parquet")
_KEYWORDS: Final = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF: Final = {word: split for split, words in _KEYWORDS.items() for word in words}


def parquet_files(names: Iterable[str]) -> list[str]:
    """Return the Parquet files among names, in order; hidden ones are nobody's."""
    return sorted(
        name
        for name in names
        if name.endswith(_SUFFIX) and not any(part[:1] in "._" for part in name.split("/"))
    )


def choose(
    names: Sequence[str], configs: Sequence[Mapping[str, Any]], config: str | None, split: str
) -> list[str]:
    """Return the files of a split, in order.

    ``configs`` is what the dataset's card says (``configs:`` of README.md); without it names and
    folders say which file is of which split. Raises `SourceError`, naming what there is.
    """
    files = parquet_files(names)
    splits = _declared(files, configs, config) if configs else _guessed(files, config)
    if split not in splits:
        raise SourceError(f"the dataset has no split {split!r}, but {_list(splits)}: dataset.split")
    if not splits[split]:
        raise SourceError(f"no Parquet file belongs to the dataset's split {split!r}")
    return splits[split]


def choose_converted(names: Sequence[str], config: str | None, split: str) -> list[str]:
    """Return a split's files in the hub's converted branch: ``config/split/0000.parquet``."""
    configs: dict[str, Splits] = {}
    for name in parquet_files(names):
        parts = name.split("/")
        if len(parts) == 3:
            files = configs.setdefault(parts[0], {})
            files.setdefault(parts[1].removeprefix("partial-"), []).append(name)
    chosen = configs[_pick(list(configs), config, None)]
    if split not in chosen:
        raise SourceError(f"the dataset has no split {split!r}, but {_list(chosen)}: dataset.split")
    return chosen[split]


def _declared(
    files: Sequence[str], configs: Sequence[Mapping[str, Any]], config: str | None
) -> Splits:
    by_name = {str(entry.get("config_name", _DEFAULT)): entry for entry in configs}
    preferred = next((name for name, entry in by_name.items() if entry.get("default")), None)
    entry = by_name[_pick(list(by_name), config, preferred)]
    folder = str(entry.get("data_dir") or "").strip("/")
    if "data_files" not in entry:
        return _by_names([name for name in files if not folder or name.startswith(f"{folder}/")])
    return {
        split: _matching(files, patterns, folder)
        for split, patterns in _patterns(entry["data_files"]).items()
    }


def _patterns(data_files: Any) -> dict[str, list[str]]:
    """Return patterns by split: ``data_files`` is one, several, or a list of split and path."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    found: dict[str, list[str]] = {}
    for entry in entries:
        is_mapping = isinstance(entry, Mapping)
        split = str(entry.get("split", "train")) if is_mapping else "train"
        paths = entry.get("path", []) if is_mapping else entry
        found.setdefault(split, []).extend(map(str, paths if isinstance(paths, list) else [paths]))
    return found


def _matching(files: Sequence[str], patterns: Iterable[str], folder: str) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        path = pattern.removeprefix("./")
        matches = re.compile(glob_translate(f"{folder}/{path}" if folder else path)).match
        found |= dict.fromkeys(name for name in files if matches(name))
    return list(found)


def _guessed(files: Sequence[str], config: str | None) -> Splits:
    if config is not None and config != _DEFAULT:
        folders = sorted({name.split("/")[0] for name in files if "/" in name})
        if config not in folders:
            raise SourceError(_no_config(config, [_DEFAULT, *folders]))
        files = [name for name in files if name.startswith(f"{config}/")]
    return _by_names(files)


def _by_names(files: Sequence[str]) -> Splits:
    """Return files by the split that their name or a folder says; ``train`` if none says any."""
    found: Splits = {}
    for name in files:
        found.setdefault(_split_of(name) or "", []).append(name)
    unnamed = found.pop("", [])
    return found or {"train": unnamed}


def _split_of(name: str) -> str | None:
    sharded = _SHARDED.fullmatch(name)
    if sharded is not None:
        return _SPLIT_OF.get(sharded["split"], sharded["split"])
    for part in reversed(name.removesuffix(_SUFFIX).split("/")):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLIT_OF:
                return _SPLIT_OF[word]
    return None


def _pick(names: Sequence[str], wanted: str | None, preferred: str | None) -> str:
    if wanted is not None:
        if wanted not in names:
            raise SourceError(_no_config(wanted, names))
        return wanted
    if len(names) == 1:
        return names[0]
    chosen = preferred or (_DEFAULT if _DEFAULT in names else None)
    if chosen is None:
        raise SourceError(
            f"the dataset has several configurations, {_list(names)}: say which one "
            "with dataset.dataset_config"
        )
    return chosen


def _no_config(wanted: str, names: Iterable[str]) -> str:
    return (
        f"the dataset has no configuration {wanted!r}, but {_list(names)}: dataset.dataset_config"
    )


def _list(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none at all"
