"""An export never destroys: what it replaces can be kept beside it, and put back."""

from __future__ import annotations

from pathlib import Path

import pytest

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exported import replaced_by_export
from caption_flow.storage.exporter import ExportError, ExportReport
from caption_flow.storage.exporter.sidecars import Existing
from caption_flow.storage.exporter.txt import export_txt
from caption_flow.storage.exporter.undo import undo_export


def export(root: Path, existing: Existing = "overwrite", **captions: str) -> ExportReport:
    rows = [
        {"item_key": name, "filename": f"{name}.jpg", "captions": [text], "status": "captioned"}
        for name, text in captions.items()
    ]
    with replaced_by_export(root) as replaced:
        contents = StorageContents(rows)
        return export_txt(contents, root / "pictures", existing=existing, replaced=replaced)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("existing", ["overwrite", "append", "backup"])
def test_what_an_export_replaced_is_put_back(
    tmp_path: Path, pictures: Path, existing: Existing
) -> None:
    (pictures / "a.txt").write_bytes(b"by hand\r\n\xff")
    export(tmp_path, existing, a="new", b="there was none")
    assert b"new" in (pictures / "a.txt").read_bytes()

    report = undo_export(tmp_path)

    assert (pictures / "a.txt").read_bytes() == b"by hand\r\n\xff"
    assert (pictures / "b.txt").read_text() == "there was none"
    assert (report.restored, report.left) == (1, [])


def test_undoing_is_done_once(tmp_path: Path, pictures: Path) -> None:
    (pictures / "a.txt").write_text("by hand")
    export(tmp_path, a="new")
    undo_export(tmp_path)
    (pictures / "a.txt").write_text("new")
    assert undo_export(tmp_path).restored == 0
    assert (pictures / "a.txt").read_text() == "new"


def test_a_file_that_was_edited_since_is_left_as_it_is(tmp_path: Path, pictures: Path) -> None:
    for name in ("a", "b", "c"):
        (pictures / f"{name}.txt").write_text("by hand")
    export(tmp_path, a="new", b="new", c="new")
    (pictures / "a.txt").write_text("better words")
    (pictures / "b.txt").unlink()

    report = undo_export(tmp_path)

    assert (pictures / "a.txt").read_text() == "better words"
    assert not (pictures / "b.txt").exists()
    assert (pictures / "c.txt").read_text() == "by hand"
    assert report.restored == 1
    assert report.left == [str(pictures / "a.txt"), str(pictures / "b.txt")]


def test_an_export_that_replaces_nothing_leaves_the_one_before_to_be_undone(
    tmp_path: Path, pictures: Path
) -> None:
    (pictures / "a.txt").write_text("by hand")
    export(tmp_path, a="new")
    export(tmp_path, a="new")
    undo_export(tmp_path)
    assert (pictures / "a.txt").read_text() == "by hand"


def test_what_a_file_held_is_on_disk_before_it_is_replaced(tmp_path: Path, pictures: Path) -> None:
    (pictures / "a.txt").write_text("by hand")
    with replaced_by_export(tmp_path) as replaced:
        replaced.note(pictures / "a.txt", b"by hand", b"new")
        (pictures / "a.txt").write_text("new")
        # As after a kill: the export's own record is still open.
        assert undo_export(tmp_path).restored == 1
    assert (pictures / "a.txt").read_text() == "by hand"


def test_an_undo_that_fails_in_between_goes_on_later(tmp_path: Path, pictures: Path) -> None:
    for name in ("a", "b"):
        (pictures / name).mkdir()
        (pictures / name / "x.txt").write_text("by hand")
    rows = [
        {"item_key": name, "filename": f"{name}/x.jpg", "captions": ["new"], "status": "captioned"}
        for name in ("a", "b")
    ]
    with replaced_by_export(tmp_path) as replaced:
        export_txt(StorageContents(rows), pictures, replaced=replaced)
    (pictures / "a" / "x.txt").unlink()
    (pictures / "a" / "x.txt").symlink_to("x.txt")  # a loop: neither there nor gone
    with pytest.raises(ExportError, match=r"x\.txt"):
        undo_export(tmp_path)
    (pictures / "a" / "x.txt").unlink()
    assert undo_export(tmp_path).restored == 1
    assert (pictures / "b" / "x.txt").read_text() == "by hand"


def test_a_backup_is_the_file_as_it_was_and_never_takes_another_backups_place(
    tmp_path: Path, pictures: Path
) -> None:
    (pictures / "a.txt").write_text("first")
    assert export(tmp_path, "backup", a="new").backed_up == 1
    (pictures / "a.txt").write_text("second")
    assert export(tmp_path, "backup", a="new").backed_up == 1
    (pictures / "a.txt").write_text("first")
    assert export(tmp_path, "backup", a="new").backed_up == 0
    assert (pictures / "a.txt.bak").read_text() == "first"
    assert (pictures / "a.txt.bak1").read_text() == "second"
    assert sorted(path.name for path in pictures.iterdir()) == ["a.txt", "a.txt.bak", "a.txt.bak1"]


def test_what_several_formats_of_one_export_replaced_is_put_back_together(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("earlier", "txt", "json")]
    for number, path in zip((1, 2, 2), paths, strict=True):
        path.write_bytes(b"before")
        with replaced_by_export(tmp_path, number) as replaced:
            replaced.note(path, b"before", b"after")
        path.write_bytes(b"after")
    assert undo_export(tmp_path).restored == 2
    assert [path.read_bytes() for path in paths] == [b"after", b"before", b"before"]
