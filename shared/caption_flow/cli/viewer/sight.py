"""From a row to its picture: bytes from where the dataset lies, decoded as workers do. Blocking.

A folder of files is found by what the run remembers of its dataset; other datasets are opened by
their source, which reads what is listed and writes nothing.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from PIL import Image

from caption_flow.cli.failures import CommandFailed
from caption_flow.cli.folders import for_people
from caption_flow.config.dataset import DatasetConfig
from caption_flow.config.remembered import DATASET_SECTION, from_text
from caption_flow.orchestrator.sources.base import RunFolder, ShardError, Source, SourceError
from caption_flow.orchestrator.sources.local import SHARD
from caption_flow.orchestrator.sources.registry import source_for
from caption_flow.orchestrator.sources.scan import is_video
from caption_flow.places.base import NotHereError, PlaceError
from caption_flow.places.reader import PlaceReader
from caption_flow.protocol.places import FilePlace, ObjectPlace, Place
from caption_flow.recipe.video import Video
from caption_flow.storage.database import open_for_reading, read_meta
from caption_flow.storage.opening import KnownShard, known_shards
from caption_flow.storage.schema import native_path
from caption_flow.storage.writer import Write
from caption_flow.worker.images.library import MISSING_LIBRARY, can_decode_videos
from caption_flow.worker.images.load import ImageError, prepare

_MOST_BYTES: Final = 256 * 2**20
"""Of a file that is read for the screen."""


class NoPictureError(Exception):
    """There is no picture to be shown; ``str()`` is half a sentence that says why."""


class Sight:
    """Where pictures come from. ``root`` is the dataset's folder, ``config`` what is said of it.

    Without them it is what the run remembers: its name is ``dataset``.
    """

    def __init__(
        self,
        data_dir: Path,
        dataset: str | None,
        root: Path | None = None,
        config: DatasetConfig | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._dataset = dataset
        self._root = root
        self._config = config
        self._source: Source | None = None
        self._known: Mapping[str, KnownShard] = {}
        self._places = PlaceReader(threads=1, is_lister=True)
        self._loop = asyncio.new_event_loop()

    def picture(self, row: Mapping[str, Any]) -> Image.Image:
        """Return a row's picture, upright RGB of bounded size; of a video, a frame from its middle.

        Raises:
            NoPictureError: it cannot be had.
        """
        try:
            place = self._place(row)
            return _decoded(self._bytes(place), _is_video(row, place))
        except NoPictureError:
            raise
        except (NotHereError, PlaceError, ImageError, ShardError, SourceError) as error:
            raise NoPictureError(str(error)) from error
        except Exception as error:  # whatever a source of somebody else's, or a storage, raises
            raise NoPictureError(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Let go of the dataset, unless it is being read: then the process's end does it."""
        if self._loop.is_running():
            return
        self._close_source()
        self._loop.run_until_complete(self._places.close())
        self._loop.close()

    def _place(self, row: Mapping[str, Any]) -> Place:
        root = self._root or (_folder(self._dataset) if row["shard"] == SHARD else None)
        if root is not None and row.get("filename") is not None:
            return _file(root, native_path(row["filename"], row.get("filename_raw")))
        item = self._opened(row["shard"]).locate(row["shard"], row["item_index"])
        if item is None:
            raise NoPictureError("its dataset does not have it any more")
        if item.place is None:
            raise NoPictureError(item.reason or "nobody knows where it is")
        return item.place

    def _opened(self, shard: str) -> Source:
        """Return the dataset, opened anew when the run has listed more of it since."""
        if self._source is None or shard not in self._known:
            self._close_source()
            remembered, self._known = self._remembered()
            config = self._config or remembered
            if config is None:
                raise NoPictureError(
                    "it is not known where the dataset is; --config FILE, or --dataset DIR, says it"
                )
            folder = RunFolder(self._data_dir, _refuse, shards=self._known, only_reads=True)
            self._source = source_for(config.processor_type).open(config, folder)
        return self._source

    def _close_source(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    def _remembered(self) -> tuple[DatasetConfig | None, Mapping[str, KnownShard]]:
        connection = open_for_reading(self._data_dir)
        if connection is None:
            return None, {}
        with closing(connection):
            section = read_meta(connection, DATASET_SECTION)
            return from_text(section) if section else None, known_shards(connection)

    def _bytes(self, place: Place) -> bytes:
        size = 0
        if isinstance(place, FilePlace | ObjectPlace):
            size = (place.size or 0) if place.length is None else place.length
        if size > _MOST_BYTES:
            raise NoPictureError(f"it has {size:,} bytes, which is a lot for a screen")
        return self._loop.run_until_complete(self._places.read(place))


async def _refuse(_write: Write) -> None:
    raise CommandFailed("a view writes nothing")


def _folder(dataset: str | None) -> Path | None:
    """Return the folder that a run remembers, if it is one."""
    return Path(dataset) if dataset and Path(dataset).is_absolute() else None


def _file(root: Path, name: str) -> FilePlace:
    path = root / name
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise NoPictureError(
            f"{for_people(path)}: {reason} (--dataset DIR says where the images are now)"
        ) from error
    if not stat.S_ISREG(found.st_mode):  # whoever opens a pipe waits
        raise NoPictureError(f"{for_people(path)} is not a file")
    return FilePlace(os.fsencode(path.absolute()), found.st_size, found.st_mtime_ns)


def _is_video(row: Mapping[str, Any], place: Place) -> bool:
    names = [row.get("filename") or "", place.path if isinstance(place, FilePlace) else b""]
    return any(is_video(os.fsencode(name)) for name in names)


def _decoded(data: bytes, is_a_video: bool) -> Image.Image:
    if not is_a_video:
        return prepare(data).image.pixels
    if not can_decode_videos():
        raise NoPictureError(f"it is a video; {MISSING_LIBRARY}")
    from caption_flow.worker.images.video import prepare_video  # noqa: PLC0415  -- brings FFmpeg

    return prepare_video(data, Video(frames=1)).video.pictures[0].pixels
