"""Which engine a worker's owner gets."""

import pytest

from caption_flow.worker.engines.base import EngineUnavailable
from caption_flow.worker.engines.factory import build_engine
from caption_flow.worker.engines.openai import OpenAIEngine
from caption_flow.worker.engines.synthetic import SyntheticEngine
from caption_flow.worker.engines.vllm import VllmEngine


def test_synthetic_takes_the_owners_settings_and_ignores_the_recipes_options() -> None:
    engine = build_engine(
        "synthetic",
        "m",
        engine_options={"dtype": "float16"},
        engine_settings={"requests_in_flight": 3},
    )
    assert isinstance(engine, SyntheticEngine)
    assert engine.requests_in_flight == 3
    assert engine.model == "m"


def test_vllm_lays_the_owners_settings_over_the_recipes_options() -> None:
    engine = build_engine(
        "vllm", "m", engine_options={"max_num_seqs": 10}, engine_settings={"max_num_seqs": 20}
    )
    assert isinstance(engine, VllmEngine)
    assert engine.requests_in_flight == 22


def test_vllm_is_asked_for_a_tenth_more_requests_than_its_batch_is_wide() -> None:
    for options, requests in (({}, 282), ({"max_num_seqs": 1}, 2)):
        engine = build_engine("vllm", "m", engine_options=options, engine_settings={})
        assert engine.requests_in_flight == requests


def test_openai_takes_the_owners_settings_and_ignores_the_recipes_options() -> None:
    engine = build_engine(
        "openai",
        "m",
        engine_options={"dtype": "float16"},
        engine_settings={"base_url": "http://h/v1", "requests_in_flight": 3},
    )
    assert isinstance(engine, OpenAIEngine)
    assert engine.requests_in_flight == 3
    assert engine.model == "m"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("vlm", "did you mean 'vllm'"),
        ("?", "choose vllm, openai, synthetic"),
    ],
)
def test_an_engine_there_is_not_is_told_with_what_there_is(kind: str, told: str) -> None:
    with pytest.raises(EngineUnavailable, match=told):
        build_engine(kind, "m", engine_options={}, engine_settings={})
