"""Where a dataset's tars are: folders, patterns and URLs to single tars. Blocking; reads none."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from caption_flow.config.dataset import DatasetConfig
from caption_flow.orchestrator.sources.base import SourceError
from caption_flow.orchestrator.sources.hub_access import repository_at
from caption_flow.places.objects import OBJECTS, ObjectError
from caption_flow.storage.schema import readable_path

_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")
_PACKED: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_ON_HUB: Final = re.compile(r"hf://datasets/([^/@{*\[]+/[^/@{*\[]+)(?:@([^/{*\[]+))?(|/.*)")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_MOST: Final = 1_000_000
"""Names that one pattern may stand for; more is a slip of the keyboard."""


@dataclass(frozen=True, slots=True)
class Tar:
    """A tar: its name within the dataset, and its absolute path or URL."""

    name: str
    location: str

    @property
    def is_remote(self) -> bool:
        """Whether it lies in a storage, not in this machine's files."""
        return is_url(self.location)


@dataclass(frozen=True, slots=True)
class TarFacts:
    """The state of a tar: size in bytes, and what another version would not have.

    ``etag`` is what its storage calls this version, if it names any.
    """

    size: int
    version: str
    etag: str | None = field(default=None, compare=False)

    @property
    def text(self) -> str:
        """Both, for comparing."""
        return f"{self.size}:{self.version}"


def is_url(location: str) -> bool:
    """Whether a location is one of a storage."""
    return "://" in location


def find_tars(dataset: DatasetConfig) -> list[Tar]:
    """Return a dataset's tars in the order in which they are captioned, names unique.

    ``::`` separates several locations. A name is the path below what the locations have in common
    before their first pattern, so that a dataset that moves as a whole keeps its names.

    Raises:
        SourceError: there are none, they are compressed, or the storage cannot be listed.
    """
    locations = [_completed(part.strip(), dataset) for part in dataset.dataset_path.split("::")]
    found = list(dict.fromkeys(tar for place in locations for tar in _tars_at(place, dataset)))
    if not found:
        raise SourceError(_nothing_at(dataset.dataset_path, locations))
    root = _common_folder([_fixed_part(place) for place in locations])
    return [Tar(readable_path(os.fsencode(path.removeprefix(root))), path) for path in found]


def facts_of(tar: Tar) -> TarFacts:
    """Look at a tar. Raises `ObjectError` or `OSError`."""
    if tar.is_remote:
        facts = OBJECTS.facts(tar.location)
        return TarFacts(facts.size, facts.version, facts.etag)
    status = Path(tar.location).stat()
    return TarFacts(status.st_size, str(status.st_mtime_ns))


def _completed(location: str, dataset: DatasetConfig) -> str:
    """Return a URL, or an absolute path; a hub id is a folder of the hub."""
    if not location:
        raise SourceError("dataset_path names no tar")
    if is_url(location):
        return _pinned(location, dataset)
    path = Path(location).expanduser()
    if not path.exists() and _HUB_ID.fullmatch(location) and not path.parent.exists():
        return _pinned(f"hf://datasets/{location}", dataset)
    absolute = os.path.normpath(path.absolute())
    return absolute + "/" if path.is_dir() else absolute


def _pinned(url: str, dataset: DatasetConfig) -> str:
    """Return a URL of the hub at the commit there is now: what is uploaded later is another one.

    Raises `SourceError` for a repository that may not be read.
    """
    found = _ON_HUB.fullmatch(url)
    if found is None:
        return url
    name, given, rest = found.groups()
    revision = dataset.revision if given is None else unquote(given)
    if revision is not None and _COMMIT.fullmatch(revision):
        return f"hf://datasets/{name}@{revision}{rest}"
    return f"hf://datasets/{name}@{repository_at(name, revision).sha}{rest}"


def _fixed_part(location: str) -> str:
    """Return the folder before a pattern, or of a tar, or a folder itself; ends with a slash."""
    if not _names_tars(location) and not _is_pattern(location):
        return location.rstrip("/") + "/"
    start = re.search(r"[{*?\[]", location) if not _is_there(location) else None
    fixed = location if start is None else location[: start.start()]
    return fixed[: fixed.rfind("/") + 1]


def _common_folder(folders: list[str]) -> str:
    """Return what folders that end with a slash lie in; URLs are no paths to `os.path`."""
    first, last = min(folders), max(folders)
    same = next((at for at, char in enumerate(first) if last[at : at + 1] != char), len(first))
    return first[: first.rfind("/", 0, same) + 1]


def _is_there(location: str) -> bool:
    return not is_url(location) and os.path.lexists(location)


def _names_tars(location: str) -> bool:
    path = location.partition("?")[0] if location.startswith("http") else location
    return path.endswith(".tar")


def _is_pattern(location: str) -> bool:
    return any(char in location for char in "{*[") and not _is_there(location)


def _tars_at(location: str, dataset: DatasetConfig) -> Iterator[str]:
    if _is_there(location):
        yield from _local_tars(location, dataset)
        return
    for one in _expanded(location):
        if one.endswith(_PACKED):
            raise _packed(one)
        if is_url(one):
            yield from _remote_tars(one)
        elif any(char in one for char in "*?["):
            found = sorted(glob.glob(one, recursive=True))  # noqa: PTH207  -- the whole is a pattern
            _refuse_only_packed(found)
            yield from (path for path in found if path.endswith(".tar"))
        else:
            yield one  # whether it is there is seen when it is looked at


def _local_tars(location: str, dataset: DatasetConfig) -> Iterator[str]:
    if not os.path.isdir(location):  # noqa: PTH112
        if location.endswith(_PACKED):
            raise _packed(location)
        yield location
        return
    packed = []
    for folder, folders, files in os.walk(location, followlinks=dataset.follow_symlinks):
        folders[:] = sorted(folders) if dataset.recursive else []
        if not dataset.include_hidden:
            folders[:] = [name for name in folders if not name.startswith(".")]
        for name in sorted(files):
            if name.startswith(".") and not dataset.include_hidden:
                continue
            if name.endswith(".tar"):
                yield os.path.join(folder, name)  # noqa: PTH118
            elif name.endswith(_PACKED):
                packed.append(name)
    if packed:
        _refuse_only_packed([*packed, *_first_tar(location)])


def _first_tar(folder: str) -> list[str]:
    first = next(Path(folder).rglob("*.tar"), None)
    return [] if first is None else [str(first)]


def _remote_tars(url: str) -> Iterator[str]:
    is_glob = any(char in url for char in "*[")
    if not is_glob and _names_tars(url):
        yield url
        return
    if url.startswith("http"):
        raise SourceError(
            f"{url} cannot be listed, HTTP has no folders: name the tars, such as "
            "https://host/folder/shard-{000000..000123}.tar"
        )
    prefix = _fixed_part(url)
    try:
        found = sorted(facts.url for facts in OBJECTS.below(prefix))
    except ObjectError as error:
        raise SourceError(f"the dataset cannot be listed: {error}") from error
    if is_glob:
        found = [name for name in found if fnmatchcase(name, url)]
    _refuse_only_packed(found)
    yield from (name for name in found if name.endswith(".tar"))


def _expanded(pattern: str) -> list[str]:
    """Return the names that a pattern with ``{000..123}`` and ``{a,b}`` stands for, in order."""
    names = [pattern]
    while any(_BRACES.search(name) for name in names):
        names = [full for name in names for full in _first_braces(name)]
        if len(names) > _MOST:
            raise SourceError(f"{pattern} stands for more than {_MOST} tars")
    return names


def _first_braces(name: str) -> list[str]:
    found = _BRACES.search(name)
    if found is None:
        return [name]
    inside = found.group(1)
    numbers = _RANGE.fullmatch(inside)
    if numbers is not None:
        first, last = numbers.groups()
        count = int(last) - int(first) + 1
        if not 0 < count <= _MOST:
            raise SourceError(f"{{{inside}}} in {name} is no range of tars")
        width = len(first)
        choices = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    elif "," in inside:
        choices = inside.split(",")
    else:
        raise SourceError(f"{{{inside}}} in {name} is neither a range, {{000..123}}, nor {{a,b}}")
    return [name[: found.start()] + choice + name[found.end() :] for choice in choices]


def _refuse_only_packed(found: list[str]) -> None:
    packed = [name for name in found if name.endswith(_PACKED)]
    if packed and not any(name.endswith(".tar") for name in found):
        raise _packed(packed[0])


def _packed(name: str) -> SourceError:
    return SourceError(
        f"{name} is compressed, and single images in a compressed tar cannot be read: unpack it "
        "to .tar (images are compressed already, it hardly grows)"
    )


def _nothing_at(path: str, locations: list[str]) -> str:
    if not is_url(locations[0]):
        folder = Path(_fixed_part(locations[0]))
        if not folder.exists():
            return f"there is no folder {folder}, where the tars of {path} should be"
    return f"there is no .tar at {path}"
