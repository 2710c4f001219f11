"""A model that is spread over more GPUs than its worker may use is refused before it loads."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from caption_flow.worker.engines.base import EngineUnavailable
from caption_flow.worker.engines.devices import too_few_gpus
from caption_flow.worker.engines.vllm import VllmEngine


def test_the_sentence_names_both_numbers() -> None:
    said = too_few_gpus("m", {"tensor_parallel_size": 4}, {"CUDA_VISIBLE_DEVICES": "5,GPU-a"})
    assert said is not None
    assert re.match(
        r"model 'm' is to be spread over 4 GPUs \(tensor_parallel_size: 4\), but this worker may "
        r"use only 2 \(CUDA_VISIBLE_DEVICES=5,GPU-a\): lower tensor_parallel_size, or ",
        said,
    )


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ({"tensor_parallel_size": 2}, {"CUDA_VISIBLE_DEVICES": "5,GPU-a"}),
        ({}, {"CUDA_VISIBLE_DEVICES": "5"}),
        ({"tensor_parallel_size": 2}, {}),  # all there are, and vLLM knows how many
        ({"tensor_parallel_size": 2}, {"CUDA_VISIBLE_DEVICES": ""}),  # a CPU divides itself
        ({"tensor_parallel_size": 2}, {"CUDA_VISIBLE_DEVICES": "-1"}),
    ],
)
def test_what_can_be_is_not_refused(
    options: Mapping[str, int], environment: Mapping[str, str]
) -> None:
    assert too_few_gpus("m", options, environment) is None


async def test_the_word_of_the_workers_owner_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    engine = VllmEngine(
        "org/name", {"tensor_parallel_size": 2}, owner_options={"tensor_parallel_size": 8}
    )
    with pytest.raises(EngineUnavailable, match=r"spread over 8 GPUs .* only 2"):
        await engine.start()
