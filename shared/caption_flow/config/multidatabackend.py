"""Entries of SimpleTuner's `multidatabackend.json` as datasets: ``FILE#ID`` names one.

Owns the mapping, and why some entries cannot be captioned. What an entry says of training (crops,
resolutions, caches, where captions come from) has no meaning here and is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from caption_flow.config.problems import ConfigError, ConfigProblem
from caption_flow.recipe.spelling import did_you_mean, nearest

_CAPTIONED: Final = ("image", "video", "conditioning", "eval")
_NO_PICTURES: Final[Mapping[str, str]] = {
    "text_embeds": "it holds what text encoders made of captions, not images",
    "image_embeds": "it holds what a VAE made of images, not images",
    "conditioning_image_embeds": "it holds what an encoder made of images, not images",
    "audio": "it holds sound, and a captioner of images has nothing to look at",
}
_ELSEWHERE: Final[Mapping[str, str]] = {
    "aws": "images that lie singly in a bucket cannot be read: copy them into a folder, or pack "
    "them into tars, which are read from s3:// (type: webdataset in a configuration)",
    "csv": "a CSV file of addresses cannot be read: make a Parquet file of it, in the layout of a "
    "hub dataset, with the addresses in a column (dataset_url_column in a configuration)",
    "memory": "it is a cache in memory, not a dataset",
}
_IN_BLOCKS: Final = ("huggingface", "config")
"""Sections in which an entry may say what it could say itself."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: the keys of a `dataset` section, and sentences about what is not followed."""

    dataset: Mapping[str, Any]
    notes: Sequence[str] = ()


def entry_named(reference: str) -> Entry:
    """Return the entry that ``FILE#ID`` names.

    The last ``#`` before which a file's path stands divides the two, so that either may have some.

    Raises:
        ConfigError: there is no such file or entry, or it is of a kind that cannot be captioned.
    """
    path, name = _split(reference)
    entries = _read(path)
    if name is None:
        raise _wrong(path, f"say which entry: {path}#ID; {_those_there(entries)}")
    found = [entry for entry in entries if entry["id"] == name]
    if not found:
        meant = nearest(name, [entry["id"] for entry in entries])
        raise _wrong(path, f"has no entry {name!r}{did_you_mean(meant)}; {_those_there(entries)}")
    if len(found) > 1:
        raise _wrong(path, f"has {len(found)} entries {name!r}: an id has to be one entry's")
    try:
        return _map(found[0])
    except ValueError as error:
        raise ConfigError([ConfigProblem(str(path), str(error), f"entry {name!r}")]) from None


def _split(reference: str) -> tuple[Path, str | None]:
    if Path(reference).expanduser().is_file():
        return Path(reference).expanduser(), None
    marks = [at for at, char in enumerate(reference) if char == "#"]
    for at in reversed(marks):
        path = Path(reference[:at]).expanduser()
        if at and path.is_file():
            return path, reference[at + 1 :]
    if Path(reference).expanduser().is_dir():
        raise _wrong(
            Path(reference), "is a folder, and --dataset takes FILE#ID; a folder needs no option"
        )
    before = reference[: marks[-1]] if marks else reference
    raise _wrong(
        Path(before),
        "there is no such file; --dataset takes FILE#ID, an entry of a multidatabackend.json",
    )


def _wrong(path: Path, message: str) -> ConfigError:
    return ConfigError([ConfigProblem(str(path), message)])


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a file that have an id."""
    try:
        said = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise _wrong(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _wrong(path, f"is not UTF-8 text: byte {error.start} is invalid") from None
    except json.JSONDecodeError as error:
        problem = ConfigProblem(
            str(path), f"is not valid JSON: {error.msg}", line=error.lineno, column=error.colno
        )
        raise ConfigError([problem]) from None
    if not isinstance(said, list):
        raise _wrong(path, "must be a list of datasets, as multidatabackend.json is")
    entries = [one for one in said if isinstance(one, dict) and isinstance(one.get("id"), str)]
    if not entries:
        raise _wrong(path, "has no entry with an id")
    return entries


def _those_there(entries: Sequence[Mapping[str, Any]]) -> str:
    return f"there are {', '.join(repr(entry['id']) for entry in entries)}"


def _map(entry: Mapping[str, Any]) -> Entry:
    """Raises `ValueError` with the reason for which an entry cannot be captioned."""
    content = _text(entry, "dataset_type") or "image"
    if content in _NO_PICTURES:
        raise ValueError(f"dataset_type {content} cannot be captioned: {_NO_PICTURES[content]}")
    if content not in _CAPTIONED:
        known = (*_CAPTIONED, *_NO_PICTURES)
        raise ValueError(
            f"dataset_type {content!r} is unknown{did_you_mean(nearest(content, known))}"
        )
    kind = _text(entry, "type") or "local"
    if kind in _ELSEWHERE:
        raise ValueError(f"type {kind} cannot be captioned: {_ELSEWHERE[kind]}")
    if kind not in _MAPPINGS:
        known = (*_MAPPINGS, *_ELSEWHERE)
        raise ValueError(f"type {kind!r} is unknown{did_you_mean(nearest(kind, known))}")
    dataset = {**_MAPPINGS[kind](entry), "name": entry["id"]}
    if content == "video":
        if kind == "huggingface":
            raise ValueError("videos of a hub dataset cannot be captioned, only those of folders")
        dataset["video"] = {}
    return Entry(dataset, tuple(_not_followed(entry)))


def _local(entry: Mapping[str, Any]) -> dict[str, Any]:
    key = next((key for key in ("instance_data_dir", "dataset_path") if entry.get(key)), None)
    path = None if key is None else _text(entry, key)
    if path is None:
        raise ValueError("says no folder: instance_data_dir is missing")
    if not Path(path).expanduser().is_dir():
        where = "" if Path(path).is_absolute() else f" in {Path.cwd()}, where relative paths begin"
        raise ValueError(f"{key}: there is no folder {path!r}{where}")
    return {"type": "local_filesystem", "dataset_path": path}


def _hub(entry: Mapping[str, Any]) -> dict[str, Any]:
    name = _text(entry, "dataset_name")
    if name is None:
        raise ValueError("says no dataset of the hub: dataset_name is missing")
    column = _text(entry, "image_column") or "image"
    dataset = {
        "type": "huggingface",
        "processor_type": "huggingface_datasets",
        "dataset_path": name,
        "split": _text(entry, "split") or "train",
        "dataset_image_column": column,
        "revision": _text(entry, "revision"),
        "dataset_config": _text(entry, "dataset_config") or _config_name(entry),
    }
    if "url" in column.casefold():
        dataset["dataset_url_column"] = column
    return {key: value for key, value in dataset.items() if value is not None}


def _webshart(entry: Mapping[str, Any]) -> dict[str, Any]:
    source = _text(entry, "source")
    if source is None:
        raise ValueError("says no tars: source is missing")
    dataset = {"type": "webdataset", "dataset_path": source}
    metadata = _text(entry, "metadata")
    if metadata is not None and Path(metadata).expanduser().exists():
        dataset["metadata_path"] = metadata
    return dataset


_MAPPINGS: Final = {"local": _local, "huggingface": _hub, "webshart": _webshart}


def _not_followed(entry: Mapping[str, Any]) -> Iterator[str]:
    name = entry["id"]
    if entry.get("disabled") or entry.get("disable"):
        yield f"{name!r} is disabled: that is about training, and it is captioned all the same"
    blocks = [entry, *_blocks(entry)]
    if any(block.get("filter_func") for block in blocks):
        yield f"filter_func of {name!r} is not followed: every row is captioned"
    composite = (block.get("composite_image_config") for block in blocks)
    if any(isinstance(one, dict) and one.get("enabled") for one in composite):
        yield f"composite_image_config of {name!r} is not followed: pictures are captioned whole"


def _blocks(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for key in _IN_BLOCKS:
        if isinstance(block := entry.get(key), dict):
            yield block


def _config_name(entry: Mapping[str, Any]) -> str | None:
    return config if isinstance(config := entry.get("config"), str) and config else None


def _text(entry: Mapping[str, Any], key: str) -> str | None:
    """Return what an entry, or one of its sections, says under a key; nothing counts as not set."""
    for block in (entry, *_blocks(entry)):
        value = block.get(key)
        if value is None or not value:
            continue
        if not isinstance(value, str):
            raise ValueError(f"{key} must be text")  # noqa: TRY004  -- as all mistakes here
        return value
    return None
