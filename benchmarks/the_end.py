"""What passes between the last caption and the last exit, with the synthetic engine.

    python benchmarks/the_end.py                    every job, five times
    python benchmarks/the_end.py --times 15         more often

The clock starts with the moment at which the last row is committed (``committed_at``), and stops
when the last of the job's processes has ended. ``client`` is a program that starts an orchestrator
and workers, waits for the workers, interrupts the orchestrator and waits for it, as SimpleTuner
does (``tests/support/client.py``; it looks every 20 ms); ``run`` is ``caption-flow run``, which in
this time also writes a ``.txt`` for each image and its summary. Beside it is the whole job, and the
processor time that its processes took, since clocks of busy machines say little.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.cli import environment
from tests.support.client import client
from tests.support.fleet import stored_rows, write_images

IMAGES: Final = (50, 2000)
WORKERS: Final = (1, 2)


@dataclass(frozen=True)
class Took:
    """Seconds of one job: from the last caption, in all, and of the processor."""

    end: float
    whole: float
    cpu: float


def of_a_client(home: Path, workers: int) -> tuple[Path, float]:
    """Run a job as a client does; return where its rows are, and the moment of the last exit."""
    with client(home, images="photos") as ours:
        return ours.data_dir, ours.caption(workers=workers, seconds=600.0)


def of_run(home: Path, workers: int) -> tuple[Path, float]:
    """Run a job with one command."""
    gpus = ",".join(map(str, range(workers)))
    variables = {"CUDA_VISIBLE_DEVICES": gpus}  # taken at their word: nothing looks for them
    subprocess.run(
        [sys.executable, "-m", "caption_flow.cli", "run", "photos", "--engine", "synthetic"],
        cwd=home,
        env=environment(home, variables),
        check=True,
        capture_output=True,
    )
    return home / ".caption-flow" / "photos.synthetic", time.time()


def measure(job: Callable[[Path, int], tuple[Path, float]], images: int, workers: int) -> Took:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_images(home / "photos", images)
        began, used = time.time(), _children()
        data_dir, ended = job(home, workers)
        cpu = _children() - used
        rows = stored_rows(data_dir, ["committed_at", "worker"])
        assert len(rows) == images
        last = max(row["committed_at"].timestamp() for row in rows)
        return Took(ended - last, ended - began, cpu)


def _children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=5, help="jobs of each kind")
    times: int = parser.parse_args().times
    print("medians of", times, "jobs each; seconds (highest)")
    for name, job in (("client", of_a_client), ("run", of_run)):
        for images in IMAGES:
            for workers in WORKERS:
                took = [measure(job, images, workers) for _ in range(times)]
                ends = [one.end for one in took]
                print(
                    f"{name:<7} {images:>5} images  {workers} worker{'s' if workers > 1 else ' '}  "
                    f"last caption to last exit {statistics.median(ends):.2f} ({max(ends):.2f})  "
                    f"whole job {statistics.median(one.whole for one in took):.1f}  "
                    f"processor {statistics.median(one.cpu for one in took):.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
