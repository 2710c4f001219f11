"""What people are told when vLLM fails: real messages of vLLM in, one sentence out."""

import pytest

from caption_flow.worker.engines.vllm_failures import (
    Situation,
    explain_death,
    explain_load_failure,
    refusal,
)

GENERIC = RuntimeError(
    "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
)
GPU = Situation("org/model")
CPU = Situation("org/model", on_cpu=True, kv_cache_gib="4")


def explained(message: str, situation: Situation = GPU, *, logged: bool = False) -> str:
    """Explain a message that vLLM raised, or that one of its processes only logged."""
    if logged:
        return explain_load_failure(GENERIC, f"Traceback ...\nValueError: {message}\n", situation)
    return explain_load_failure(ValueError(message), "", situation)


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "You are trying to access a gated repo.\nMake sure to have access to it at ...",
            ["gated", "HF_TOKEN"],
        ),
        ("Access to model meta/x is restricted and you are not in the list", ["gated"]),
        (
            "We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find"
            " them in the cached files.",
            ["cannot be reached", "spelling", "network"],
        ),
        ("Cannot reach https://hf.co/api: offline mode is enabled.", ["spelling"]),
        (
            "org/model is not a local folder and is not a valid model identifier listed on"
            " 'https://huggingface.co/models'",
            ["no model 'org/model'", "spelling"],
        ),
        (
            "Free memory on device cuda:0 (3.1/79.3 GiB) on startup is less than desired GPU"
            " memory utilization (0.92, 72.9 GiB).",
            ["lower gpu_memory_utilization", "3.1/79.3 GiB"],
        ),
        (
            "No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
            ["lower max_model_len", "raise gpu_memory_utilization"],
        ),
        (
            "To serve at least one request with the models's max seq len (16384), (5.25 GiB KV"
            " cache is needed, which is larger than the available KV cache memory (0.61 GiB).",
            ["5.25 GiB", "lower max_model_len"],
        ),
        (
            "CUDA out of memory. Tried to allocate 1.02 GiB. GPU 0 has a total capacity of ...",
            ["does not fit", "max_model_len", "max_num_seqs", "quantiz"],
        ),
        (
            "World size (4) is larger than the number of available GPUs (1) in this node.",
            ["more devices", "(4)", "tensor_parallel_size"],
        ),
        (
            "Model architectures ['FooForConditionalGeneration'] are not supported for now.",
            ["FooForConditionalGeneration", "upgrade vllm"],
        ),
        (
            "The checkpoint you are trying to load has model type `foobar` but Transformers does"
            " not recognize this architecture.",
            ["foobar", "upgrade"],
        ),
        (
            "The repository org/model contains custom code which must be executed to correctly"
            " load the model. You can inspect the repository content at ...",
            ["code of its own", "trust_remote_code"],
        ),
        (
            "It looks like the config file at '/m/config.json' is not a valid JSON file.",
            ["config.json", "/m/config.json"],
        ),
        (
            "Unrecognized model in /m. Should have a `model_type` key in its config.json",
            ["config.json"],
        ),
        (
            "User-specified max_model_len (100000) is greater than the derived max_model_len"
            " (max_position_embeddings=2048.0 or model_max_length=None in model's config.json).",
            ["100000", "made for 2048", "lower max_model_len"],
        ),
        ("Cannot find any model weights with `/m`", ["no usable weights", "complete"]),
        ("/m is not a multimodal model", ["does not look at pictures"]),
    ],
)
def test_a_known_failure_to_load_says_what_to_do(
    message: str, told: list[str], logged: bool
) -> None:
    sentence = explained(message, logged=logged)
    assert all(part in sentence for part in told), sentence
    assert "org/model" in sentence
    assert "\n" not in sentence


def test_on_a_processor_the_remedy_for_too_little_memory_is_another() -> None:
    sentence = explained(
        "Available memory on node 0 (10.16/12.09 GiB) on kv cache allocation is less than requested"
        " memory for kv (10000.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE",
        CPU,
    )
    assert "lower VLLM_CPU_KVCACHE_SPACE (now 4 GiB)" in sentence
    assert "gpu_memory_utilization" not in sentence


def test_the_offline_switch_is_named_when_it_is_the_reason() -> None:
    sentence = explained("offline mode is enabled", Situation("org/model", offline=True))
    assert "HF_HUB_OFFLINE is set" in sentence


def test_an_unknown_failure_gives_the_last_error_a_process_logged() -> None:
    log = (
        "vLLM ERROR EngineCore [core] EngineCore failed to start.\n"
        "Traceback (most recent call last):\n"
        "some.module.StrangeError: the flux is out of phase\n"
        "Exception: WorkerProc initialization failed due to an exception in a background process.\n"
    )
    sentence = explain_load_failure(GENERIC, log, GPU)
    assert "StrangeError: the flux is out of phase" in sentence


def test_an_unknown_failure_without_a_log_gives_the_innermost_error() -> None:
    error = raised(RuntimeError("Engine core initialization failed."), KeyError("depth"))
    assert "depth" in explain_load_failure(error, "", GPU)


def test_an_error_without_words_is_named() -> None:
    assert "AssertionError" in explain_load_failure(AssertionError(), "", GPU)


def test_what_pydantic_says_is_told_without_its_framing() -> None:
    message = (
        "2 validation errors for SchedulerConfig\nmax_num_batched_tokens\n"
        "  Input should be greater than or equal to 1 [type=ge, input_value=0, input_type=int]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/ge\n"
        "  Value error, one must exceed the other [type=value_error, input_value=1]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error"
    )
    sentence = explained(message)
    assert "max_num_batched_tokens: Input should be greater than or equal to 1" in sentence
    assert sentence.endswith("one must exceed the other")
    assert "https" not in sentence


def test_a_death_is_told_with_what_its_process_logged() -> None:
    dead = RuntimeError(
        "EngineCore encountered an issue. See stack trace (above) for the root cause."
    )
    log = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
    assert "CUDA out of memory" in explain_death(dead, log)
    assert "without a word" in explain_death(dead, "")


# --------------------------------------------------------------------------- one request


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (
            ValueError(
                "This model's maximum context length is 256 tokens. However, your prompt contains"
                " 1512 input tokens (parameter=input_tokens, value=1512)"
            ),
            "prompt_too_long",
            "1512 input tokens",
        ),
        (
            ValueError("The decoder prompt (length 300) is longer than the maximum model length"),
            "prompt_too_long",
            "length 300",
        ),
        (
            ValueError(  # 0.17
                "You passed 2012 input tokens and requested 0 output tokens. However, the model's"
                " context length is only 512 tokens, resulting in a maximum input length of 512"
                " tokens. Please reduce the length of the input prompt. (parameter=input_tokens)"
            ),
            "prompt_too_long",
            "2012 input tokens",
        ),
        (
            raised(
                RuntimeError("Failed to apply Qwen2_5_VLProcessor on data={'images': [...]}"),
                ValueError("absolute aspect ratio must be smaller than 200, got 500.0"),
            ),
            "image_rejected",
            "aspect ratio",
        ),
        (OSError("broken data stream"), "image_rejected", "broken data stream"),
        (
            ValueError("allowed_token_ids contains out-of-vocab token id!"),
            "engine_rejected",
            "vocab",
        ),
        (ValueError(), "engine_rejected", "ValueError"),
    ],
)
def test_a_refusal_is_sorted_by_what_it_is_about(error: Exception, kind: str, told: str) -> None:
    found_kind, sentence = refusal(error)
    assert found_kind == kind
    assert told in sentence
    assert "parameter=" not in sentence
    assert "\n" not in sentence
