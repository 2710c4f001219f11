"""``caption-flow run`` with structured output and quality flags, with real vLLM and without."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.cli import caption_flow, make_images, rows_by_name
from tests.tiny_vlm.make_samples import IMAGES_FOLDER
from tests.tiny_vlm.serving import MODEL_FOLDER

LOAD_SECONDS = 300.0
NAMES = ("alpha.jpg", "bravo.jpg", "charlie.png")
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 3, "maxLength": 20},
        "tags": {
            "type": "array",
            "items": {"enum": ["red", "round"]},
            "minItems": 2,
            "maxItems": 2,
        },
    },
    "required": ["title", "tags"],
    "additionalProperties": False,
}
CODE: dict[str, Any] = {
    "name": "code",
    "prompts": ["Code?"],
    "output_field": "code",
    "regex": "[A-C]-[0-9]{2}",
}
STAGES: list[dict[str, Any]] = [
    {
        "name": "kind",
        "prompts": ["Which?"],
        "output_field": "kind",
        "choice": ["circle", "square"],
    },
    {
        "name": "facts",
        "prompts": ["List the facts."],
        "output_field": "facts",
        "json_schema": SCHEMA,
        "columns": ["title", "tags"],
    },
    {
        "name": "short",
        "prompts": ["Describe: {title}, {tags}, {facts.tags}"],
        "output_field": "caption",
        "sampling": {"max_tokens": 3},
    },
]


def configured(folder: Path, stages: list[dict[str, Any]], **vllm: Any) -> Path:
    section = {"model": str(MODEL_FOLDER), "stages": stages, **vllm}
    root = {"dataset": {"type": "local_filesystem", "dataset_path": "photos"}, "vllm": section}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"orchestrator": root}))
    return path


def photos(folder: Path) -> None:
    (folder / "photos").mkdir()
    for name in NAMES:
        shutil.copy(IMAGES_FOLDER / name, folder / "photos" / name)


@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_real_answers_have_their_form_and_columns_reach_parquet_and_later_prompts(
    tmp_path: Path,
) -> None:
    photos(tmp_path)
    config = configured(
        tmp_path,
        [*STAGES, CODE],
        sampling={"temperature": 0, "max_tokens": 64},
        max_model_len=512,
        enforce_eager=True,
    )
    environment = {
        "HOME": os.environ.get("HOME", str(tmp_path)),  # vLLM's caches
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    ask = ("run", "photos", "--config", config)
    done = caption_flow(*ask, cwd=tmp_path, env=environment, seconds=LOAD_SECONDS)
    assert done.code == 0, done.said
    rows = rows_by_name(tmp_path / ".caption-flow" / "photos")
    assert set(rows) == set(NAMES)
    for row in rows.values():
        assert row["status"] == "captioned"
        (facts,) = (json.loads(text) for text in row["facts"])
        assert row["title"] == [facts["title"].strip()]
        assert row["tags"] == facts["tags"]
        assert set(row["tags"]) <= {"red", "round"}
        assert len(row["tags"]) == 2
        assert row["kind"] in (["circle"], ["square"])
        assert re.fullmatch("[A-C]-[0-9]{2}", row["code"][0])
        assert row["flags"] == ["length"]
    assert "  flagged    3  (length: 3)" in done.out


def test_a_rehearsal_keeps_the_form_and_counts_flags(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 5)
    config = configured(tmp_path, [CODE, *STAGES])
    done = caption_flow(
        *("run", "photos", "--config", config, "--engine", "synthetic"), cwd=tmp_path
    )
    assert done.code == 0, done.said
    assert "  flagged    5  (length: 5)" in done.out
    data_dir = tmp_path / ".caption-flow" / "photos.synthetic"
    for row in rows_by_name(data_dir).values():
        (facts,) = (json.loads(text) for text in row["facts"])
        assert row["title"] == [facts["title"].strip()]
        assert row["tags"] == facts["tags"]
        assert re.fullmatch(CODE["regex"], row["code"][0])
    stats = caption_flow("export", "--data-dir", data_dir, "--stats-only", cwd=tmp_path)
    assert "flagged    5 length" in stats.out
    listed = ("export", "--data-dir", data_dir, "--format", "jsonl", "--output", "out")
    assert caption_flow(*listed, cwd=tmp_path).code == 0
    lines = (tmp_path / "out" / "default.jsonl").read_text().splitlines()
    assert {tuple(json.loads(line)["flags"]) for line in lines} == {("length",)}


def test_json_cut_off_by_max_tokens_is_a_failed_row_and_the_run_goes_on(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 2)
    cut = {**STAGES[1], "sampling": {"max_tokens": 2}}
    first = {"name": "first", "prompts": ["?"], "output_field": "first"}
    config = configured(tmp_path, [first, cut])
    done = caption_flow(
        *("run", "photos", "--config", config, "--engine", "synthetic"), cwd=tmp_path
    )
    assert done.code == 1, "not one image could be captioned"
    rows = rows_by_name(tmp_path / ".caption-flow" / "photos.synthetic").values()
    assert {(row["error_kind"], tuple(row["flags"])) for row in rows} == {
        ("invalid_json", ("length",))
    }
    assert all(row["first"] for row in rows), "what earlier stages gave is kept"


def test_impossible_structures_are_refused_with_line_and_key_before_anything_starts(
    tmp_path: Path,
) -> None:
    make_images(tmp_path / "photos", 1)
    path = tmp_path / "run.yaml"
    path.write_text(
        """\
orchestrator:
  dataset: {type: local_filesystem, dataset_path: photos}
  vllm:
    model: m
    choice: [a, b]
    stages:
      - name: facts
        prompts: [list]
        json_schema:
          type: object
          properties:
            title: {type: sting}
        columns: [titel]
      - name: code
        prompts: [code]
        regex: "(a"
"""
    )
    done = caption_flow("run", "photos", "--config", path, cwd=tmp_path)
    assert done.code == 2
    for expected in (
        "run.yaml:5: vllm.choice: belongs to a stage",
        "run.yaml:9: vllm.stages[0].json_schema: is not a JSON schema: properties.title.type",
        "run.yaml:13: vllm.stages[0].columns[0]: json_schema has no top-level key 'titel'",
        "run.yaml:16: vllm.stages[1].regex: is not a regular expression",
    ):
        assert expected in done.err, done.err
    assert not (tmp_path / ".caption-flow").exists()
