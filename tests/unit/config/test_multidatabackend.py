from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caption_flow.config.load import load_orchestrator
from caption_flow.config.multidatabackend import Entry, entry_named
from caption_flow.config.problems import ConfigError

HUB = {"id": "hub", "type": "huggingface", "dataset_name": "org/name"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)


def written(*entries: Any, name: str = "m.json") -> str:
    Path(name).write_text(json.dumps(list(entries)))
    return name


def mapped(**entry: Any) -> Entry:
    return entry_named(f"{written({'id': 'x', **entry})}#x")


def refused(reference: str) -> str:
    with pytest.raises(ConfigError) as error:
        entry_named(reference)
    return str(error.value)


@pytest.mark.parametrize("keys", [{"type": "local"}, {"type": None}, {"dataset_type": "image"}, {}])
@pytest.mark.parametrize("place", ["instance_data_dir", "dataset_path"])
def test_a_local_entry_is_a_folder_of_images(keys: dict[str, Any], place: str) -> None:
    entry = mapped(**keys, **{place: "photos"}, caption_strategy="textfile", crop=True, repeats=2)
    assert entry.dataset == {"type": "local_filesystem", "dataset_path": "photos", "name": "x"}
    assert not entry.notes


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"split": "train", "dataset_image_column": "image"}),
        ({"split": "test"}, {"split": "test", "dataset_image_column": "image"}),
        (
            {"image_column": "jpg", "caption_column": "text"},
            {"split": "train", "dataset_image_column": "jpg"},
        ),
        (
            {"image_column": "Image_URL"},
            {
                "split": "train",
                "dataset_image_column": "Image_URL",
                "dataset_url_column": "Image_URL",
            },
        ),
        (
            {"huggingface": {"image_column": "photo", "caption_column": ["a"]}, "revision": "v1"},
            {"split": "train", "dataset_image_column": "photo", "revision": "v1"},
        ),
        (
            {"config": "large"},
            {"split": "train", "dataset_image_column": "image", "dataset_config": "large"},
        ),
    ],
)
def test_a_hub_entry_is_a_hub_dataset(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    assert mapped(**{**HUB, "id": "x", **keys}).dataset == {
        "type": "huggingface",
        "processor_type": "huggingface_datasets",
        "dataset_path": "org/name",
        "name": "x",
        **expected,
    }


def test_videos_are_captioned_as_videos() -> None:
    assert mapped(dataset_type="video", instance_data_dir="photos").dataset["video"] == {}


def test_tars_of_webshart_are_tars() -> None:
    entry = mapped(type="webshart", source="org/tars", metadata="org/metadata")
    assert entry.dataset == {"type": "webdataset", "dataset_path": "org/tars", "name": "x"}


@pytest.mark.parametrize(
    "keys",
    [{"instance_data_dir": "photos"}, {**HUB, "id": "x"}, {"type": "webshart", "source": "org/t"}],
)
def test_what_an_entry_becomes_is_a_dataset_that_can_be_loaded(keys: dict[str, Any]) -> None:
    vllm = {"model": "m", "inference_prompts": ["What?"]}
    dataset = load_orchestrator(None, {"dataset": mapped(**keys).dataset, "vllm": vllm}).config
    assert dataset.dataset.name == "x"


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"dataset_type": "text_embeds"}, r"text_embeds cannot be captioned: it holds what text"),
        ({"dataset_type": "image_embeds"}, r"image_embeds cannot be captioned: it holds what a V"),
        ({"dataset_type": "audio"}, r"audio cannot be captioned: it holds sound"),
        ({"dataset_type": "imgae"}, r"dataset_type 'imgae' is unknown; did you mean image\?"),
        ({"type": "aws"}, r"type aws cannot be captioned: images that lie singly in a bucket"),
        ({"type": "csv"}, r"type csv cannot be captioned: a CSV file of addresses"),
        ({"type": "lcoal"}, r"type 'lcoal' is unknown; did you mean local\?"),
        ({"type": "local"}, r"says no folder: instance_data_dir is missing"),
        ({"type": "huggingface"}, r"says no dataset of the hub: dataset_name is missing"),
        ({"type": 7}, r"type must be text"),
        ({**HUB, "id": "x", "dataset_type": "video"}, r"videos of a hub dataset cannot"),
    ],
)
def test_what_cannot_be_captioned_is_refused_with_the_reason(
    keys: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^m.json: entry 'x': .*{why}"):
        mapped(**keys)


def test_a_folder_that_is_not_there_is_looked_for_in_the_working_folder(tmp_path: Path) -> None:
    written({"id": "x", "instance_data_dir": "phots"})
    assert refused("m.json#x") == (
        f"m.json: entry 'x': instance_data_dir: there is no folder 'phots' in {tmp_path}, where "
        "relative paths begin"
    )


def test_what_is_not_followed_is_said() -> None:
    notes = mapped(
        **{**HUB, "id": "x"},
        disabled=True,
        huggingface={"filter_func": {"min_width": 1}, "composite_image_config": {"enabled": True}},
    ).notes
    assert [note.split("'x' ")[1] for note in notes] == [
        "is disabled: that is about training, and it is captioned all the same",
        "is not followed: every row is captioned",
        "is not followed: pictures are captioned whole",
    ]


@pytest.mark.parametrize("name", ["m.json", "a#b.json", "#.json", "m.json#", "sub #1.json"])
@pytest.mark.parametrize("which", ["x", "a#b", "#", "photos & more/ünï.json#1"])
def test_file_and_id_may_have_odd_characters(name: str, which: str) -> None:
    written({"id": which, "instance_data_dir": "photos"}, name=name)
    assert entry_named(f"{name}#{which}").dataset["name"] == which


def test_an_unknown_id_is_answered_with_those_there_are() -> None:
    written({"id": "photos"}, {"id": "text embeds"}, "no entry", {"no": "id"})
    assert refused("m.json#phots") == (
        "m.json: has no entry 'phots'; did you mean photos?; there are 'photos', 'text embeds'"
    )
    assert refused("m.json") == (
        "m.json: say which entry: m.json#ID; there are 'photos', 'text embeds'"
    )


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("none.json#x", "none.json: there is no such file; --dataset takes FILE#ID"),
        ("none.json", "none.json: there is no such file; --dataset takes FILE#ID"),
        ("photos", "photos: is a folder, and --dataset takes FILE#ID"),
        ("broken.json#x", "broken.json:2:1: is not valid JSON"),
        ("latin.json#x", "latin.json: is not UTF-8 text"),
        ("object.json#x", "object.json: must be a list of datasets"),
        ("empty.json#x", "empty.json: has no entry with an id"),
        ("twice.json#x", "twice.json: has 2 entries 'x'"),
    ],
)
def test_files_that_are_none_are_refused(reference: str, why: str) -> None:
    Path("broken.json").write_text("[\n")
    Path("latin.json").write_bytes(b"[\xe9]")
    Path("object.json").write_text("{}")
    Path("empty.json").write_text("[]")
    written({"id": "x"}, {"id": "x"}, name="twice.json")
    assert refused(reference).startswith(why)
