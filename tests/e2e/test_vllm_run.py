"""``caption-flow run`` with real vLLM and the tiny model, from the sample's own configuration.

What reached vLLM is read at its own door: a plugin of vLLM's, laid into the workers' path, writes
down what `AsyncLLM.generate` is called with. Nothing of ours is replaced.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.cli import (
    REPOSITORY,
    ROOTS,
    Finished,
    caption_flow,
    content_hash,
    make_images,
    rows_by_name,
)
from tests.support.vllm_plugin import lay_out_plugin
from tests.tiny_vlm.make_samples import IMAGES_FOLDER, truths
from tests.tiny_vlm.serving import MODEL_FOLDER

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

CONFIG = REPOSITORY / "configs" / "sample.yaml"
LOAD_SECONDS = 300.0
"""A model loads in half a minute on two idle cores."""
RECORDER = """
import functools, json, os

def install():
    from vllm.v1.engine.async_llm import AsyncLLM

    if hasattr(AsyncLLM.generate, "__wrapped__"):
        return  # vLLM loads its plugins in several places
    original = AsyncLLM.generate

    @functools.wraps(original)
    def generate(self, prompt, *arguments, **options):
        (image,) = prompt["mm_hashes"]["image"]
        said = {"image": image, "tokens": list(prompt["prompt_token_ids"])}
        with open(os.environ["RECORDED"], "a") as file:
            file.write(json.dumps(said) + "\\n")
        return original(self, prompt, *arguments, **options)

    AsyncLLM.generate = generate
"""


@dataclass(frozen=True)
class Captioned:
    """A copy of the sample, with a broken image added, captioned twice.

    ``prompts`` are those that reached vLLM, by the hash of the image they are about; it names
    images by the name they are given to be cached under.
    """

    folder: Path
    data_dir: Path
    first: Finished
    again: Finished
    prompts: dict[str, list[str]]


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Captioned:
    home = tmp_path_factory.mktemp("vllm")
    folder = home / "sample"
    shutil.copytree(IMAGES_FOLDER, folder)
    (folder / "one" / "broken.jpg").write_bytes((folder / "one" / "first.jpg").read_bytes()[:400])
    recorded = home / "recorded.jsonl"
    environment = {
        "HOME": os.environ.get("HOME", str(home)),  # vLLM's caches
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(lay_out_plugin(home, RECORDER)), *ROOTS]),
        "RECORDED": str(recorded),
    }
    ask = ("run", folder, "--config", CONFIG)
    first = caption_flow(*ask, cwd=REPOSITORY, env=environment, seconds=LOAD_SECONDS)
    assert first.code == 0, first.said
    again = caption_flow(*ask, cwd=REPOSITORY, env=environment)
    data_dir = home / ".caption-flow" / "sample"
    return Captioned(folder, data_dir, first, again, _prompts(recorded))


def _prompts(recorded: Path) -> dict[str, list[str]]:
    """Read what vLLM was asked, in its order, as the model's own tokenizer spells it."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    prompts: dict[str, list[str]] = {}
    for line in recorded.read_text().splitlines():
        asked = json.loads(line)
        prompts.setdefault(asked["image"], []).append(tokenizer.decode(asked["tokens"]))
    return prompts


def test_every_caption_is_the_right_one_for_its_image(captioned: Captioned) -> None:
    said = {name: (captioned.folder / name).with_suffix(".txt").read_text() for name in truths()}
    assert said == {name: truth["condensed"] for name, truth in truths().items()}


def test_a_broken_image_is_a_failed_row_and_the_rest_is_right(captioned: Captioned) -> None:
    named = rows_by_name(captioned.data_dir)
    assert named["one/broken.jpg"]["status"] == "failed"
    assert named["one/broken.jpg"]["error_kind"] == "image_truncated"
    assert "one/broken.jpg" in captioned.first.out
    assert not (captioned.folder / "one" / "broken.txt").exists()
    whole = {name: row for name, row in named.items() if row["status"] == "captioned"}
    assert {name: (row["detailed"], row["caption"]) for name, row in whole.items()} == {
        name: ([truth["detailed"]], [truth["condensed"]]) for name, truth in truths().items()
    }


def test_what_reaches_the_engine_in_stage_2_is_what_stage_1_said_of_this_very_image(
    captioned: Captioned,
) -> None:
    first, second = yaml.safe_load(CONFIG.read_text())["orchestrator"]["vllm"]["stages"]
    for name, row in rows_by_name(captioned.data_dir).items():
        prompts = captioned.prompts.get(content_hash(captioned.folder / name), [])
        if row["status"] == "failed":
            assert prompts == [], "nothing is asked about an image that cannot be read"
            continue
        (detailed,) = row["detailed"]
        expected = second["prompts"][0].replace("{detailed}", detailed)
        assert detailed in expected
        assert len(prompts) == 2, "each stage asks once"
        assert first["prompts"][0] in prompts[0]
        assert expected in prompts[1]
        assert "{" not in prompts[1]


def test_a_second_run_ends_at_once_without_loading_a_model(captioned: Captioned) -> None:
    assert captioned.again.code == 0
    assert captioned.again.out.startswith("Nothing to do: all 13 images were done already.")
    assert captioned.again.cpu_seconds < 4.0


def test_a_model_that_cannot_be_had_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 1)
    done = caption_flow(
        *("run", "photos", "--model", "nobody/has-this-model"),
        cwd=tmp_path,
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
        seconds=LOAD_SECONDS,
    )
    assert done.code == 1, done.said
    (error,) = done.errors
    assert "nobody/has-this-model" in error
    assert done.err.rstrip().endswith(error)
    assert "Traceback" not in done.said
