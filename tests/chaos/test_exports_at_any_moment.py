"""Exports beside a run that goes on, after one that crashed, and after one that was cancelled.

One state and no torn row; all that was acknowledged; everything that was finished.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lance
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from tests.support.cli import Running, caption_flow, eventually, running
from tests.support.fleet import (
    PATIENCE_SECONDS,
    Fleet,
    Process,
    expected_captions,
    free_port,
    stored_rows,
    until,
    write_images,
)
from tests.support.identities import caption, drawn, seen
from tests.support.openai_server import MODEL, Asked, ScriptedServer, serving, whole_answer
from tests.support.proxy import Proxy, Witness

ITEMS = 6000
TOKEN = "a worker's token"
Found = list[tuple[str, str]]
"""What an export has: the image's path without its suffix, and its text."""


def of_rows(rows: Iterable[Mapping[str, Any]]) -> Found:
    return [(row["filename"].rpartition(".")[0], "\n".join(row["captions"])) for row in rows]


def of_jsonl(out: Path) -> Found:
    lines = (out / "default.jsonl").read_text().splitlines()
    return of_rows(map(json.loads, lines))


def of_parquet(out: Path) -> Found:
    return of_rows(pq.read_table(out / "default.parquet").to_pylist())


def of_lance(out: Path) -> Found:
    return of_rows(lance.dataset(out / "default.lance").to_table().to_pylist())


def of_txt(out: Path) -> Found:
    root = out / "default"
    found = root.rglob("*.txt")
    return [(str(path.relative_to(root).with_suffix("")), path.read_text()) for path in found]


def of_kohya(out: Path) -> Found:
    entries = json.loads((out / "metadata.json").read_text())
    return [(key, entry["caption"]) for key, entry in entries.items()]


def of_imagefolder(out: Path) -> Found:
    rows = map(json.loads, (out / "metadata.jsonl").read_text().splitlines())
    return [(row["file_name"].rpartition(".")[0], row["text"]) for row in rows]


READ: dict[str, Callable[[Path], Found]] = {
    "txt": of_txt,
    "jsonl": of_jsonl,
    "parquet": of_parquet,
    "lance": of_lance,
    "kohya": of_kohya,
    "imagefolder": of_imagefolder,
}


def once(found: Found, expected: Mapping[str, str]) -> set[str]:
    """Return whose texts there are; each of them once, whole, and its own."""
    texts = dict(found)
    assert len(texts) == len(found), "an item is there twice"
    wrong = {name: text for name, text in texts.items() if expected.get(name) != text}
    assert not wrong, f"{len(wrong)} texts are torn or another's, such as {next(iter(wrong))}"
    return set(texts)


# --------------------------------------------------------------------------- running and crashed


async def export(fleet: Fleet, format_: str, out: Path) -> None:
    arguments = ("--data-dir", str(fleet.data_dir), "--format", format_, "--output", str(out))
    code, said = await fleet.command("export", *arguments)
    assert code == 0, said
    left = [name for name in names_below(out) if ".caption-flow-" in name]
    assert not left, "something half written is left"


def names_below(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*")]


def acknowledged(witness: Witness, names: Mapping[int, str]) -> set[str]:
    return {names[item] for item in witness.acknowledged}


def in_order(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return when each item's row was committed."""
    return {row["filename"].rpartition(".")[0]: row["committed_at"] for row in rows}


def check_is_one_moment(snapshot: set[str], committed: Mapping[str, Any]) -> None:
    """What was committed before the latest that is in it is in it, too."""
    latest = max(committed[name] for name in snapshot)
    missing = {name for name, moment in committed.items() if moment < latest} - snapshot
    assert not missing, f"{len(missing)} rows are missing that are older than others, {missing}"


async def test_exports_of_a_running_job_have_one_moment_and_of_a_crashed_one_everything(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    written = write_images(tmp_path / "images", ITEMS)
    captions = expected_captions(written)
    expected = {name.rpartition(".")[0]: text for name, text in captions.items()}
    # In the order in which the folder is listed.
    names = dict(enumerate(name.rpartition(".")[0] for name in sorted(written)))
    storage = {"caption_buffer_size": 60, "checkpoint_interval": 1}
    witness = Witness()
    async with Fleet(tmp_path, chunk_size=16, storage=storage) as fleet:
        leader = await fleet.orchestrator()
        proxy = Proxy(fleet.port, witness)
        await proxy.start()
        try:
            engine = {"latency_ms": 100, "latency_jitter": 0.5, "requests_in_flight": 3}
            workers = [await fleet.worker(f"w{n}", proxy.url, engine=engine) for n in range(2)]
            await until(lambda: len(witness.acknowledged) > 60, leader.tail)
            snapshots = await _beside(fleet, witness, names, expected, say)
            await _kill(leader, *workers)
        finally:
            await proxy.stop()
        promised = acknowledged(witness, names)
        committed = in_order(stored_rows(fleet.data_dir))
        assert promised <= committed.keys()
        assert len(committed) < ITEMS, "it was to be killed before its end"
        for format_, snapshot in snapshots:
            check_is_one_moment(snapshot, committed)
            assert snapshot < committed.keys(), f"{format_}: nothing came in meanwhile"
        for format_, read in READ.items():
            await export(fleet, format_, tmp_path / "crashed")
            assert once(read(tmp_path / "crashed"), expected) == committed.keys()
        say(f"\n{len(committed)} of {ITEMS} rows when it was killed, {len(promised)} acknowledged")


async def _beside(
    fleet: Fleet,
    witness: Witness,
    names: Mapping[int, str],
    expected: Mapping[str, str],
    say: Callable[[str], None],
) -> list[tuple[str, set[str]]]:
    """Export in each format while rows come in; return what each export has."""
    snapshots = []
    for format_, read in READ.items():
        before = acknowledged(witness, names)
        out = fleet.folder / f"while-{format_}"
        await export(fleet, format_, out)
        snapshot = once(read(out), expected)
        after = acknowledged(witness, names)
        assert before <= snapshot, f"{format_}: acknowledged rows are missing"
        assert before < after, f"{format_}: nothing came in while it was exported"
        say(f"\n{format_}: {len(before)} rows before, {len(snapshot)} in it, {len(after)} after")
        snapshots.append((format_, snapshot))
    return snapshots


async def _kill(*processes: Process) -> None:
    for process in processes:
        process.signal(signal.SIGKILL)
    await asyncio.gather(*(process.exited() for process in processes))


# --------------------------------------------------------------------------- cancelled


class Paced:
    """Has a server answer one after another, and notes what it has answered.

    After the first forty it waits for a word of the test.
    """

    def __init__(self) -> None:
        self.answered: list[str] = []
        self.go_on = threading.Event()
        self._one_by_one = asyncio.Lock()

    async def __call__(self, asked: Asked) -> web.StreamResponse:
        text = seen(asked.picture)
        async with self._one_by_one:
            if len(self.answered) == 40:
                await asyncio.to_thread(self.go_on.wait, PATIENCE_SECONDS)
            await asyncio.sleep(0.02)  # the pace of a model, not a wait for anything
        response = web.json_response(whole_answer(text))
        if asked.prompt != "Describe the picture.":  # not the engine's first question
            await response.prepare(asked.http)
            await response.write_eof()
            self.answered.append(text)
        return response


@pytest.fixture
def paced() -> Iterator[tuple[ScriptedServer, Paced]]:
    rule = Paced()
    with serving(rule=rule) as server:
        yield server, rule
        rule.go_on.set()


EXPECTED = {str(number): caption(number) for number in range(200)}


def configured(folder: Path, server: ScriptedServer, port: int = 0) -> Path:
    """Make images, and write how they are to be captioned, a few at a time."""
    (folder / "photos").mkdir()
    for name in EXPECTED:
        drawn(int(name), size=(32, 40)).save(folder / "photos" / f"{name}.png")
    engine = {"type": "openai", "base_url": server.base_url, "requests_in_flight": 8}
    content = {
        "orchestrator": {
            "host": "127.0.0.1",
            "port": port,
            "chunk_size": 50,
            "dataset": {"type": "local", "dataset_path": "photos"},
            "vllm": {"model": MODEL, "inference_prompts": ["Which one is it?"]},
            "storage": {"data_dir": "results"},
            "auth": {"worker_tokens": [{"token": TOKEN, "name": "somebody"}]},
        },
        "worker": {
            "server": f"ws://127.0.0.1:{port}",
            "token": TOKEN,
            "when_finished": "shutdown",
            "engine": engine,
            "readahead_size": 8,
        },
    }
    path = folder / "both.json"
    path.write_text(json.dumps(content))
    return path


def under_way(folder: Path, rule: Paced, process: Running) -> None:
    """Wait until some rows are on disk, and others on their way."""
    results = folder / "results"
    eventually(lambda: bool(stored_rows(results)), lambda: process.said, seconds=60)
    rule.go_on.set()


def check_exports(folder: Path, rule: Paced) -> set[str]:
    """Each format has everything that was answered, and nothing else; return whose texts."""
    finished = set(rule.answered)
    assert 40 <= len(finished) < len(EXPECTED), "it was to be stopped before its end"
    for format_, read in READ.items():
        arguments = ("export", "--data-dir", "results", "--format", format_, "--output", "out")
        exported = caption_flow(*arguments, cwd=folder)
        assert exported.code == 0, exported.said
        found = once(read(folder / "out"), EXPECTED)
        assert {EXPECTED[name] for name in found} == finished
    return {name for name, text in EXPECTED.items() if text in finished}


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_exports_of_a_cancelled_job_have_everything_that_was_finished(
    tmp_path: Path, paced: tuple[ScriptedServer, Paced], stop: signal.Signals
) -> None:
    server, rule = paced
    arguments = ("run", "--config", configured(tmp_path, server), "--data-dir", "results")
    with running(*arguments, cwd=tmp_path) as process:
        under_way(tmp_path, rule, process)
        os.killpg(process.process.pid, stop)
        done = process.ends(seconds=30)
    assert done.code == 0, done.said
    assert "Stopped after" in done.out
    beside = [(path.stem, path.read_text()) for path in (tmp_path / "photos").glob("*.txt")]
    assert once(beside, EXPECTED) == check_exports(tmp_path, rule)


def test_exports_have_everything_that_was_finished_where_each_process_is_told_to_end(
    tmp_path: Path, paced: tuple[ScriptedServer, Paced]
) -> None:
    """As programs cancel that started an orchestrator and workers: SIGTERM to all of them."""
    server, rule = paced
    config = configured(tmp_path, server, free_port())
    with (
        running("orchestrator", "--config", config, cwd=tmp_path) as leader,
        running("worker", "--config", config, cwd=tmp_path) as worker,
    ):
        under_way(tmp_path, rule, leader)
        for process in (leader, worker):
            process.process.send_signal(signal.SIGTERM)
        codes = [process.ends(seconds=30).code for process in (leader, worker)]
    assert codes == [0, 0], worker.said
    check_exports(tmp_path, rule)
