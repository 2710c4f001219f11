"""Which files of a folder are images, and in which order they come."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from caption_flow.orchestrator.sources.scan import ScanOptions, scan

JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 20


def put(root: Path, *paths: str, content: bytes = JPEG) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def found(root: Path, **options: Any) -> list[str]:
    return [os.fsdecode(file.path) for file in scan(str(root), ScanOptions(**options))]


def test_files_come_before_folders_each_sorted_by_name(tmp_path: Path) -> None:
    put(tmp_path, "b/2.jpg", "z.jpg", "b/10.jpg", "a.png", "a/x.webp", "b/a/1.gif")

    assert found(tmp_path) == ["a.png", "z.jpg", "a/x.webp", "b/10.jpg", "b/2.jpg", "b/a/1.gif"]


def test_size_and_time_of_change_are_told(tmp_path: Path) -> None:
    put(tmp_path, "one.jpg", content=b"12345")
    os.utime(tmp_path / "one.jpg", ns=(0, 1_234_567_890_123_456_789))

    (file,) = scan(str(tmp_path), ScanOptions())

    assert (file.size, file.mtime_ns) == (5, 1_234_567_890_123_456_789)


def test_only_images_count_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    put(tmp_path, "A.JPG", "b.Jpeg", "notes.txt", "c.jpg.txt", "d.avif")

    assert found(tmp_path) == ["A.JPG", "b.Jpeg", "d.avif"]


def test_sub_folders_can_be_left_out(tmp_path: Path) -> None:
    put(tmp_path, "one.jpg", "below/two.jpg")

    assert found(tmp_path, recursive=False) == ["one.jpg"]


def test_hidden_files_and_folders_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    put(tmp_path, ".hidden.jpg", ".cache/one.jpg", "seen.jpg")

    assert found(tmp_path) == ["seen.jpg"]
    assert found(tmp_path, include_hidden=True) == [".hidden.jpg", "seen.jpg", ".cache/one.jpg"]


def test_patterns_match_the_path_or_the_name_and_exclusion_wins(tmp_path: Path) -> None:
    put(tmp_path, "cats/1.jpg", "cats/draft_2.jpg", "dogs/1.jpg", "top.png")

    assert found(tmp_path, include=("cats/*",)) == ["cats/1.jpg", "cats/draft_2.jpg"]
    assert found(tmp_path, include=("1.jpg",)) == ["cats/1.jpg", "dogs/1.jpg"]
    assert found(tmp_path, exclude=("draft_*", "dogs/*")) == ["top.png", "cats/1.jpg"]
    assert found(tmp_path, include=("cats/*",), exclude=("*draft*",)) == ["cats/1.jpg"]
    assert found(tmp_path, include=("*.JPG",)) == [], "patterns mind the case"


def test_links_are_followed_only_when_asked(tmp_path: Path) -> None:
    put(tmp_path, "outside/one.jpg")
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "two.jpg").symlink_to(tmp_path / "outside/one.jpg")

    assert found(root) == []
    assert found(root, follow_symlinks=True) == ["two.jpg", "linked/one.jpg"]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    put(tmp_path, "a/b/one.jpg")
    (tmp_path / "a/b/up").symlink_to(tmp_path)
    (tmp_path / "a/here").symlink_to(tmp_path / "a")

    assert found(tmp_path, follow_symlinks=True) == ["a/b/one.jpg"]


def test_a_dangling_link_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "one.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")

    assert found(tmp_path, follow_symlinks=True) == ["one.jpg"]


def test_a_link_to_itself_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "one.jpg")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")

    assert found(tmp_path, follow_symlinks=True) == ["one.jpg"]


@pytest.mark.parametrize(
    "head",
    [
        JPEG,
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"BM6\0\0\0\0\0\0\0",
        b"II*\0\x08\0",
        b"MM\0*\0\0",
        b"RIFF\x10\0\0\0WEBPVP8 ",
        b"\0\0\0\x1cftypavif",
        b"\0\0\0\x18ftypheic",
    ],
)
def test_a_file_without_a_suffix_is_told_by_its_first_bytes(tmp_path: Path, head: bytes) -> None:
    put(tmp_path, "0a1b2c", content=head)
    put(tmp_path, "readme", content=b"Plain text, nothing else.")
    put(tmp_path, "cars", content=b"BMWs and others")
    put(tmp_path, "empty", content=b"")
    put(tmp_path, "sound", content=b"RIFF\x10\0\0\0WAVEfmt ")

    assert found(tmp_path) == ["0a1b2c"]


def test_names_that_are_not_utf_8_keep_their_bytes(tmp_path: Path) -> None:
    name = b"caf\xe9 \xff.jpg"
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:  # noqa: PTH118, PTH123
        file.write(JPEG)

    (only,) = scan(str(tmp_path), ScanOptions(include=("caf*",)))

    assert only.path == name


def test_names_with_line_breaks_and_quotes_are_names(tmp_path: Path) -> None:
    put(tmp_path, "two\nlines.jpg", "\"quoted\" 'name'.jpg", " leading.jpg", "[a].jpg")

    assert sorted(found(tmp_path)) == sorted(
        ["two\nlines.jpg", "\"quoted\" 'name'.jpg", " leading.jpg", "[a].jpg"]
    )


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "album.jpg/one.jpg")

    assert found(tmp_path) == ["album.jpg/one.jpg"]


def test_what_is_no_regular_file_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "one.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")

    assert found(tmp_path) == ["one.jpg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "one.jpg", "closed/two.jpg")
    (tmp_path / "closed").chmod(0)

    assert found(tmp_path) == ["one.jpg"]


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert found(tmp_path / "nowhere") == []
