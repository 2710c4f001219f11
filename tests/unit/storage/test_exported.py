"""What an export remembers of the files it wrote: ours may be replaced, other people's may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exported import exported_from
from caption_flow.storage.exporter.report import ExportReport, Skip
from caption_flow.storage.exporter.sidecars import Existing
from caption_flow.storage.exporter.txt import export_txt


def export(root: Path, filename: str, caption: str, existing: Existing = "skip") -> ExportReport:
    row = {
        "item_key": filename,
        "filename": filename,
        "captions": [caption],
        "status": "captioned",
    }
    pictures = root / "pictures"
    pictures.mkdir(exist_ok=True)
    with exported_from(root) as earlier:
        return export_txt(StorageContents([row]), pictures, existing=existing, earlier=earlier)


def test_a_file_that_still_holds_our_old_caption_gets_the_new_one(tmp_path: Path) -> None:
    export(tmp_path, "a.jpg", "old")

    report = export(tmp_path, "a.jpg", "new")

    assert (tmp_path / "pictures/a.txt").read_text() == "new"
    assert (report.written, report.replaced) == (1, 1)


def test_a_file_that_somebody_edited_is_left_alone(tmp_path: Path) -> None:
    export(tmp_path, "a.jpg", "old")
    (tmp_path / "pictures/a.txt").write_text("better words")

    report = export(tmp_path, "a.jpg", "new")

    assert (tmp_path / "pictures/a.txt").read_text() == "better words"
    assert report.skipped == {Skip.EXISTING: 1}


def test_a_file_that_was_there_before_us_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.txt").write_text("by hand")

    report = export(tmp_path, "a.jpg", "new")

    assert (tmp_path / "pictures/a.txt").read_text() == "by hand"
    assert report.skipped == {Skip.EXISTING: 1}


def test_a_file_that_holds_the_caption_already_counts_as_unchanged(tmp_path: Path) -> None:
    export(tmp_path, "a.jpg", "same")
    before = (tmp_path / "pictures/a.txt").stat()

    report = export(tmp_path, "a.jpg", "same")

    assert (report.written, report.unchanged) == (0, 1)
    assert (tmp_path / "pictures/a.txt").stat().st_mtime_ns == before.st_mtime_ns


def test_what_was_written_is_remembered_also_when_the_export_fails(tmp_path: Path) -> None:
    def export_that_fails() -> None:
        with exported_from(tmp_path) as earlier:
            earlier.remember(tmp_path / "a.txt", b"ours")
            raise RuntimeError("the disk went away")

    with pytest.raises(RuntimeError):
        export_that_fails()

    with exported_from(tmp_path) as earlier:
        assert earlier.is_ours(tmp_path / "a.txt", b"ours")
        assert not earlier.is_ours(tmp_path / "a.txt", b"theirs")
        assert not earlier.is_ours(tmp_path / "b.txt", b"ours")


def test_a_file_of_any_size_is_told_from_one_that_was_edited(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_bytes(b"ours")
    with exported_from(tmp_path) as earlier:
        assert not earlier.has_ours(path)
        earlier.remember_file(path)
        assert earlier.has_ours(path)
        assert earlier.is_ours(path, b"ours")
        path.write_bytes(b"edited")
        assert not earlier.has_ours(path)
