"""Building the engine a worker's owner chose; what only one of them needs is imported for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from caption_flow.worker.engines.base import Engine, EngineUnavailable
from caption_flow.worker.engines.options import nearest
from caption_flow.worker.engines.synthetic import SyntheticEngine

ENGINE_KINDS: Final = ("vllm", "openai", "synthetic")


def build_engine(
    kind: str,
    model: str,
    *,
    engine_options: Mapping[str, Any],
    engine_settings: Mapping[str, Any],
    trust_remote_code: bool = False,
) -> Engine:
    """Return an engine of ``kind`` for ``model``, not yet started.

    Args:
        kind: one of `ENGINE_KINDS`.
        model: a hub name or a folder.
        engine_options: the recipe's options, in vLLM's names; only ``vllm`` looks at them.
        engine_settings: the options of the worker's owner: what `SyntheticOptions` or
            `OpenAIOptions` name, or vLLM's names, laid over the recipe's and trusted.
        trust_remote_code: the worker's owner lets the model's own code run on this machine.

    Raises:
        EngineUnavailable: no such kind, or settings it cannot take.
    """
    match kind:
        case "synthetic":
            return SyntheticEngine(model, engine_settings)
        case "vllm":
            from caption_flow.worker.engines.vllm import VllmEngine  # noqa: PLC0415 - lazy on purpose

            return VllmEngine(
                model,
                engine_options,
                owner_options=engine_settings,
                trust_remote_code=trust_remote_code,
            )
        case "openai":
            from caption_flow.worker.engines.openai import OpenAIEngine  # noqa: PLC0415 - lazy, too

            return OpenAIEngine(model, engine_settings)
        case _:
            guess = nearest(kind, ENGINE_KINDS)
            hint = f"; did you mean '{guess}'?" if guess else f"; choose {', '.join(ENGINE_KINDS)}"
            raise EngineUnavailable(f"there is no engine '{kind}'{hint}")
