"""Tars on this machine: what is in them, where, and what becomes of those that change."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import tarfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from caption_flow.config.dataset import DatasetConfig
from caption_flow.orchestrator.sources import tar_shelf
from caption_flow.orchestrator.sources.base import (
    Changed,
    Finding,
    Item,
    Listed,
    PassedOver,
    RunFolder,
    ShardError,
    SourceError,
    Vanished,
)
from caption_flow.orchestrator.sources.tar_files import find_tars
from caption_flow.orchestrator.sources.tar_index import index_tar
from caption_flow.orchestrator.sources.tars import TarSource
from caption_flow.places.files import read_own_file
from caption_flow.places.objects import OBJECTS, read_object
from caption_flow.protocol.places import FilePlace, ObjectPlace
from caption_flow.storage.opening import KnownShard
from caption_flow.storage.writer import Write
from tests.integration.orchestrator.parties import led
from tests.support.object_server import object_server, s3_server
from tests.support.tars import webshart_index, write_shards, write_tar


async def _nothing_is_written(change: Write) -> None:
    raise AssertionError(f"written: {change}")


class Opened:
    """A source over a folder, and what it listed."""

    def __init__(self, root: Path | str, data_dir: Path, **settings: Any) -> None:
        self.columns: tuple[str, ...] = settings.pop("columns", ())
        self.dataset = DatasetConfig(type="webdataset", dataset_path=str(root), **settings)
        self.data_dir = data_dir
        self.shards: dict[str, KnownShard] = {}
        self.findings: list[Finding] = []
        data_dir.mkdir(exist_ok=True)

    async def list_all(self) -> TarSource:
        folder = RunFolder(
            self.data_dir, _nothing_is_written, shards=self.shards, columns=self.columns
        )
        source = await asyncio.to_thread(TarSource.open, self.dataset, folder)
        self.findings = [finding async for finding in source.listing()]
        for finding in self.findings:
            if isinstance(finding, Listed):
                self.shards[finding.shard] = KnownShard(finding.count, finding.facts)
        return source

    async def items(self) -> list[Item]:
        source = await self.list_all()
        found = [
            item
            for name, shard in self.shards.items()
            for item in await asyncio.to_thread(source.describe, name, range(shard.count))
        ]
        source.close()
        return found


def read(item: Item) -> bytes:
    if isinstance(item.place, ObjectPlace):
        return read_object(item.place)
    assert isinstance(item.place, FilePlace), item
    return read_own_file(item.place)


def by_path(items: Sequence[Item]) -> dict[str, bytes]:
    return {(item.path or b"").decode(): read(item) for item in items}


async def test_every_image_is_one_range_of_its_tar(tmp_path: Path) -> None:
    written = write_shards(tmp_path / "set", shards=6, samples=5)
    items = await Opened(tmp_path / "set", tmp_path / "run").items()
    assert by_path(items) == written
    assert items[7].key == "shard-000001.tar/000007"


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
async def test_names_of_any_length_and_writing_are_found(tmp_path: Path, form: int) -> None:
    folder = "deep/" * (15 if form == tarfile.USTAR_FORMAT else 60)
    names = [f"./{folder}one.jpg", f"{folder}two.v2.png", "Ünï/dré.JPEG", "only.one.webp"]
    tar = tmp_path / "one.tar"
    write_tar(tar, [(name, name.encode()) for name in names], form=form)
    items = await Opened(tar, tmp_path / "run").items()
    assert [read(item).decode() for item in items] == names
    assert items[1].key == f"one.tar/{folder}two"


async def test_samples_are_what_follows_each_other_with_one_key(tmp_path: Path) -> None:
    members = [
        ("__meta__/info.jpg", b"of the tar"),
        ("a/1.json", b"{}"),
        ("a/1.jpg", b"a1"),
        ("a/1.mask.png", b"mask"),
        ("b/1.jpg", b"b1"),
        (".hidden.jpg", b"hidden"),
        ("readme", b"no suffix"),
        ("c.txt", b"alone"),
        ("d.0.jpg", b"d0"),
        ("d.1.jpg", b"d1"),
    ]
    write_tar(tmp_path / "x.tar", members)
    items = await Opened(tmp_path / "x.tar", tmp_path / "run").items()
    assert [item.key for item in items] == [f"x.tar/{key}" for key in ("a/1", "b/1", "c", "d")]
    assert [read(item) for item in items if item.place] == [b"a1", b"b1", b"d0"]
    assert items[2].place is None
    assert "has no image, only txt" in items[2].reason


def remarks(logs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [entry["remark"] for entry in logs if entry["event"] == "a tar is not as it might seem"]


async def test_of_files_of_one_name_the_last_counts_and_that_is_said(tmp_path: Path) -> None:
    members = [
        ("a.jpg", b"old a"),
        ("a.txt", b"of a"),
        ("b.jpg", b"older b"),
        ("b.jpg", b"old b"),
        ("c.jpg", b"c"),
        ("./a.jpg", b"new a"),
        ("b.jpg", b"new b"),
    ]
    write_tar(tmp_path / "x.tar", members)
    with capture_logs() as logs:
        opened = Opened(tmp_path / "x.tar", tmp_path / "run", columns=("txt",))
        items = await opened.items()
    assert {item.key: read(item) for item in items} == {
        "x.tar/a": b"new a",
        "x.tar/b": b"new b",
        "x.tar/c": b"c",
    }
    assert [item.columns for item in items] == [{"txt": "of a"}, {}, {}]
    with tarfile.open(tmp_path / "x.tar") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    for item in items:
        name = (item.path or b"").decode().removeprefix("x.tar/")
        assert (tmp_path / "unpacked" / name).read_bytes() == read(item)
    assert remarks(logs) == ["files passed over, since a later one has the same name: 3"]


async def test_a_key_that_comes_again_is_the_same_sample_and_nothing_is_lost_silently(
    tmp_path: Path,
) -> None:
    members = [
        ("a.jpg", b"a"),
        ("b.jpg", b"b"),
        ("a.txt", b"of a"),
        ("b.txt", b"of b"),
        ("a.png", b"a, too"),
        ("c.jpg", b"c"),
    ]
    write_tar(tmp_path / "x.tar", members)
    with capture_logs() as logs:
        opened = Opened(tmp_path / "x.tar", tmp_path / "run", columns=("txt",))
        items = await opened.items()
    assert [(item.key, read(item), item.columns) for item in items] == [
        ("x.tar/a", b"a", {"txt": "of a"}),
        ("x.tar/b", b"b", {"txt": "of b"}),
        ("x.tar/c", b"c", {}),
    ]
    assert remarks(logs) == [
        "samples whose files do not follow each other, taken together: 2",
        "images not captioned, since another of their sample comes first: 1",
    ]


async def test_other_members_are_columns_where_prompts_name_them(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", shards=1, samples=3)
    opened = Opened(tmp_path / "set", tmp_path / "run", columns=("txt", "title"))
    items = await opened.items()
    assert [item.columns for item in items] == [
        {"txt": f"text {number}", "title": f"title {number}"} for number in range(3)
    ]


async def test_nothing_else_is_read_where_no_prompt_names_a_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "set", shards=1, samples=3)
    monkeypatch.setattr("caption_flow.orchestrator.sources.tar_columns.read_member", None)
    assert not any(item.columns for item in await Opened(tmp_path / "set", tmp_path).items())


async def test_a_broken_json_takes_only_its_column_away(tmp_path: Path) -> None:
    broken = [("1.jpg", b"1"), ("1.json", b"{oops"), ("1.cls", b"7\n")]
    write_tar(tmp_path / "x.tar", [*broken, ("2.jpg", b"2"), ("2.json", b'{"title": "t"}')])
    opened = Opened(tmp_path / "x.tar", tmp_path / "run", columns=("cls", "title"))
    item, _ = await opened.items()
    assert item.columns == {"cls": "7"}
    assert read(item) == b"1"


# ---------------------------------------------------------------- indexes


def count_indexing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []

    def counted(file: Any, size: int) -> Any:
        calls.append(size)
        return index_tar(file, size)

    monkeypatch.setattr(tar_shelf, "index_tar", counted)
    return calls


async def test_a_run_that_goes_on_opens_no_tar_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_shards(tmp_path / "set", shards=3, samples=4)
    opened = Opened(tmp_path / "set", tmp_path / "run")
    await opened.items()
    calls = count_indexing(monkeypatch)
    assert by_path(await opened.items()) == written
    assert not calls
    more = write_shards(tmp_path / "set", shards=4, samples=4)
    for number in range(3):  # written again: only their time differs
        assert f"shard-{number:06d}.tar" in opened.shards
    assert by_path(await opened.items()) == more
    assert len(calls) == 4


async def test_a_lost_index_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_shards(tmp_path / "set", shards=2, samples=4)
    opened = Opened(tmp_path / "set", tmp_path / "run")
    await opened.items()
    kept = sorted((tmp_path / "run" / tar_shelf.FOLDER).iterdir())
    kept[0].unlink()
    kept[1].write_bytes(b"scribble")
    calls = count_indexing(monkeypatch)
    assert by_path(await opened.items()) == written
    assert len(calls) == 2


async def test_webshart_indexes_are_taken_instead_of_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_shards(tmp_path / "set", shards=3, samples=4)
    tars = sorted((tmp_path / "set").glob("*.tar"))
    (tmp_path / "indexes").mkdir()
    (tmp_path / "indexes" / "shard-000000.json").write_text(json.dumps(webshart_index(tars[0])))
    tars[1].with_suffix(".json").write_text(json.dumps(webshart_index(tars[1])))
    wrong = {**webshart_index(tars[2]), "filesize": 1}
    tars[2].with_suffix(".json").write_text(json.dumps(wrong))
    calls = count_indexing(monkeypatch)
    opened = Opened(tmp_path / "set", tmp_path / "run", metadata_path=tmp_path / "indexes")
    assert by_path(await opened.items()) == written
    assert calls == [tars[2].stat().st_size]


async def test_memory_holds_a_bounded_number_of_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_shelf, "_SAMPLES_IN_MEMORY", 10)
    write_shards(tmp_path / "set", shards=6, samples=4)
    source = await Opened(tmp_path / "set", tmp_path / "run").list_all()
    assert len(source._shelf._memory) == 2
    source.close()


# ---------------------------------------------------------------- where tars are


def names(path: Path | str, **settings: Any) -> list[str]:
    dataset = DatasetConfig(type="webdataset", dataset_path=str(path), **settings)
    return [tar.name for tar in find_tars(dataset)]


def test_folders_patterns_ranges_and_lists_name_tars(tmp_path: Path) -> None:
    for name in ("a/01.tar", "a/02.tar", "b/01.tar", ".c/03.tar", "note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path) == ["a/01.tar", "a/02.tar", "b/01.tar"]
    assert names(tmp_path / "a") == ["01.tar", "02.tar"]
    assert names(tmp_path / "a/01.tar") == ["01.tar"]
    assert names(tmp_path / "*/01.tar") == ["a/01.tar", "b/01.tar"]
    assert names(tmp_path / "a/{01..02}.tar") == ["01.tar", "02.tar"]
    assert names(tmp_path / "{b,a}/01.tar") == ["b/01.tar", "a/01.tar"]
    assert names(f"{tmp_path}/a::{tmp_path}/b") == ["a/01.tar", "a/02.tar", "b/01.tar"]
    assert names("https://host/x/{00..11}.tar?key=1")[10] == "10.tar?key=1"


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("nowhere/{0..3}.tar", "cannot be read"),
        ("nowhere/*.tar", "there is no folder"),
        ("empty", r"there is no \.tar at"),
        ("packed", "unpack it"),
        ("packed/x.tar.gz", "unpack it"),
        ("https://host/folder", "HTTP has no folders"),
        ("https://host/{9..1}.tar", "is no range"),
        ("https://host/{x}.tar", "neither a range"),
    ],
)
def test_a_dataset_that_is_not_there_is_refused(tmp_path: Path, path: str, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/x.tar.gz").touch()
    full = path if "://" in path else str(tmp_path / path)
    with pytest.raises(SourceError, match=sentence):
        TarSource.check(DatasetConfig(type="webdataset", dataset_path=full))


async def test_a_dataset_without_a_sample_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "set/x.tar", [("readme", b"")])
    (tmp_path / "set/y.tar").write_bytes(gzip.compress(b"z" * 9999))
    with pytest.raises(SourceError, match=r"no sample .*1 could not be read"):
        await Opened(tmp_path / "set", tmp_path / "run").list_all()


# ---------------------------------------------------------------- damage and change


async def test_of_a_tar_cut_short_the_rest_is_captioned(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", shards=2, samples=4)
    tar = tmp_path / "set" / "shard-000000.tar"
    opened = Opened(tmp_path / "set", tmp_path / "whole")
    third = (await opened.items())[2].place
    assert isinstance(third, FilePlace)
    os.truncate(tar, third.offset + 50)
    again = Opened(tmp_path / "set", tmp_path / "run")
    for _ in range(2):  # and the next run, which does not read it, says so, too
        items = await again.items()
        assert [item.place is None for item in items] == [False, False, True] + [False] * 4
        assert "ends within 000002.bmp" in items[2].reason
        (told,) = [found for found in again.findings if isinstance(found, PassedOver)]
        assert told.shard == "shard-000000.tar"
        assert told.partly
        assert "cut short" in told.reason


async def test_a_tar_cut_short_that_is_whole_again_is_done_to_its_end(tmp_path: Path) -> None:
    written = write_shards(tmp_path / "set", shards=1, samples=4)
    tar = tmp_path / "set" / "shard-000000.tar"
    whole = tar.read_bytes()
    third = (await Opened(tar, tmp_path / "whole").items())[2].place
    assert isinstance(third, FilePlace)
    tar.write_bytes(whole[: third.offset + 50])
    opened = Opened(tar, tmp_path / "run")
    assert len(await opened.items()) == 3
    tar.write_bytes(whole)
    assert by_path(await opened.items()) == written
    assert Changed("shard-000000.tar", frozenset({2})) in opened.findings
    assert not [found for found in opened.findings if isinstance(found, PassedOver)]
    # What is longer and begins otherwise is another tar.
    tar.write_bytes(whole[: third.offset + 50])
    again = Opened(tar, tmp_path / "run 2")
    await again.items()
    write_tar(tar, [(f"{number}.jpg", b"other") for number in range(9)])
    with pytest.raises(SourceError, match=r"shard-000000\.tar has changed"):
        await again.list_all()


async def test_a_tar_that_is_none_is_passed_over(tmp_path: Path) -> None:
    written = write_shards(tmp_path / "set", shards=2, samples=4)
    (tmp_path / "set" / "shard-000000.tar").write_bytes(b"prose " * 1000)
    opened = Opened(tmp_path / "set", tmp_path / "run")
    assert by_path(await opened.items()) == {
        name: data for name, data in written.items() if "000001" in name[:13]
    }
    (told,) = [found for found in opened.findings if isinstance(found, PassedOver)]
    assert told.shard == "shard-000000.tar"
    assert "is no tar" in told.reason
    # Mended, it is taken up by the next run.
    write_shards(tmp_path / "set", shards=1, samples=4)
    assert by_path(await opened.items()) == written


async def test_a_tar_that_changed_is_refused_by_name(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", shards=3, samples=4)
    opened = Opened(tmp_path / "set", tmp_path / "run")
    await opened.items()
    write_tar(tmp_path / "set/shard-000001.tar", [("other.jpg", b"other")])
    with pytest.raises(SourceError, match=r"shard-000001\.tar has changed"):
        await opened.list_all()


async def test_a_tar_that_disappears_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    written = write_shards(tmp_path / "set", shards=3, samples=4)
    opened = Opened(tmp_path / "set", tmp_path / "run")
    await opened.items()
    (tmp_path / "set/shard-000001.tar").unlink()
    items = await opened.items()
    (gone,) = [finding for finding in opened.findings if isinstance(finding, Vanished)]
    assert (gone.shard, gone.count) == ("shard-000001.tar", 4)
    assert gone.examples[0] == "shard-000001.tar/000004"
    there = [item for item in items if item.place is not None]
    assert by_path(there) == {
        name: data for name, data in written.items() if not name.startswith(gone.shard)
    }
    assert {item.reason for item in items} == {"", "the tar shard-000001.tar is gone"}


async def test_a_dataset_that_moved_is_the_same(tmp_path: Path) -> None:
    written = write_shards(tmp_path / "set", shards=3, samples=4)
    opened = Opened(tmp_path / "set", tmp_path / "run")
    await opened.items()
    (tmp_path / "set").rename(tmp_path / "moved")
    moved = Opened(tmp_path / "moved", tmp_path / "run")
    moved.shards = opened.shards
    assert by_path(await moved.items()) == written


# ---------------------------------------------------------------- in storages


@pytest.fixture
def no_stores() -> None:
    """Have stores opened anew, with the test's own settings."""
    OBJECTS._store_of.cache_clear()


def contents(root: Path, prefix: str) -> dict[str, bytes]:
    return {f"{prefix}{path.name}": path.read_bytes() for path in sorted(root.iterdir())}


async def test_tars_on_a_web_server_are_read_by_ranges(tmp_path: Path) -> None:
    written = write_shards(tmp_path / "set", shards=3, samples=4)
    async with object_server(contents(tmp_path / "set", "/data/")) as server:
        server.faults.extend(["", "500", "reset"])
        url = f"{server.url}/data/shard-{{000000..000002}}.tar"
        opened = Opened(url, tmp_path / "run", columns=("txt",))
        items = await opened.items()
        assert [item.columns for item in items[:2]] == [{"txt": "text 0"}, {"txt": "text 1"}]
        assert await asyncio.to_thread(by_path, items) == written
        server.requests.clear()
        await opened.list_all()
        assert server.requests == {"HEAD": 3}, "tars that are known are only looked at"


async def test_a_missing_or_forbidden_tar_is_passed_over(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", shards=2, samples=4)
    async with object_server(contents(tmp_path / "set", "/")) as server:
        server.files["/shard-000003.tar"] = server.files.pop("/shard-000000.tar")
        opened = Opened(f"{server.url}/shard-{{000000..000003}}.tar", tmp_path / "run")
        await opened.list_all()
        assert sorted(opened.shards) == ["shard-000001.tar", "shard-000003.tar"]
        passed_over = [found for found in opened.findings if isinstance(found, PassedOver)]
        assert [found.shard for found in passed_over] == ["shard-000000.tar", "shard-000002.tar"]
        assert all("there is no http" in found.reason for found in passed_over)
        check = asyncio.to_thread(TarSource.check, opened.dataset)
        await check
        gone = DatasetConfig(type="webdataset", dataset_path=f"{server.url}/shard-{{5..9}}.tar")
        with pytest.raises(SourceError, match=r"first tar cannot be read: there is no http"):
            await asyncio.to_thread(TarSource.check, gone)
        server.always = "403"
        one = DatasetConfig(type="webdataset", dataset_path=f"{server.url}/shard-000001.tar")
        with pytest.raises(SourceError, match="may not be read"):
            await asyncio.to_thread(TarSource.check, one)


async def test_a_remote_tar_that_changed_is_refused_by_name(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", shards=2, samples=4)
    async with object_server(contents(tmp_path / "set", "/")) as server:
        opened = Opened(f"{server.url}/shard-{{000000..000001}}.tar", tmp_path / "run")
        await opened.list_all()
        write_tar(tmp_path / "other.tar", [("other.jpg", b"other")])
        server.files["/shard-000001.tar"] = (tmp_path / "other.tar").read_bytes()
        with pytest.raises(SourceError, match=r"shard-000001\.tar has changed"):
            await opened.list_all()


async def test_columns_of_a_tar_that_changed_or_went_are_no_empty_columns(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", shards=3, samples=4)
    opened = Opened(tmp_path / "set", tmp_path / "run", columns=("title",))
    source = await opened.list_all()
    write_tar(tmp_path / "set/shard-000001.tar", [("other.jpg", b"other")] * 40)
    (tmp_path / "set/shard-000002.tar").unlink()
    assert len(await asyncio.to_thread(source.describe, "shard-000000.tar", range(4))) == 4
    for shard, why in (("shard-000001.tar", "has changed"), ("shard-000002.tar", "No such file")):
        with pytest.raises(ShardError, match=why) as told:
            await asyncio.to_thread(source.describe, shard, [0, 1])
        assert not told.value.is_passing
        assert next(item.key for item in told.value.items) in {
            "shard-000001.tar/000004",
            "shard-000002.tar/000008",
        }
        assert {item.kind for item in told.value.items} == {"shard_unreadable"}
    source.close()


async def test_a_known_tar_that_is_refused_now_is_told_of_and_ends_nothing(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", shards=2, samples=4)
    async with object_server(contents(tmp_path / "set", "/")) as server:
        opened = Opened(f"{server.url}/shard-{{000000..000001}}.tar", tmp_path / "run")
        await opened.list_all()
        server.always = "403"
        source = await opened.list_all()
        told = [found for found in opened.findings if isinstance(found, PassedOver)]
        assert [(one.shard, one.partly) for one in told] == [
            ("shard-000000.tar", True),
            ("shard-000001.tar", True),
        ]
        items = await asyncio.to_thread(source.describe, "shard-000000.tar", range(4))
        assert all(isinstance(item.place, ObjectPlace) for item in items)
        source.close()


async def test_a_column_that_no_sample_has_is_refused_also_when_prompts_change(
    tmp_path: Path,
) -> None:
    write_shards(tmp_path / "set", shards=2, samples=4)
    opened = Opened(tmp_path / "set", tmp_path / "run", columns=("title",))
    await opened.items()
    for _ in range(2):
        opened.columns = ("titel", "txt")
        with pytest.raises(SourceError, match=r"\{column:titel\}.* did you mean 'title'\?"):
            await opened.list_all()
    opened.columns = ("number", "txt")
    assert (await opened.items())[5].columns == {"txt": "text 5", "number": 5}


@pytest.mark.parametrize("where", ["here", "there"])
async def test_of_a_tar_that_is_replaced_while_the_run_goes_on_no_other_image_is_taken(
    tmp_path: Path, where: str
) -> None:
    write_tar(tmp_path / "set/x.tar", [("1.jpg", b"one"), ("1.txt", b"of one"), ("2.jpg", b"two")])
    write_tar(tmp_path / "y.tar", [("1.jpg", b"ONE"), ("1.txt", b"OF ONE"), ("2.jpg", b"TWO")])
    async with object_server(contents(tmp_path / "set", "/")) as server:
        location = f"{server.url}/x.tar" if where == "there" else str(tmp_path / "set/x.tar")
        dataset = {"type": "webdataset", "dataset_path": location}
        async with led(tmp_path, root=tmp_path / "set", dataset=dataset) as run:
            worker = await run.join()
            granted = await worker.lease()
            assert (await worker.image(granted.lease, 0)).payload == b"one"
            server.files["/x.tar"] = (tmp_path / "y.tar").read_bytes()
            (tmp_path / "y.tar").replace(tmp_path / "set/x.tar")
            for item in (0, 1):
                image = await worker.image(granted.lease, item)
                assert (image.payload, image.kind) == (b"", "image_changed")
                assert "changed since it was listed" in image.error


@pytest.mark.parametrize("where", ["here", "there"])
async def test_of_a_tar_that_was_replaced_no_other_column_is_taken(
    tmp_path: Path, where: str
) -> None:
    write_tar(tmp_path / "set/x.tar", [("1.jpg", b"one"), ("1.txt", b"of one")])
    write_tar(tmp_path / "y.tar", [("1.jpg", b"ONE"), ("1.txt", b"OF ONE")])
    async with object_server(contents(tmp_path / "set", "/")) as server:
        location = f"{server.url}/x.tar" if where == "there" else str(tmp_path / "set/x.tar")
        source = await Opened(location, tmp_path / "run", columns=("txt",)).list_all()
        (before,) = await asyncio.to_thread(source.describe, "x.tar", [0])
        assert before.columns == {"txt": "of one"}
        server.files["/x.tar"] = (tmp_path / "y.tar").read_bytes()
        (tmp_path / "y.tar").replace(tmp_path / "set/x.tar")
        with pytest.raises(ShardError, match="changed since it was listed"):
            await asyncio.to_thread(source.describe, "x.tar", [0])
        source.close()


async def test_members_that_are_large_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = os.urandom(3 * 2**20)
    members = [(f"{number}.jpg", big if number % 2 else b"small") for number in range(6)]
    write_tar(tmp_path / "set/x.tar", members)
    monkeypatch.setattr(tar_shelf, "_BLOCK", 2**20)
    read: list[int] = []
    real = OBJECTS.read

    def counted(url: str, *ranges: int, **version: Any) -> bytes:
        data = real(url, *ranges, **version)
        read.append(len(data))
        return data

    monkeypatch.setattr(OBJECTS, "read", counted)
    async with object_server(contents(tmp_path / "set", "/")) as server:
        opened = Opened(f"{server.url}/x.tar", tmp_path / "run")
        items = await opened.list_all()
        assert opened.shards["x.tar"].count == 6
        items.close()
    assert sum(read) < 2**20 + 8 * 64 * 2**10


async def test_tars_in_a_bucket_are_found_and_read(tmp_path: Path) -> None:
    written = write_shards(tmp_path / "set", shards=3, samples=4)
    index = tmp_path / "set" / "shard-000001.json"
    index.write_text(json.dumps(webshart_index(index.with_suffix(".tar"))))
    with s3_server(contents(tmp_path / "set", "all/set/")) as bucket:
        for number, path in enumerate(
            ("all/set", "all/set/*.tar", "all/set/shard-{000000..000002}.tar")
        ):
            opened = Opened(f"{bucket}/{path}", tmp_path / f"run {number}")
            assert by_path(await opened.items()) == written
        assert names(f"{bucket}/all/set/*2.tar") == ["shard-000002.tar"]


async def test_tars_in_a_bucket_of_google_are_found_and_read(
    tmp_path: Path, no_stores: None
) -> None:
    written = write_shards(tmp_path / "set", shards=3, samples=4)
    with s3_server(contents(tmp_path / "set", "all/set/"), as_google=True) as bucket:
        opened = Opened(f"{bucket}/all/set", tmp_path / "run", columns=("txt",))
        items = await opened.items()
        assert by_path(items) == written
        assert items[0].columns == {"txt": "text 0"}


@pytest.mark.parametrize("scheme", ["az", "abfs"])
async def test_tars_in_a_container_of_azure_are_found_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_stores: None, scheme: str
) -> None:
    written = write_shards(tmp_path / "set", shards=3, samples=4)
    async with object_server(contents(tmp_path / "set", "/pictures/all/set/")) as server:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        monkeypatch.setenv("AZURE_ENDPOINT", server.url)
        monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "true")
        opened = Opened(f"{scheme}://pictures/all/set", tmp_path / "run")
        assert await asyncio.to_thread(by_path, await opened.items()) == written


async def test_an_azure_container_without_an_account_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_stores: None
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(SourceError, match="set AZURE_STORAGE_ACCOUNT_NAME"):
        await Opened("az://pictures/all/set", tmp_path / "run").list_all()


# ---------------------------------------------------------------- in a run


async def test_the_first_tar_is_told_before_the_last_is_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "set", shards=6, samples=1)
    last = (tmp_path / "set/shard-000005.tar").stat().st_size + 1
    os.truncate(tmp_path / "set/shard-000005.tar", last)
    gate = threading.Event()

    def gated(file: Any, size: int) -> Any:
        assert size != last or gate.wait(20)
        return index_tar(file, size)

    monkeypatch.setattr(tar_shelf, "index_tar", gated)
    opened = Opened(tmp_path / "set", tmp_path / "run")
    source = TarSource.open(opened.dataset, RunFolder(opened.data_dir, _nothing_is_written))
    told = 0
    async for finding in source.listing():
        assert isinstance(finding, Listed)
        told += finding.count
        if told == 5:
            gate.set()
    assert told == 6
    source.close()


async def test_a_run_knows_its_dataset_wherever_it_is(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", shards=2, samples=4)

    def at(root: str) -> dict[str, Any]:
        return {"dataset": {"type": "webdataset", "dataset_path": str(tmp_path / root)}}

    async with led(tmp_path, root=tmp_path / "set", **at("set")) as run:
        assert (await (await run.join()).work_until_finished()).captioned == 8
    (tmp_path / "set").rename(tmp_path / "moved")
    async with led(tmp_path, root=tmp_path / "moved", **at("moved")) as run:
        assert (await (await run.join()).work_until_finished()).captioned == 8
    write_tar(tmp_path / "other/x.tar", [("other.jpg", b"other")])
    with pytest.raises(SourceError, match="another dataset"):
        async with led(tmp_path, root=tmp_path / "other", **at("other")):
            pass
