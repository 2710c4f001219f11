"""What NVIDIA's own tool says of this machine's GPUs; asking it claims none of them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import Final

_FIELDS: Final = ("index", "uuid", "name", "memory.total", "memory.free", "driver_version")


class NvidiaSmiError(Exception):
    """The tool is there and does not answer; ``str()`` says why."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. Memory is None where it is the machine's own."""

    index: str
    uuid: str
    name: str
    total_mib: int | None
    free_mib: int | None
    driver: str


def list_gpus(*, within_seconds: float) -> list[Gpu]:
    """Return this machine's NVIDIA GPUs, whatever CUDA_VISIBLE_DEVICES says; none without a driver.

    Raises:
        NvidiaSmiError: the tool fails or takes too long.

    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    ask = [tool, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(  # noqa: S603  -- a fixed program without input
            ask, capture_output=True, text=True, timeout=within_seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NvidiaSmiError(f"did not answer within {within_seconds:g} s") from error
    except OSError as error:
        raise NvidiaSmiError(f"cannot be run: {error.strerror or error}") from error
    if "No devices were found" in asked.stdout:
        return []
    if asked.returncode != 0:
        said = (asked.stdout.strip() or asked.stderr.strip()).splitlines()
        raise NvidiaSmiError(said[0] if said else f"exit code {asked.returncode}")
    return [_gpu(line) for line in asked.stdout.splitlines() if line.strip()]


def _gpu(line: str) -> Gpu:
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(_FIELDS):
        raise NvidiaSmiError(f"answers in a form that is not known: {line.strip()}")
    index, uuid, name, total, free, driver = values
    return Gpu(index, uuid, name, _mib(total), _mib(free), driver)


def _mib(value: str) -> int | None:
    return int(value) if value.isdecimal() else None  # "[N/A]" where memory is shared
