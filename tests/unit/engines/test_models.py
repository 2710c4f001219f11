"""Which model names are folders, and what is told about those that are not there."""

import subprocess
import sys
from pathlib import Path

import pytest

from caption_flow.worker.engines.models import missing_model_folder, model_path


@pytest.mark.parametrize(
    "model",
    [
        "/no/such/model",
        "./nowhere",
        "../nowhere",
        "~/no-such-model",
        "org/name/extra",
        ".",
        "a/b/c",
    ],
)
def test_a_path_without_a_model_is_told(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = missing_model_folder(model)
    assert sentence
    assert f"'{model}'" in sentence


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-VL-3B-Instruct", "gpt2", "s3://bucket/a/b/model"])
def test_a_hub_name_or_a_remote_place_is_left_to_the_engine(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert missing_model_folder(model) is None


@pytest.mark.parametrize("name", ["config.json", "params.json", "model.gguf"])
def test_a_folder_with_a_model_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert missing_model_folder(str(tmp_path)) is None


def test_a_folder_named_like_a_hub_model_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert "config.json" in str(missing_model_folder("org/name"))
    (tmp_path / "org" / "name" / "config.json").touch()
    assert missing_model_folder("org/name") is None


def test_a_file_is_not_a_folder_except_for_one_kind_of_model(tmp_path: Path) -> None:
    for name, is_model in (("model.safetensors", False), ("model.gguf", True)):
        (tmp_path / name).touch()
        assert (missing_model_folder(str(tmp_path / name)) is None) == is_model


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    assert missing_model_folder("~/model") is None
    assert model_path("~/model") == str(tmp_path / "model")
    assert model_path("org/name") == "org/name"


@pytest.mark.parametrize(
    "name",
    ["\0", "/a\0b", "x" * 5000, "/" + "x" * 5000, "", " ", "~nobody-of-this-name/x"],
    ids=["nul", "nul in a path", "long", "long path", "empty", "space", "stranger's home"],
)
def test_any_text_gets_an_answer(name: str) -> None:
    missing_model_folder(name)


@pytest.mark.parametrize("module", ["models", "synthetic", "factory", "vllm", "guard"])
def test_asking_loads_neither_vllm_nor_torch(module: str) -> None:
    program = (
        f"import sys, caption_flow.worker.engines.{module}\n"
        "print(sorted({'vllm', 'torch', 'transformers'} & sys.modules.keys()))"
    )
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    output = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert output.strip() == "[]"
