"""The sample pictures on disk are those `make_samples` draws, and their texts those it tells."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import pytest
from PIL import Image, ImageChops, ImageStat

from tests.tiny_vlm import scenes
from tests.tiny_vlm.make_samples import IMAGES_FOLDER, SAMPLES, TRUTH_FILE, sample_scenes, truths

# What JPEG may change on average, of 255; a figure of the wrong colour changes tens.
MOST_JPEG_LEVELS = 5.0


def test_the_truth_file_tells_what_the_scenes_say() -> None:
    assert json.loads(TRUTH_FILE.read_text(encoding="utf-8")) == truths()


def test_the_folder_holds_the_samples_and_nothing_else() -> None:
    files = [path for path in IMAGES_FOLDER.rglob("*") if path.is_file()]
    assert sorted(path.relative_to(IMAGES_FOLDER).as_posix() for path in files) == sorted(SAMPLES)


@pytest.mark.parametrize("path", SAMPLES)
def test_a_sample_shows_its_scene(path: str) -> None:
    side = SAMPLES[path][0]
    with Image.open(IMAGES_FOLDER / path) as picture:
        difference = ImageChops.difference(
            picture.convert("RGB"), scenes.render(sample_scenes()[path], side, side)
        )
    allowed = 0.0 if path.endswith(".png") else MOST_JPEG_LEVELS
    assert max(ImageStat.Stat(difference).mean) <= allowed


def test_two_folders_share_a_stem() -> None:
    folders: dict[str, set[str]] = {}
    for path in map(PurePosixPath, SAMPLES):
        folders.setdefault(path.stem, set()).add(str(path.parent))
    assert {"one", "two"} in folders.values()


def test_every_shape_and_every_colour_has_a_sample() -> None:
    figures = [figure for scene in sample_scenes().values() for figure in scene.figures]
    assert {figure.shape for figure in figures} == set(scenes.SHAPES)
    assert {figure.color for figure in figures} == set(scenes.COLORS)
