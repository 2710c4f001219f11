"""Two models in one recipe with real vLLM: side by side where they fit, in turn where they do not.

The second model is a copy of the first in another folder, which is all that makes two models two.
Which engine got a request, and how many engines had processes then, is written down at vLLM's own
door by a plugin of vLLM's; nothing of ours is replaced.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.cli import REPOSITORY, ROOTS, caption_flow, rows_by_name
from tests.support.vllm_plugin import lay_out_plugin
from tests.tiny_vlm.make_samples import IMAGES_FOLDER, truths
from tests.tiny_vlm.serving import MODEL_FOLDER

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

LOAD_SECONDS = 300.0
"""A model loads in half a minute on two idle cores."""
RECORDER = """
import functools, json, os, pathlib

def engines_alive():
    marks = set()
    for entry in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = entry.read_bytes().split(b"\\0")
        except OSError:
            continue
        own = f"CAPTION_FLOW_ENGINE={os.getpid()}-".encode()
        marks.update(variable for variable in variables if variable.startswith(own))
    return len(marks)

def install():
    from vllm.v1.engine.async_llm import AsyncLLM

    if hasattr(AsyncLLM.generate, "__wrapped__"):
        return  # vLLM loads its plugins in several places
    original = AsyncLLM.generate

    @functools.wraps(original)
    def generate(self, prompt, params, name, *arguments, **options):
        if not name.startswith("greeting"):
            said = {"model": self.vllm_config.model_config.model, "engines": engines_alive()}
            with open(os.environ["RECORDED"], "a") as file:
                file.write(json.dumps(said) + "\\n")
        return original(self, prompt, params, name, *arguments, **options)

    AsyncLLM.generate = generate
"""
CONDENSE = "Please condense this elaborate caption to only the important details: {detailed}"
TAGS = "Please convert this caption to booru tag format instead: {detailed}"


@dataclass(frozen=True)
class Captioned:
    """What a run with two models came to."""

    first: str
    second: str
    rows: dict[str, dict[str, Any]]
    log: str
    requests: list[dict[str, Any]]
    said_before: str

    @property
    def turns(self) -> list[str]:
        """The models that requests went to, without repetitions."""
        return [model for model, _ in itertools.groupby(one["model"] for one in self.requests)]

    @property
    def loads(self) -> list[str]:
        """The models that were loaded, in order, as the worker's log has them."""
        return re.findall(r"loading the engine .*model=(\S+)", self.log)


def caption(home: Path, share: float) -> Captioned:
    """Caption the sample: the first model describes, the second condenses, the first makes tags."""
    second, folder = home / "second", home / "photos"
    shutil.copytree(MODEL_FOLDER, second)
    shutil.copytree(IMAGES_FOLDER, folder)
    stages = [
        {
            "name": "describe",
            "prompts": ["describe this image in detail"],
            "output_field": "detailed",
        },
        {
            "name": "condense",
            "model": str(second),
            "prompts": [CONDENSE],
            "output_field": "caption",
        },
        {"name": "tags", "prompts": [TAGS], "output_field": "tags", "requires": ["condense"]},
    ]
    vllm = {
        "model": str(MODEL_FOLDER),
        "dtype": "bfloat16",
        "max_model_len": 1024,
        "enforce_eager": True,
        "gpu_memory_utilization": share,
        "sampling": {"temperature": 0, "max_tokens": 96},
        "stages": stages,
    }
    config = home / "run.yaml"
    config.write_text(yaml.safe_dump({"orchestrator": {"vllm": vllm, "dataset": LOCAL}}))
    recorded = home / "recorded.jsonl"
    environment = {
        "HOME": os.environ.get("HOME", str(home)),  # vLLM's caches
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(lay_out_plugin(home, RECORDER)), *ROOTS]),
        "RECORDED": str(recorded),
    }
    ask = ("run", folder, "--config", config, "--data-dir", home / "results")
    before = caption_flow(*ask, "--dry-run", cwd=REPOSITORY, env=environment)
    done = caption_flow(*ask, cwd=REPOSITORY, env=environment, seconds=3 * LOAD_SECONDS)
    assert done.code == 0, done.said
    return Captioned(
        str(MODEL_FOLDER),
        str(second),
        rows_by_name(home / "results"),
        "".join(log.read_text() for log in sorted((home / "results" / "logs").iterdir())),
        [json.loads(line) for line in recorded.read_text().splitlines()],
        before.out,
    )


LOCAL = {"type": "local_filesystem", "dataset_path": "photos"}


def check_captions(captioned: Captioned) -> None:
    """Each image has what both models say of it, and says that both were asked."""
    assert {name: (row["detailed"], row["caption"]) for name, row in captioned.rows.items()} == {
        name: ([truth["detailed"]], [truth["condensed"]]) for name, truth in truths().items()
    }
    for row in captioned.rows.values():
        assert row["models"] == [captioned.first, captioned.second]
        (tags,) = row["tags"]
        assert tags == row["caption"][0].replace(", ", ",").replace(" ", "_").replace(",", ", ")
    counts = dict.fromkeys((captioned.first, captioned.second), 0)
    for request in captioned.requests:
        counts[request["model"]] += 1
    images = len(captioned.rows)
    assert counts == {captioned.first: 2 * images, captioned.second: images}


def test_models_that_do_not_fit_together_take_turns(tmp_path: Path) -> None:
    captioned = caption(tmp_path, 0.92)
    first, second = captioned.first, captioned.second

    check_captions(captioned)
    assert captioned.turns == [first, second, first], "nobody is asked out of turn"
    assert captioned.loads == [first, second, first], "two swaps are the fewest there can be"
    assert {request["engines"] for request in captioned.requests} == {1}, "one at a time"
    sentence = (
        f"{first} and {second} do not fit on the device together (gpu_memory_utilization "
        f"0.92 + 0.92, more than 0.95) and are loaded in turn: {first}, then {second}, then {first}"
    )
    assert sentence in captioned.said_before
    assert sentence in captioned.log


def test_models_that_fit_together_are_loaded_side_by_side(tmp_path: Path) -> None:
    captioned = caption(tmp_path, 0.45)
    first, second = captioned.first, captioned.second

    check_captions(captioned)
    assert captioned.loads == [first, second], "each once"
    assert {request["engines"] for request in captioned.requests} == {2}
    sentence = (
        f"{first} and {second} are loaded together (gpu_memory_utilization 0.45 + 0.45, "
        "at most 0.95)"
    )
    assert sentence in captioned.said_before
    assert sentence in captioned.log
