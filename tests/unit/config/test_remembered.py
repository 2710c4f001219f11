"""What a run's folder keeps of its dataset is enough to find it again from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caption_flow.config.dataset import DatasetConfig
from caption_flow.config.remembered import from_text, to_text


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "place", "becomes"),
    [
        ("local_filesystem", "set", "{here}/set"),
        ("local_filesystem", "not there", "{here}/not there"),
        ("webdataset", "set/{{000..003}}.tar", "{here}/set/{{000..003}}.tar"),
        ("webdataset", "set::s3://bucket/a::/abs", "{here}/set::s3://bucket/a::/abs"),
        ("webdataset", "hf://datasets/org/name", "hf://datasets/org/name"),
        ("webdataset", "org/name", "org/name"),
        ("huggingface", "org/name", "org/name"),
        ("huggingface", "set", "{here}/set"),
    ],
)
def test_paths_are_absolute_and_nothing_else_changes(
    here: Path, kind: str, place: str, becomes: str
) -> None:
    dataset = DatasetConfig(type=kind, dataset_path=place.format())
    found = from_text(to_text(dataset))
    expected = becomes.format(here=here)
    assert found == dataset.model_copy(update={"dataset_path": expected})


def test_every_key_comes_back(here: Path) -> None:
    path = str(here / "猫")
    keys: dict[str, Any] = {"include": ["*.jpg"], "recursive": False, "video": {"frames": 4}}
    dataset = DatasetConfig(type="local", dataset_path=path, metadata_path=Path("meta"), **keys)
    text = to_text(dataset)
    assert text.isascii()
    assert from_text(text) == dataset.model_copy(update={"metadata_path": here / "meta"})
