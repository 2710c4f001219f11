"""Counts what vLLM's own metrics say of its caches; vLLM loads it as a stat logger plugin."""

from __future__ import annotations

from typing import Any

from simulated_device import counts
from vllm.v1.metrics.loggers import StatLoggerBase


class CacheCounts(StatLoggerBase):
    """Adds up queries and hits of the prefix cache (tokens) and the multimodal cache (images).

    Also the images that were encoded, which vLLM counts if ``enable_logging_iteration_details`` is
    set.
    """

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        del vllm_config, engine_index

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Take one update."""
        del engine_idx
        if scheduler_stats is not None:
            counts["prefix tokens asked"] += scheduler_stats.prefix_cache_stats.queries
            counts["prefix tokens found"] += scheduler_stats.prefix_cache_stats.hits
            if scheduler_stats.iteration_details is not None:
                counts["images encoded"] += scheduler_stats.iteration_details.num_encoder_inputs
        if mm_cache_stats is not None:
            counts["images asked"] += mm_cache_stats.queries
            counts["images found"] += mm_cache_stats.hits
        if iteration_stats is not None:
            counts["tokens out"] += iteration_stats.num_generation_tokens

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
