"""Which files make up which split."""

from __future__ import annotations

from typing import Any

import pytest

from caption_flow.orchestrator.sources.base import SourceError
from caption_flow.orchestrator.sources.hub_layout import choose, choose_converted

DATA = [
    "README.md",
    "data/test-00000-of-00001.parquet",
    "data/train-00001-of-00002.parquet",
    "data/train-00000-of-00002.parquet",
    ".cache/train.parquet",
]


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (
            DATA,
            "train",
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        ),
        (DATA, "test", ["data/test-00000-of-00001.parquet"]),
        (["train/b.parquet", "train/a.parquet"], "train", ["train/a.parquet", "train/b.parquet"]),
        (["my_dev_set.parquet", "training.parquet"], "validation", ["my_dev_set.parquet"]),
        (["one.parquet", "two.parquet"], "train", ["one.parquet", "two.parquet"]),
        (["data/extra-00000-of-00001.parquet"], "extra", ["data/extra-00000-of-00001.parquet"]),
    ],
)
def test_names_and_folders_say_which_split_a_file_is_of(
    names: list[str], split: str, expected: list[str]
) -> None:
    assert choose(names, [], None, split) == expected


CARD: list[dict[str, Any]] = [
    {"config_name": "small", "data_files": "small/*.parquet"},
    {
        "config_name": "large",
        "default": True,
        "data_files": [
            {"split": "train", "path": ["a/**", "b/x-*.parquet"]},
            {"split": "exam", "path": "c.parquet"},
        ],
    },
]
NAMES = ["small/1.parquet", "a/deep/1.parquet", "b/x-1.parquet", "b/y-1.parquet", "c.parquet"]


@pytest.mark.parametrize(
    ("config", "split", "expected"),
    [
        ("small", "train", ["small/1.parquet"]),
        (None, "train", ["a/deep/1.parquet", "b/x-1.parquet"]),
        ("large", "exam", ["c.parquet"]),
    ],
)
def test_a_card_says_which_files_belong_where(
    config: str | None, split: str, expected: list[str]
) -> None:
    assert choose(NAMES, CARD, config, split) == expected


@pytest.mark.parametrize(
    ("config", "split", "sentence"),
    [
        ("huge", "train", "no configuration 'huge', but 'small', 'large'"),
        ("large", "test", "no split 'test', but 'train', 'exam'"),
    ],
)
def test_what_there_is_is_named(config: str, split: str, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        choose(NAMES, CARD, config, split)


def test_several_configurations_are_not_chosen_among() -> None:
    with pytest.raises(SourceError, match="several configurations, 'a', 'b'"):
        choose_converted(["a/train/0000.parquet", "b/train/0000.parquet"], None, "train")


def test_the_converted_branch_has_a_folder_for_each_split() -> None:
    names = ["a/partial-train/0001.parquet", "a/partial-train/0000.parquet", "a/test/0000.parquet"]
    assert choose_converted(names, None, "train") == [
        "a/partial-train/0000.parquet",
        "a/partial-train/0001.parquet",
    ]
