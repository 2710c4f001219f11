"""Tars of images and texts: the right pairs, whole or not at all, and never made twice."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from caption_flow.protocol.identity import content_hash
from caption_flow.storage.exporter import ExportError, ExportReport, Listing, export_webdataset
from caption_flow.storage.exporter.report import Skip
from caption_flow.storage.exporter.tar_manifest import alone_in
from caption_flow.storage.exporter.texts import Wording
from caption_flow.storage.exporter.webdataset import TarLimits, Unread, Wanted
from tests.support.samples import read_samples as samples
from tests.support.stored import Item, Stored, failed, reading, stored


def image(index: int) -> bytes:
    return f"the picture {index} ".encode() * 50


def captioned(index: int, **more: Any) -> Item:
    facts = {"file_size": len(image(index)), "content_hash": content_hash(image(index))}
    text = {"captions": [f"caption {index}"], "image_format": "JPEG"}
    return stored(index, **(facts | text | more))


class Dataset:
    """Images by index; what is asked for is remembered, and some are not to be had."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.instead: dict[int, bytes | Unread] = {}
        self.breaks_at: int | None = None

    def read(self, wanted: Sequence[Wanted]) -> Iterator[bytes | Unread]:
        for one in wanted:
            if one.item_index == self.breaks_at:
                raise KeyboardInterrupt
            self.asked.append(one.item_index)
            yield self.instead.get(one.item_index, image(one.item_index))


@pytest.fixture
def dataset() -> Dataset:
    return Dataset()


@pytest.fixture
def export(tmp_path: Path, dataset: Dataset) -> Callable[..., ExportReport]:
    def made(rows: list[Item], **more: Any) -> ExportReport:
        limits = more.pop("limits", TarLimits(samples=3))
        folder = more.pop("to", tmp_path)
        return export_webdataset(reading(Stored(rows)), folder, dataset, limits=limits, **more)

    return made


def keys(folder: Path) -> list[str]:
    return [sample["__key__"] for sample in samples(folder)]


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_webdataset_reads_each_image_with_its_own_text_and_columns(
    tmp_path: Path, export: Any
) -> None:
    report = export([captioned(index, title=f"title {index}") for index in range(7)])
    assert (report.written, report.without_image) == (7, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"default-{number:06d}.tar" for number in range(3)),
        "default.tars.json",
    ]
    found = samples(tmp_path)
    assert len(found) == 7
    for index, sample in enumerate(found):
        assert sample["__key__"] == f"a/{index}"
        assert sample["jpg"] == image(index)
        assert sample["txt"] == f"caption {index}".encode()
        facts = json.loads(sample["json"])
        assert (facts["captions"], facts["title"]) == ([f"caption {index}"], f"title {index}")
        assert (facts["filename"], facts["image_width"]) == (f"a/{index}.jpg", 640)
        assert not {"worker", "contributor", "stage_stats"} & set(facts)


def test_texts_and_columns_are_those_that_are_asked_for(tmp_path: Path, export: Any) -> None:
    rows = [captioned(0, captions=["one", "two"], title="t"), captioned(1, captions=[]), failed(2)]
    report = export(rows, listing=Listing(Wording(prefix="ohwx, ")), columns=("title",))
    assert report.skipped == {Skip.EMPTY: 1, Skip.FAILED: 1}
    (sample,) = samples(tmp_path)
    assert sample["txt"] == b"ohwx, one\nohwx, two"
    assert json.loads(sample["json"]) == {"title": "t"}
    export(rows, listing=Listing(include_empty=True))
    assert [sample["txt"] for sample in samples(tmp_path)] == [b"one\ntwo", b""]


def test_the_same_rows_give_the_same_bytes_and_nothing_is_done_twice(
    tmp_path: Path, export: Any, dataset: Dataset
) -> None:
    rows = [captioned(index) for index in range(7)]
    export(rows, to=tmp_path / "one")
    export(rows, to=tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    before = stamps(tmp_path / "one")
    dataset.asked.clear()
    report = export(rows, to=tmp_path / "one")
    assert (report.written, report.unchanged, dataset.asked) == (0, 7, [])
    assert stamps(tmp_path / "one") == before


def test_new_captions_touch_only_the_last_tar_and_come_after_it(
    tmp_path: Path, export: Any, dataset: Dataset
) -> None:
    export([captioned(index) for index in (0, 9, 2, 3)])
    assert keys(tmp_path) == ["a/0", "a/2", "a/9", "a/3"], "in the dataset's order within a tar"
    before = stamps(tmp_path)
    dataset.asked.clear()
    report = export([captioned(index) for index in (0, 9, 2, 3, 1, 8, 7)])
    assert (report.written, report.unchanged) == (4, 3)
    assert dataset.asked == [1, 3, 8, 7]
    assert stamps(tmp_path)["default-000000.tar"] == before["default-000000.tar"]
    assert keys(tmp_path) == ["a/0", "a/2", "a/9", "a/1", "a/3", "a/8", "a/7"]


def test_a_changed_caption_is_written_where_it_belongs(tmp_path: Path, export: Any) -> None:
    rows = [captioned(index) for index in range(7)]
    export(rows)
    before = stamps(tmp_path)
    rows[4] = captioned(4, captions=["Caption 4"])  # as long as it was
    report = export(rows)
    assert (report.written, report.unchanged) == (3, 4)
    assert samples(tmp_path)[4]["txt"] == b"Caption 4"
    kept = {"default-000000.tar", "default-000002.tar"}
    assert {name: stamps(tmp_path)[name] for name in kept} == {name: before[name] for name in kept}


def test_an_interrupted_export_goes_on_at_the_tar_that_is_not_whole(
    tmp_path: Path, export: Any, dataset: Dataset
) -> None:
    rows = [captioned(index) for index in range(9)]
    dataset.breaks_at = 7
    with pytest.raises(KeyboardInterrupt):
        export(rows)
    assert keys(tmp_path) == [f"a/{index}" for index in range(6)]
    assert not list(tmp_path.glob(".*")), "half a tar is left behind"
    dataset.breaks_at = None
    dataset.asked.clear()
    report = export(rows)
    assert (report.written, report.unchanged, dataset.asked) == (3, 6, [6, 7, 8])
    assert len(keys(tmp_path)) == 9


@contextmanager
def crashing() -> Iterator[None]:
    """Have everything end when the second tar has got its name, before anybody has noted it."""
    replace = Path.replace

    def then_crash(self: Path, target: Path) -> Path:
        done = replace(self, target)
        if Path(target).name == "default-000001.tar":
            raise KeyboardInterrupt
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", then_crash)
        yield


def test_a_crash_between_tar_and_manifest_costs_that_tar_and_no_more(
    export: Any, dataset: Dataset
) -> None:
    rows = [captioned(index) for index in range(6)]
    with crashing(), pytest.raises(KeyboardInterrupt):
        export(rows)
    dataset.asked.clear()
    assert export(rows).unchanged == 3
    assert dataset.asked == [3, 4, 5]


def test_a_tar_that_a_crash_left_is_not_taken_for_the_one_before_it(
    tmp_path: Path, export: Any
) -> None:
    rows = [captioned(index) for index in range(6)]
    export(rows)
    with crashing(), pytest.raises(KeyboardInterrupt):
        export([*rows[:4], captioned(4, captions=["Caption 4"]), rows[5]])  # as long as before
    export(rows)
    assert samples(tmp_path)[4]["txt"] == b"caption 4"


def test_images_that_are_gone_or_others_are_left_out_named_and_tried_again(
    tmp_path: Path, export: Any, dataset: Dataset
) -> None:
    rows = [captioned(index) for index in range(6)]
    dataset.instead = {1: Unread("no such file"), 4: image(5), 5: image(5) + b"x"}
    report = export(rows)
    assert (report.written, report.without_image) == (3, 3)
    assert report.skipped == {Skip.UNREADABLE: 1, Skip.CHANGED: 2}
    assert any(re.search(r"a/1\.jpg.*no such file", problem) for problem in report.problems)
    assert any(re.search(r"a/4\.jpg.*other bytes", problem) for problem in report.problems)
    assert keys(tmp_path) == ["a/0", "a/2", "a/3"]

    before = stamps(tmp_path)
    dataset.asked.clear()
    again = export(rows)
    assert (again.unchanged, again.without_image, dataset.asked) == (3, 3, [1, 4, 5])
    assert stamps(tmp_path) == before

    del dataset.instead[4]
    mended = export(rows)
    assert (mended.written, mended.unchanged, mended.without_image) == (2, 2, 2)
    assert keys(tmp_path) == ["a/0", "a/2", "a/3", "a/4"]


def test_a_dataset_that_is_out_of_reach_stops_the_export(
    tmp_path: Path, export: Any, dataset: Dataset
) -> None:
    rows = [captioned(index) for index in range(400)]
    limits = TarLimits(samples=200)
    dataset.instead = {index: Unread("timed out", is_passing=True) for index in range(250, 400)}
    with pytest.raises(ExportError, match=r"out of reach.*timed out.*goes on from here"):
        export(rows, limits=limits)
    assert len(keys(tmp_path)) == 200
    dataset.instead = {index: Unread("no such file") for index in range(250, 400)}
    assert export(rows, limits=limits).without_image == 150


def test_what_is_no_part_of_the_export_any_more_is_removed_and_nothing_else(
    tmp_path: Path, export: Any
) -> None:
    export([captioned(index) for index in range(9)])
    theirs = tmp_path / "default-000007.tar"
    theirs.write_bytes(b"theirs")
    report = export([captioned(index) for index in range(4)])
    assert any("1 tar of an earlier export removed" in problem for problem in report.problems)
    tars = [path.name for path in tmp_path.glob("*.tar")]
    assert sorted(tars) == ["default-000000.tar", "default-000001.tar", theirs.name]
    assert theirs.read_bytes() == b"theirs"


def test_a_tar_that_no_export_wrote_is_never_replaced(tmp_path: Path, export: Any) -> None:
    theirs = tmp_path / "default-000000.tar"
    theirs.write_bytes(b"theirs")
    with pytest.raises(ExportError, match="no export of ours wrote it"):
        export([captioned(0)])
    assert theirs.read_bytes() == b"theirs"
    assert export([captioned(0)], existing="skip").skipped == {Skip.EXISTING: 1}
    assert theirs.read_bytes() == b"theirs"


def test_a_tar_that_was_cut_short_is_made_again(tmp_path: Path, export: Any) -> None:
    rows = [captioned(index) for index in range(6)]
    export(rows)
    path = tmp_path / "default-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    assert export(rows).written == 3
    assert path.read_bytes() == whole


def test_what_a_killed_export_left_of_a_tar_is_removed(tmp_path: Path, export: Any) -> None:
    (tmp_path / ".default-000007.tar.part").write_bytes(b"half a tar")
    export([captioned(0)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "default-000000.tar",
        "default.tars.json",
    ]


def test_tars_stay_below_so_many_bytes(tmp_path: Path, export: Any) -> None:
    names = ["short.jpg", f"{'long/' * 40}a.jpg", "猫.jpg", "b.jpg", "c.jpg", "d.jpg"]
    rows = [captioned(at, filename=name, item_key=name) for at, name in enumerate(names)]
    most = 20_480
    export(rows, limits=TarLimits(bytes=most))
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*.tar"))]
    assert len(sizes) > 1
    assert max(sizes) <= most
    assert len(keys(tmp_path)) == 6
    export(rows, to=tmp_path / "one each", limits=TarLimits(bytes=1))
    assert len(list((tmp_path / "one each").glob("*.tar"))) == 6


NASTY = [
    b"x.jpg",
    b"x.png",
    b"X.JPG",
    b"x.v2.jpg",
    b"x",
    b"sub/x.jpg",
    b"two\nlines.jpg",
    b"caf\xe9.jpg",
    "caf\u00e9.jpg".encode(),
    "cafe\u0301.jpg".encode(),
    "猫/\N{DOG FACE}.jpg".encode(),
    b"%?#&'\";[]{}.jpg",
    b"x" * 240 + b".jpg",
    b"__meta__/a.jpg",
    b".hidden.jpg",
    b"x.jpg.json",
]


def test_names_of_any_kind_keep_their_own_image(tmp_path: Path, export: Any) -> None:
    rows = []
    for index, raw in enumerate(NASTY):
        shown = raw.decode("utf-8", "backslashreplace")
        odd = raw if os.fsdecode(raw) != shown else None
        rows.append(captioned(index, item_key=shown, filename=shown, filename_raw=odd))
    report = export(rows, limits=TarLimits())
    assert report.written == len(NASTY)
    found = samples(tmp_path)
    assert len({sample["__key__"] for sample in found}) == len(NASTY)
    assert {sample["jpg"]: sample["txt"].decode() for sample in found} == {
        image(index): f"caption {index}" for index in range(len(NASTY))
    }
    with tarfile.open(tmp_path / "default-000000.tar") as tar:
        tar.extractall(tmp_path / "out", filter="data")
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 48


def test_items_without_a_file_are_called_by_their_keys(tmp_path: Path, export: Any) -> None:
    key = "data/train-00000-of-00001.parquet#7"
    export([captioned(7, filename=None, item_key=key)])
    assert keys(tmp_path) == ["data/train-00000-of-00001%2Eparquet#7"]


def test_two_exports_into_one_folder_do_not_mix(tmp_path: Path, export: Any) -> None:
    with alone_in(tmp_path), pytest.raises(ExportError, match="another export"):
        export([captioned(0)])
    assert export([captioned(0)]).written == 1


def test_every_row_is_counted_once_for_whoever_watches(export: Any, dataset: Dataset) -> None:
    heard: list[int] = []
    rows = [captioned(0), failed(1), captioned(2, captions=[]), captioned(3), captioned(4)]
    dataset.instead = {3: Unread("gone")}
    for _ in range(2):
        heard.clear()
        export(rows, watch=heard.append)
        assert sum(heard) == 5
