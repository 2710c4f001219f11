"""What a machine offers apart from its engine: Python, the hub, disk, memory, ports."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from caption_flow.cli.checkup import Finding, Verdict
from caption_flow.cli.folders import for_people

PORT: Final = 8765
_HUB: Final = "https://huggingface.co"
_HUB_SECONDS: Final = 1.8
_OLDEST_PYTHON: Final = (3, 11)
_NEWEST_PYTHON: Final = (3, 13)
_GIB: Final = 2**30
_TRUE: Final = frozenset({"1", "on", "yes", "true"})


def check_python() -> Sequence[Finding]:
    """Which CaptionFlow, in which Python, on which system."""
    try:
        ours = metadata.version("caption-flow")
    except metadata.PackageNotFoundError:
        ours = None
    return [
        Finding("CaptionFlow", Verdict.OK, ours or "a checkout", facts={"version": ours}),
        _python(sys.version_info[:2]),
        _system(platform.system(), platform.machine()),
    ]


def _python(version: tuple[int, int]) -> Finding:
    says, facts = f"{platform.python_version()} ({sys.executable})", {"executable": sys.executable}
    verdict = Verdict.OK
    if not _OLDEST_PYTHON <= version <= _NEWEST_PYTHON:
        verdict = Verdict.BAD if version < _OLDEST_PYTHON else Verdict.NOTE
        says += "; 3.11, 3.12 or 3.13 is needed"
    return Finding("Python", verdict, says, facts={"version": platform.python_version(), **facts})


def _system(system: str, machine: str) -> Finding:
    facts = {"system": system, "machine": machine}
    if system == "Linux":
        return Finding("system", Verdict.OK, f"{system} {machine}", facts=facts)
    says = f"{system}: captioning needs Linux (WSL 2 on Windows); exports and orchestrators do not"
    return Finding("system", Verdict.BAD, says, facts=facts)


# --------------------------------------------------------------------------- the hub


def check_hub(variables: Mapping[str, str] = os.environ) -> Sequence[Finding]:
    """Whether models can be downloaded."""
    endpoint = variables.get("HF_ENDPOINT") or _HUB
    shown = _without_secrets(endpoint)
    offline = variables.get("HF_HUB_OFFLINE", "").lower() in _TRUE
    reason = "HF_HUB_OFFLINE is set" if offline else _unreachable(shown)
    facts = {"endpoint": shown, "offline": offline, "reachable": reason is None}
    if reason is None:
        return [Finding("hub", Verdict.OK, f"{shown} answers", facts=facts)]
    says = f"{reason}: only models that are on this machine already can be used"
    return [Finding("hub", Verdict.NOTE, says, facts=facts)]


def _without_secrets(endpoint: str) -> str:
    """Return an address without what may stand before an ``@`` in it or behind a ``?``."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def _unreachable(endpoint: str) -> str | None:
    """Ask the hub for nothing but a sign of life; return why there is none, or None."""
    if urlsplit(endpoint).scheme not in {"http", "https"}:
        return f"HF_ENDPOINT is no address of a hub: {endpoint}"
    ask = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310  -- checked above
    try:
        urllib.request.urlopen(ask, timeout=_HUB_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        # An answer all the same: mirrors have no first page. But 403 and 407 are a proxy's.
        is_refused = error.code in {403, 407} or error.code >= 500
        return f"{endpoint} is out of reach (HTTP {error.code})" if is_refused else None
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        return f"{endpoint} cannot be reached ({getattr(reason, 'strerror', None) or reason})"
    return None


def check_token(variables: Mapping[str, str] = os.environ) -> Sequence[Finding]:
    """Whether there is a token for the hub; what it is, is nobody's business."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if variables.get(name, "").strip():
            facts = {"there": True, "source": name}
            return [Finding("hub token", Verdict.OK, f"there ({name})", facts=facts)]
    file = Path(variables.get("HF_TOKEN_PATH") or _hub_home(variables) / "token").expanduser()
    if file.is_file() and file.stat().st_size:
        facts = {"there": True, "source": str(file)}
        return [Finding("hub token", Verdict.OK, f"there ({for_people(str(file))})", facts=facts)]
    says = "none: needed only for gated and private models (HF_TOKEN)"
    return [Finding("hub token", Verdict.OK, says, facts={"there": False, "source": None})]


def _hub_home(variables: Mapping[str, str]) -> Path:
    caches = variables.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(variables.get("HF_HOME") or Path(caches) / "huggingface").expanduser()


# --------------------------------------------------------------------------- room


def check_disk(variables: Mapping[str, str] = os.environ) -> Sequence[Finding]:
    """How much room there is for results, here, and for models, in the hub's cache."""
    cache = variables.get("HF_HUB_CACHE") or variables.get("HUGGINGFACE_HUB_CACHE")
    hub = Path(cache).expanduser() if cache else _hub_home(variables) / "hub"
    return [
        _room("disk", Path.cwd(), enough=_GIB, too_little="the captions of a large dataset"),
        _room("hub cache", hub, enough=20 * _GIB, too_little="a model of 7 billion parameters"),
    ]


def _room(about: str, folder: Path, *, enough: int, too_little: str) -> Finding:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    says = f"{_gib(free)} free in {for_people(str(folder))}"
    facts = {"folder": str(folder), "free_bytes": free, "writable": os.access(there, os.W_OK)}
    if not facts["writable"]:
        return Finding(about, Verdict.NOTE, f"{says}, but it cannot be written to", facts=facts)
    if free < enough:
        return Finding(about, Verdict.NOTE, f"{says}: too little for {too_little}", facts=facts)
    return Finding(about, Verdict.OK, says, facts=facts)


def check_memory(
    meminfo: Path = Path("/proc/meminfo"),
    shared: Path = Path("/dev/shm"),  # noqa: S108  -- looked at, not written to
) -> Sequence[Finding]:
    """How much main memory is free, and how much of it processes may share."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text("ascii"))
    free = int(found.group(1)) * 1024 if found else 0
    cores = len(os.sched_getaffinity(0))
    facts = {"available_bytes": free, "cores": cores}
    says = f"{_gib(free)} free, {cores} processor cores"
    verdict = Verdict.OK if free >= 4 * _GIB else Verdict.NOTE
    return [Finding("memory", verdict, says, facts=facts), _shared_memory(shared)]


def _shared_memory(folder: Path) -> Finding:
    size = shutil.disk_usage(folder).total if folder.is_dir() else 0
    facts = {"total_bytes": size}
    if size >= _GIB:
        return Finding("shared memory", Verdict.OK, _gib(size), facts=facts)
    says = (
        f"{_gib(size)} is too little for a model over several GPUs: start a container with "
        "--shm-size=8g or --ipc=host"
    )
    return Finding("shared memory", Verdict.NOTE, says, facts=facts)


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"


# --------------------------------------------------------------------------- the port


def check_port(port: int = PORT) -> Sequence[Finding]:
    """Whether an orchestrator could listen where it does by default."""
    about = f"port {port}"
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            says = f"{error.strerror}: an orchestrator needs another (--port 0 takes any free one)"
            return [Finding(about, Verdict.NOTE, says, facts={"port": port, "free": False})]
    return [Finding(about, Verdict.OK, "free", facts={"port": port, "free": True})]
