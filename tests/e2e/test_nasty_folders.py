"""Folders with everything that has ever gone wrong in one: the right text beside the right image.

The engine asks a server that sees the pictures it is sent and says which one each of them is, so
that a text is wrong if the picture is another's, turned, or not in its own colours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import stat
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import pytest
from aiohttp import web
from PIL import Image, ImageOps

from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.orchestrator.assembly import assemble
from caption_flow.orchestrator.sources.base import SourceError
from caption_flow.storage import StorageManager
from caption_flow.storage.exporter import StorageExporter
from caption_flow.storage.exporter.report import ExportReport, Skip
from caption_flow.storage.reader import StorageReader
from caption_flow.worker.images.cost import DEFAULT_MAX_BYTES
from caption_flow.worker.service import WorkerSettings, run_worker
from tests.support.cli import (
    PATIENCE_SECONDS,
    Argument,
    Finished,
    Running,
    caption_flow,
    eventually,
    running,
)
from tests.support.fleet import free_port
from tests.support.identities import COUNT, caption, drawn, seen
from tests.support.nasty import (
    CASES,
    Captioned,
    Case,
    Failed,
    Fate,
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


def stored(data_dir: Path) -> list[dict[str, Any]]:
    """Return the rows that are on disk, in parts or not yet."""
    with closing(StorageReader(data_dir)) as reader:
        return [row for batch in reader.batches() for row in batch.to_pylist()]


def check_rows(
    data_dir: Path, cases: Collection[Case], *, left_out: tuple[type, ...] = ()
) -> list[dict[str, Any]]:
    """Each item has one row, which says what became of it; nothing else has one."""
    rows = stored(data_dir)
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
    assert report.skipped[Skip.FAILED] == len(failed)
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


def asking(server: ScriptedServer) -> tuple[Argument, ...]:
    return ("--engine", "openai", "--base-url", server.base_url, "--model", MODEL)


def command(server: ScriptedServer) -> tuple[Argument, ...]:
    return ("run", "photos", *asking(server))


def run(home: Path, server: ScriptedServer, *more: Argument) -> Finished:
    return caption_flow(*command(server), *more, cwd=home, seconds=SECONDS)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `photos` of all cases."""
    home = tmp_path_factory.mktemp("everything")
    build(home / "photos", *CASES)
    return home


@contextlib.contextmanager
def as_before(folder: Path) -> Iterator[Mapping[bytes, str]]:
    """Yield what is in a folder, and put its texts back afterwards: others use it, too."""
    before = names_below(folder)
    try:
        yield before
    finally:
        for name, held in names_below(folder).items():
            path = path_of(folder, name)
            if name not in before:
                path.unlink()
            elif held != before[name]:
                path.write_text(before[name])


def things(kind: type[Fate]) -> list[Thing]:
    return [thing for case in CASES for thing in case.fates(kind)]


def test_all_of_it_is_captioned_by_one_command(everything: Path, server: ScriptedServer) -> None:
    folder = everything / "photos"
    with as_before(folder) as before:
        done = run(everything, server)
        assert done.code == 0, done.said
        check_folder(folder, CASES, before)
        check_rows(everything / ".caption-flow" / "photos", CASES, left_out=(HasText,))
    _check_summary(done)


class Held:
    """Has a server hold its answers from one on, until the test lets go."""

    def __init__(self, server: ScriptedServer, *, after: int) -> None:
        self._server = server
        self._left = after
        self.reached = threading.Event()
        self.let_go = threading.Event()

    async def __call__(self, asked: Asked) -> web.StreamResponse:
        if asked.prompt != "Describe the picture.":  # not the engine's first question
            self._left -= 1
        if self._left < 0:
            self.reached.set()
            await asyncio.to_thread(self.let_go.wait, PATIENCE_SECONDS)
        return await tell(asked)

    def __enter__(self) -> Self:
        self._server.rule = self
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go.set()
        self._server.rule = tell


def kill_all(*processes: Running) -> None:
    """End processes and whatever they started, without a word."""
    for process in processes:
        for pid in process.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.ends()


def test_all_of_it_is_captioned_although_everything_is_killed_in_the_middle(
    everything: Path, server: ScriptedServer
) -> None:
    """By one command, which goes on from what is safe when it is typed again."""
    folder, data_dir = everything / "photos", everything / "again"
    more = ("--data-dir", data_dir)
    with as_before(folder) as before:
        with (
            Held(server, after=40) as held,
            running(*command(server), *more, cwd=everything) as process,
        ):
            assert held.reached.wait(PATIENCE_SECONDS), process.said
            eventually(lambda: bool(stored(data_dir)), lambda: process.said, seconds=30)
            kill_all(process)
        safe = stored(data_dir)
        done = run(everything, server, *more)
        assert done.code == 0, done.said
        check_folder(folder, CASES, before)
        rows = check_rows(data_dir, CASES, left_out=(HasText,))
    assert len(safe) < len(rows)
    assert all(row in rows for row in safe), "what was safe was done anew"


async def test_all_of_it_is_captioned_by_two_workers_for_a_program_that_reads_the_storage(
    everything: Path, server: ScriptedServer
) -> None:
    """As trainers do it; all three processes are killed in the middle, and started again."""
    folder, data_dir, port = everything / "photos", everything / "storage", free_port()
    config = everything / "orchestrator.json"
    config.write_text(json.dumps(trainers_config(folder, data_dir, port)))
    leading = ("orchestrator", "--config", config, "--no-ssl", "--vllm")

    def working(number: int) -> tuple[Argument, ...]:
        return (
            *("worker", "--server", f"ws://127.0.0.1:{port}", "--token", TOKEN),
            *("--name", f"worker {number}", "--when_finished", "shutdown", "--no-verify-ssl"),
            *("--engine", "openai", "--base-url", server.base_url),
        )

    with as_before(folder) as before:
        with (
            Held(server, after=40) as held,
            running(*leading, cwd=everything) as leader,
            running(*working(1), cwd=everything) as one,
            running(*working(2), cwd=everything) as two,
        ):
            assert held.reached.wait(PATIENCE_SECONDS), leader.said
            eventually(lambda: bool(stored(data_dir)), lambda: leader.said, seconds=30)
            kill_all(leader, one, two)
        safe = stored(data_dir)
        with (
            running(*leading, cwd=everything) as leader,
            running(*working(1), cwd=everything) as one,
            running(*working(2), cwd=everything) as two,
        ):
            codes = [worker.ends(seconds=SECONDS).code for worker in (one, two)]
            leader.interrupt()
            assert [*codes, leader.ends(seconds=30).code] == [0, 0, 0], leader.said
        report = await exported(folder, data_dir)
        check_report(report, CASES)
        assert report.replaced == len(things(HasText))
        check_folder(folder, CASES, before, overwritten=True)
        rows = check_rows(data_dir, CASES)
    assert len(safe) < len(rows)
    assert all(row in rows for row in safe), "what was safe was done anew"
    assert {row["worker"] for row in rows if row not in safe} == {"worker 1", "worker 2"}


def trainers_config(folder: Path, data_dir: Path, port: int) -> dict[str, Any]:
    return {
        "orchestrator": {
            "host": "127.0.0.1",
            "port": port,
            "chunk_size": 4,
            "chunks_per_request": 1,
            "lease_seconds": 15,  # so long what workers had waits for them that were killed
            "dataset": {"type": "local_filesystem", "dataset_path": str(folder)},
            "vllm": {"model": MODEL, "inference_prompts": ["Which one is it?"]},
            "storage": {"data_dir": str(data_dir)},
            "auth": {"worker_tokens": [{"token": TOKEN, "name": "a trainer's workers"}]},
        }
    }


# --------------------------------------------------------------------------- links and memory


def test_links_are_followed_where_that_is_asked_for_and_never_in_a_circle(
    tmp_path: Path, server: ScriptedServer
) -> None:
    case = BY_NAME["links"]
    folder, config = tmp_path / "photos", tmp_path / "run.json"
    build(folder, case)
    before = names_below(folder)
    dataset = {"type": "local", "dataset_path": "photos", "follow_symlinks": True}
    asked = {"model": MODEL, "inference_prompts": ["Which one is it?"]}
    config.write_text(json.dumps({"orchestrator": {"dataset": dataset, "vllm": asked}}))
    done = caption_flow("run", "--config", config, *asking(server), cwd=tmp_path)
    assert done.code == 0, done.said
    (real,) = case.fates(Captioned)
    assert isinstance(real.fate, Captioned)
    texts = {b"twice.txt": real.fate.text, b"linked/real.txt": real.fate.text}
    assert names_below(folder) == {**before, **texts}
    for name in ("dangling.png", "itself.png", "there.png", "back.png"):
        assert re.search(rf"passed over.*{re.escape(name)}", done.said), done.said


def test_large_pictures_take_no_more_memory_than_all_decoding_may(
    tmp_path: Path, server: ScriptedServer
) -> None:
    cases = [BY_NAME["6000x6000"], BY_NAME["128x6400"]]
    build(tmp_path / "photos", *cases)
    count = sum(len(case.items) for case in cases)
    with (
        Held(server, after=count - 1) as held,
        running(*command(server), cwd=tmp_path) as process,
    ):
        assert held.reached.wait(PATIENCE_SECONDS), process.said
        (worker,) = process.workers()
        most = most_memory(worker)
        held.let_go.set()
        assert process.ends().code == 0, process.said
    print(f"the worker took {most / 2**20:.0f} MiB at most")
    assert most < DEFAULT_MAX_BYTES + BESIDE_PICTURES
    check_rows(tmp_path / ".caption-flow" / "photos", cases)


BESIDE_PICTURES = 400 * 2**20
"""What a worker takes that decodes nothing, the files it has read included."""


def most_memory(pid: int) -> int:
    """Return the most that a process has had in memory so far, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


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
