"""An image is encoded once for all its prompts and stages, with real vLLM and the tiny model.

What the model really did is written down by a plugin of vLLM's where it runs; nothing of ours is
replaced. vLLM is set up so that it can keep two images of its own accord, of a dozen in flight.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.support.cli import REPOSITORY, ROOTS, caption_flow, make_images, rows_by_name
from tests.support.vllm_plugin import lay_out_plugin
from tests.tiny_vlm.serving import MODEL_FOLDER

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

LOAD_SECONDS = 300.0
"""A model loads in half a minute on two idle cores."""
IMAGES = 12
IMAGE_TOKENS = 391
BLOCK = 32
RECORDER = """
import functools, json, os

def install():
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    if hasattr(WorkerWrapperBase.execute_model, "__wrapped__"):
        return  # vLLM loads its plugins in several places
    original = WorkerWrapperBase.execute_model

    @functools.wraps(original)
    def execute_model(self, step, *arguments, **options):
        begun = {one.req_id: one.num_computed_tokens for one in step.scheduled_new_reqs}
        encoded = {name: len(inputs) for name, inputs in step.scheduled_encoder_inputs.items()}
        if begun or encoded:
            with open(os.environ["RECORDED"], "a") as file:
                file.write(json.dumps({"begun": begun, "encoded": encoded}) + "\\n")
        return original(self, step, *arguments, **options)

    WorkerWrapperBase.execute_model = execute_model
"""
STAGES = [
    {"name": "look", "prompts": ["Describe it.", "Name it.", "Colours?"], "output_field": "seen"},
    {
        "name": "think",
        "prompts": ["Shorten this: {seen}", "As tags: {seen}", "Is this true: {seen}"],
        "output_field": "thought",
        "requires": ["look"],
    },
]


def configuration() -> dict[str, object]:
    """Return a run's with 3 prompts in each of 2 stages."""
    vllm = {
        "model": str(MODEL_FOLDER),
        "max_model_len": 1024,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 2 * IMAGE_TOKENS + 242,
        "block_size": BLOCK,
        "enforce_eager": True,
        "mm_processor_kwargs": {"size": {"shortest_edge": 7056, "longest_edge": 640 * 480}},
        "sampling": {"temperature": 0, "ignore_eos": True, "max_tokens": 16},
        "stages": STAGES,
    }
    dataset = {"type": "local_filesystem", "dataset_path": "photos"}
    return {"orchestrator": {"vllm": vllm, "dataset": dataset}}


def test_three_prompts_in_each_of_two_stages_encode_an_image_once(tmp_path: Path) -> None:
    for image in make_images(tmp_path / "photos", IMAGES):
        with Image.open(image) as small:
            small.resize((640, 480)).save(image)
    config, recorded = tmp_path / "run.yaml", tmp_path / "recorded.jsonl"
    config.write_text(yaml.safe_dump(configuration()))
    environment = {
        "HOME": os.environ.get("HOME", str(tmp_path)),  # vLLM's caches
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(lay_out_plugin(tmp_path, RECORDER)), *ROOTS]),
        "RECORDED": str(recorded),
    }
    ask = ("run", tmp_path / "photos", "--config", config, "--data-dir", tmp_path / "results")
    done = caption_flow(*ask, cwd=REPOSITORY, env=environment, seconds=LOAD_SECONDS)
    assert done.code == 0, done.said
    rows = rows_by_name(tmp_path / "results").values()
    assert [row["status"] for row in rows] == ["captioned"] * IMAGES

    steps = [json.loads(line) for line in recorded.read_text().splitlines()]
    begun = {name: found for step in steps for name, found in step["begun"].items()}
    found = [tokens for name, tokens in begun.items() if not name.startswith("greeting")]
    encoded = sum(
        images
        for step in steps
        for name, images in step["encoded"].items()
        if not name.startswith("greeting")
    )
    assert len(found) == 6 * IMAGES, "three prompts in two stages"
    assert encoded == IMAGES
    whole_blocks = IMAGE_TOKENS // BLOCK * BLOCK
    # Of the first stage's three prompts, some are begun while the first one's blocks are not full.
    assert sum(tokens >= whole_blocks for tokens in found) >= 3 * IMAGES
