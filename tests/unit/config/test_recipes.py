"""How the `vllm` section becomes a recipe for an engine."""

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from caption_flow.config.load import Loaded, parse_orchestrator
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.config.problems import ConfigError
from caption_flow.config.spelling import unknown_keys
from caption_flow.config.vllm import SamplingConfig, VllmConfig
from caption_flow.recipe.quality import FLAGS, Quality, Retry
from caption_flow.recipe.stages import RecipeError
from caption_flow.recipe.structure import Structure

DATASET = "dataset: {type: local, dataset_path: x}\n"


def load(vllm: str) -> Loaded[OrchestratorConfig]:
    return parse_orchestrator(f"{DATASET}vllm: {vllm}", source="f.yaml")


def refusals(vllm: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(vllm)
    return str(caught.value).splitlines()


def test_prompts_without_stages_make_the_stage_default() -> None:
    [stage] = load("{model: m, inference_prompts: [a, b]}").config.recipe().stages
    assert (stage.name, stage.model, stage.prompts) == ("default", "m", ("a", "b"))
    assert stage.output_field == "captions"
    assert stage.sampling == {
        "temperature": 0.7,
        "top_p": 0.95,
        "max_tokens": 256,
        "repetition_penalty": 1.05,
        "skip_special_tokens": True,
    }
    assert stage.engine == {
        "tensor_parallel_size": 1,
        "max_model_len": 16384,
        "gpu_memory_utilization": 0.92,
    }


def test_a_stage_lays_its_own_keys_over_those_of_all() -> None:
    [first, second] = (
        load(
            """
  model: m
  dtype: bfloat16
  enforce_eager: true
  max_num_seqs: 64
  sampling: {temperature: 0.1, seed: 7, stop: [x, y]}
  stages:
    - {name: one, prompts: a, output_field: caption}
    - name: two
      model: n
      prompts: ["{caption}"]
      output_field: short
      requires: one
      dtype: float16
      max_num_seqs: 8
      sampling: {max_tokens: 9, stop: [], min_p: 0.1}
"""
        )
        .config.recipe()
        .stages
    )
    assert (first.model, second.model) == ("m", "n")
    assert first.prompts == ("a",)
    assert second.requires == ("one",)
    assert first.sampling["stop"] == ["x", "y"]
    assert second.sampling == {
        **first.sampling,
        "stop": [],
        "max_tokens": 9,
        "min_p": 0.1,
    }
    assert second.engine == {**first.engine, "dtype": "float16", "max_num_seqs": 8}


def test_batch_size_is_a_hint_and_never_reaches_the_engine() -> None:
    [stage] = load("{model: m, batch_size: 8, inference_prompts: [a]}").config.recipe().stages
    assert "batch_size" not in stage.engine


def test_the_older_cache_switch_becomes_todays() -> None:
    vllm = "{model: m, disable_mm_preprocessor_cache: true, inference_prompts: [a]}"
    engine = load(vllm).config.recipe().stages[0].engine
    assert engine["mm_processor_cache_gb"] == 0
    assert "disable_mm_preprocessor_cache" not in engine
    off = load(vllm.replace("true", "false")).config.recipe().stages[0].engine
    assert "mm_processor_cache_gb" not in off
    assert "disable_mm_preprocessor_cache" not in off


@pytest.mark.parametrize(
    ("vllm", "key", "meant"),
    [
        ("{stagse: []}", "stagse", "stages"),
        ("{gpu_memory_utilisation: 0.5}", "gpu_memory_utilisation", "gpu_memory_utilization"),
        ("{infernce_prompts: [a]}", "infernce_prompts", "inference_prompts"),
        ("{sampling: {temprature: 1}}", "sampling.temprature", "temperature"),
        ("{sampling: {max_token: 1}}", "sampling.max_token", "max_tokens"),
        ("{stages: [{promts: [a]}]}", "stages[0].promts", "prompts"),
        ("{stages: [{sampling: {Top_P: 1}}]}", "stages[0].sampling.Top_P", "top_p"),
    ],
)
def test_a_near_miss_of_our_keys_is_refused(vllm: str, key: str, meant: str) -> None:
    assert f"f.yaml:2: vllm.{key}: unknown key; did you mean {meant}?" in refusals(vllm)


def test_a_key_in_the_wrong_place_is_sent_to_the_right_one() -> None:
    [problem] = refusals("{model: m, inference_prompts: [a], temperature: 0}")
    assert problem == "f.yaml:2: vllm.temperature: belongs under sampling"


def test_keys_of_the_engine_are_passed_on_with_their_values() -> None:
    recipe = load(
        "{model: m, inference_prompts: [a], revision: abc, enable_prefix_caching: false, "
        "hf_overrides: {a: {b: [1]}}, sampling: {top_k: 5, min_tokens: 2, logit_bias: {7: 1.5}}}"
    ).config.recipe()
    engine, sampling = recipe.stages[0].engine, recipe.stages[0].sampling
    assert engine["revision"] == "abc"
    assert engine["enable_prefix_caching"] is False
    assert engine["hf_overrides"] == {"a": {"b": [1]}}
    assert (sampling["top_k"], sampling["min_tokens"]) == (5, 2)
    assert sampling["logit_bias"] == {7: 1.5}


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize(
    ("module", "names", "section"),
    [
        ("engine/arg_utils.py", {"EngineArgs", "AsyncEngineArgs"}, VllmConfig),
        ("sampling_params.py", {"SamplingParams"}, SamplingConfig),
    ],
)
def test_no_key_of_the_installed_vllm_is_taken_for_a_misspelling(
    module: str, names: set[str], section: Any
) -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / module).read_text("utf-8"))
    keys = {
        line.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in names
        for line in node.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }
    assert len(keys) > 20
    assert list(unknown_keys(section, dict.fromkeys(keys))) == []


def test_what_runs_code_on_a_worker_is_left_out_with_a_warning() -> None:
    loaded = load(
        "{model: m, trust_remote_code: true, "
        "stages: [{name: a, prompts: [a], worker_extension_cls: x.Y}]}"
    )
    assert (
        set(loaded.config.recipe().stages[0].engine)
        & {
            "trust_remote_code",
            "worker_extension_cls",
        }
        == set()
    )
    assert [warning.split(" ")[0] for warning in loaded.warnings] == [
        "vllm.trust_remote_code",
        "vllm.stages[0].worker_extension_cls",
    ]
    assert not load("{model: m, trust_remote_code: false, inference_prompts: [a]}").warnings


def test_stages_win_over_prompts_and_say_so() -> None:
    loaded = load("{model: m, inference_prompts: [a], stages: [{name: one, prompts: [b]}]}")
    assert [stage.name for stage in loaded.config.recipe().stages] == ["one"]
    assert loaded.warnings == (
        "vllm.inference_prompts has no effect: vllm.stages have prompts of their own",
    )


def test_nothing_to_ask_is_refused() -> None:
    assert refusals("{model: m}") == [
        "f.yaml:2: vllm: has neither stages nor inference_prompts: there is nothing to ask"
    ]


def test_a_missing_model_is_refused_where_it_is_missing() -> None:
    assert refusals("{inference_prompts: [a]}")[0].startswith("f.yaml:2: vllm.model: is missing")
    assert refusals("{stages: [{name: a, model: m, prompts: [x]}, {name: b, prompts: [x]}]}") == [
        "f.yaml:2: vllm.stages[1].model: is missing, and there is no vllm.model to take"
    ]


@pytest.mark.parametrize("place", ["vllm", "dataset"])
def test_made_up_results_need_no_model(place: str) -> None:
    overrides = {f"{place}.mock_results": True}
    text = f"{DATASET}vllm: {{inference_prompts: [a]}}"
    config = parse_orchestrator(text, overrides=overrides).config
    assert config.mock_results
    assert config.recipe().stages[0].model == "synthetic"


def test_problems_of_prompts_point_at_the_prompts() -> None:
    assert refusals("{model: m, inference_prompts: [fine, 'a {mistake}']}")[0].startswith(
        "f.yaml:2: vllm.inference_prompts[1]: {mistake} is neither"
    )


def test_the_datasets_columns_can_be_checked_once_they_are_known() -> None:
    config = load("{model: m, inference_prompts: ['{column:titel}']}").config
    assert config.recipe().columns == ("titel",)
    with pytest.raises(RecipeError, match=r"did you mean \{column:title\}"):
        config.recipe(dataset_columns=["title"])


# --------------------------------------------------------------------------- form and quality


def test_a_stage_may_bind_its_answers_to_a_form() -> None:
    stages = load(
        "{model: m, stages: ["
        "{name: a, prompts: p, json_schema: {properties: {x: {const: null}}}, columns: x}, "
        "{name: b, prompts: p, choice: [yes please, no thanks]}, "
        "{name: c, prompts: p, regex: '[0-9]+'}, "
        "{name: d, prompts: p}]}"
    ).config.recipe()
    assert [stage.structure for stage in stages.stages] == [
        # A null in a schema means something, other than elsewhere.
        Structure({"properties": {"x": {"const": None}}}, columns=("x",)),
        Structure(choice=("yes please", "no thanks")),
        Structure(regex="[0-9]+"),
        None,
    ]
    form = {"json_schema", "choice", "regex", "columns"}
    assert all(form.isdisjoint(stage.engine) for stage in stages.stages), "the engine has its own"


def test_quality_flags_are_on_unless_said_and_a_stage_has_its_own() -> None:
    prompts = "inference_prompts: a"
    [stage] = load(f"{{model: m, {prompts}}}").config.recipe().stages
    assert stage.quality == Quality(FLAGS, Retry(0))
    [stage] = load(f"{{model: m, {prompts}, quality: {{flags: []}}}}").config.recipe().stages
    assert stage.quality.flags == ()
    first, second = (
        load(
            "{model: m, quality: {flags: [length]}, stages: [{name: a, prompts: p}, "
            "{name: b, prompts: p, quality: {retry: {attempts: 2, flags: empty, "
            "sampling: {temperature: 1}}}}]}"
        )
        .config.recipe()
        .stages
    )
    assert first.quality == Quality(("length",))
    assert second.quality == Quality(FLAGS, Retry(2, ("empty",), {"temperature": 1.0}))


def test_mistakes_in_form_and_quality_are_refused_with_their_key() -> None:
    found = refusals(
        "{model: m, columns: [x], stages: [{name: a, prompts: p, regex: '('}, "
        "{name: b, prompts: p, quality: {retry: {attempts: 1}}}]}"
    )
    assert any("vllm.columns: belongs to a stage" in problem for problem in found)
    assert any("vllm.stages[0].regex: is not a regular" in problem for problem in found)
    assert any("vllm.stages[1].quality: retry needs" in problem for problem in found)
    (problem,) = refusals("{model: m, inference_prompts: a, quality: {flags: [lenght]}}")
    assert "did you mean length?" in problem
    (problem,) = refusals("{model: m, inference_prompts: a, quality: {retry: {attempts: 1}}}")
    assert "vllm.quality: retry needs" in problem
