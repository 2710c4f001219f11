"""A run of one command is over when its last image is, whatever its workers are at."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.cli import ROOTS, caption_of, make_images, running, text_beside

LATE_SECONDS = 600
LATE = f"""
import sys, time
if "worker 1" in sys.orig_argv:
    time.sleep({LATE_SECONDS})
"""


def test_a_run_does_not_wait_for_a_worker_that_only_starts(tmp_path: Path) -> None:
    images = make_images(tmp_path / "photos", 20)
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "sitecustomize.py").write_text(LATE)
    env = {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "late"), *ROOTS]),
    }
    with running("run", "photos", "--engine", "synthetic", cwd=tmp_path, env=env) as run:
        done = run.ends()
        assert done.code == 0, done.said
        assert "2 workers" in done.err, "there is one that is late"
        assert "captioned  20" in done.out
        run.leaves_nothing(seconds=5.0)
    assert [text_beside(image) for image in images] == [caption_of(image) for image in images]
