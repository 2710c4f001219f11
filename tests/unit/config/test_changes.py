"""What of a changed configuration takes effect while a run goes on, and what needs a restart."""

from __future__ import annotations

from typing import Any

import pytest

from caption_flow.config.changes import changed_keys, models_to_load, obstacles
from caption_flow.config.orchestrator import OrchestratorConfig

STAGES = [
    {"name": "one", "prompts": ["p"], "output_field": "first"},
    {"name": "two", "model": "b", "prompts": ["q {first}"], "output_field": "second"},
]


def config(**settings: Any) -> OrchestratorConfig:
    content: dict[str, Any] = {
        "dataset": {"type": "local_filesystem", "dataset_path": "photos"},
        "vllm": {"model": "a", "stages": STAGES},
    }
    return OrchestratorConfig.model_validate(content | settings)


def vllm(first: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    return {"model": "a", "stages": [STAGES[0] | (first or {}), STAGES[1]], **settings}


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({}, []),
        ({"chunk_size": 1000}, []),
        ({"chunk_size": 7}, ["chunk_size"]),
        ({"auth": {"worker_tokens": ["t"]}}, ["auth"]),
        ({"storage": {"checkpoint_interval": 7}}, ["storage.checkpoint_interval"]),
        ({"vllm": vllm({"prompts": ["another"]})}, ["vllm.stages[0].prompts"]),
        ({"vllm": vllm({"sampling": {"top_k": 3}})}, ["vllm.stages[0].sampling"]),
        ({"vllm": vllm(sampling={"temperature": 0})}, ["vllm.sampling.temperature"]),
        ({"vllm": vllm(sampling={"top_k": 3})}, ["vllm.sampling.top_k"]),
        ({"vllm": vllm({"model": "c"})}, ["vllm.stages[0].model"]),
        ({"vllm": vllm(some_engine_key=1)}, ["vllm.some_engine_key"]),
        ({"vllm": vllm({"choice": ["yes", "no"]})}, ["vllm.stages[0].choice"]),
        ({"min_chunk_buffer": 3}, ["min_chunk_buffer"]),
        ({"shard_cache_gb": 3}, []),
    ],
    ids=lambda one: "" if isinstance(one, dict) else " ".join(one) or "nothing",
)
def test_what_can_change_is_named_by_key_and_has_no_obstacle(
    settings: dict[str, Any], changed: list[str]
) -> None:
    assert changed_keys(config(), config(**settings)) == changed
    assert changed_keys(config(**settings), config()) == changed
    assert obstacles(config(), config(**settings)) == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"port": 1}, "port: needs a restart"),
        ({"ssl": {"cert": "c", "key": "k"}}, "ssl"),
        ({"cache_dir": "c"}, "cache_dir: needs a restart"),
        ({"storage": {"data_dir": "d"}}, "storage.data_dir: needs a restart"),
        (
            {"dataset": {"type": "local_filesystem", "dataset_path": "photos", "recursive": False}},
            "dataset.recursive: needs a restart",
        ),
        (
            {"vllm": vllm(mock_results=True)},
            "vllm.mock_results: needs a restart, also of the workers",
        ),
        (
            {"vllm": vllm({"name": "three"})},
            "vllm.stages: other stages, or another order, need a r",
        ),
        (
            {"vllm": {"model": "a", "stages": STAGES[:1]}},
            "vllm.stages: other stages, or another order, need a restart (one, two; now one)",
        ),
        (
            {"vllm": {"model": "a", "stages": [STAGES[0], STAGES[1] | {"output_field": "x"}]}},
            "vllm.stages (two): output_field needs a restart (second; now x)",
        ),
        (
            {
                "vllm": vllm(
                    {
                        "json_schema": {
                            "type": "object",
                            "properties": {"title": {"type": "string"}},
                            "required": ["title"],
                        },
                        "columns": ["title"],
                    }
                )
            },
            "vllm.stages (one): columns needs a restart",
        ),
        ({"vllm": vllm({"prompts": ["{column:title}"]})}, "{column:title} in prompts needs a rest"),
    ],
    ids=lambda one: "" if isinstance(one, dict) else str(one)[:30],
)
def test_what_needs_a_restart_is_said_by_key(settings: dict[str, Any], named: str) -> None:
    found = obstacles(config(), config(**settings))
    assert any(named in one for one in found), found


def test_to_take_all_tokens_away_needs_a_restart_and_to_add_some_does_not() -> None:
    with_tokens = config(auth={"worker_tokens": ["t"]})
    assert obstacles(with_tokens, config()) == ["auth: needs a restart to go on without tokens"]
    assert obstacles(config(), with_tokens) == []


def test_a_token_never_shows_in_what_changed() -> None:
    before, after = ({"auth": {"admin_tokens": [token]}} for token in ("secret-1", "secret-2"))
    assert changed_keys(config(**before), config(**after)) == ["auth.admin_tokens[0].token"]


def test_models_are_loaded_for_new_names_and_other_options_only() -> None:
    def models(**settings: Any) -> list[str]:
        return models_to_load(config().recipe(), config(vllm=vllm(**settings)).recipe())

    assert models() == []
    assert models(first={"prompts": ["another"], "sampling": {"top_k": 1}}) == []
    assert models(first={"model": "c"}) == ["c"]
    assert models(first={"dtype": "float16"}) == ["a"]
    assert models(max_model_len=100) == ["a", "b"]
