"""The text files that trainers read: where they are, what they hold, what they never destroy."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from structlog.testing import capture_logs

from caption_flow.storage import atomic
from caption_flow.storage.contents import Selection, StorageContents
from caption_flow.storage.exporter import (
    ExportError,
    ExportReport,
    Skip,
    StorageExporter,
    claims,
)
from caption_flow.storage.exporter import report as report_module
from caption_flow.storage.exporter.undo import undo_export

Item = dict[str, Any]


def item(filename: str | None, *captions: str, **more: Any) -> Item:
    row: Item = {
        "item_key": filename,
        "filename": filename,
        "captions": list(captions),
        "status": "captioned",
    }
    return row | more


def failed(filename: str, *captions: str) -> Item:
    return item(filename, *captions, status="failed", error_kind="corrupt_image", error="truncated")


def export(folder: Path, *items: Item, **options: Any) -> ExportReport:
    exporter = StorageExporter(StorageContents(items))
    exporter.to_txt(folder, **options)
    assert exporter.report is not None
    return exporter.report


def texts(folder: Path) -> dict[str, str]:
    """Every file under the folder, the ones in the making included, by its relative name."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes().decode() for path in found}


@contextmanager
def disk_that_holds(file_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- where


def test_a_caption_stands_beside_its_image_sub_folders_included(tmp_path: Path) -> None:
    export(tmp_path, item("1.jpg", "top"), item("a/1.jpg", "in a"), item("a/b c/1.jpg", "in b c"))
    assert texts(tmp_path) == {"1.txt": "top", "a/1.txt": "in a", "a/b c/1.txt": "in b c"}


@pytest.mark.parametrize(
    ("image", "caption_file"),
    [
        ("photo", "photo.txt"),
        ("photo.tar.gz", "photo.tar.txt"),
        (".hidden", ".hidden.txt"),
        (".hidden.jpg", ".hidden.txt"),
        ("..jpg", "..jpg.txt"),
        ("photo.", "photo.txt"),
        ("./a//b.jpg", "a/b.txt"),
        ("v1.5/photo", "v1.5/photo.txt"),
        ("two\nlines\r.jpg", "two\nlines\r.txt"),
        ("\N{DOG FACE}\u200d '\"%#?&;[]{}\\.jpg", "\N{DOG FACE}\u200d '\"%#?&;[]{}\\.txt"),
        ("\udcff\udc80 latin.jpg", "\udcff\udc80 latin.txt"),
        ("x" * 244 + ".jpg", "x" * 244 + ".txt"),
        ("\N{DOG FACE}" * 61 + ".jpg", "\N{DOG FACE}" * 61 + ".txt"),
        ("x" * 251 + ".jpg", "x" * 251 + ".txt"),
    ],
)
def test_only_the_last_suffix_of_any_name_gives_way_to_txt(
    tmp_path: Path, image: str, caption_file: str
) -> None:
    export(tmp_path, item(image, "words"))
    assert texts(tmp_path) == {caption_file: "words"}


def test_the_names_are_those_a_trainer_looks_for(tmp_path: Path) -> None:
    names = ["a.jpg", ".b", "c.", "d.e.f", "g/.h.i", "...", "j..k", "..l"]
    export(tmp_path, *(item(name, name) for name in names))
    assert texts(tmp_path) == {os.path.splitext(name)[0] + ".txt": name for name in names}  # noqa: PTH122  (the trainer's rule)


def test_a_name_too_long_for_the_disk_is_counted_and_the_rest_is_written(tmp_path: Path) -> None:
    report = export(tmp_path, item("x" * 255, "too long"), item("y.jpg", "fine"))
    assert texts(tmp_path) == {"y.txt": "fine"}
    assert report.skipped == {Skip.BAD_NAME: 1}
    assert "xxx" in report.problems[0]


def test_another_column_can_name_the_files(tmp_path: Path) -> None:
    export(tmp_path, item("1.jpg", "words", place="p/q.jpg"), filename_column="place")
    assert texts(tmp_path) == {"p/q.txt": "words"}


# --- what


def test_several_captions_are_one_per_line_and_their_line_breaks_are_spaces(tmp_path: Path) -> None:
    export(tmp_path, item("1.jpg", "one\r\n  two\n\nthree", "four\u2028five\x85six", "  seven\t"))
    assert texts(tmp_path) == {"1.txt": "one two three\nfour five six\nseven"}


def test_white_space_inside_a_line_is_the_models_and_stays(tmp_path: Path) -> None:
    export(tmp_path, item("1.jpg", "one  two\tthree"))
    assert texts(tmp_path) == {"1.txt": "one  two\tthree"}


def test_a_column_of_plain_text_or_numbers_is_written_too(tmp_path: Path) -> None:
    export(tmp_path, item("1.jpg", title="A title"), export_column="title")
    export(tmp_path, item("2.jpg", score=3), export_column="score")
    assert texts(tmp_path) == {"1.txt": "A title", "2.txt": "3"}


def test_empty_texts_make_no_file_and_no_blank_line(tmp_path: Path) -> None:
    report = export(
        tmp_path,
        item("none.jpg"),
        item("null.jpg", captions=None),
        item("blank.jpg", "", " \n"),
        item("half.jpg", "", "words"),
    )
    assert texts(tmp_path) == {"half.txt": "words"}
    assert report.skipped == {Skip.EMPTY: 3}


def test_empty_files_are_written_when_asked_for_but_not_for_failed_items(tmp_path: Path) -> None:
    export(tmp_path, item("none.jpg"), failed("bad.jpg"), include_empty=True)
    assert texts(tmp_path) == {"none.txt": ""}


def test_a_failed_item_writes_nothing_and_leaves_what_exists(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("from before")
    report = export(tmp_path, failed("old.jpg", "first stage only"), failed("new.jpg", "same"))
    assert texts(tmp_path) == {"old.txt": "from before"}
    assert report.skipped == {Skip.FAILED: 2}


# --- two images, one name


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_images_that_want_one_file_the_first_by_key_has_it(
    tmp_path: Path, order: int
) -> None:
    rows = [item("x.jpg", "of the jpg"), item("x.png", "of the png"), item("y.png", "alone")]
    report = export(tmp_path, *rows[::order])
    assert texts(tmp_path) == {"x.txt": "of the jpg", "y.txt": "alone"}
    assert report.skipped == {Skip.CONFLICT: 1}
    assert report.problems == ["'x.png' has no file of its own: 'x.txt' belongs to 'x.jpg'"]


def test_a_second_run_settles_a_conflict_as_the_first_did(tmp_path: Path) -> None:
    rows = [item("x.png", "png"), item("x.jpg", "jpg")]
    export(tmp_path, *rows)
    report = export(tmp_path, *reversed(rows))
    assert texts(tmp_path) == {"x.txt": "jpg"}
    assert (report.unchanged, report.written) == (1, 0)


def test_a_name_belongs_to_its_item_even_when_that_item_failed(tmp_path: Path) -> None:
    report = export(tmp_path, item("x.png", "png"), failed("x.jpg"))
    assert texts(tmp_path) == {}
    assert report.skipped == {Skip.FAILED: 1, Skip.CONFLICT: 1}


def test_the_key_decides_and_not_the_name(tmp_path: Path) -> None:
    export(tmp_path, item("x.jpg", "jpg", item_key="2"), item("x.png", "png", item_key="1"))
    assert texts(tmp_path) == {"x.txt": "png"}


def test_every_loser_is_counted_and_the_sentences_are_bounded(tmp_path: Path) -> None:
    report = export(tmp_path, *(item(f"x.{n:03}", "words") for n in range(50)))
    assert report.skipped == {Skip.CONFLICT: 49}
    assert len(report.problems) == report_module.MAX_PROBLEMS


def test_one_folder_under_two_names_is_one_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    report = export(tmp_path, item("link/1.jpg", "by link"), item("real/1.jpg", "real"))
    assert texts(tmp_path) == {"real/1.txt": "by link"}
    assert report.skipped == {Skip.CONFLICT: 1}


def test_rows_without_keys_are_told_apart_by_name(tmp_path: Path) -> None:
    rows = [{"filename": name, "captions": [name]} for name in ("x.png", "x.jpg")]
    export(tmp_path, *rows)
    assert texts(tmp_path) == {"x.txt": "x.jpg"}


def test_names_whose_hashes_collide_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_hash", lambda _: 7)
    report = export(tmp_path, *(item(name, name) for name in ("b.png", "a.jpg", "b.jpg", "c.jpg")))
    assert texts(tmp_path) == {"a.txt": "a.jpg", "b.txt": "b.jpg", "c.txt": "c.jpg"}
    assert report.skipped == {Skip.CONFLICT: 1}


def test_a_row_that_comes_twice_is_written_once(tmp_path: Path) -> None:
    report = export(tmp_path, item("x.jpg", "first"), item("x.jpg", "second"))
    assert texts(tmp_path) == {"x.txt": "first"}
    assert report.skipped == {Skip.CONFLICT: 1}


def test_an_image_that_is_called_like_a_caption_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("pixels")
    report = export(tmp_path, item("a/x.txt", "words"), item("x.jpg", "words"), item("x.txt", "w"))
    assert texts(tmp_path) == {"x.txt": "pixels"}
    assert report.skipped == {Skip.BAD_NAME: 2, Skip.CONFLICT: 1}


# --- never outside


@pytest.mark.parametrize(
    "name",
    [
        "../out.jpg",
        "a/../../out.jpg",
        "a/../in.jpg",
        "a/..",
        "{}/out.jpg",
        "{}/in/in.jpg",
        "/{}/out.jpg",
        "..",
        "../o",
    ],
)
def test_a_name_that_leads_out_of_the_folder_is_refused_and_named(
    tmp_path: Path, name: str
) -> None:
    name = name.format(tmp_path)
    report = export(tmp_path / "in", item(name, "words"), item("ok.jpg", "fine"))
    assert texts(tmp_path) == {"in/ok.txt": "fine"}
    assert report.skipped == {Skip.BAD_NAME: 1}
    assert repr(name) in report.problems[0]


@pytest.mark.parametrize("name", [None, "", ".", "nul\0.jpg", "lone \ud800.jpg", 7])
def test_what_is_no_file_name_is_refused(tmp_path: Path, name: Any) -> None:
    report = export(tmp_path, item(name, "words"), item("ok.jpg", "fine"))
    assert texts(tmp_path) == {"ok.txt": "fine"}
    assert report.skipped == {Skip.BAD_NAME: 1}
    report.problems[0].encode()  # fit to be printed


def test_a_linked_folder_is_followed_inside_and_refused_outside(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "real").mkdir(parents=True)
    outside.mkdir()
    (inside / "near").symlink_to("real")
    (inside / "far").symlink_to(outside)
    (inside / "loop").symlink_to("loop")
    report = export(
        inside,
        item("near/1.jpg", "near"),
        item("far/1.jpg", "far"),
        item("far/deep/1.jpg", "far"),
        item("loop/1.jpg", "loop"),
    )
    assert (inside / "real/1.txt").read_text() == "near"
    assert list(outside.iterdir()) == []
    assert report.skipped == {Skip.BAD_NAME: 3}


def test_the_output_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    export(tmp_path / "link", item("a/1.jpg", "words"))
    assert (tmp_path / "real/a/1.txt").read_text() == "words"


def test_a_caption_file_that_is_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "1.txt").symlink_to(elsewhere)
    (folder / "2.txt").symlink_to("nowhere")
    export(folder, item("1.jpg", "words"), item("2.jpg", "words"))
    assert elsewhere.read_text() == "precious"
    assert texts(folder) == {"1.txt": "words", "2.txt": "words"}


@pytest.mark.parametrize("existing", ["overwrite", "append"])
def test_what_is_no_file_is_left_alone_and_named(tmp_path: Path, existing: str) -> None:
    (tmp_path / "1.txt").mkdir()
    os.mkfifo(tmp_path / "2.txt")
    (tmp_path / "3").write_text("a file")
    rows = [item("1.jpg", "w"), item("2.jpg", "w"), item("3/4.jpg", "w"), item("5.jpg", "w")]
    report = export(tmp_path, *rows, existing=existing)
    assert texts(tmp_path) == {"3": "a file", "5.txt": "w"}
    assert report.skipped == {Skip.CONFLICT: 2, Skip.BAD_NAME: 1}
    assert len(report.problems) == 3


# --- files that exist


def test_overwrite_replaces_other_text_and_counts_it(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("by hand")
    report = export(tmp_path, item("1.jpg", "fresh"), item("2.jpg", "new"))
    assert texts(tmp_path) == {"1.txt": "fresh", "2.txt": "new"}
    assert (report.written, report.replaced) == (2, 1)
    assert report.summary() == "2 written, 1 of them in place of other text"


def test_text_of_the_same_length_is_seen_to_be_other_text(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("hand!")
    assert export(tmp_path, item("1.jpg", "fresh")).replaced == 1


def test_a_file_that_holds_its_caption_already_is_not_touched_but_counts_as_there(
    tmp_path: Path,
) -> None:
    export(tmp_path, item("1.jpg", "words"))
    before = (tmp_path / "1.txt").stat()
    exporter = StorageExporter(StorageContents([item("1.jpg", "words")]))
    assert exporter.to_txt(tmp_path) == 1
    assert exporter.report is not None
    assert (exporter.report.unchanged, exporter.report.written) == (1, 0)
    after = (tmp_path / "1.txt").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_skip_leaves_whatever_is_there(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("by hand")
    (tmp_path / "2.txt").symlink_to("nowhere")
    rows = [item("1.jpg", "x"), item("2.jpg", "x"), item("3.jpg", "new")]
    report = export(tmp_path, *rows, existing="skip")
    assert (tmp_path / "1.txt").read_text() == "by hand"
    assert (tmp_path / "2.txt").is_symlink()
    assert (tmp_path / "3.txt").read_text() == "new"
    assert report.skipped == {Skip.EXISTING: 2}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("by hand", "by hand\none\ntwo"),
        ("by hand\n", "by hand\none\ntwo"),
        ("by hand\r\n", "by hand\none\ntwo"),
        ("", "one\ntwo"),
        ("\n \n", "one\ntwo"),
        ("one\ntwo", "one\ntwo"),
        ("one\ntwo\n", "one\ntwo\n"),
        ("by hand\r\none\r\ntwo\r\n", "by hand\r\none\r\ntwo\r\n"),
        ("someone\ntwo", "someone\ntwo\none\ntwo"),
        ("one\ntwo\nthree", "one\ntwo\nthree\none\ntwo"),
    ],
)
def test_append_adds_our_lines_once_however_often_it_runs(
    tmp_path: Path, before: str, after: str
) -> None:
    (tmp_path / "1.txt").write_bytes(before.encode())
    for _ in range(3):
        report = export(tmp_path, item("1.jpg", "one", "two"), existing="append")
        assert texts(tmp_path) == {"1.txt": after}
    assert (report.written, report.unchanged) == (0, 1)


def test_append_keeps_text_of_any_encoding_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes(b"caf\xe9")
    report = export(tmp_path, item("1.jpg", "words"), existing="append")
    assert (tmp_path / "1.txt").read_bytes() == b"caf\xe9\nwords"
    assert (report.written, report.appended, report.replaced) == (1, 1, 0)


def test_an_unknown_way_with_existing_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'owerwrite': choose one of overwrite, skip, append"):
        export(tmp_path, item("1.jpg", "x"), existing="owerwrite")


# --- whole or not at all


def test_a_file_is_replaced_and_never_rewritten_in_place(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("whole")
    (tmp_path / "same inode").hardlink_to(tmp_path / "1.txt")
    export(tmp_path, item("1.jpg", "fresh"))
    assert texts(tmp_path) == {"1.txt": "fresh", "same inode": "whole"}


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing_half_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "b.txt").write_text("whole")
    rows = [item("a.jpg", "short"), item("b.jpg", "long" * 2000)]
    with disk_that_holds(4096), pytest.raises(ExportError, match=r"cannot write '.*/b\.txt': File"):
        export(tmp_path, *rows)
    assert texts(tmp_path) == {"a.txt": "short", "b.txt": "whole"}


def test_a_refused_permission_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(atomic, "_create", refuse)
    with pytest.raises(ExportError, match=r"cannot write '.*/a/1\.txt': Permission denied"):
        export(tmp_path, item("a/1.jpg", "words"))


def test_an_output_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"cannot write '.*/file/in': Not a directory"):
        export(tmp_path / "file" / "in", item("1.jpg", "words"))


def test_a_replaced_file_keeps_its_permissions_and_a_new_one_follows_the_umask(
    tmp_path: Path,
) -> None:
    (tmp_path / "1.txt").write_text("old")
    (tmp_path / "1.txt").chmod(0o604)
    umask = os.umask(0o027)
    try:
        export(tmp_path, item("1.jpg", "new"), item("2.jpg", "new"))
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "1.txt").stat().st_mode) == 0o604
    assert stat.S_IMODE((tmp_path / "2.txt").stat().st_mode) == 0o640


# --- refused before a file is touched


def test_a_missing_column_is_named_with_the_nearest_one_and_all_there_are(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as refusal:
        export(tmp_path / "new", item("1.jpg", "x"), export_column="caption")
    assert str(refusal.value) == (
        "there is no column named 'caption'; did you mean 'captions'? "
        "The columns are: item_key, filename, captions, status"
    )
    assert not (tmp_path / "new").exists()


def test_a_missing_name_column_is_refused_alike(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no column named 'file_name'; did you mean 'filename'"):
        export(tmp_path, item("1.jpg", "x"), filename_column="file_name")


def test_nothing_written_yet_is_said(tmp_path: Path) -> None:
    contents = StorageContents(metadata={"message": "nothing has been written to X yet"})
    with pytest.raises(ExportError, match="nothing to export: nothing has been written to X yet"):
        StorageExporter(contents).to_txt(tmp_path)


def test_contents_that_could_not_be_read_are_never_taken_for_empty_ones(tmp_path: Path) -> None:
    contents = StorageContents((), ["captions"], metadata={"error": "part-7 is damaged"})
    exporter = StorageExporter(contents)
    for method in (exporter.to_txt, exporter.to_json, exporter.to_jsonl, exporter.to_csv):
        with pytest.raises(ExportError, match="part-7 is damaged"):
            method(tmp_path / "out")
    assert texts(tmp_path) == {}


# --- from a store, batch by batch


class Batches:
    """A reader over a list of batches; `before_batch` is called as each one is asked for."""

    columns = ("item_key", "filename", "filename_raw", "captions", "status")
    output_fields = ("captions",)
    shards = ("default",)

    def __init__(self, *batches: list[Item]) -> None:
        self.given = list(batches)
        self.passes: list[tuple[str, ...]] = []
        self.opened = 0

    def count_rows(self, _shards: Collection[str] | None = None) -> int:
        return sum(map(len, self.given))

    def batches(
        self, _shards: Collection[str] | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        self.passes.append(tuple(columns or ()))
        for index, rows in enumerate(self.given):
            self.before_batch(index)
            raws = [{"filename_raw": None} | row for row in rows]
            arrays = {name: [row[name] for row in raws] for name in columns or self.columns}
            yield pa.RecordBatch.from_pydict(arrays)

    def before_batch(self, index: int, /) -> None:
        pass

    def close(self) -> None:
        self.opened -= 1

    def contents(self, **options: Any) -> StorageContents:
        def open_reader() -> Batches:
            self.opened += 1
            return self

        return StorageContents.reading(
            Selection(open_reader),
            columns=options.get("columns", self.columns),
            output_fields=self.output_fields,
            total_rows=self.count_rows(),
        )


def test_files_are_written_while_the_store_is_read_and_only_what_is_needed_is_read(
    tmp_path: Path,
) -> None:
    seen: list[int] = []

    class Watched(Batches):
        def before_batch(self, _index: int) -> None:
            seen.append(len(texts(tmp_path)))

    source = Watched([item("1.jpg", "x")], [item("2.jpg", "x")], [item("3.jpg", "x")])
    assert StorageExporter(source.contents()).to_txt(tmp_path) == 3
    assert seen == [0, 0, 0, 0, 1, 2], "names first, then each batch as it comes"
    assert source.passes == [
        ("item_key", "filename", "filename_raw"),
        ("item_key", "filename", "status", "captions", "filename_raw"),
    ]
    assert source.opened == 0


def test_the_bytes_of_a_name_that_is_not_utf8_come_from_their_own_column(tmp_path: Path) -> None:
    row = item("caf\N{REPLACEMENT CHARACTER}.jpg", "words", filename_raw=b"caf\xe9.jpg")
    StorageExporter(Batches([row]).contents()).to_txt(tmp_path)
    assert [os.fsencode(path.name) for path in tmp_path.iterdir()] == [b"caf\xe9.txt"]


def test_failed_items_write_nothing_even_when_the_status_was_not_asked_for(tmp_path: Path) -> None:
    source = Batches([failed("1.jpg", "first stage only"), item("2.jpg", "x")])
    StorageExporter(source.contents(columns=["filename", "captions"])).to_txt(tmp_path)
    assert texts(tmp_path) == {"2.txt": "x"}


def test_items_that_finish_during_an_export_overwrite_nobody(tmp_path: Path) -> None:
    class Growing(Batches):
        def before_batch(self, index: int) -> None:
            if len(self.passes) == 2 and index == 0:
                self.given.append([item("1.bmp", "late"), item("2.jpg", "late"), item("2.bmp", "")])
                self.given.append([item("2.png", "later")])

    source = Growing([item("1.jpg", "early")])
    exporter = StorageExporter(source.contents())
    exporter.to_txt(tmp_path)
    assert texts(tmp_path) == {"1.txt": "early", "2.txt": "late"}
    assert exporter.report is not None
    assert exporter.report.skipped == {Skip.CONFLICT: 2, Skip.EMPTY: 1}


def test_a_reader_that_fails_midway_is_closed_and_its_error_is_its_own(tmp_path: Path) -> None:
    class Damaged(Batches):
        def before_batch(self, index: int) -> None:
            if index == 1:
                raise OSError(errno.EIO, "Input/output error", "part-7.parquet")

    source = Damaged([item("1.jpg", "x")], [item("2.jpg", "x")])
    with pytest.raises(OSError, match=r"part-7\.parquet"):
        StorageExporter(source.contents()).to_jsonl(tmp_path / "out.jsonl")
    assert source.opened == 0
    assert texts(tmp_path) == {}


def test_what_a_program_s_export_replaces_can_be_put_back(tmp_path: Path) -> None:
    """Nobody who calls `to_txt` from Python has asked for the words of people to be lost."""
    (tmp_path / "run").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.txt").write_text("by hand")
    contents = Batches([item("1.jpg", "ours"), item("2.jpg", "ours")]).contents()
    contents.metadata["data_dir"] = str(tmp_path / "run")
    with capture_logs() as said:
        assert StorageExporter(contents).to_txt(tmp_path / "images") == 2
    assert texts(tmp_path / "images") == {"1.txt": "ours", "2.txt": "ours"}
    (warning,) = said
    assert warning["files"] == 1
    assert str(tmp_path / "run") in warning["to_undo"]
    assert undo_export(tmp_path / "run").restored == 1
    assert texts(tmp_path / "images") == {"1.txt": "by hand", "2.txt": "ours"}


def test_nothing_is_replaced_that_could_not_be_put_back(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("by hand")
    contents = Batches([item("1.jpg", "ours")]).contents()
    (tmp_path / "run/undo.sqlite3").mkdir(parents=True)
    contents.metadata["data_dir"] = str(tmp_path / "run")
    with pytest.raises(ExportError, match=r"cannot be kept in .*undo\.sqlite3"):
        StorageExporter(contents).to_txt(tmp_path)
    assert texts(tmp_path) == {"1.txt": "by hand"}
