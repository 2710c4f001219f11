"""Which options for vLLM are taken, renamed, left out or refused; no vLLM needed for that."""

from typing import Any

import pytest

from caption_flow.worker.engines.vllm_options import (
    Findings,
    check_engine_names,
    check_sampling_names,
)

ENGINE = frozenset(
    {
        "model", "dtype", "max_model_len", "gpu_memory_utilization", "max_num_seqs", "revision",
        "tokenizer", "limit_mm_per_prompt", "mm_processor_cache_gb", "enable_log_requests",
        "cudagraph_capture_sizes", "worker_cls", "worker_extension_cls", "logits_processors",
        "io_processor_plugin", "model_loader_extra_config", "trust_remote_code", "hf_overrides",
        "logging_config", "log_config_file", "scheduler_cls", "download_dir", "compilation_config",
        "kv_transfer_config", "speculative_config", "attention_backend", "mm_processor_kwargs",
        "_api_process_count", "distributed_executor_backend",
    }
)  # fmt: skip
SAMPLING = frozenset(
    {"temperature", "top_p", "max_tokens", "stop", "n", "structured_outputs", "_eos_token_id"}
)


def engine(*, trusted: bool = False, **options: Any) -> Findings:
    return check_engine_names(options, ENGINE, trusted=trusted)


def sampling(**parameters: Any) -> Findings:
    return check_sampling_names(parameters, SAMPLING)


def test_known_options_are_taken_as_they_are() -> None:
    options: dict[str, Any] = {
        "dtype": "bfloat16",
        "max_model_len": 4096,
        "gpu_memory_utilization": 0.9,
        "limit_mm_per_prompt": {"image": 1},
        "revision": "refs/pr/3",
        "tokenizer": "org/name",
        "attention_backend": "FLASH_ATTN",
        "mm_processor_kwargs": {"max_pixels": 1_000_000},
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 4},
        "hf_overrides": {"architectures": ["Qwen2_5_VLForConditionalGeneration"]},
    }
    findings = engine(**options)
    assert findings == Findings(options, [], [])


def test_a_near_miss_is_an_error_with_the_nearest_name() -> None:
    findings = engine(gpu_memory_utilisation=0.9, max_num_sequences=3)
    assert len(findings.errors) == 2
    assert "did you mean 'gpu_memory_utilization'" in findings.errors[0]
    assert "did you mean 'max_num_seqs'" in findings.errors[1]


def test_what_nobody_has_heard_of_is_an_error_without_a_guess() -> None:
    (error,) = engine(zzzzqqq=1).errors
    assert "'zzzzqqq'" in error
    assert "did you mean" not in error


def test_private_names_are_unknown() -> None:
    assert engine(_api_process_count=2).errors
    assert sampling(_eos_token_id=2).errors


def test_null_means_the_engines_own_default() -> None:
    assert engine(dtype=None, worker_cls=None).options == {}
    assert sampling(stop=None, n=None).options == {}


def test_the_model_is_named_by_the_stage_and_not_by_an_option() -> None:
    assert engine(model="org/other") == Findings({}, [], [])


@pytest.mark.parametrize(
    ("old", "value", "new"),
    [
        ("disable_mm_preprocessor_cache", True, {"mm_processor_cache_gb": 0}),
        ("disable_log_requests", True, {"enable_log_requests": False}),
        ("cuda_graph_sizes", [1, 2], {"cudagraph_capture_sizes": [1, 2]}),
    ],
)
def test_an_option_renamed_since_is_mapped_with_a_warning(
    old: str, value: Any, new: dict[str, Any]
) -> None:
    findings = engine(**{old: value})
    assert findings.options == new
    assert not findings.errors
    (warning,) = findings.warnings
    assert f"'{old}'" in warning
    assert next(iter(new)) in warning


@pytest.mark.parametrize(
    ("old", "value", "new"),
    [
        ("guided_json", {"type": "object"}, {"structured_outputs": {"json": {"type": "object"}}}),
        ("guided_choice", ["a", "b"], {"structured_outputs": {"choice": ["a", "b"]}}),
        ("max_new_tokens", 7, {"max_tokens": 7}),
    ],
)
def test_a_parameter_renamed_since_is_mapped_with_a_warning(
    old: str, value: object, new: dict[str, Any]
) -> None:
    findings = sampling(**{old: value})
    assert findings.options == new
    assert len(findings.warnings) == 1


def test_parts_of_one_structure_that_were_options_of_their_own_come_together() -> None:
    findings = sampling(guided_json={"type": "object"}, guided_whitespace_pattern=" ?")
    both = {"json": {"type": "object"}, "whitespace_pattern": " ?"}
    assert findings.options == {"structured_outputs": both}
    assert len(findings.warnings) == 2


def test_an_old_name_is_used_as_it_is_by_a_vllm_that_still_has_it() -> None:
    findings = check_engine_names({"swap_space": 4}, ENGINE | {"swap_space"}, trusted=False)
    assert findings == Findings({"swap_space": 4}, [], [])


def test_an_option_that_is_gone_is_left_out_and_says_why() -> None:
    findings = engine(swap_space=4, batch_size=8)
    assert findings.options == {}
    assert [("no effect" in warning) for warning in findings.warnings] == [True, True]
    assert "max_num_seqs" in findings.warnings[1]


# --------------------------------------------------------------------------- trust

RUNS_CODE: list[dict[str, Any]] = [
    {"worker_cls": "evil.Worker"},
    {"worker_extension_cls": "evil"},
    {"logits_processors": ["evil:Processor"]},
    {"io_processor_plugin": "evil"},
    {"model_loader_extra_config": {"x": 1}},
    {"trust_remote_code": True},
    {"hf_overrides": "evil"},
    {"hf_overrides": {"auto_map": {"AutoConfig": "evil"}}},
    {"scheduler_cls": "evil"},
    {"logging_config": {"handlers": {}}},
    {"log_config_file": "evil"},
    {"compilation_config": {"backend": "evil.module.compile"}},
    {"compilation_config": {"passes": [{"post_grad": "evil:run"}]}},
    {"kv_transfer_config": {"kv_connector_module_path": "evil"}},
    {"distributed_executor_backend": "evil.Executor"},
    {"download_dir": "/etc"},
    {"mm_processor_kwargs": {"trust_remote_code": True}},
]


@pytest.mark.parametrize("options", RUNS_CODE, ids=str)
def test_an_option_that_could_run_code_is_refused_from_an_orchestrator(
    options: dict[str, Any],
) -> None:
    findings = engine(**options)
    assert findings.options == {}
    (error,) = findings.errors
    assert f"'{next(iter(options))}'" in error
    assert "trust_remote_code" in error


@pytest.mark.parametrize("options", RUNS_CODE, ids=str)
def test_the_same_option_is_taken_where_the_owner_allows_it(options: dict[str, Any]) -> None:
    findings = engine(trusted=True, **options)
    assert findings.options == options
    assert not findings.errors


def test_declining_remote_code_is_no_offence() -> None:
    assert engine(trust_remote_code=False).errors == []


# --------------------------------------------------------------------------- sampling


def test_more_than_one_answer_to_a_prompt_is_refused() -> None:
    assert "list the prompt more than once" in sampling(n=2).errors[0]
    assert sampling(n=1) == Findings({}, [], [])


@pytest.mark.parametrize("name", ["output_kind", "detokenize", "skip_clone"])
def test_parameters_the_worker_sets_itself_are_refused(name: str) -> None:
    assert f"'{name}'" in sampling(**{name: 0}).errors[0]


def test_a_misspelt_parameter_is_an_error_with_the_nearest_name() -> None:
    assert "did you mean 'temperature'" in sampling(temprature=1).errors[0]
