"""What the benchmark of the worker loads into vLLM: a device made of sleep, and a cache's counters.

Found by vLLM through entry points (see `install_in`), in each of its processes. The device takes
12 ms and 50 µs a token for a forward pass, and 100 µs for each token of an image it encodes. The
model's own arithmetic, which takes less, is within that time; the rest is slept, so that the
processor is free as it is beside a GPU.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

SWITCH: Final = "CAPTION_FLOW_SIMULATED_DEVICE"
"""Environment variable: the device is simulated where it is set."""

PASS_SECONDS: Final = 0.012
TOKEN_SECONDS: Final = 50e-6
IMAGE_TOKEN_SECONDS: Final = 100e-6

_ENTRY_POINTS: Final = """\
[vllm.general_plugins]
simulated_device = simulated_device:simulate
[vllm.stat_logger_plugins]
cache_counts = cache_counts:CacheCounts
"""


def install_in(folder: Path) -> None:
    """Lay out a distribution that names the plugins, and put it and them into the path."""
    about = folder / "caption_flow_benchmarks-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: x\nVersion: 0\n")
    (about / "entry_points.txt").write_text(_ENTRY_POINTS)
    # The engine's processes are given the path of this one.
    sys.path[:0] = [str(folder), str(Path(__file__).parent)]


def simulate() -> None:
    """Make each forward pass in this process last as long as the device would take."""
    if SWITCH not in os.environ:
        return
    from vllm.v1.worker.worker_base import WorkerWrapperBase  # noqa: PLC0415 - only inside vLLM

    if hasattr(WorkerWrapperBase.execute_model, "__wrapped__"):
        return  # vLLM loads its plugins in several places
    original = WorkerWrapperBase.execute_model

    @functools.wraps(original)
    def execute_model(self: Any, scheduler_output: Any, *arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = original(self, scheduler_output, *arguments, **options)
        wanted = _seconds(self.worker.model_runner, scheduler_output)
        time.sleep(max(0.0, wanted - (time.perf_counter() - began)))
        return result

    setattr(WorkerWrapperBase, "execute_model", execute_model)  # noqa: B010 - typed as a method


def _seconds(runner: Any, step: Any) -> float:
    if not step.total_num_scheduled_tokens:
        return 0.0
    image_tokens: int = sum(
        runner.requests[request].mm_features[number].mm_position.length
        for request, numbers in step.scheduled_encoder_inputs.items()
        for number in numbers
        if request in runner.requests
    )
    tokens = int(step.total_num_scheduled_tokens)
    return PASS_SECONDS + TOKEN_SECONDS * tokens + IMAGE_TOKEN_SECONDS * image_tokens


counts: Counter[str] = Counter()
"""What `cache_counts.CacheCounts` has seen in this process."""
