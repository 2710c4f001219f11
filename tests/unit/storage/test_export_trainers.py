"""What trainers read directly: each list has the right text for the right image, and no other."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webshart
from PIL import Image

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exported import replaced_by_export
from caption_flow.storage.exporter import (
    ExportError,
    ExportReport,
    Listing,
    Skip,
    StorageExporter,
    export_imagefolder,
    export_kohya,
    export_simpletuner,
    export_webshart,
)
from caption_flow.storage.exporter.texts import Wording
from caption_flow.storage.exporter.undo import undo_export
from tests.support.stored import Item, Stored, failed, reading, stored
from tests.support.tars import write_tar

EXPORTS = [export_kohya, export_imagefolder, export_simpletuner]


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(path)


# --- what all of them share


@pytest.mark.parametrize("export", EXPORTS)
def test_only_captioned_items_with_a_name_are_listed_and_the_rest_is_counted(
    tmp_path: Path, export: Any
) -> None:
    rows = [
        stored(0),
        failed(1),
        stored(2, captions=["", None]),
        stored(3, filename=None),
        stored(4, filename="caf\\xe9.jpg", filename_raw=b"caf\xe9.jpg"),
    ]
    report: ExportReport = export(reading(Stored(rows)), tmp_path / "out")
    assert report.written == 1
    assert report.skipped == {Skip.FAILED: 1, Skip.EMPTY: 1, Skip.BAD_NAME: 2}
    assert len(report.problems) == 2

    with_empty = export(reading(Stored(rows)), tmp_path / "out", Listing(include_empty=True))
    assert (with_empty.written, with_empty.skipped[Skip.EMPTY]) == (2, 0)


@pytest.mark.parametrize("export", EXPORTS)
def test_a_column_that_is_not_there_is_named_and_nothing_is_written(
    tmp_path: Path, export: Any
) -> None:
    contents = reading(Stored([stored(0)]))
    with pytest.raises(ExportError, match="no column named 'captoins'; did you mean 'captions'"):
        export(contents, tmp_path / "out", Listing(Wording(("captoins",))))
    with pytest.raises(ExportError, match="no column named 'path'"):
        export(contents, tmp_path / "out", Listing(filename_column="path"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export", EXPORTS)
def test_an_export_made_twice_is_the_same_file(tmp_path: Path, export: Any) -> None:
    reader = Stored([stored(0), stored(1)])
    export(reading(reader), tmp_path / "out")
    first = (tmp_path / "out").read_bytes()
    export(reading(reader), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == first


# --- kohya


def sd_scripts(path: Path, image_dir: Path) -> dict[str, str]:
    """Resolve images and captions by the rules of sd-scripts, old and new."""
    found = {}
    for key, entry in json.loads(path.read_text(encoding="utf-8")).items():
        image = Path(key)
        if not image.is_absolute():
            (image,) = image_dir.joinpath(key).parent.glob(f"{Path(key).name}.[jp][pn]g")
        assert image.is_file()
        tags = entry.get("tags")
        found[str(image.relative_to(image_dir))] = ", ".join(filter(None, [entry["caption"], tags]))
    return found


def kohya_rows() -> list[Item]:
    return [
        stored(0, title="x, y"),
        stored(1, captions=['say "hi" \N{DOG FACE}\nthere']),
        stored(2, filename="b.c.png", item_key="b.c.png"),
    ]


@pytest.mark.parametrize("knows_the_folder", [True, False])
def test_kohyas_metadata_finds_each_image_and_its_caption(
    tmp_path: Path, knows_the_folder: bool
) -> None:
    for index, name in enumerate(("a/0.jpg", "a/1.jpg", "b.c.png")):
        picture(tmp_path / name, index)
    images = tmp_path if knows_the_folder else None
    export_kohya(reading(Stored(kohya_rows())), tmp_path / "metadata.json", images=images)
    assert sd_scripts(tmp_path / "metadata.json", tmp_path) == {
        "a/0.jpg": "one, two",
        "a/1.jpg": 'say "hi" \N{DOG FACE} there',
        "b.c.png": "one, two",
    }


def test_kohyas_tags_are_a_column_of_that_name_unless_the_caption_has_them(tmp_path: Path) -> None:
    row = {"item_key": "a.jpg", "filename": "a.jpg", "captions": ["one"], "tags": ["x", "y"]}
    path = tmp_path / "metadata.json"
    export_kohya(StorageContents([row]), path)
    assert json.loads(path.read_text()) == {"a": {"caption": "one", "tags": "x, y"}}
    template = Listing(Wording((), "{column:tags}: {captions}"))
    export_kohya(StorageContents([row]), path, template)
    assert json.loads(path.read_text()) == {"a": {"caption": "x, y: one"}}


def test_two_images_with_one_key_do_not_get_each_others_caption(tmp_path: Path) -> None:
    rows = [
        stored(0, item_key="x.png", filename="x.png", captions=["of the png"]),
        stored(1, item_key="x.jpg", filename="x.jpg", captions=["of the jpg"]),
    ]
    path = tmp_path / "metadata.json"
    report = export_kohya(reading(Stored(rows)), path)
    assert json.loads(path.read_text()) == {"x": {"caption": "of the jpg"}}
    assert report.skipped == {Skip.CONFLICT: 1}
    assert report.problems == ["'x.png' has no key of its own: 'x' belongs to 'x.jpg'"]
    both = export_kohya(reading(Stored(rows)), path, images=tmp_path)
    assert both.written == len(json.loads(path.read_text())) == 2


# --- imagefolder


def test_datasets_loads_the_folder_with_the_right_text_for_each_image(tmp_path: Path) -> None:
    names = ["a/0.jpg", "a/1.jpg", "a/2.jpg", "top #1 \N{DOG FACE}.png"]
    for index, name in enumerate(names):
        picture(tmp_path / "photos" / name, index * 60)
    rows = [
        stored(0, captions=["shade 0"]),
        failed(1),
        stored(2, captions=["shade 120"]),
        stored(3, filename=names[3], captions=["shade 180"]),
    ]
    assert (
        StorageExporter(reading(Stored(rows))).to_imagefolder(
            tmp_path / "photos" / "metadata.jsonl"
        )
        == 3
    )
    loaded = datasets.load_dataset(
        "imagefolder",
        data_dir=str(tmp_path / "photos"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    said = {row["text"]: row["image"].getpixel((0, 0))[0] for row in loaded}
    assert sorted(said) == ["shade 0", "shade 120", "shade 180"]
    assert all(abs(int(text.split()[1]) - shade) < 3 for text, shade in said.items())


# --- simpletuner


def test_simpletuners_table_has_names_texts_and_sizes(tmp_path: Path) -> None:
    rows = [stored(0, image_height=480), stored(1, captions=["x"], image_height=320)]
    path = tmp_path / "captions.parquet"
    assert StorageExporter(reading(Stored(rows))).to_simpletuner(path) == 2
    # As SimpleTuner does: pandas, the file name as the index, one row by it.
    table = pq.read_table(path).to_pandas().set_index("filename")
    first = table.loc["a/0.jpg"]
    assert (int(first["width"]), int(first["height"])) == (640, 480)
    assert [str(text) for text in first["caption"]] == ["one", "two"]
    assert list(table.loc["a/1.jpg"]["caption"]) == ["x"]
    schema = pq.read_schema(path)
    assert schema.field("caption").type == pa.list_(pa.field("element", pa.string()))


# --- webshart


def webshart_folder(folder: Path) -> Path:
    """Two tars whose members have the same names, each with the index that webshart makes."""
    for number, name in enumerate(("s/one.tar", "s/two.tar")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        members = {f"{index}.jpg": bytes([number, index]) * 40 for index in range(3)}
        write_tar(folder / name, members.items())
    webshart.MetadataExtractor().extract_metadata(
        source=str(folder / "s"), destination=str(folder / "s"), max_workers=1
    )
    return folder


def of_tar(tar: str, index: int, **more: Any) -> Item:
    name = f"{tar}/{index}.jpg"
    said = {"captions": [f"{index} of {tar}"]}
    return stored(index, **({"shard": tar, "item_key": name, "filename": name} | said | more))


def test_webshart_reads_each_samples_captions(tmp_path: Path) -> None:
    folder = webshart_folder(tmp_path)
    # In the order in which they were captioned: shards mixed.
    rows = [of_tar("s/two.tar", 1), of_tar("s/one.tar", 0, captions=["a", "b"])]
    rows += [of_tar("s/two.tar", 0), failed(2, shard="s/two.tar", filename="s/two.tar/2.jpg")]
    exporter = StorageExporter(reading(Stored(rows)))
    assert exporter.to_webshart_metadata(folder) == 3
    assert exporter.report is not None
    assert exporter.report.skipped == {Skip.FAILED: 1}

    dataset = webshart.discover_dataset(str(folder / "s"))
    loader = webshart.TarDataLoader(dataset)
    found = {}
    for shard in range(dataset.num_shards):
        for at in range(len(dataset.list_samples_in_shard(shard))):
            entry = loader.load_sample(shard, at)
            found[bytes(entry.data)[:2]] = entry.captions
    assert found == {
        b"\0\0": ["a", "b"],
        b"\0\1": None,
        b"\0\2": None,
        b"\1\0": "0 of s/two.tar",
        b"\1\1": "1 of s/two.tar",
        b"\1\2": None,
    }


def metadata_file(path: Path, **entries: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {f"{name}.jpg": {"offset": 512, "length": 3} | facts for name, facts in entries.items()}
    path.write_text(json.dumps({"filesize": 9, "hash": "h", "files": files}))
    return path


def test_webshart_metadata_keeps_what_else_it_holds_and_is_written_only_if_it_changes(
    tmp_path: Path,
) -> None:
    path = metadata_file(tmp_path / "one.json", a={"width": 5, "caption": "old"}, b={})
    rows = [stored(0, shard="one.tar", filename="one.tar/a.jpg", captions=["new"])]
    first = export_webshart(reading(Stored(rows)), path)
    assert (first.written, first.replaced) == (1, 1)
    after = json.loads(path.read_text())
    assert after["hash"] == "h"
    assert after["files"]["a.jpg"] == {"offset": 512, "length": 3, "width": 5, "captions": "new"}
    assert after["files"]["b.jpg"] == {"offset": 512, "length": 3}
    stood = os.stat_result(path.stat()).st_ino
    again = export_webshart(reading(Stored(rows)), path)
    assert (again.written, again.unchanged) == (0, 1)
    assert path.stat().st_ino == stood


def test_webshart_captions_that_are_there_are_kept_backed_up_or_put_back(tmp_path: Path) -> None:
    path = metadata_file(tmp_path / "m" / "one.json", a={"captions": "by hand"})
    before = path.read_bytes()
    rows = [stored(0, shard="one.tar", filename="one.tar/a.jpg", captions=["new"])]
    kept = export_webshart(reading(Stored(rows)), path.parent, existing="skip")
    assert kept.skipped == {Skip.EXISTING: 1}
    assert path.read_bytes() == before
    with replaced_by_export(tmp_path) as replaced:
        done = export_webshart(
            reading(Stored(rows)), path.parent, existing="backup", replaced=replaced
        )
    assert done.backed_up == 1
    assert path.with_name("one.json.bak").read_bytes() == before
    assert path.read_bytes() != before
    assert undo_export(tmp_path).restored == 1
    assert path.read_bytes() == before


def test_webshart_shards_of_one_name_do_not_share_a_metadata_file(tmp_path: Path) -> None:
    metadata_file(tmp_path / "one.json", a={})
    metadata_file(tmp_path / "t" / "one.json", a={})
    rows = [
        stored(at, shard=f"{folder}/one.tar", filename=f"{folder}/one.tar/a.jpg", captions=[folder])
        for at, folder in enumerate("st")
    ]
    report = export_webshart(reading(Stored(rows)), tmp_path)
    assert (report.written, report.skipped) == (1, {Skip.BAD_NAME: 1})
    assert "captions" not in (tmp_path / "one.json").read_text()
    assert '"captions":"t"' in (tmp_path / "t" / "one.json").read_text()


@pytest.mark.parametrize("shard", ["../one.tar", "{outside}/one.tar"])
def test_webshart_metadata_outside_the_folder_is_not_touched(tmp_path: Path, shard: str) -> None:
    outside = metadata_file(tmp_path / "one.json", a={})
    (tmp_path / "in").mkdir()
    before = outside.read_bytes()
    rows = [stored(0, shard=shard.format(outside=tmp_path), filename="a.jpg")]
    with pytest.raises(ExportError, match="there is no webshart metadata"):
        export_webshart(reading(Stored(rows)), tmp_path / "in")
    assert outside.read_bytes() == before


@pytest.mark.parametrize("content", ["{", "[]", '{"files": 3}', '{"files": {"a.jpg": 3}}', "{}"])
def test_a_file_that_is_no_webshart_metadata_is_named_and_left(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "one.json"
    path.write_text(content)
    with pytest.raises(ExportError, match=r"one\.json' is no webshart metadata"):
        export_webshart(reading(Stored([stored(0, shard="one.tar")])), path)
    assert path.read_text() == content


def test_where_there_is_no_webshart_metadata_the_error_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="webshart extract-metadata"):
        StorageExporter(StorageContents([stored(0)])).to_webshart_metadata(tmp_path / "m.json")
    assert list(tmp_path.iterdir()) == []
