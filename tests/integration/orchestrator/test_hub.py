"""Hub datasets whose files lack columns, are broken, change, or are out of reach."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from structlog.testing import capture_logs

from caption_flow.orchestrator import service
from caption_flow.orchestrator.assembly import assemble
from caption_flow.orchestrator.sources import hub
from caption_flow.orchestrator.sources.base import SourceError
from caption_flow.orchestrator.sources.hub_repository import Shards
from caption_flow.places.base import PlaceError
from caption_flow.places.reader import PlaceReader
from caption_flow.protocol.messages import Finished, Grant, ItemDescription, Want
from caption_flow.protocol.places import ObjectPlace
from caption_flow.protocol.rows import CAPTIONED, FAILED, Row
from tests.integration.orchestrator.parties import (
    TOKENS,
    Run,
    ScriptedWorker,
    configuration,
    led,
    until,
)
from tests.support import parquet
from tests.support.flaky import FlakyStorage
from tests.support.fleet import stored_rows

PROMPT = "Describe {column:title}."
ROWS = 4


def settings(root: Path, prompt: str = PROMPT, **dataset: Any) -> dict[str, Any]:
    return {
        "dataset": {"type": "huggingface", "dataset_path": str(root), **dataset},
        "vllm": {"model": "m", "inference_prompts": [prompt]},
    }


def name(shard: int, shards: int = 3) -> str:
    return f"data/train-{shard:05}-of-{shards:05}.parquet"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return parquet.dataset(tmp_path / "set", 3, ROWS)


async def work(worker: ScriptedWorker) -> dict[str, dict[int, Any]]:
    """Do what is granted as a worker does; return the titles that items came with, by shard.

    What has no place is asked for, and fails with what the orchestrator says of it.
    """
    titles: dict[str, dict[int, Any]] = {}
    while True:
        await worker.send(Want(1))
        while not isinstance(message := await worker.next(), Grant):
            if isinstance(message, Finished):
                return titles
        for granted in message.leases:
            rows = [await row_of(worker, granted.lease, item) for item in granted.items]
            columns = {item.index: item.columns or {} for item in granted.items}
            titles.setdefault(granted.shard, {}).update(
                {index: found.get("title") for index, found in columns.items()}
            )
            await worker.report(granted.lease, list(columns), rows=rows)


async def row_of(worker: ScriptedWorker, lease: int, item: ItemDescription) -> Row:
    if item.place is not None:
        return Row(item.index, CAPTIONED, {"captions": ["a caption"]})
    answer = await worker.image(lease, item.index)
    return Row(item.index, FAILED, error_kind=answer.kind, error=answer.error)


async def run_once(
    tmp_path: Path, root: Path, **more: Any
) -> tuple[Run, dict[str, dict[int, Any]]]:
    async with led(tmp_path, root=root, **settings(root, **more)) as run:
        titles = await work(await run.join())
    return run, titles


def captioned(run: Run) -> dict[str, int]:
    found = stored(run)
    shards = [row["shard"] for row in found if row["status"] == "captioned"]
    return {shard: shards.count(shard) for shard in sorted(set(shards))}


def stored(run: Run) -> list[dict[str, Any]]:
    return stored_rows(run.data_dir)


async def refused(tmp_path: Path, root: Path, **more: Any) -> str:
    with pytest.raises(SourceError) as error:
        await assemble(configuration(root, tmp_path / "run", **settings(root, **more)), TOKENS)
    return str(error.value)


# ---------------------------------------------------------------- columns


async def test_a_file_may_lack_a_column_that_others_have(tmp_path: Path, root: Path) -> None:
    for shard in (0, 1):
        parquet.write(root / name(shard), image=parquet.struct(range(ROWS)))
    run, titles = await run_once(tmp_path, root)
    assert captioned(run) == {name(shard): ROWS for shard in range(3)}
    assert set(titles[name(0)].values()) == {None}
    assert titles[name(2)][0] == f"title {2 * ROWS}"


async def test_a_column_that_no_file_has_is_refused_with_the_nearest_name(
    tmp_path: Path, root: Path
) -> None:
    assert await refused(tmp_path, root, prompt="{column:titel} {column:x}") == (
        "prompts ask for {column:titel} and {column:x}, which the dataset does not have; "
        "did you mean 'title'? There are 'image', 'title'"
    )


async def test_prompts_that_change_between_runs_are_looked_at_again(
    tmp_path: Path, root: Path
) -> None:
    await run_once(tmp_path, root)
    assert "did you mean 'title'?" in await refused(tmp_path, root, prompt="{column:titel}")
    assert "did you mean 'title'?" in await refused(tmp_path, root, prompt="{column:titel}")
    _, titles = await run_once(tmp_path, root, prompt="Another {column:title}")
    assert titles == {}


# ---------------------------------------------------------------- files that cannot be read


def break_in_three_ways(root: Path) -> None:
    parquet.dataset(root, 5, ROWS)
    for old in root.glob("data/*-of-00003.parquet"):
        old.unlink()
    (root / name(0, 5)).write_bytes(b"prose " * 1000)
    whole = (root / name(2, 5)).read_bytes()
    (root / name(2, 5)).write_bytes(whole[: len(whole) // 2])
    parquet.write(root / name(3, 5), title=["no image"] * ROWS)


async def test_files_that_are_broken_are_passed_over_and_tried_again(
    tmp_path: Path, root: Path
) -> None:
    break_in_three_ways(root)
    with capture_logs() as logs:
        run, _ = await run_once(tmp_path, root)
    assert captioned(run) == {name(1, 5): ROWS, name(4, 5): ROWS}
    told = run.orchestrator.progress.passed_over
    assert set(told) == {name(0, 5), name(2, 5), name(3, 5)}
    assert "is damaged" in told[name(0, 5)]
    assert "has no column 'image', but 'title'" in told[name(3, 5)]
    assert {one["shard"] for one in logs if "passed over" in one["event"]} == set(told)

    run, _ = await run_once(tmp_path, root)
    assert set(run.orchestrator.progress.passed_over) == set(told), "it is forgotten"

    parquet.dataset(root, 5, ROWS)
    run, _ = await run_once(tmp_path, root)
    assert captioned(run) == {name(shard, 5): ROWS for shard in range(5)}
    assert run.orchestrator.progress.passed_over == {}


async def test_a_first_file_without_images_is_passed_over_alone(tmp_path: Path, root: Path) -> None:
    parquet.write(root / name(0), title=["no image"] * ROWS)
    run, _ = await run_once(tmp_path, root)
    assert captioned(run) == {name(1): ROWS, name(2): ROWS}
    assert "it has no column 'image'" in run.orchestrator.progress.passed_over[name(0)]


async def test_a_dataset_without_a_readable_file_is_refused(tmp_path: Path, root: Path) -> None:
    for shard in range(3):
        (root / name(shard)).write_bytes(b"prose " * 1000)
    sentence = await refused(tmp_path, root)
    assert "not one of the dataset's files can be read: data/train-00000" in sentence


# ---------------------------------------------------------------- files that change


async def test_a_file_that_changes_during_the_run_fails_alone_and_is_done_again(
    tmp_path: Path, root: Path
) -> None:
    async with led(tmp_path, root=root, **settings(root)) as run:
        await until(lambda: run.orchestrator.progress.listed)
        parquet.write(
            root / name(1),
            image=parquet.struct(range(70, 70 + ROWS + 2)),
            title=[f"newer {row}" for row in range(ROWS + 2)],
        )
        await work(await run.join())
        assert run.orchestrator.progress.failures == {"shard_unreadable": ROWS}
        assert set(run.orchestrator.progress.passed_over) == {name(1)}
    failed = [row for row in stored(run) if row["status"] == "failed"]
    assert {row["item_key"] for row in failed} == {f"{name(1)}#{row}" for row in range(ROWS)}
    assert all("has changed since it was listed" in row["error"] for row in failed)

    run, titles = await run_once(tmp_path, root)
    assert captioned(run) == {name(0): ROWS, name(1): ROWS + 2, name(2): ROWS}
    assert titles == {name(1): {row: f"newer {row}" for row in range(ROWS + 2)}}


async def test_a_file_that_disappears_during_the_run_fails_alone(
    tmp_path: Path, root: Path
) -> None:
    async with led(tmp_path, root=root, **settings(root)) as run:
        await until(lambda: run.orchestrator.progress.listed)
        (root / name(1)).unlink()
        await work(await run.join())
    assert captioned(run) == {name(0): ROWS, name(2): ROWS}
    assert {row["error_kind"] for row in stored(run) if row["status"] == "failed"} == {
        "shard_unreadable"
    }


async def test_a_file_that_is_gone_at_the_next_start_is_told_and_keeps_its_captions(
    tmp_path: Path, root: Path
) -> None:
    await run_once(tmp_path, root)
    (root / name(1)).unlink()
    with capture_logs() as logs:
        run, titles = await run_once(tmp_path, root)
    assert captioned(run) == {name(shard): ROWS for shard in range(3)}
    assert titles == {}
    (told,) = [entry for entry in logs if "gone from the dataset" in entry["event"]]
    assert (told["items"], told["such_as"]) == (ROWS, (name(1),))


async def test_a_file_that_is_gone_before_its_rows_are_done_fails_alone(
    tmp_path: Path, root: Path
) -> None:
    async with led(tmp_path, root=root, **settings(root)) as run:
        await until(lambda: run.orchestrator.progress.listed)
    (root / name(1)).unlink()
    run, _ = await run_once(tmp_path, root)
    assert captioned(run) == {name(0): ROWS, name(2): ROWS}
    failed = [row for row in stored(run) if row["status"] == "failed"]
    assert {(row["error_kind"], row["error"]) for row in failed} == {
        ("image_missing", f"the file {name(1)} is not in the dataset any more")
    }


async def test_a_shorter_file_of_the_same_name_is_done_again_and_shortened(
    tmp_path: Path, root: Path
) -> None:
    await run_once(tmp_path, root)
    parquet.write(root / name(1), image=parquet.struct([90, 91]), title=["n0", "n1"])
    run, titles = await run_once(tmp_path, root)
    assert titles == {name(1): {0: "n0", 1: "n1"}}
    assert captioned(run) == {name(shard): ROWS for shard in range(3)}


async def test_a_listed_file_that_is_broken_at_the_next_start_keeps_its_captions(
    tmp_path: Path, root: Path
) -> None:
    await run_once(tmp_path, root)
    (root / name(1)).write_bytes(b"prose " * 1000)
    run, titles = await run_once(tmp_path, root)
    assert titles == {}
    assert captioned(run) == {name(shard): ROWS for shard in range(3)}
    assert set(run.orchestrator.progress.passed_over) == {name(1)}


# ---------------------------------------------------------------- files out of reach


@contextmanager
def remote(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FlakyStorage]]:
    """Have the dataset lie in a storage that loses connections."""
    names = [name(shard) for shard in range(3)]
    monkeypatch.setattr(service, "_SHARD_PAUSES_SECONDS", (0.01, 0.01))
    places = {one: ObjectPlace(f"flaky://{one}") for one in names}
    monkeypatch.setattr(hub, "find_shards", lambda *_: Shards(places))
    with FlakyStorage.holding({one: (root / one).read_bytes() for one in names}) as storage:
        yield storage


async def test_a_lost_connection_while_footers_are_read_costs_nothing(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with remote(root, monkeypatch) as storage:
        storage.losses = [ConnectionResetError("reset"), None, TimeoutError("late"), None]
        run, _ = await run_once(tmp_path, root)
    assert captioned(run) == {name(shard): ROWS for shard in range(3)}
    assert run.orchestrator.progress.passed_over == {}


async def test_items_wait_while_their_columns_are_out_of_reach(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with remote(root, monkeypatch) as storage, capture_logs() as logs:
        async with led(tmp_path, root=root, **settings(root)) as run:
            await until(lambda: run.orchestrator.progress.listed)
            storage.losses = [ConnectionResetError("reset")] * 8  # 3 are the patience of a shard
            titles = await work(await run.join())
    assert captioned(run) == {name(shard): ROWS for shard in range(3)}
    assert titles[name(0)] == {row: f"title {row}" for row in range(ROWS)}
    assert any("its items wait" in entry["event"] for entry in logs)
    assert run.orchestrator.progress.passed_over == {}


async def test_what_stays_out_of_reach_fails_alone_with_its_kind(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with remote(root, monkeypatch) as storage:
        async with led(tmp_path, root=root, **settings(root)) as run:
            await until(lambda: run.orchestrator.progress.listed)
            storage.gone = {name(1): ConnectionResetError("reset")}
            async with asyncio.timeout(20):
                await work(await run.join())
            assert run.orchestrator.progress.failures == {"shard_unreadable": ROWS}
            assert set(run.orchestrator.progress.passed_over) == {name(1)}
    assert captioned(run) == {name(0): ROWS, name(2): ROWS}


async def test_a_file_out_of_reach_at_the_start_is_passed_over_and_done_by_the_next_run(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with remote(root, monkeypatch) as storage:
        storage.gone = {name(0): ConnectionResetError("reset")}
        run, _ = await run_once(tmp_path, root)
        assert captioned(run) == {name(1): ROWS, name(2): ROWS}
        assert list(run.orchestrator.progress.passed_over) == [name(0)]
        storage.gone = {}
        run, _ = await run_once(tmp_path, root)
    assert captioned(run) == {name(shard): ROWS for shard in range(3)}


# ---------------------------------------------------------------- rows without an image


async def test_a_row_says_the_same_whoever_reads_it(tmp_path: Path) -> None:
    """The orchestrator's answer has the kind and the words of the worker's own reader."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    nothing = [None, {"bytes": None, "path": None}, {"bytes": None, "path": "/etc/passwd"}]
    cells, links = tmp_path / "cells", tmp_path / "links"
    parquet.write(cells / "train.parquet", image=pa.array(nothing, type=kind))
    parquet.write(links / "train.parquet", image=["ftp://example.org/a", "http://127.0.0.1:1/a"])
    expected = {cells: {"image_missing"}, links: {"link_invalid", "link_forbidden_address"}}
    places = PlaceReader()
    for root, kinds in expected.items():
        data_dir = tmp_path / root.name
        async with led(data_dir, root=root, **settings(root, "Describe.")) as run:
            worker = await run.join()
            lease = await worker.lease()
            answers = []
            for item in lease.items:
                assert item.place is not None
                with pytest.raises(PlaceError) as here:
                    await places.read(item.place)
                answer = await worker.image(lease.lease, item.index)
                assert (answer.kind, answer.error) == (here.value.kind, str(here.value))
                answers.append(answer.kind)
            assert set(answers) == kinds
    await places.close()
