"""Options against the vLLM that is installed; no model is loaded for that."""

import importlib.util
from typing import Any

import pytest

from caption_flow.worker.engines.base import EngineUnavailable
from caption_flow.worker.engines.vllm import check_options

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    # torch's own inductor says this while vLLM imports it.
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
]


def test_the_options_of_a_usual_recipe_are_known() -> None:
    engine = {
        "tensor_parallel_size": 1,
        "max_model_len": 16384,
        "dtype": "float16",
        "gpu_memory_utilization": 0.92,
        "enforce_eager": True,
        "mm_processor_cache_gb": 1,
        "limit_mm_per_prompt": {"image": 1},
    }
    sampling = {
        "temperature": 0.7,
        "top_p": 0.95,
        "max_tokens": 256,
        "repetition_penalty": 1.05,
        "skip_special_tokens": True,
        "stop": ["<|end|>"],
    }
    checked = check_options(engine, sampling)
    assert checked.engine == engine
    assert checked.samplings == (sampling,)
    assert checked.warnings == ()


def test_an_answer_may_be_longer_than_vllms_own_default() -> None:
    assert check_options({}, {}).samplings == ({"max_tokens": 256},)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(EngineUnavailable) as unavailable:
        check_options(
            {"gpu_memory_utilisation": 0.9, "worker_cls": "evil.Worker"}, {"temprature": 1}
        )
    sentence = str(unavailable.value)
    assert "gpu_memory_utilization" in sentence
    assert "worker_cls" in sentence
    assert "temperature" in sentence


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": "hot"}, {"temperature": -1}, {"max_tokens": 0}, {"top_p": 7}, {"stop": 3}],
)
def test_an_impossible_value_is_told_before_anything_is_loaded(sampling: dict[str, Any]) -> None:
    with pytest.raises(EngineUnavailable, match=next(iter(sampling))):
        check_options({}, sampling)


def test_numbers_written_as_text_are_understood() -> None:
    assert check_options({}, {"temperature": "0.5"}).samplings[0]["temperature"] == "0.5"


def test_the_owners_options_are_trusted_and_come_last() -> None:
    checked = check_options(
        {"max_num_seqs": 8}, {}, owner_options={"max_num_seqs": 4, "download_dir": "/models"}
    )
    assert checked.engine == {"max_num_seqs": 4, "download_dir": "/models"}


def test_the_owners_trust_covers_the_orchestrators_options() -> None:
    options = {"worker_extension_cls": "mine.Extension"}
    with pytest.raises(EngineUnavailable):
        check_options(options, {})
    assert check_options(options, {}, trust_remote_code=True).engine == options
