"""A recipe knows how videos are shown, and so do those it is sent to."""

from __future__ import annotations

from dataclasses import replace

from caption_flow.recipe.stages import Stage, build_recipe
from caption_flow.recipe.video import Video
from caption_flow.recipe.wire import from_spec, to_spec

RECIPE = build_recipe([Stage("describe", "m", ("Describe it.",))])


def test_videos_change_no_images_fingerprint_and_frames_change_that_of_videos() -> None:
    assert RECIPE.video_fingerprint == RECIPE.fingerprint
    recipes = [replace(RECIPE, video=one) for one in (Video(4), Video(5), Video(4, "video"))]
    assert {one.fingerprint for one in recipes} == {RECIPE.fingerprint}
    assert len({RECIPE.fingerprint, *(one.video_fingerprint for one in recipes)}) == 4
    larger = replace(RECIPE, video=Video(4, max_bytes=1))
    assert larger.video_fingerprint == recipes[0].video_fingerprint


def test_workers_are_told_all_of_it() -> None:
    asked = replace(RECIPE, video=Video(5, "video", 1000))
    told = from_spec(to_spec(asked, mock_results=False))
    assert told.video == asked.video
    assert told.video_fingerprint == asked.video_fingerprint
    assert from_spec(to_spec(RECIPE, mock_results=False)).video is None
