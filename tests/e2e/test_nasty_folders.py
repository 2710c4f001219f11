"""Folders with everything that has ever gone wrong in one: the right text beside the right image.

The engine asks a server that sees the pictures it is sent and says which one each of them is, so
that a text is wrong if the picture is another's, turned, or not in its own colours.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from PIL import Image, ImageOps

from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.orchestrator.assembly import assemble
from caption_flow.orchestrator.sources.base import SourceError
from caption_flow.storage import StorageManager
from caption_flow.storage.exporter import StorageExporter
from caption_flow.storage.exporter.report import ExportReport
from caption_flow.storage.reader import StorageReader
from caption_flow.worker.service import WorkerSettings, run_worker
from tests.support.cli import Finished, caption_flow
from tests.support.identities import COUNT, caption, drawn, seen
from tests.support.nasty import (
    CASES,
    Captioned,
    Case,
    Failed,
    HasText,
    Homeless,
    Thing,
    build,
    path_of,
    text_beside,
)
from tests.support.openai_server import MODEL, Asked, ScriptedServer, serving, whole_answer

TOKEN = "a worker's token"
READY = "Orchestrator ready for connections"
BY_NAME = {case.what: case for case in CASES}
SECONDS = 240.0
"""For all cases in one job, on a machine that is busy with others, too."""


# --------------------------------------------------------------------------- who looks


async def tell(asked: Asked) -> web.StreamResponse:
    """Answer with what is to be seen in the picture."""
    return web.json_response(whole_answer(seen(asked.picture)))


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with serving(rule=tell) as server:
        yield server


def test_nothing_is_read_out_of_pictures_that_are_not_as_they_should_be() -> None:
    """What all the rest relies on: a turned, mirrored or inverted picture is not taken for one."""
    for number in range(COUNT):
        picture = drawn(number)
        assert seen(picture) == caption(number)
        wrong = [*(picture.transpose(turn) for turn in Image.Transpose), ImageOps.invert(picture)]
        right = {caption(other) for other in range(COUNT)}
        assert right.isdisjoint(map(seen, wrong))
    assert seen(drawn(1, "grey")) == caption(1, "grey") != caption(1)


# --------------------------------------------------------------------------- what must be true


def names_below(folder: Path) -> dict[bytes, str]:
    """Return all that is below a folder, and what it holds: a text, a link or something else."""
    found = {}
    for at, folders, files in os.walk(os.fsencode(folder)):
        for name in (*folders, *files):
            path = os.path.join(at, name)  # noqa: PTH118  -- bytes
            found[os.path.relpath(path, os.fsencode(folder))] = _held(Path(os.fsdecode(path)))
    return found


def _held(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"link to {path.readlink()}"
    if not stat.S_ISREG(mode):
        return f"mode {stat.S_IFMT(mode)}"
    return path.read_text() if path.suffix == ".txt" else f"{path.stat().st_size} bytes"


def check_folder(
    folder: Path, cases: Collection[Case], before: Mapping[bytes, str], *, overwritten: bool = False
) -> None:
    """Each text is beside its image, and nothing else has come, gone or changed."""
    expected = dict(before)
    for thing in (thing for case in cases for thing in case.things):
        match thing.fate:
            case Captioned(text):
                expected[os.fsencode(text_beside(path_of(Path(), thing.name)))] = text
            case HasText(text, theirs):
                there = os.fsencode(text_beside(path_of(Path(), thing.name)))
                expected[there] = text if overwritten else theirs
            case _:
                pass
    assert names_below(folder) == expected


def check_rows(
    data_dir: Path, cases: Collection[Case], *, left_out: tuple[type, ...] = ()
) -> list[dict[str, Any]]:
    """Each item has one row, which says what became of it; nothing else has one."""
    with closing(StorageReader(data_dir)) as reader:
        rows = [row for batch in reader.batches() for row in batch.to_pylist()]
    items = {
        thing.name: thing
        for case in cases
        for thing in case.items
        if not isinstance(thing.fate, left_out)
    }
    found = {row["filename_raw"] or row["filename"].encode(): row for row in rows}
    assert len(found) == len(rows), "an item has two rows"
    assert found.keys() == items.keys()
    for name, thing in items.items():
        row = found[name]
        assert row["filename"] == thing.shown
        match thing.fate:
            case Failed(kind, why):
                assert (row["status"], row["error_kind"], row["captions"] or []) == (
                    *("failed", kind),
                    [],
                ), thing
                assert why in row["error"]
            case Captioned(text) | Homeless(text) | HasText(text):
                assert (row["captions"], row["status"]) == ([text], "captioned"), thing
    return rows


def check_report(report: ExportReport, cases: Collection[Case]) -> None:
    """Who got no file is counted, and told why by name."""
    failed = [thing for case in cases for thing in case.fates(Failed)]
    homeless = [thing for case in cases for thing in case.fates(Homeless)]
    assert report.skipped["failed"] == len(failed)
    assert report.skipped.total() == len(failed) + len(homeless)
    for thing in homeless:
        assert isinstance(thing.fate, Homeless)
        name = thing.shown.rpartition("/")[2]
        assert any(name in line and thing.fate.why in line for line in report.problems), thing


# --------------------------------------------------------------------------- one job each


async def job(folder: Path, data_dir: Path, base_url: str) -> int:
    """Caption a folder by an orchestrator and a worker in this process; return its exit code."""
    config = OrchestratorConfig.model_validate(
        {
            "host": "127.0.0.1",
            "port": 0,
            "dataset": {"type": "local_filesystem", "dataset_path": str(folder)},
            "vllm": {"model": MODEL, "inference_prompts": ["Which one is it?"]},
            "storage": {"data_dir": str(data_dir)},
        }
    )
    leader = await assemble(config, [("worker", "somebody", TOKEN)])
    leading = asyncio.create_task(leader.run())
    try:
        async with asyncio.timeout(60):
            await leader.ready.wait()
            settings = WorkerSettings(
                server=f"ws://127.0.0.1:{leader.port}",
                token=TOKEN,
                name="a worker",
                engine="openai",
                engine_settings={"base_url": base_url},
                when_finished="shutdown",
            )
            return await run_worker(settings)
    finally:
        leader.drain()
        async with asyncio.timeout(30):
            await leading


async def exported(folder: Path, data_dir: Path) -> ExportReport:
    """Write the texts as programs do that have no command of ours."""
    storage = StorageManager(data_dir)
    await storage.initialize()
    contents = await storage.get_shard_contents("default")
    exporter = StorageExporter(contents)
    count = await asyncio.to_thread(exporter.to_txt, folder, "filename", "captions")
    assert exporter.report is not None
    assert count == exporter.report.delivered
    return exporter.report


@pytest.mark.parametrize("what", [case.what for case in CASES if case.items])
async def test_a_folder_with_nothing_else_is_captioned(
    tmp_path: Path, server: ScriptedServer, what: str
) -> None:
    case = BY_NAME[what]
    folder, data_dir = tmp_path / "photos", tmp_path / "run"
    build(folder, case)
    before = names_below(folder)
    assert await job(folder, data_dir, server.base_url) == 0
    check_rows(data_dir, [case])
    check_report(await exported(folder, data_dir), [case])
    check_folder(folder, [case], before, overwritten=True)


@pytest.mark.parametrize("what", [case.what for case in CASES if not case.items])
async def test_a_folder_without_an_image_is_refused_at_once(
    tmp_path: Path, server: ScriptedServer, what: str
) -> None:
    folder = tmp_path / "photos"
    build(folder, BY_NAME[what])
    with pytest.raises(SourceError, match="there is no image in"):
        await job(folder, tmp_path / "run", server.base_url)


def test_a_command_of_nothing_but_broken_images_names_them_and_fails(
    tmp_path: Path, server: ScriptedServer
) -> None:
    case = BY_NAME["cut off in the middle"]
    build(tmp_path / "photos", case)
    done = run(tmp_path, server)
    assert done.code == 1
    assert re.search(rf"not one of the {len(case.things)} images could be captioned", done.err)
    for thing in case.things:
        assert re.search(rf"^  {re.escape(thing.shown)} .*ends too early", done.out, re.MULTILINE)


# --------------------------------------------------------------------------- all in one


def run(home: Path, server: ScriptedServer, *more: str) -> Finished:
    arguments = ("run", "photos", "--engine", "openai", "--base-url", server.base_url)
    return caption_flow(*arguments, "--model", MODEL, *more, cwd=home, seconds=SECONDS)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `photos` of all cases, which nobody has changed yet."""
    home = tmp_path_factory.mktemp("everything")
    build(home / "photos", *CASES)
    return home


def things(kind: type) -> list[Thing]:
    return [thing for case in CASES for thing in case.fates(kind)]


def test_all_of_it_is_captioned_by_one_command(everything: Path, server: ScriptedServer) -> None:
    folder = everything / "photos"
    before = names_below(folder)
    try:
        done = run(everything, server)
        assert done.code == 0, done.said
        check_folder(folder, CASES, before)
        check_rows(everything / ".caption-flow" / "photos", CASES, left_out=(HasText,))
    finally:
        for text in folder.rglob("*.txt"):
            if os.fsencode(text.relative_to(folder)) not in before:
                text.unlink()
    _check_summary(done)


def _check_summary(done: Finished) -> None:
    failed, homeless = things(Failed), things(Homeless)
    captioned = len(things(Captioned)) + len(homeless)
    assert re.search(rf"^Done: {captioned + len(failed)} images in ", done.out, re.MULTILINE)
    assert re.search(rf"^  captioned +{captioned}$", done.out, re.MULTILINE)
    assert re.search(rf"^  failed +{len(failed)} ", done.out, re.MULTILINE)
    assert re.search(rf"^  left out +{len(things(HasText))} ", done.out, re.MULTILINE)
    assert re.search(rf"and {len(failed) - 10} more: rows with status failed", done.out)
    notes = [line for line in done.out.splitlines() if line.startswith("Note: ")]
    for thing in homeless:
        assert isinstance(thing.fate, Homeless)
        assert any(thing.shown in note and thing.fate.why in note for note in notes), thing
    assert "\x1b" not in done.out + done.err
