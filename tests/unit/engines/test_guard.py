"""How an engine's processes are found and ended: real processes, no engine."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from caption_flow.worker.engines import guard

if not sys.platform.startswith("linux"):
    pytest.skip("processes are found in /proc", allow_module_level=True)

WAITS = "import sys; print(flush=True); sys.stdin.read()"
# A process, and a child of it: as vLLM's engine has workers.
WAITS_WITH_A_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WAITS!r}])"


class Processes:
    """Processes with a mark, ended with the test."""

    def __init__(self) -> None:
        self.mark = guard.new_mark()
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, program: str = WAITS, *, mark: str | None = None) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **guard.environment(mark or self.mark)},
        )
        self._started.append(process)
        assert process.stdout is not None
        process.stdout.readline()  # it, or its child, runs
        return process

    def end(self) -> None:
        guard.end_marked(self.mark)
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def processes() -> Iterator[Processes]:
    started = Processes()
    yield started
    started.end()


def test_a_mark_is_never_used_twice() -> None:
    assert len({guard.new_mark() for _ in range(100)}) == 100


def test_a_marked_process_is_found_and_so_are_its_children(processes: Processes) -> None:
    parent = processes.start(WAITS_WITH_A_CHILD)
    found = guard.marked(processes.mark)
    assert parent.pid in found
    assert len(found) == 2


def test_a_process_with_another_mark_is_none_of_ours(processes: Processes) -> None:
    processes.start()
    other = processes.start(mark=guard.new_mark())
    assert other.pid not in guard.marked(processes.mark)
    assert guard.end_marked(processes.mark)
    assert other.poll() is None


def test_the_calling_process_is_never_among_the_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in guard.environment("m").items():
        monkeypatch.setenv(name, value)
    assert guard.marked("m") == []


def test_ending_leaves_nothing_and_says_so(processes: Processes) -> None:
    parent = processes.start(WAITS_WITH_A_CHILD)
    assert guard.end_marked(processes.mark)
    assert guard.marked(processes.mark) == []
    assert parent.wait(timeout=10) == -signal.SIGKILL


def test_ending_what_is_gone_already_is_no_trouble() -> None:
    assert guard.end_marked(guard.new_mark())


def test_a_stopped_process_is_ended_too(processes: Processes) -> None:
    process = processes.start()
    process.send_signal(signal.SIGSTOP)
    assert guard.end_marked(processes.mark)
    assert process.wait(timeout=10) == -signal.SIGKILL


def test_a_process_that_renames_itself_is_still_found(processes: Processes) -> None:
    setproctitle = pytest.importorskip("setproctitle", reason="comes with vLLM")
    assert setproctitle
    processes.start("import setproctitle; setproctitle.setproctitle('VLLM::' + 'x' * 50);" + WAITS)
    assert len(guard.marked(processes.mark)) == 1


# --------------------------------------------------------------------------- the watchman

WORKER = """
import sys
from caption_flow.worker.engines import guard
watchman = guard.Watchman(sys.argv[1])
print(watchman._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def worker(processes: Processes) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process with a watchman, and the watchman's process id."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, processes.mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    )
    assert process.stdout is not None
    yield process, int(process.stdout.readline())
    process.kill()
    process.communicate()


def ended(pid_fd: int) -> bool:
    """Wait for the end of a process, some seconds at most."""
    try:
        return bool(select.select([pid_fd], [], [], 10)[0])
    finally:
        os.close(pid_fd)


def test_when_the_worker_is_killed_its_engine_ends_within_seconds(
    processes: Processes, worker: tuple[subprocess.Popen[bytes], int]
) -> None:
    process, watchman = worker
    engine = processes.start(WAITS_WITH_A_CHILD)
    watching = os.pidfd_open(watchman)
    process.kill()
    assert engine.wait(timeout=5) == -signal.SIGKILL
    assert ended(watching)
    assert guard.marked(processes.mark) == []


def test_when_the_workers_whole_process_group_is_killed_its_engine_ends_too(
    processes: Processes, worker: tuple[subprocess.Popen[bytes], int]
) -> None:
    process, _ = worker
    engine = processes.start()
    os.killpg(process.pid, signal.SIGKILL)
    assert engine.wait(timeout=5) == -signal.SIGKILL


def test_while_the_worker_lives_nothing_is_ended_whatever_signals_come(
    processes: Processes, worker: tuple[subprocess.Popen[bytes], int]
) -> None:
    _, watchman = worker
    engine = processes.start()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(watchman, number)
    with pytest.raises(subprocess.TimeoutExpired):
        engine.wait(timeout=0.3)


def test_a_dismissed_watchman_ends_nothing(processes: Processes) -> None:
    watchman = guard.Watchman(processes.mark)
    engine = processes.start()
    watching = os.pidfd_open(watchman._process.pid)
    watchman.dismiss()
    watchman.dismiss()
    assert ended(watching)
    assert engine.poll() is None
