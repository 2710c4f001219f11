"""Where a dataset in the hub's layout lies: a folder, or a repository of the hub. Blocking."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from caption_flow.config.dataset import DatasetConfig
from caption_flow.orchestrator.sources.base import SourceError
from caption_flow.orchestrator.sources.hub_access import clearly, repository_at
from caption_flow.orchestrator.sources.hub_layout import choose, choose_converted, parquet_files
from caption_flow.places.parquet import ParquetPlace
from caption_flow.protocol.places import FilePlace, ObjectPlace

_CONVERTED: Final = "refs/convert/parquet"
_PATHS_AT_ONCE: Final = 500
_TARS: Final = (".tar", ".tar.gz")


@dataclass(frozen=True, slots=True)
class Shards:
    """A split's files: where each of them is, by its path within the dataset, in order.

    ``commit`` is the hub's; None for a folder.
    """

    places: Mapping[str, ParquetPlace]
    commit: str | None = None


def find_shards(dataset: DatasetConfig, commit: str | None = None) -> Shards:
    """Find the Parquet files of the split that is configured; ``commit`` is that of earlier runs.

    Raises:
        SourceError: no such dataset, configuration or split, or not in Parquet files.
    """
    if is_folder(dataset):
        return _in_folder(dataset)
    return _on_hub(dataset, commit)


def is_folder(dataset: DatasetConfig) -> bool:
    """Say whether it is a folder: what looks like one, or is there."""
    path = dataset.dataset_path
    return path.startswith((".", "/", "~")) or Path(path).is_dir()


# ------------------------------------------------------------------------------------- a folder


def _in_folder(dataset: DatasetConfig) -> Shards:
    root = Path(dataset.dataset_path).expanduser().absolute()
    if not root.is_dir():
        raise SourceError(f"dataset folder {str(root)!r} does not exist: dataset.dataset_path")
    names = sorted(_names_in(root))
    if not parquet_files(names):
        raise SourceError(
            f"{root} holds no Parquet files, as datasets of the hub do: "
            "a folder of pictures is type: local_filesystem"
        )
    chosen = choose(names, _card_in(root), dataset.dataset_config, dataset.split)
    return Shards({name: _file_place(root, name) for name in chosen})


def _names_in(root: Path) -> Iterator[str]:
    for folder, _, files in os.walk(root):
        below = os.path.relpath(folder, root)
        for file in files:
            yield file if below == "." else f"{below}/{file}"


def _file_place(root: Path, name: str) -> FilePlace:
    path = root / name
    try:
        found = path.stat()
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error.strerror}") from error
    return FilePlace(os.fsencode(path), found.st_size, found.st_mtime_ns)


def _card_in(root: Path) -> list[Mapping[str, Any]]:
    """Return what the folder's README.md says of configurations."""
    try:
        text = (root / "README.md").read_text("utf-8", errors="replace")
    except OSError:
        return []
    if not text.startswith("---"):
        return []
    try:
        return _configs(yaml.safe_load(text.split("\n---", 1)[0].removeprefix("---")))
    except yaml.YAMLError as error:
        raise SourceError(
            f"the YAML at the head of {root / 'README.md'} is damaged: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error


def _configs(card: Any) -> list[Mapping[str, Any]]:
    found = card.get("configs") if isinstance(card, Mapping) else None
    return [entry for entry in found or [] if isinstance(entry, Mapping)]


# ------------------------------------------------------------------------------------- the hub


def _on_hub(dataset: DatasetConfig, commit: str | None) -> Shards:
    repository = dataset.dataset_path
    found = repository_at(repository, dataset.revision, began_with=commit)
    names = [sibling.rfilename for sibling in found.siblings or []]
    if commit is not None and _is_converted(names):
        chosen = choose_converted(names, dataset.dataset_config, dataset.split)
    elif parquet_files(names):
        card = _configs(_plain(found.card_data))
        chosen = choose(names, card, dataset.dataset_config, dataset.split)
    else:
        found = _converted(dataset, names)
        names = [sibling.rfilename for sibling in found.siblings or []]
        chosen = choose_converted(names, dataset.dataset_config, dataset.split)
    sizes: dict[str, int] = {}
    for first in range(0, len(chosen), _PATHS_AT_ONCE):
        sizes |= _sizes(repository, str(found.sha), chosen[first : first + _PATHS_AT_ONCE])
    return Shards(
        {
            name: ObjectPlace(
                f"hf://datasets/{repository}@{found.sha}/{name}", size=sizes.get(name)
            )
            for name in chosen
        },
        found.sha,
    )


def _plain(card: Any) -> Any:
    return None if card is None else card.to_dict()


def _sizes(repository: str, commit: str, names: list[str]) -> dict[str, int]:
    from huggingface_hub import HfApi  # noqa: PLC0415  -- half a second that folders need not wait

    with clearly(repository, commit):
        infos: Any = HfApi().get_paths_info(repository, names, revision=commit, repo_type="dataset")
    return {info.path: info.size for info in infos}


def _is_converted(names: Sequence[str]) -> bool:
    """Say whether a commit is one of the converted branch: there is nothing but its files."""
    files = [name for name in names if not name.startswith(".")]
    return bool(files) and all(
        name.count("/") == 2 and name.rpartition("/")[2].removesuffix(".parquet").isdigit()
        for name in files
    )


def _converted(dataset: DatasetConfig, names: Sequence[str]) -> Any:
    """Return the converted branch, or say what to do without one."""
    from huggingface_hub import HfApi  # noqa: PLC0415  -- see above
    from huggingface_hub.errors import RevisionNotFoundError  # noqa: PLC0415

    what = f"{dataset.dataset_path} holds no Parquet files"
    if any(name.endswith(_TARS) for name in names):
        what += " but tars, which type: webdataset reads"
    how = (
        "load it with the library `datasets` and push_to_hub() it, or ask the hub's bot for a "
        f"conversion (branch {_CONVERTED}) in the dataset's settings"
    )
    if dataset.revision is not None:
        raise SourceError(f"{what} at revision {dataset.revision}: {how}, and leave revision out")
    try:
        with clearly(dataset.dataset_path, unless=RevisionNotFoundError):
            return HfApi().dataset_info(dataset.dataset_path, revision=_CONVERTED)
    except RevisionNotFoundError as error:
        raise SourceError(f"{what}, and the hub has not converted it: {how}") from error
