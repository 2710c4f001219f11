"""Mistakes, and what is broken on disk: each is one clear sentence, at once, and an exit code.

2 is the caller's mistake, 1 a run that failed. Every case is a process of its own, as a user's is.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from caption_flow.storage.store import RunStore
from tests.support.cli import (
    ROOTS,
    Argument,
    Finished,
    as_a_user,
    caption_flow,
    make_images,
    snapshot,
)

CPU_SECONDS = 2.5
"""Processor time that a mistake may cost on a slow machine; it is about one second on others.

To import what only a run needs takes three more.
"""
LOCAL = {"type": "local_filesystem", "dataset_path": "photos"}
SYNTHETIC = ("--engine", "synthetic")
RUN = ("run", "photos", *SYNTHETIC)
OPENAI = ("run", "photos", "--engine", "openai", "--base-url", "http://127.0.0.1:1/v1")
WORKER = ("worker", "--server", "ws://127.0.0.1:1", "--token", "t")
AS_A_USER = as_a_user()
"""None where root cannot be had without its rights; those cases are skipped."""


@dataclass(frozen=True)
class Mistake:
    """A command, what is to be prepared for it in its folder, and what it has to say.

    ``says`` are patterns, one for each line of the answer. ``during`` is held while it runs.
    ``makes_folder``: what is wrong shows only when the run's folder is open.
    """

    arguments: Sequence[Argument]
    says: Sequence[str]
    code: int = 2
    given: Callable[[Path], object] = lambda _folder: None
    during: Callable[[Path], AbstractContextManager[object]] = lambda _folder: nullcontext()
    env: dict[str, str] = field(default_factory=dict)
    python: Sequence[str] | None = (sys.executable,)
    makes_folder: bool = False


# --------------------------------------------------------------------------- what is prepared


def _photos(folder: Path) -> None:
    make_images(folder / "photos", 1)


def _file(name: str, text: str = "") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        _photos(folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return write


def _config(**changes: Any) -> Callable[[Path], None]:
    """Write a configuration with some values changed, by dotted path with ``__`` for the dots."""
    content: dict[str, Any] = {
        "dataset": dict(LOCAL),
        "vllm": {"model": "m", "inference_prompts": ["What?"]},
    }
    for path, value in changes.items():
        *sections, key = path.split("__")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return _file("c.yaml", yaml.safe_dump({"orchestrator": content}, sort_keys=False))


def _stages(*stages: dict[str, Any]) -> Callable[[Path], None]:
    return _config(vllm={"model": "m", "stages": list(stages)})


def _stage(name: str, *prompts: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "prompts": list(prompts), "output_field": f"{name}_text", **more}


def _unreadable(name: str, mode: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _photos(folder)
        (folder / name).mkdir(exist_ok=True)
        (folder / name).chmod(mode)

    return make


def _damaged(folder: Path) -> None:
    _photos(folder)
    (folder / "results").mkdir()
    (folder / "results" / "ledger.sqlite3").write_bytes(b"damaged " * 4096)


def _links_to_photos(folder: Path) -> None:
    _photos(folder)
    (folder / "docs").mkdir()
    (folder / "docs" / "photos").symlink_to(folder / "photos")


def _results_of_photos(folder: Path) -> None:
    _photos(folder)
    make_images(folder / "others", 3)
    (folder / "others" / "000.png").unlink()
    done = caption_flow("run", "photos", "--data-dir", "results", *SYNTHETIC, cwd=folder)
    assert done.code == 0, done.said


def _without(package: str) -> Callable[[Path], None]:
    """Lay out everything that is installed but one package."""

    def lay_out(folder: Path) -> None:
        _photos(folder)
        (folder / "site").mkdir()
        for place in {path for path in sys.path if path.endswith("site-packages")}:
            for installed in Path(place).iterdir():
                if not installed.name.lower().startswith(package):
                    (folder / "site" / installed.name).symlink_to(installed)

    return lay_out


@contextmanager
def _port_taken(folder: Path) -> Iterator[None]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        _config(port=taken.getsockname()[1])(folder)
        yield


@contextmanager
def _folder_in_use(folder: Path) -> Iterator[None]:
    store = RunStore(folder / "results")
    try:
        yield
    finally:
        store.release()


# --------------------------------------------------------------------------- the mistakes

DATASETS = {
    "a missing folder": Mistake(
        ("run", "photoz", *SYNTHETIC), [r"there is no folder photoz \(.* exists, .* not\)"]
    ),
    "an empty folder": Mistake(
        ("run", "empty", *SYNTHETIC),
        ["the folder empty is empty"],
        given=lambda folder: (folder / "empty").mkdir(),
    ),
    "a folder without images": Mistake(
        ("run", "docs", *SYNTHETIC),
        ["there is no image in docs or below it"],
        given=_file("docs/readme.md", "words"),
    ),
    "a folder of links": Mistake(
        ("run", "docs", *SYNTHETIC),
        [r"there is no image in docs or below it; links are left out \(follow_symlinks: false\)"],
        given=_links_to_photos,
    ),
    "a file in place of a folder": Mistake(
        ("run", "photos/000.png", *SYNTHETIC),
        ["photos/000.png is a file, not a folder of images"],
        given=_photos,
    ),
    "an unreadable folder": Mistake(
        RUN,
        [r".*photos.* (is not readable|cannot be read).*"],
        given=_unreadable("photos", 0o000),
        python=AS_A_USER,
    ),
    "a dataset of the hub in a folder that is not there": Mistake(
        ("run", "--config", "c.yaml", *SYNTHETIC),
        ["dataset folder '.*/nowhere' does not exist: dataset.dataset_path"],
        given=_config(dataset={"type": "huggingface", "dataset_path": "./nowhere"}),
    ),
    "nothing to caption": Mistake(
        ("run",), [r"say what to caption: caption-flow run FOLDER \(or --config FILE\)"]
    ),
}
CONFIGURATIONS = {
    "a missing configuration": Mistake(
        (*RUN, "--config", "nope.yaml"),
        ["nope.yaml: cannot be read: No such file or directory"],
        given=_photos,
    ),
    "no configuration at all": Mistake(
        ("orchestrator",), [r"no configuration: give one with --config FILE .*"]
    ),
    "broken YAML": Mistake(
        ("orchestrator", "--config", "c.yaml"),
        [r"c\.yaml:3:1: is not valid YAML: .*"],
        given=_file("c.yaml", "orchestrator:\n  port: [1\n"),
    ),
    "a wrong type": Mistake(
        ("orchestrator", "--config", "c.yaml"),
        [r"c\.yaml:9: chunk_size: must be a whole number \(got 'many'\)"],
        given=_config(chunk_size="many"),
    ),
    "an unknown key": Mistake(
        (*RUN, "--config", "c.yaml"),
        [r"c\.yaml:9: chunk_sise: unknown key; did you mean chunk_size\?"],
        given=_config(chunk_sise=8),
    ),
    "several mistakes at once": Mistake(
        ("orchestrator", "--config", "c.yaml"),
        [r"c\.yaml:9: prot: unknown key.*port\?", r"c\.yaml:11: storage\.checkpoint_interval: .*"],
        given=_config(prot=1, storage={"checkpoint_interval": -1}),
    ),
    "a cycle among stages": Mistake(
        (*RUN, "--config", "c.yaml"),
        [r"c\.yaml:\d+: vllm\.stages.*(one|two).*(one|two).*"],
        given=_stages(_stage("one", "{two_text}"), _stage("two", "{one_text}")),
    ),
    "a stage that requires a stage nobody has": Mistake(
        (*RUN, "--config", "c.yaml"),
        [r"c\.yaml:\d+: vllm\.stages\[1\]\.requires.*'detial'.*did you mean '?detail.*"],
        given=_stages(_stage("detail", "What?"), _stage("two", "Why?", requires=["detial"])),
    ),
    "a stage that uses a field nobody makes": Mistake(
        (*RUN, "--config", "c.yaml"),
        [r"c\.yaml:\d+: vllm\.stages\[0\]\.prompts\[0\]: \{nobodys\} is neither .*"],
        given=_stages(_stage("one", "Use {nobodys}.")),
    ),
    "a prompt that uses a field nobody makes": Mistake(
        (*RUN, "--prompt", "Use {nobodys}."),
        [r"command line: .*\{nobodys\} is neither .*"],
        given=_photos,
    ),
    "a worker section's unknown option": Mistake(
        ("run", "--config", "c.yaml"),
        [r"c\.yaml:\d+: nmae: unknown key; did you mean name\?"],
        given=_file(
            "c.yaml",
            yaml.safe_dump(
                {
                    "orchestrator": {"dataset": LOCAL, "vllm": {"inference_prompts": ["a"]}},
                    "worker": {"nmae": 1, "engine": "synthetic"},
                }
            ),
        ),
    ),
    "an orchestrator that would let strangers in": Mistake(
        ("orchestrator", "--config", "c.yaml", "--host", "0.0.0.0"),  # noqa: S104
        [r"host: 0\.0\.0\.0 .* takes tokens; .*", r"host: 0\.0\.0\.0 .* without ssl .*"],
        given=_config(),
    ),
    "a level of logging there is none of": Mistake(
        RUN,
        [r"CAPTIONFLOW_LOG_LEVEL is 'LOUD'; choose one of DEBUG, INFO, WARNING, ERROR"],
        given=_photos,
        env={"CAPTIONFLOW_LOG_LEVEL": "loud"},
    ),
}
ENGINES = {
    "a server without an address": Mistake(
        ("run", "photos", "--engine", "openai"),
        [r"command line: engine: type openai needs base_url \(--base-url\), such as http://.*"],
        given=_photos,
    ),
    "a server without an address, for a worker": Mistake(
        (*WORKER, "--engine", "openai"),
        [r"command line: engine: type openai needs base_url \(--base-url\), such as http://.*"],
    ),
    "a server's address that is none": Mistake(
        ("run", "photos", "--engine", "openai", "--base-url", "127.0.0.1:8000"),
        [r"command line: engine\.base_url: must be an address such as http://127.*"],
        given=_photos,
    ),
    "a password in an address": Mistake(
        ("run", "photos", "--engine", "openai", "--base-url", "http://me:hush@host/v1"),
        [r"command line: engine\.base_url: has a name or password in it: .* into api_key"],
        given=_photos,
    ),
    "a server for an engine that has none": Mistake(
        ("run", "photos", "--base-url", "http://127.0.0.1:8000/v1"),
        ["--base-url is for --engine openai, and the engine is vllm"],
        given=_photos,
    ),
    "a key for an engine that has none, for a worker": Mistake(
        (*WORKER, "--engine", "synthetic", "--api-key", "env:HOME"),
        ["--api-key is for --engine openai, and the engine is synthetic"],
    ),
    "a key that is not where it should be": Mistake(
        (*OPENAI, "--api-key", "env:NO_SUCH_VARIABLE"),
        [r"the key of the openai engine: .*NO_SUCH_VARIABLE is not set"],
        given=_photos,
    ),
    "a key that is not where it should be, for a worker": Mistake(
        (*WORKER, *OPENAI[2:], "--api-key", "file:no/such/file"),
        [r"the key of the openai engine: the file no/such/file cannot be read: .*"],
    ),
    "GPUs for an engine that needs none": Mistake(
        (*OPENAI, "--gpus", "0"),
        ["--gpus is of no use to --engine openai: the model runs on its server"],
        given=_photos,
    ),
    "a model's folder that is not there": Mistake(
        ("run", "photos", "--model", "./no/model"),
        [r"model folder '\./no/model' does not exist \(looked in .*\)"],
        given=_photos,
    ),
    "a model's folder without a model": Mistake(
        ("run", "photos", "--model", "photos"),
        ["model folder 'photos' has no config.json: it does not hold a model"],
        given=_photos,
    ),
    "no vLLM": Mistake(
        ("run", "photos"),
        [r"vLLM is not installed here: pip install 'caption-flow\[vllm\]' .* --engine synthetic"],
        given=_without("vllm"),
        env={"PYTHONPATH": os.pathsep.join([*ROOTS, "site"])},
        python=(sys.executable, "-S"),
    ),
    "a GPU that is not there": Mistake(
        (*RUN, "--gpus", "0,7"),
        [r"--gpus 0,7: this machine has no NVIDIA GPU; say all, none or numbers"],
        given=_photos,
    ),
    "a model spread over more GPUs than there are": Mistake(
        (*RUN, "--config", "c.yaml"),
        [r"tensor_parallel_size is 4, but there are only 2 GPUs to use \(0, 1\)"],
        given=_config(vllm__tensor_parallel_size=4),
        env={"CUDA_VISIBLE_DEVICES": "0,1"},
    ),
}
FOLDERS = {
    "a port that is in use": Mistake(
        ("orchestrator", "--config", "c.yaml"),
        [r"port \d+ on 127\.0\.0\.1 is in use by another program; choose another one .*"],
        during=_port_taken,
        makes_folder=True,
    ),
    "a results folder that is in use": Mistake(
        (*RUN, "--data-dir", "results"),
        [rf"results is in use by another .*\(pid {os.getpid()} on .*{socket.gethostname()}\); .*"],
        given=_photos,
        during=_folder_in_use,
    ),
    "results of another dataset": Mistake(
        ("run", "others", "--data-dir", "results", *SYNTHETIC),
        [
            r"results holds the captions of .*/photos, and others is another dataset: "
            r"another folder keeps them apart \(--data-dir or --workspace of `run`, "
            r"storage\.data_dir\)"
        ],
        given=_results_of_photos,
    ),
    "a file where the results should go": Mistake(
        (*RUN, "--data-dir", "taken/results"),
        [r"taken is a file, where a folder has to be; --data-dir DIR puts the results elsewhere"],
        given=_file("taken"),
    ),
    "a file where an orchestrator's results should go": Mistake(
        ("orchestrator", "--config", "c.yaml", "--data-dir", "c.yaml"),
        [r"c\.yaml is a file, where a folder has to be; .*--data-dir.*"],
        given=_config(),
    ),
    "a results folder that cannot be written": Mistake(
        (*RUN, "--data-dir", "mine/results"),
        [r"mine/results cannot be written \(permission denied for mine\); --data-dir .*"],
        given=_unreadable("mine", 0o500),
        python=AS_A_USER,
    ),
    "a dataset that cannot be written": Mistake(
        RUN,
        [r"photos cannot be written \(permission denied for photos\); --output DIR .*"],
        given=_unreadable("photos", 0o500),
        python=AS_A_USER,
    ),
    "a file where the texts should go": Mistake(
        (*RUN, "--output", "taken"),
        [r"taken is a file, where a folder has to be; --output DIR puts the \.txt files elsewhere"],
        given=_file("taken"),
    ),
    "an output field that no stage makes": Mistake(
        (*RUN, "--export-column", "caption"),
        [r"--export-column caption: no stage fills it; there are captions"],
        given=_photos,
    ),
    "a damaged ledger": Mistake(
        (*RUN, "--data-dir", "results"),
        [r"results/ledger\.sqlite3 cannot be read .* restore it from a backup, or move .*"],
        code=1,
        given=_damaged,
    ),
    "a damaged ledger, to be exported": Mistake(
        ("export", "--data-dir", "results"),
        [r"results/ledger\.sqlite3 cannot be read .* restore it from a backup, or move .*"],
        code=1,
        given=_damaged,
    ),
    "a damaged ledger, to be looked at first": Mistake(
        (*RUN, "--data-dir", "results", "--dry-run"),
        [r"results/ledger\.sqlite3 cannot be read .* restore it from a backup, or move .*"],
        code=1,
        given=_damaged,
    ),
}
COMMAND_LINES = {
    "an unknown command": Mistake(
        ("rum",), [r"No such command 'rum'\. Did you mean 'run', 'resume'\? .*"]
    ),
    "an unknown option": Mistake(
        (*RUN, "--promt", "x"),
        [r"No such option: --promt; did you mean --prompt\? \(caption-flow run --help .*\)"],
    ),
    "an impossible value": Mistake(
        (*RUN, "--limit", "0"), [r"Invalid value for '--limit': .* 1 .*"]
    ),
    "a value there is none of": Mistake(
        (*RUN, "--existing", "replace"),
        [r"Invalid value for '--existing': 'replace' is not one of 'skip', 'overwrite', .*"],
    ),
    "an option without its value": Mistake((*RUN, "--model"), [r"Option '--model' requires .*"]),
    "a worker without an address": Mistake(
        ("worker", "--token", "t"), [r"command line: server: is missing"]
    ),
    "a worker with a web address": Mistake(
        ("worker", "--server", "http://host:1", "--token", "t"),
        [r"command line: server: must be an address such as ws://127\.0\.0\.1:8765 .*"],
    ),
    "a worker without a token": Mistake(
        ("worker", "--server", "ws://127.0.0.1:1"), [r"a token is needed: --token TOKEN, .*"]
    ),
    "a worker whose token is not where it should be": Mistake(
        ("worker", "--server", "ws://127.0.0.1:1", "--token", "env:NO_SUCH_VARIABLE"),
        [r"the token: .*NO_SUCH_VARIABLE.*"],
    ),
    "an export of nothing": Mistake(
        ("export", "--data-dir", "nowhere"),
        [r"there is no folder nowhere; --data-dir names the run's folder"],
    ),
    "an export of a folder that holds no run": Mistake(
        ("export", "--data-dir", "photos"),
        [r"photos holds no run \(no ledger\.sqlite3\); --data-dir names its folder"],
        given=_photos,
    ),
    "an export in a format there is none of": Mistake(
        ("export", "--data-dir", "photos", "--format", "pdf"),
        [r"Invalid value for '--format': 'pdf' is not one of 'txt', .*"],
    ),
}
MISTAKES = {**DATASETS, **CONFIGURATIONS, **ENGINES, **FOLDERS, **COMMAND_LINES}


def _files(folder: Path) -> dict[bytes, tuple[int, int]]:
    """Return what is there, but for the memory that readers of a ledger share."""
    return {path: facts for path, facts in snapshot(folder).items() if not path.endswith(b"-shm")}


@dataclass(frozen=True)
class Answer:
    """What a mistake was answered with, and whether it changed anything."""

    finished: Finished
    changed: bool


@pytest.fixture(scope="module")
def answers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Answer]]]:
    """Make the mistakes of this session's tests, two at a time."""
    ours = [item for item in request.session.items if item.path == request.path]
    asked = [getattr(item, "callspec", None) for item in ours]
    names = {call.params.get("name") for call in asked if call is not None}
    with ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(_make, mistake, tmp_path_factory.mktemp("mistake"))
            for name, mistake in MISTAKES.items()
            if name in names and mistake.python is not None
        }


def _make(mistake: Mistake, folder: Path) -> Answer:
    assert mistake.python is not None
    mistake.given(folder)
    with mistake.during(folder):
        before = _files(folder)
        finished = caption_flow(
            *mistake.arguments, cwd=folder, env=mistake.env, python=mistake.python
        )
        return Answer(finished, changed=_files(folder) != before)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_at_once_with_a_sentence_and_changes_nothing(
    answers: dict[str, Future[Answer]], name: str
) -> None:
    mistake = MISTAKES[name]
    if mistake.python is None:
        pytest.skip("root may read and write everything, and cannot give that up here")
    answer = answers[name].result()
    done = answer.finished
    assert done.code == mistake.code, done.said
    assert len(done.errors) == len(mistake.says), done.said
    for error, pattern in zip(done.errors, mistake.says, strict=True):
        assert re.fullmatch(pattern, error), f"{error!r} is not {pattern!r}"
    last = done.err.splitlines()[-len(done.errors) :]
    assert last == [f"Error: {error}" for error in done.errors]
    assert "Traceback" not in done.said
    assert done.out == ""
    assert not answer.changed or mistake.makes_folder
    assert done.cpu_seconds < CPU_SECONDS


@pytest.mark.parametrize("command", ["", "run", "orchestrator", "worker", "export"])
def test_help_comes_at_once(tmp_path: Path, command: str) -> None:
    done = caption_flow(*command.split(), "--help", cwd=tmp_path)
    assert done.code == 0
    assert f"caption-flow {command}".strip() in done.out
    assert done.err == ""
    assert done.cpu_seconds < CPU_SECONDS


def test_commands_without_a_command_show_what_there_is(tmp_path: Path) -> None:
    done = caption_flow(cwd=tmp_path)
    assert done.code == 0
    for name in ("run", "orchestrator", "worker", "export"):
        assert re.search(rf"^\W+{name} ", done.out, re.MULTILINE)
