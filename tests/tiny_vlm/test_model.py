"""The shipped model is whole, and small enough to live in the repository."""

from __future__ import annotations

import json

from tests.tiny_vlm.serving import MODEL_FOLDER

MOST_BYTES = 2_000_000
FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_the_model_holds_the_files_vllm_needs_and_no_others() -> None:
    assert {path.name for path in MODEL_FOLDER.iterdir()} == FILES


def test_the_model_is_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in MODEL_FOLDER.iterdir()) < MOST_BYTES


def test_the_model_takes_prompts_of_2048_tokens_in_half_precision() -> None:
    config = json.loads((MODEL_FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["text_config"]["max_position_embeddings"] == 2048
    assert config["dtype"] == "bfloat16"


def test_versions_4_and_5_of_transformers_read_the_same_positions() -> None:
    config = json.loads((MODEL_FOLDER / "config.json").read_text(encoding="utf-8"))["text_config"]
    older = {**config["rope_scaling"], "rope_theta": config["rope_theta"]}
    assert older == config["rope_parameters"]
