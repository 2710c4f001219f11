"""Which GPUs this machine has, without importing anything that would claim one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from caption_flow.cli.failures import usage_error

NO_GPU: Final = ""
"""The share of a worker that must not see a GPU, as CUDA_VISIBLE_DEVICES says it."""
_PROC: Final = Path("/proc/driver/nvidia/gpus")
_ASK_SECONDS: Final = 10


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip() not in {"", "-1"}]
    return [str(number) for number in range(_count())]


def choose_gpus(asked: str | None, gpus_per_worker: int = 1) -> list[str | None]:
    """Return what each worker sees, as CUDA_VISIBLE_DEVICES says it: one entry a worker.

    ``asked`` is what ``--gpus`` says: nothing or ``all`` for every visible GPU, ``none``, a list of
    numbers such as ``0,2``. A machine without GPUs gets one worker, and None for what it sees.
    """
    there = visible_gpus()
    match (asked or "all").strip().lower():
        case "all":
            return [*_shared(there, gpus_per_worker)] or [None]
        case "none" | "cpu":
            return [NO_GPU]
        case listed:
            wanted = [number.strip() for number in listed.split(",") if number.strip()]
            chosen = [find_gpu(number, there) for number in wanted]
            if not chosen or None in chosen:
                have = f"GPUs {', '.join(there)}" if there else "no NVIDIA GPU"
                usage_error(f"--gpus {asked}: this machine has {have}; say all, none or numbers")
            once = dict.fromkeys(gpu for gpu in chosen if gpu is not None)
            return [*_shared([*once], gpus_per_worker)]


def find_gpu(number: str, visible: Sequence[str]) -> str | None:
    """Return the visible GPU of that name, or else of that number among the visible ones."""
    named = next((gpu for gpu in visible if gpu.lower() == number.lower()), None)
    if named is not None:
        return named
    counted = int(number) if number.isdecimal() else len(visible)
    return visible[counted] if counted < len(visible) else None


def _shared(gpus: Sequence[str], gpus_per_worker: int) -> list[str]:
    if gpus and len(gpus) < gpus_per_worker:
        usage_error(
            f"tensor_parallel_size is {gpus_per_worker}, but there are only {len(gpus)} GPUs "
            f"to use ({', '.join(gpus)})"
        )
    return [
        ",".join(gpus[first : first + gpus_per_worker])
        for first in range(0, len(gpus) - gpus_per_worker + 1, gpus_per_worker)
    ]


def _count() -> int:
    if _PROC.is_dir():
        return sum(1 for _ in _PROC.iterdir())
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        listed = subprocess.run(  # noqa: S603  -- a fixed program without input
            [tool, "--list-gpus"], capture_output=True, text=True, timeout=_ASK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
