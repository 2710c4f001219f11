"""Which GPUs this machine has, without importing anything that would claim one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from caption_flow.cli.failures import usage_error

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
NO_GPU: Final = ""
"""The share of a worker that must not see a GPU, as CUDA_VISIBLE_DEVICES says it."""
_PROC: Final = Path("/proc/driver/nvidia/gpus")
_ASK_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class Shares:
    """What each worker of a run sees, as CUDA_VISIBLE_DEVICES says it: one entry a worker.

    None is for a worker on a machine without GPUs. ``idle`` are those that make no full share.
    """

    workers: tuple[str | None, ...]
    idle: tuple[str, ...] = ()
    gpus_per_worker: int = 1

    @property
    def note(self) -> str | None:
        """A sentence about GPUs that are left over, or None."""
        if not self.idle:
            return None
        one = len(self.idle) == 1
        return (
            f"{'GPU' if one else 'GPUs'} {', '.join(self.idle)} {'stays' if one else 'stay'} idle: "
            f"with tensor_parallel_size {self.gpus_per_worker} each worker takes "
            f"{self.gpus_per_worker} GPUs, and so many are not left"
        )


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get(VISIBLE)
    return [str(number) for number in range(_count())] if visible is None else _entries(visible)


def show_only(numbers: Sequence[int]) -> tuple[str, ...]:
    """Make GPUs the only ones this process sees, and return them as CUDA_VISIBLE_DEVICES does.

    Numbers count the entries of CUDA_VISIBLE_DEVICES where it is set. Ends the command where one
    of them is not there.
    """
    # Numbers as nvidia-smi has them; CUDA's own put the fastest first.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    visible = os.environ.get(VISIBLE)
    wanted = [str(number) for number in numbers]
    found = _find(wanted, _entries(visible)) if visible else wanted
    if None in found:
        count = len(_entries(visible or ""))
        usage_error(
            f"--gpu-id {','.join(wanted)}: {VISIBLE}={visible} lets this process see only "
            f"{count} GPU{'' if count == 1 else 's'}; their numbers begin at 0"
        )
    chosen = tuple(gpu for gpu in found if gpu is not None)
    os.environ[VISIBLE] = ",".join(chosen)
    return chosen


def choose_gpus(asked: str | None, gpus_per_worker: int = 1) -> Shares:
    """Divide this machine's GPUs among workers.

    ``asked`` is what ``--gpus`` says: nothing or ``all`` for every visible GPU, ``none``, a list of
    numbers such as ``0,2``. A machine without GPUs gets one worker.
    """
    there = visible_gpus()
    match (asked or "all").strip().lower():
        case "all":
            return _shared(there, gpus_per_worker) if there else Shares((None,))
        case "none" | "cpu":
            return Shares((NO_GPU,))
        case listed:
            chosen = _find([gpu.strip() for gpu in listed.split(",") if gpu.strip()], there)
            if not chosen or None in chosen:
                have = f"GPUs {', '.join(there)}" if there else "no NVIDIA GPU"
                usage_error(f"--gpus {asked}: this machine has {have}; say all, none or numbers")
            once = dict.fromkeys(gpu for gpu in chosen if gpu is not None)
            return _shared([*once], gpus_per_worker)


def _entries(visible: str) -> list[str]:
    return [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in {"", "-1"}]


def _find(wanted: Sequence[str], visible: Sequence[str]) -> list[str | None]:
    """Return the visible GPUs that are meant, None for one that is not there.

    Numbers count the visible ones. Where that cannot be meant, since there are not so many, they
    are names, such as 5 with CUDA_VISIBLE_DEVICES=4,5.
    """
    named = {gpu.lower(): gpu for gpu in visible}
    counted = all(int(gpu) < len(visible) for gpu in wanted if gpu.isdecimal())
    return [
        visible[int(gpu)] if counted and gpu.isdecimal() else named.get(gpu.lower())
        for gpu in wanted
    ]


def _shared(gpus: Sequence[str], gpus_per_worker: int) -> Shares:
    if len(gpus) < gpus_per_worker:
        there = "is only 1 GPU" if len(gpus) == 1 else f"are only {len(gpus)} GPUs"
        usage_error(
            f"tensor_parallel_size is {gpus_per_worker}, but there {there} "
            f"to use ({', '.join(gpus)})"
        )
    full = len(gpus) - len(gpus) % gpus_per_worker
    shares = (gpus[at : at + gpus_per_worker] for at in range(0, full, gpus_per_worker))
    return Shares(tuple(map(",".join, shares)), tuple(gpus[full:]), gpus_per_worker)


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
