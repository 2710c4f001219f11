"""A client's job that is cancelled before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from tests.support.cli import make_images
from tests.support.client import client, wait_for

A_WHILE = 60.0


def test_a_job_that_is_cancelled_while_vllm_is_imported_waits_for_no_import(
    tmp_path: Path,
) -> None:
    with client(tmp_path, mock_results=False) as ours:
        make_images(ours.dataset, 2)
        ours.prepare()
        ours.lay_out_endless_vllm()
        ours.start_orchestrator()
        ours.wait_until_ready()
        ours.start_workers()
        wait_for(lambda: "importing" in ours.workers[0].said, lambda: ours.said, A_WHILE)
        assert ours.cancel(), "somebody had to be killed"
        assert [one.process.returncode for one in ours.workers] == [0]
        assert ours.left() == {}
