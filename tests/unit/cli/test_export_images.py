"""Images for exports are read ahead, in order, and never more of them than there is room for."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from caption_flow.cli import export_images
from caption_flow.cli.export_images import DatasetImages
from caption_flow.config.dataset import DatasetConfig
from caption_flow.orchestrator.sources.base import Finding, Item, RunFolder, Source
from caption_flow.protocol.places import FilePlace, ObjectPlace
from caption_flow.storage.exporter.webdataset import Unread, Wanted


class Files(Source):
    """Images of a folder by number; who is in it waits until as many are as are waited for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.located = 0
        self.most = 0
        self.turn = threading.Condition()

    @classmethod
    def check(cls, dataset: DatasetConfig) -> None:
        raise NotImplementedError

    @classmethod
    def open(cls, dataset: DatasetConfig, folder: RunFolder) -> Files:
        raise NotImplementedError

    def listing(self) -> AsyncIterator[Finding]:
        raise NotImplementedError

    def describe(self, shard: str, items: Sequence[int]) -> Sequence[Item]:
        with self.turn:
            self.located += 1
            self.most = max(self.most, self.located)
            self.turn.notify_all()
        return [self.item(shard, index) for index in items]

    def item(self, shard: str, index: int) -> Item:
        if index == 7:
            return Item(index, None, reason="the tar is gone")
        path = self.folder / str(index)
        if index == 8:
            return Item(index, ObjectPlace("nowhere://x/y"))
        size = path.stat().st_size if path.exists() else 0
        return Item(index, FilePlace(os.fsencode(path), size, 0), key=f"{shard}/{index}")


def wanted(index: int, size: int | None = 100, shard: str = "default") -> Wanted:
    return Wanted(shard, index, size, None, str(index))


@pytest.fixture
def source(tmp_path: Path) -> Files:
    for index in range(40):
        (tmp_path / str(index)).write_bytes(f"image {index}".encode())
    return Files(tmp_path)


@pytest.fixture
def images(source: Files) -> Iterator[DatasetImages]:
    with closing(DatasetImages(source, {"default"})) as opened:
        yield opened


def test_each_image_comes_in_its_turn_or_with_why_it_does_not(
    images: DatasetImages, source: Files
) -> None:
    (source.folder / "3").unlink()
    asked = [*map(wanted, range(10)), wanted(0, shard="elsewhere")]
    found = list(images.read(asked))
    for index in (0, 1, 2, 4, 5, 6, 9):
        assert found[index] == f"image {index}".encode()
    assert found[3] == Unread("No such file or directory")
    assert found[7] == Unread("the tar is gone")
    assert isinstance(found[8], Unread)
    assert found[8].is_passing
    assert found[10] == Unread("the run has listed no shard elsewhere")


@pytest.mark.parametrize(("size", "ahead"), [(100, 32), (export_images.AHEAD_BYTES // 5, 5)])
def test_as_many_are_read_ahead_as_there_is_room_for(
    images: DatasetImages, source: Files, size: int, ahead: int
) -> None:
    """Those are begun while the first is still looked at, and one more for each that is done."""
    found = images.read([wanted(index, size) for index in range(40) if index not in {7, 8}])
    for done in range(3):
        next(found)
        with source.turn:
            enough = min(ahead + done, 38)
            assert source.turn.wait_for(lambda: source.located >= enough, timeout=30)  # noqa: B023
            assert source.located == enough
    assert len(list(found)) == 35


def test_one_that_is_larger_than_all_the_room_is_read_alone(
    images: DatasetImages, source: Files
) -> None:
    found = images.read([wanted(index, 2 * export_images.AHEAD_BYTES) for index in range(3)])
    for count in (1, 2, 3):
        assert next(found)
        assert source.located == count
