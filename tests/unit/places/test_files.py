"""Files as places: the very one that was listed, or none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from caption_flow.places.base import NotHereError, PlaceError
from caption_flow.places.files import read_file, read_own_file
from caption_flow.places.reader import PlaceReader
from caption_flow.protocol.places import FilePlace


def place_of(path: Path, offset: int = 0, length: int | None = None) -> FilePlace:
    found = path.stat()
    return FilePlace(os.fsencode(path), found.st_size, found.st_mtime_ns, offset, length)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / os.fsdecode(b"a \xff name\n.bin")
    path.write_bytes(b"0123456789")
    return path


@pytest.mark.parametrize("read", [read_file, read_own_file])
def test_a_file_is_read_whole_or_in_part(file: Path, read: object) -> None:
    assert callable(read)
    assert read(place_of(file)) == b"0123456789"
    assert read(place_of(file, 3, 4)) == b"3456"
    assert read(place_of(file, 7)) == b"789"
    assert read(place_of(file, 10, 0)) == b""


def test_a_file_that_was_written_again_is_another_one(file: Path) -> None:
    listed, part = place_of(file), place_of(file, 2, 4)
    os.utime(file, ns=(0, 0))
    for place in (listed, part):
        with pytest.raises(NotHereError, match="has changed since it was listed"):
            read_file(place)


def test_its_lister_reads_a_whole_file_as_it_is_now_and_a_part_only_of_the_same(file: Path) -> None:
    listed, part = place_of(file), place_of(file, 2, 4)
    file.write_bytes(b"something longer")
    assert read_own_file(listed) == b"something longer"
    with pytest.raises(PlaceError, match="has changed since it was listed") as changed:
        read_own_file(part)
    assert changed.value.kind == "image_changed"


def test_what_is_no_file_is_not_here(file: Path, tmp_path: Path) -> None:
    gone = place_of(file)
    file.unlink()
    with pytest.raises(NotHereError, match="No such file"):
        read_file(gone)
    with pytest.raises(NotHereError):
        read_file(FilePlace(os.fsencode(tmp_path), 0, 0))
    with pytest.raises(NotHereError):
        read_file(FilePlace(b"a\0b", 0, 0))
    file.write_bytes(b"0123")
    with pytest.raises(NotHereError, match="ends early"):
        read_file(place_of(file, 2, 10))


async def test_a_reader_reads_files_off_the_loop(file: Path) -> None:
    reader = PlaceReader(threads=1)
    assert await reader.read(place_of(file, 1, 2)) == b"12"
    await reader.close()
