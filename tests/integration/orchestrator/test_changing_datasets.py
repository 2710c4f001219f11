"""A dataset that changes between runs: what is new or different is done, and nothing else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from caption_flow.orchestrator.sources import local
from caption_flow.orchestrator.sources.base import SourceError
from caption_flow.protocol.identity import content_hash
from caption_flow.protocol.messages import Finished, Grant, ItemDescription, Want
from caption_flow.protocol.places import FilePlace
from caption_flow.protocol.rows import CAPTIONED, FAILED, Row
from caption_flow.storage.store import RunStore
from caption_flow.storage.verify import verify
from tests.integration.orchestrator.parties import Run, ScriptedWorker, led, until
from tests.support.fleet import write_image, write_images

COUNT = 40


def caption_of(data: bytes) -> str:
    return f"a picture with the content {content_hash(data)}"


def row_of(item: ItemDescription, unreadable: str) -> Row:
    assert isinstance(item.place, FilePlace)
    if os.fsdecode(item.place.path) == unreadable:
        return Row(item.index, FAILED, error_kind="image_damaged", error="this is no picture")
    try:
        data = Path(os.fsdecode(item.place.path)).read_bytes()
    except OSError:
        return Row(item.index, FAILED, error_kind="image_missing", error="it is not there")
    return Row(
        item.index,
        CAPTIONED,
        {"captions": [caption_of(data)]},
        content_hash=content_hash(data),
        file_size=len(data),
    )


async def caption_all(worker: ScriptedWorker, done: list[int], *, unreadable: str = "") -> None:
    """Caption whatever is handed out, honestly, until the end; ``done`` collects the items."""
    await worker.send(Want(2))
    while True:
        match await worker.next():
            case Grant(leases):
                for granted in leases:
                    items = [item.index for item in granted.items]
                    done.extend(items)
                    rows = [row_of(item, unreadable) for item in granted.items]
                    await worker.report(granted.lease, items, rows=rows)
                await worker.send(Want(2))
            case Finished():
                return


async def run_once(tmp_path: Path, **settings: Any) -> tuple[Run, list[str]]:
    """Run to the end; return the run and the file names that were captioned in it."""
    done: list[int] = []
    async with led(tmp_path, images=COUNT, **settings) as run:
        await caption_all(await run.join(), done)
    assert len(done) == len(set(done)), "something was captioned twice in one run"
    assert not verify(run.data_dir).breached
    rows = run.rows()
    return run, sorted(rows[item]["filename"] for item in done)


def contents(tmp_path: Path) -> dict[str, str]:
    """What the caption of each file should be."""
    root = tmp_path / "images"
    return {
        str(path.relative_to(root)): caption_of(path.read_bytes())
        for path in sorted(root.rglob("*.bmp"))
    }


def captions(run: Run) -> dict[str, str]:
    return {row["filename"]: row["captions"][0] for row in run.rows().values()}


@contextlib.asynccontextmanager
async def captioned(tmp_path: Path) -> AsyncIterator[Path]:
    """A dataset whose every file is captioned; yields its folder."""
    run, done = await run_once(tmp_path)
    assert len(done) == COUNT
    assert captions(run) == contents(tmp_path)
    yield tmp_path / "images"


async def test_a_run_over_a_dataset_that_did_not_change_does_nothing(tmp_path: Path) -> None:
    async with captioned(tmp_path):
        assert (await run_once(tmp_path))[1] == []


async def test_a_new_file_is_captioned_and_shifts_no_other(tmp_path: Path) -> None:
    async with captioned(tmp_path) as images:
        write_image(images / "000 first of all.bmp", 10_001)
        write_image(images / "folder 2" / "new.bmp", 10_002)
        (images / "zzz").mkdir()
        write_image(images / "zzz" / "new.bmp", 10_003)
        run, done = await run_once(tmp_path)
        assert done == ["000 first of all.bmp", "folder 2/new.bmp", "zzz/new.bmp"]
        assert captions(run) == contents(tmp_path)
        assert (await run_once(tmp_path))[1] == []


async def test_a_file_with_other_content_is_captioned_again_exactly_once(tmp_path: Path) -> None:
    async with captioned(tmp_path) as images:
        changed = images / "folder 1" / "000006.bmp"
        size = changed.stat().st_size
        write_image(changed, 20_006)
        os.utime(changed, ns=(1_700_000_000_000_000_000, 1_700_000_000_000_000_000))
        assert changed.stat().st_size == size
        run, done = await run_once(tmp_path)
        assert done == ["folder 1/000006.bmp"]
        assert captions(run) == contents(tmp_path)
        assert (await run_once(tmp_path))[1] == []


async def test_many_changed_files_over_several_parts_are_each_captioned_once_more(
    tmp_path: Path,
) -> None:
    storage = {"caption_buffer_size": 8}
    await run_once(tmp_path, storage=storage)
    images = tmp_path / "images"
    paths = sorted(images.rglob("*.bmp"))[::3]
    for number, path in enumerate(paths):
        write_image(path, 30_000 + number)
    run, done = await run_once(tmp_path, storage=storage)
    assert done == sorted(str(path.relative_to(images)) for path in paths)
    assert captions(run) == contents(tmp_path)
    assert (await run_once(tmp_path))[1] == []


async def test_a_file_that_was_only_touched_is_not_captioned_again(tmp_path: Path) -> None:
    async with captioned(tmp_path) as images:
        for path in images.rglob("*.bmp"):
            os.utime(path, ns=(1_700_000_000_000_000_000, 1_700_000_000_000_000_000))
        assert (await run_once(tmp_path))[1] == []


async def test_only_files_whose_size_or_time_differ_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with captioned(tmp_path) as images:
        hashed: list[bytes] = []

        def noted(data: bytes) -> str:
            hashed.append(data)
            return content_hash(data)

        monkeypatch.setattr(local, "content_hash", noted)
        touched = images / "folder 0" / "000005.bmp"
        os.utime(touched, ns=(1_700_000_000_000_000_000, 1_700_000_000_000_000_000))
        await run_once(tmp_path)
        assert hashed == [touched.read_bytes()]
        hashed.clear()
        await run_once(tmp_path)  # and its new time is remembered
        assert hashed == []


async def test_a_file_that_has_vanished_is_reported_and_its_caption_kept(tmp_path: Path) -> None:
    async with captioned(tmp_path) as images:
        before = contents(tmp_path)
        (images / "folder 3" / "000008.bmp").unlink()
        (images / "folder 4" / "000009.bmp").unlink()
        with capture_logs() as logs:
            run, done = await run_once(tmp_path)
        assert done == []
        assert captions(run) == before
        (said,) = [entry for entry in logs if "gone from the dataset" in entry["event"]]
        assert said["items"] == 2
        assert set(said["such_as"]) == {"folder 3/000008.bmp", "folder 4/000009.bmp"}


async def test_a_vanished_file_that_comes_back_is_done_again_only_if_it_differs(
    tmp_path: Path,
) -> None:
    async with captioned(tmp_path) as images:
        same, other = images / "folder 3" / "000008.bmp", images / "folder 4" / "000009.bmp"
        content = same.read_bytes()
        same.unlink()
        other.unlink()
        await run_once(tmp_path)
        same.write_bytes(content)
        write_image(other, 40_009)
        run, done = await run_once(tmp_path)
        assert done == ["folder 4/000009.bmp"]
        assert captions(run) == contents(tmp_path)


async def test_a_renamed_file_is_a_new_one(tmp_path: Path) -> None:
    async with captioned(tmp_path) as images:
        (images / "folder 0" / "000000.bmp").rename(images / "folder 0" / "renamed.bmp")
        run, done = await run_once(tmp_path)
        assert done == ["folder 0/renamed.bmp"]
        assert set(captions(run)) == {*contents(tmp_path), "folder 0/000000.bmp"}


async def test_a_failed_picture_that_was_mended_is_tried_again(tmp_path: Path) -> None:
    write_images(tmp_path / "images", COUNT)
    broken = tmp_path / "images" / "folder 1" / "000001.bmp"
    async with led(tmp_path) as run:
        await caption_all(await run.join(), [], unreadable=str(broken))
        assert run.orchestrator.progress.failures == {"image_damaged": 1}
    write_image(broken, 50_001)
    run, done = await run_once(tmp_path)
    assert done == ["folder 1/000001.bmp"]
    assert captions(run) == contents(tmp_path)


async def test_a_changed_file_is_described_as_it_is_now(tmp_path: Path) -> None:
    """Its worker would otherwise not take the file for the one that was listed."""
    async with captioned(tmp_path) as images:
        changed = images / "folder 1" / "000006.bmp"
        changed.write_bytes(changed.read_bytes() + b"longer")
        async with led(tmp_path) as run:
            worker = await run.join()
            await until(lambda: run.orchestrator.progress.listed)
            (item,) = (await worker.lease()).items
            stat = changed.stat()
            assert isinstance(item.place, FilePlace)
            assert (item.place.size, item.place.mtime_ns) == (stat.st_size, stat.st_mtime_ns)


async def test_a_kill_between_the_steps_of_a_change_repeats_or_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are taken back first; only then does the catalog forget that the file has changed."""
    async with captioned(tmp_path) as images:
        changed = images / "folder 1" / "000006.bmp"
        write_image(changed, 60_006)

        class KilledError(Exception):
            pass

        def killed(*_: object) -> Iterator[None]:
            raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr(local, "UpdateItems", killed)
            with pytest.raises(KilledError):
                async with led(tmp_path) as run:
                    await until(run.orchestrator._ending.is_set)
        store = RunStore(tmp_path / "run")
        assert store.snapshot.totals == {"captioned": COUNT - 1}
        store.release()
        run, done = await run_once(tmp_path)
        assert done == ["folder 1/000006.bmp"]
        assert captions(run) == contents(tmp_path)


# ---------------------------------------------------------------- another dataset


async def test_a_dataset_that_was_moved_goes_on(tmp_path: Path) -> None:
    images = tmp_path / "images"
    async with led(tmp_path, images=4) as run:
        await (await run.join()).work_until_finished()
    moved = images.rename(tmp_path / "moved")
    async with led(tmp_path, root=moved) as run:
        assert (await (await run.join()).expect(Finished)).captioned == 4


async def test_a_folder_of_other_images_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with led(tmp_path, images=4) as run:
        await (await run.join()).work_until_finished()
    write_images(tmp_path / "others", 4, first=100)
    with pytest.raises(SourceError, match="is another dataset"):
        async with led(tmp_path, root=tmp_path / "others"):
            pass
    async with led(tmp_path) as run:
        assert (await (await run.join()).expect(Finished)).captioned == 4
