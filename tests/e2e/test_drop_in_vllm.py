"""A client's job with real vLLM and the tiny model."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from caption_flow.storage.exporter import StorageExporter
from tests.support.client import client, wait_for
from tests.tiny_vlm.make_samples import IMAGES_FOLDER, truths
from tests.tiny_vlm.serving import MODEL_FOLDER

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


def test_a_job_with_real_vllm_has_the_right_text_beside_each_image(tmp_path: Path) -> None:
    recipe = {
        "model": str(MODEL_FOLDER),
        "dtype": "bfloat16",
        "max_model_len": 1024,
        "inference_prompts": ["describe this image in detail"],
        "sampling": {"temperature": 0, "max_tokens": 96},
    }
    env = {
        "HOME": os.environ.get("HOME", str(tmp_path)),  # vLLM's caches
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with client(tmp_path, orchestrator={"vllm": recipe}, mock_results=False, env=env) as ours:
        shutil.copytree(IMAGES_FOLDER, ours.dataset)
        ours.begin()
        wait_for(lambda: len(ours.left()) > 3, lambda: ours.said, 300.0)
        ours.check_paths()
        ours.wait_for_workers(seconds=300.0)
        ours.finish()
        assert ours.left() == {}
        assert StorageExporter(ours.contents()).to_txt(ours.dataset) == len(truths())
        said = {name: (ours.dataset / name).with_suffix(".txt").read_text() for name in truths()}
        assert said == {name: truth["detailed"] for name, truth in truths().items()}
