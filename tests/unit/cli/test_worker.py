"""What is configured reaches the worker."""

from __future__ import annotations

from typing import Any

from caption_flow.cli.worker import settings_from
from caption_flow.config.load import load_worker
from caption_flow.worker.service import WorkerSettings


def settings(**keys: Any) -> WorkerSettings:
    loaded = load_worker(None, {"server": "ws://127.0.0.1:1", "token": "t", **keys})
    return settings_from(
        loaded.config,
        token="t",
        model=None,
        batch_size=None,
        connect_seconds=1.0,
        trust_remote_code=False,
        exit_with_parent=False,
    )


def test_readahead_size_is_how_many_items_are_prepared_ahead() -> None:
    assert settings(readahead_size=12).look_ahead_items == 12


def test_without_readahead_size_the_engine_decides_how_far_to_prepare_ahead() -> None:
    assert settings().look_ahead_items is None


def test_a_rehearsal_loads_together_what_the_owner_has_made_fit() -> None:
    keys = {"engine": "synthetic", "vllm": {"gpu_memory_utilization": 0.4}}
    assert settings(**keys).vllm_options == {"gpu_memory_utilization": 0.4}
    assert settings(**keys).engine_settings == {}
