"""Whatever the images are called, their captions stand beside them and nowhere else."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exporter import ExportReport, StorageExporter
from caption_flow.storage.exporter.sidecars import appended
from caption_flow.storage.exporter.texts import caption_lines

on_disk = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
"""Each example makes a folder: how long that takes is the machine's business."""

ANY_BYTE = [chr(0xDC00 + byte) for byte in range(0x80, 0x100)]
CHARACTERS = st.one_of(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0/"),
    st.sampled_from([*ANY_BYTE, ".", " ", "\n", "\\", "\N{DOG FACE}", "a"]),
)
NAMES = st.text(CHARACTERS, min_size=1, max_size=40).filter(lambda name: name not in {".", ".."})
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
HOSTILE = st.lists(
    st.sampled_from(["..", ".", "", "a", "b.jpg", "link", "far", "x" * 300, "\0", "\ud800", "~"]),
    min_size=1,
    max_size=5,
).map(lambda parts: "/".join(parts).lstrip("/"))
LINES = st.text(st.sampled_from("ab\r\n \N{DOG FACE}"), max_size=8)


@contextmanager
def folder() -> Iterator[Path]:
    """Yield a folder deeper than the names have "..": what escapes stays in the temporary one."""
    with tempfile.TemporaryDirectory() as made:
        deep = Path(made).resolve() / "1/2/3/4/5/6"
        deep.mkdir(parents=True)
        yield deep


def export(root: Path, names: list[str], **options: Any) -> ExportReport:
    rows = [{"item_key": name, "filename": name, "captions": [repr(name)]} for name in names]
    exporter = StorageExporter(StorageContents(rows))
    exporter.to_txt(root, **options)
    assert exporter.report is not None
    return exporter.report


def files(root: Path) -> dict[str, str]:
    found = (Path(at, name) for at, _, names in os.walk(root) for name in names)
    return {str(path.relative_to(root)): path.read_text() for path in found}


def beside(name: str) -> str:
    return os.path.splitext(name)[0] + ".txt"  # noqa: PTH122  (the rule that trainers follow)


@on_disk
@given(st.lists(PATHS, unique=True, min_size=1, max_size=8))
@example(["a.jpg", "a.png", "a", ".a", "..a"])
@example(["\udcff.jpg", "\N{LATIN SMALL LETTER Y WITH DIAERESIS}.jpg"])
def test_every_item_has_its_own_file_or_is_counted(names: list[str]) -> None:
    with folder() as root:
        report = export(root, names)
        written = files(root)
        assert len(written) == report.written
        assert report.written + report.skipped.total() == len(names)
        for path, text in written.items():
            assert path in {beside(name) for name in names if repr(name) == text}


@on_disk
@given(st.lists(PATHS, unique=True, min_size=1, max_size=8), st.randoms(use_true_random=False))
@example(["a.jpg", "a.png", "a"], None)
def test_the_order_of_the_rows_changes_nothing(names: list[str], random: Any) -> None:
    # A file that is also another's folder is the one case in which the order shows: see below.
    targets = {beside(name) for name in names}
    assume(not any(str(p) in targets for name in names for p in Path(name).parents))
    shuffled = names[::-1]
    if random is not None:
        random.shuffle(shuffled)
    with folder() as one, folder() as two:
        first, second = export(one, names), export(two, shuffled)
        assert files(one) == files(two)
        assert first.skipped == second.skipped


@on_disk
@given(
    st.lists(PATHS | HOSTILE, unique=True, min_size=1, max_size=8),
    st.sampled_from(["overwrite", "append"]),
)
@example(["far/b.jpg"], "overwrite")
@example(["a/../../b.jpg"], "overwrite")
def test_nothing_outside_the_folder_is_ever_touched(names: list[str], existing: str) -> None:
    with folder() as outer:
        root = outer / "1/2/3/4/5/root"
        (outer / "far").mkdir()
        (root / "a").mkdir(parents=True)
        (root / "link").symlink_to("a")
        (root / "far").symlink_to(outer / "far")
        (outer / "b.txt").write_text("precious")
        report = export(root, names, existing=existing)
        outside = [path for path in outer.rglob("*") if not path.is_relative_to(root)]
        assert {path.name for path in outside} == {*"12345", "b.txt", "far"}
        assert (outer / "b.txt").read_text() == "precious"
        assert report.written + report.skipped.total() == len(names)


@on_disk
@given(
    st.lists(PATHS | HOSTILE, unique=True, min_size=1, max_size=8),
    st.sampled_from(["overwrite", "append"]),
)
def test_a_second_export_changes_nothing(names: list[str], existing: str) -> None:
    with folder() as root:
        first = export(root, names, existing=existing)
        before = files(root)
        second = export(root, names, existing=existing)
        assert files(root) == before
        assert (second.written, second.unchanged) == (0, first.written)
        assert second.skipped == first.skipped


@given(st.binary(max_size=20) | LINES.map(str.encode), st.lists(LINES, min_size=1, max_size=3))
def test_append_keeps_what_was_there_and_settles_at_once(before: bytes, texts: list[str]) -> None:
    ours = "\n".join(caption_lines(texts)).encode()
    assume(ours)
    after = appended(before, ours)
    assert appended(after, ours) == after
    assert after.startswith(before.rstrip(b"\r\n")) or not before.strip()
    assert after.replace(b"\r\n", b"\n").rstrip(b"\n").endswith(ours)


@given(st.lists(st.text(max_size=30), max_size=4))
def test_each_text_is_one_line_and_keeps_its_words(texts: list[str]) -> None:
    lines = caption_lines(texts)
    assert all(line.splitlines() == [line] for line in lines)
    assert " ".join(lines).split() == " ".join(texts).split()
