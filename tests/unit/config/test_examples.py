"""The examples in `configs/` are valid and say nothing in vain."""

from pathlib import Path

import pytest

from caption_flow.config.exposure import check_exposure
from caption_flow.config.load import load_orchestrator, load_worker

CONFIGS = Path(__file__).parents[3] / "configs"
ORCHESTRATORS = [
    "huggingface",
    "local_folder",
    "multi_stage",
    "remote_orchestrator",
    "sample",
    "webdataset",
]


def test_every_example_is_tested() -> None:
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    assert names == sorted([*ORCHESTRATORS, "remote_worker"])


@pytest.mark.parametrize("name", ORCHESTRATORS)
def test_an_example_loads_without_a_warning(name: str) -> None:
    loaded = load_orchestrator(CONFIGS / f"{name}.yaml")
    assert loaded.warnings == ()
    assert loaded.config.recipe().stages
    assert check_exposure(loaded.config, insecure=False) == []


def test_the_remote_worker_needs_no_secret_in_its_file() -> None:
    loaded = load_worker(CONFIGS / "remote_worker.yaml")
    assert loaded.warnings == ()
    token = loaded.config.token
    assert token is not None
    assert token.reference == "env:CAPTION_FLOW_WORKER_TOKEN"


def test_the_sample_condenses_what_it_described() -> None:
    config = load_orchestrator(CONFIGS / "sample.yaml").config
    recipe = config.recipe()
    assert config.dataset.dataset_path == "configs/sample/images"
    assert recipe.output_fields == ("detailed", "caption")
    assert recipe.upstream["condense"] == ("describe",)
    outputs = recipe.no_outputs().add("describe", "detailed", ["a red square"])
    assert recipe.render("condense", outputs, {}) == (
        "Please condense this elaborate caption to only the important details: a red square",
    )
