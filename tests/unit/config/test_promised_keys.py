"""Every key that people's files already have is taken: it counts, or one warning says what does.

The table is the promise. A key that is given up here breaks somebody's file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import pytest
import yaml

from caption_flow.config.discovery import Component
from caption_flow.config.load import (
    Loaded,
    load_monitor,
    load_orchestrator,
    load_worker,
)
from caption_flow.config.problems import ConfigError
from caption_flow.config.section import Section

Form = Literal["json", "yaml", "json, root", "yaml, root"]

TOKENS: Final = [{"token": "t" * 20, "name": "a name with spaces"}]

COUNTS: Final[Mapping[str, Any]] = {
    "host": "127.0.0.1",
    "port": 8123,
    "ssl.cert": "cert.pem",
    "ssl.key": "key.pem",
    "chunk_size": 256,
    "chunks_per_request": 4,
    "chunk_buffer_multiplier": 5,
    "min_chunk_buffer": 20,
    "cache_dir": "cache",
    "dataset.type": "huggingface",
    "dataset.processor_type": "huggingface_datasets",
    "dataset.dataset_path": "org/name",
    "dataset.name": 'a "name", 写真',
    "dataset.version": "2.0",
    "dataset.split": "test",
    "dataset.dataset_config": "small",
    "dataset.dataset_image_column": "picture",
    "dataset.dataset_url_column": "",
    "dataset.revision": "main",
    "dataset.metadata_path": "index.json",
    "dataset.recursive": False,
    "dataset.follow_symlinks": True,
    "dataset.mock_results": True,
    "vllm.model": "org/model",
    "vllm.tensor_parallel_size": 2,
    "vllm.max_model_len": 4096,
    "vllm.dtype": "float16",
    "vllm.gpu_memory_utilization": 0.5,
    "vllm.enforce_eager": True,
    "vllm.mm_processor_cache_gb": 2,
    "vllm.mm_processor_cache_type": "shm",
    "vllm.mm_shm_cache_max_object_size_mb": 64,
    "vllm.limit_mm_per_prompt.image": 1,
    "vllm.batch_size": 16,
    "vllm.mock_results": True,
    "vllm.sampling.temperature": 0.1,
    "vllm.sampling.top_p": 0.5,
    "vllm.sampling.max_tokens": 64,
    "vllm.sampling.repetition_penalty": 1.2,
    "vllm.sampling.skip_special_tokens": False,
    "vllm.sampling.stop": ["<end>"],
    "vllm.sampling.min_p": 0.1,
    "vllm.inference_prompts": ["Describe this.", "And its style."],
    "storage.data_dir": "results",
    "storage.checkpoint_interval": 30,
    "storage.caption_buffer_size": 16,
    "auth.worker_tokens": TOKENS,
    "auth.monitor_tokens": TOKENS,
    "auth.admin_tokens": TOKENS,
}
WARNED_OF: Final[Mapping[str, Any]] = {
    "backpressure_threshold": 5000,
    "shard_cache_gb": 10,
    "buffer_size": 1000,
    "max_file_size": 100_000_000,
    "dataset.http_bind_address": "0.0.0.0",  # noqa: S104 -- nothing is bound
    "dataset.public_address": "images.example.org",
    "dataset.http_port": 8766,
    "dataset.buffer_size": 1000,
    "vllm.disable_mm_preprocessor_cache": True,
    "storage.checkpoint_dir": "checkpoints",
    "storage.job_buffer_size": 100,
    "storage.contributor_buffer_size": 50,
}
IN_A_STAGE: Final[Mapping[str, Any]] = {
    "name": "second",
    "model": "org/other",
    "prompts": ["Condense: {detailed}"],
    "output_field": "short",
    "requires": ["first"],
    "sampling": {"temperature": 0},
    "tensor_parallel_size": 2,
    "max_model_len": 2048,
    "dtype": "bfloat16",
    "gpu_memory_utilization": 0.3,
}
OF_A_WORKER: Final[Mapping[str, Any]] = {
    "server": "wss://host:8765",
    "token": "t" * 20,
    "name": "a worker, with spaces",
    "gpu_id": 1,
    "vllm": {"dtype": "float16"},
    "verify_ssl": False,
    "batch_image_processing": True,
    "readahead_size": 256,
    "when_finished": "post_exec_hook",
    "post_exec_hook": "echo done",
}
OF_A_WORKER_WARNED_OF: Final[Mapping[str, Any]] = {
    "inference_queue_size": 128,
    "local_storage_path": "local",
}
OF_A_MONITOR: Final[Mapping[str, Any]] = {
    "server": "ws://127.0.0.1:1",
    "token": "t" * 20,
    "refresh_rate": 2.5,
    "show_contributors": False,
    "show_quality_metrics": False,
    "max_activity_items": 7,
    "show_chunk_progress": False,
    "show_worker_queues": False,
    "show_throughput_graph": False,
}
LEAST: Final[Mapping[str, Mapping[str, Any]]] = {
    "orchestrator": {
        "dataset": {"type": "local_filesystem", "dataset_path": "images"},
        "vllm": {"model": "m", "inference_prompts": ["p"]},
    },
    "worker": {"server": "ws://127.0.0.1:1", "token": "t"},
    "monitor": {},
}


def loaded(
    folder: Path, component: Component, content: Mapping[str, Any], form: Form = "yaml"
) -> Loaded[Any]:
    """Load a component's configuration from a file of its own."""
    whole = content if form.endswith("root") else {component: content}
    file = folder / f"a file.{form.partition(',')[0]}"
    file.write_text(json.dumps(whole) if form.startswith("json") else yaml.safe_dump(whole))
    match component:
        case "orchestrator":
            return load_orchestrator(file)
        case "worker":
            return load_worker(file)
        case "monitor":
            return load_monitor(file)


def with_key(component: Component, path: str, value: Any) -> dict[str, Any]:
    """Return the least there can be in a file, with this key as well."""
    content: dict[str, Any] = json.loads(json.dumps(LEAST[component]))
    *sections, key = path.split(".")
    section = content
    for name in sections:
        section = section.setdefault(name, {})
    section[key] = value
    if path.startswith("ssl."):
        section.update({"cert": "cert.pem", "key": "key.pem"})
    if path == "when_finished":
        section["post_exec_hook"] = "echo done"
    if path == "dataset.processor_type":
        del section["type"]
    return content


def value_at(config: Section, path: str) -> Any:
    """Return what a configuration has at a path, as a file would have it."""
    value: Any = config
    for step in path.split("."):
        if isinstance(value, Section):
            extras = value.model_extra or {}
            value = extras[step] if step in extras else getattr(value, step)
        else:
            value = value[step]
    return value


def as_written(value: Any, like: Any) -> Any:
    """Return a value of a configuration in the form in which a file has it."""
    if isinstance(like, list):
        return [as_written(one, like[0]) for one in value]
    if isinstance(like, dict):
        return {key: as_written(value_at(value, key), each) for key, each in like.items()}
    if isinstance(like, str):
        return str(value.reveal()) if hasattr(value, "reveal") else str(value)
    return value


@pytest.mark.parametrize("form", ["json", "yaml", "json, root", "yaml, root"])
@pytest.mark.parametrize("key", COUNTS)
def test_a_key_of_the_orchestrator_counts(key: str, form: Form, tmp_path: Path) -> None:
    value = COUNTS[key]
    found = loaded(tmp_path, "orchestrator", with_key("orchestrator", key, value), form)
    assert as_written(value_at(found.config, key), value) == value
    assert found.warnings == ()


@pytest.mark.parametrize("key", WARNED_OF)
def test_a_key_that_we_have_no_use_for_is_taken_with_one_warning(key: str, tmp_path: Path) -> None:
    content = with_key("orchestrator", key, WARNED_OF[key])
    (warning,) = loaded(tmp_path, "orchestrator", content).warnings
    assert warning.startswith(f"{key} ")
    what, said, instead = warning.partition(": ")
    assert said, "what happens instead"
    assert len(instead) > 20
    assert what.endswith(("has no effect", "is now called otherwise"))


@pytest.mark.parametrize("key", [key for key in WARNED_OF if not key.startswith("vllm")])
def test_a_key_without_a_value_asks_for_nothing(key: str, tmp_path: Path) -> None:
    assert loaded(tmp_path, "orchestrator", with_key("orchestrator", key, None)).warnings == ()


def test_the_other_name_of_the_split_is_as_good(tmp_path: Path) -> None:
    content = with_key("orchestrator", "dataset.dataset_split", "validation")
    assert loaded(tmp_path, "orchestrator", content).config.dataset.split == "validation"


def test_every_key_of_a_stage_counts(tmp_path: Path) -> None:
    content = with_key("orchestrator", "vllm.stages", [])
    content["vllm"] = {
        "model": "org/model",
        "sampling": {"temperature": 0.9, "max_tokens": 99},
        "stages": [
            dict(IN_A_STAGE),
            {"name": "first", "prompts": ["Describe."], "output_field": "detailed"},
        ],
    }
    found = loaded(tmp_path, "orchestrator", content)
    assert found.warnings == ()
    first, second = found.config.recipe().stages
    assert (first.name, first.model, first.output_field) == ("first", "org/model", "detailed")
    assert (second.name, second.model, second.output_field) == ("second", "org/other", "short")
    assert second.prompts == ("Condense: {detailed}",)
    assert (first.sampling["temperature"], second.sampling["temperature"]) == (0.9, 0)
    assert first.sampling["max_tokens"] == second.sampling["max_tokens"] == 99
    engine = {key: IN_A_STAGE[key] for key in ("tensor_parallel_size", "max_model_len", "dtype")}
    assert {key: second.engine[key] for key in engine} == engine
    assert second.engine["gpu_memory_utilization"] == 0.3


@pytest.mark.parametrize("form", ["json", "yaml", "json, root", "yaml, root"])
@pytest.mark.parametrize(
    ("component", "key"),
    [("worker", key) for key in OF_A_WORKER] + [("monitor", key) for key in OF_A_MONITOR],
)
def test_a_key_of_workers_and_monitors_counts(
    component: Component, key: str, form: Form, tmp_path: Path
) -> None:
    value = {**OF_A_WORKER, **OF_A_MONITOR}[key] if component == "monitor" else OF_A_WORKER[key]
    found = loaded(tmp_path, component, with_key(component, key, value), form)
    said = value_at(found.config, key)
    assert as_written(said[0] if key == "gpu_id" else said, value) == value
    assert found.warnings == ()


@pytest.mark.parametrize("key", OF_A_WORKER_WARNED_OF)
def test_a_key_of_workers_that_we_have_no_use_for_is_taken_with_one_warning(
    key: str, tmp_path: Path
) -> None:
    content = with_key("worker", key, OF_A_WORKER_WARNED_OF[key])
    (warning,) = loaded(tmp_path, "worker", content).warnings
    assert warning.startswith(f"{key} has no effect: ")


def misspelt(name: str) -> str:
    """Return a key as hasty fingers write it."""
    return f"{name[:2]}{name[3]}{name[2]}{name[4:]}"


def long_enough(key: str) -> bool:
    """Tell whether a misspelling can be told from another word, or from a key of the engine."""
    name = key.rsplit(".", maxsplit=1)[-1]
    return len(name) > 4 and misspelt(name) != name and key not in NOT_OURS


NOT_OURS: Final = frozenset({"vllm.limit_mm_per_prompt.image", "vllm.sampling.min_p"})


@pytest.mark.parametrize(
    ("component", "key"),
    [("orchestrator", key) for key in filter(long_enough, (*COUNTS, *WARNED_OF))]
    + [("worker", key) for key in filter(long_enough, (*OF_A_WORKER, *OF_A_WORKER_WARNED_OF))]
    + [("monitor", key) for key in filter(long_enough, OF_A_MONITOR)],
)
def test_a_misspelt_key_is_refused_with_the_one_that_is_meant(
    component: Component, key: str, tmp_path: Path
) -> None:
    *sections, name = key.split(".")
    content = with_key(component, ".".join([*sections, misspelt(name)]), "x")
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, component, content)
    assert f"did you mean {name}?" in str(caught.value)
