"""How much of the encoder's output is kept, and that its memory is nobody else's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from caption_flow.worker.engines.vllm_encoder_cache import CPU_BYTES, Keeping, keeping
from caption_flow.worker.engines.vllm_interface import keep_encoded

GIB = 2**30


def test_the_pictures_of_all_requests_in_flight_are_kept() -> None:
    assert keeping(1000, useful=9000, bytes_each=256) == Keeping(9000, 8000 * 256)


def test_no_more_memory_is_taken_than_can_be_spared() -> None:
    assert keeping(1000, useful=10**9, bytes_each=4096).extra_bytes == CPU_BYTES
    share = 0.9 * 24 * GIB
    extra = keeping(1000, useful=10**9, bytes_each=7168, device_bytes=share).extra_bytes
    assert share / 32 - 7168 < extra <= share / 32


def test_vllm_keeps_no_less_than_it_would_of_its_own_accord() -> None:
    assert keeping(16384, useful=2048, bytes_each=256) == Keeping(16384, 0)


def vllms_config(**cache: Any) -> Any:
    """What `keep_encoded` looks at, with the numbers of a 7-billion-parameter model."""
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(encoder_cache_size=16384, max_num_seqs=256),
        cache_config=SimpleNamespace(gpu_memory_utilization=0.9, **cache),
        model_config=SimpleNamespace(
            max_model_len=4096,
            dtype=SimpleNamespace(itemsize=2),
            hf_config=SimpleNamespace(vision_config=SimpleNamespace(deepstack_visual_indexes=[8])),
            get_inputs_embeds_size=lambda: 3584,
        ),
    )


def test_what_is_kept_on_a_device_is_left_free_by_the_rest() -> None:
    config = vllms_config()
    keep_encoded(config, device_bytes=24 * GIB)
    extra = config.scheduler_config.encoder_cache_size - 16384
    bytes_each = 3584 * 2 * 2
    assert extra * bytes_each == pytest.approx(0.9 * 24 * GIB / 32, rel=0.001)
    freed = (0.9 - config.cache_config.gpu_memory_utilization) * 24 * GIB
    assert freed == pytest.approx(extra * bytes_each)


def test_where_the_cache_has_its_size_by_order_nothing_is_changed() -> None:
    config = vllms_config(kv_cache_memory_bytes=8 * GIB)
    keep_encoded(config, device_bytes=24 * GIB)
    assert config.scheduler_config.encoder_cache_size == 16384
    assert config.cache_config.gpu_memory_utilization == 0.9
