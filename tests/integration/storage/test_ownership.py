"""One run owns a folder; another is told whose it is, and a dead owner's lock holds nobody up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from caption_flow.storage.errors import StorageBusyError, StorageError
from caption_flow.storage.lock import LOCK_FILE
from caption_flow.storage.store import RunStore
from tests.integration.storage.folders import captioned, items_in, listed, opened, query

HOLD = """
import pathlib, sys
from caption_flow.storage.store import RunStore
store = RunStore(pathlib.Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def owner(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder open."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, data_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_orchestrator_is_refused_with_the_pid_and_host_of_the_first(
    tmp_path: Path,
) -> None:
    with owner(tmp_path) as process:
        with pytest.raises(StorageBusyError) as caught:
            RunStore(tmp_path)
        assert (caught.value.pid, caught.value.host) == (process.pid, socket.gethostname())
        assert f"pid {process.pid} on {socket.gethostname()}" in str(caught.value)
        assert "another storage.data_dir" in str(caught.value)


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        RunStore(tmp_path).release()
    assert f'"pid": {os.getpid()}' in (tmp_path / LOCK_FILE).read_text()


def test_a_store_opened_twice_in_one_process_is_refused_too(tmp_path: Path) -> None:
    first = RunStore(tmp_path)
    with pytest.raises(StorageBusyError, match=str(os.getpid())):
        RunStore(tmp_path)
    first.release()
    RunStore(tmp_path).release()


def test_a_lock_file_that_says_nonsense_still_locks(tmp_path: Path) -> None:
    first = RunStore(tmp_path)
    (tmp_path / LOCK_FILE).write_text("[]")
    with pytest.raises(StorageBusyError, match="in use by another orchestrator"):
        RunStore(tmp_path)
    first.release()


def test_a_folder_that_cannot_be_made_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="data_dir"):
        RunStore(tmp_path / "file" / "run")


async def test_each_opening_has_lease_numbers_of_its_own(tmp_path: Path) -> None:
    seen = []
    for _ in range(3):
        async with opened(tmp_path) as store:
            seen.append(store.incarnation)
    assert seen == sorted(set(seen))


async def test_a_folder_is_free_again_after_it_was_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(3))
        await store.write(captioned(1))
        with pytest.raises(StorageBusyError):
            RunStore(tmp_path)
        await store.write(captioned(2))
    async with opened(tmp_path):
        assert items_in(tmp_path) == {1, 2}
    assert query(tmp_path, "PRAGMA quick_check") == [("ok",)]
