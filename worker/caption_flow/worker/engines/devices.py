"""The devices an engine wants, held against those its process may see, before anything loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from caption_flow.worker.core.placement import PARALLEL_OPTION, gpus_needed

_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"


def too_few_gpus(
    model: str, options: Mapping[str, Any], environment: Mapping[str, str]
) -> str | None:
    """Return a sentence if a model is to be spread over more GPUs than were chosen, or None.

    Where nobody chose, or all are hidden, the engine itself finds out what there is.
    """
    visible = environment.get(_VISIBLE, "")
    chosen = [gpu for gpu in visible.split(",") if gpu.strip() not in {"", "-1"}]
    needed = gpus_needed(options)
    if not chosen or needed <= len(chosen):
        return None
    return (
        f"model '{model}' is to be spread over {needed} GPUs ({PARALLEL_OPTION}: {needed}), but "
        f"this worker may use only {len(chosen)} ({_VISIBLE}={visible}): lower {PARALLEL_OPTION}, "
        "or let the worker use more, as --gpu-id 0,1 does"
    )
