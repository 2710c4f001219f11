"""A file is there whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

import pytest

from caption_flow.storage.atomic import fsync_folder, replace_bytes, replaced_file


@pytest.mark.parametrize("durable", [False, True])
def test_the_old_contents_stand_until_the_block_has_ended(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replaced_file(path, durable=durable) as sink:
        sink.write(b"new")
        sink.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt(), ValueError("ours")])
def test_a_block_that_fails_leaves_the_old_contents_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail_halfway() -> None:
        with replaced_file(path) as sink:
            sink.write(b"half")
            raise error

    with pytest.raises(type(error)) as raised:
        fail_halfway()
    assert raised.value is error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_bytes(tmp_path / "folder", b"x")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_the_file_is_on_the_disk_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync = os.fsync

    def record(descriptor: int) -> None:
        what = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        named = "named" if (tmp_path / "file").exists() else "unnamed"
        steps.append(f"{what} of {os.fstat(descriptor).st_size > 0} size, {named}")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with replaced_file(tmp_path / "file", durable=True) as sink:
        sink.write(b"contents")
    assert steps == ["file of True size, unnamed", "folder of True size, named"]


def test_the_longest_name_a_disk_allows_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    replace_bytes(path, b"one")
    replace_bytes(path, b"two")
    assert path.read_bytes() == b"two"


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fsync_folder(tmp_path / "none")


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write(sink: BinaryIO, text: bytes) -> None:
        sink.write(text)
        sink.flush()

    with replaced_file(path) as one:
        with replaced_file(path) as two:
            write(one, b"11")
            write(two, b"22")
        assert path.read_bytes() == b"22"
    assert path.read_bytes() == b"11"
