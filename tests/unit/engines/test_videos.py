"""What engines make of a video before any model sees it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from caption_flow.recipe.video import Form, Video
from caption_flow.worker.engines.base import (
    EngineUnavailable,
    PreparedImage,
    PreparedVideo,
    Request,
)
from caption_flow.worker.engines.greeting import greetings
from caption_flow.worker.engines.openai import OpenAIEngine
from caption_flow.worker.engines.synthetic import SyntheticEngine
from caption_flow.worker.engines.vllm_loading import _check_limits, needed_limits
from caption_flow.worker.engines.vllm_running import Running, _as_vllm, _resized


def video(
    *colours: str, passed_as: Form = "images", seconds: tuple[float, ...] = ()
) -> PreparedVideo:
    pictures = tuple(
        PreparedImage(Image.new("RGB", (16, 12), colour), f"hash:{number}")
        for number, colour in enumerate(colours)
    )
    times = seconds or tuple(map(float, range(len(colours))))
    return PreparedVideo(pictures, "hash", passed_as, times, float(len(colours)), len(colours))


async def says(subject: PreparedVideo, prompt: str = "Describe it.") -> str:
    engine = SyntheticEngine("synthetic")
    engine.expect([{}], Video(2))
    await engine.start()
    answer = await engine.generate(Request("1", prompt, subject))
    await engine.stop()
    return answer.text


async def test_the_synthetic_engine_answers_by_the_frames_pixels_and_the_prompt() -> None:
    said = await says(video("#ff0000", "#00ff00"))
    assert "Shown as images: #ff0000 #00ff00." in said
    assert said == await says(video("#ff0000", "#00ff00"))
    others = [
        await says(video("#ff0000", "#00ff01")),
        await says(video("#00ff00", "#ff0000")),
        await says(video("#ff0000", "#00ff00"), "Another."),
        await says(video("#ff0000", "#00ff00", passed_as="video")),
    ]
    assert len({said, *others}) == 5
    assert "Shown as one video: #ff0000" in others[-1]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, {"image": 1, "video": 0, "audio": 0}),
        (Video(8), {"image": 8, "video": 0, "audio": 0}),
        (Video(8, "video"), {"image": 1, "video": 1, "audio": 0}),
    ],
)
def test_vllm_is_told_how_much_a_prompt_holds(asked: Video | None, expected: Any) -> None:
    assert needed_limits(asked) == expected


def test_a_limit_below_what_a_video_takes_is_refused_at_start() -> None:
    for enough in ({"image": 8, "video": 0}, {"image": 9}, {"image": {"count": 8}}):
        _check_limits({**needed_limits(Video(8)), **enough}, Video(8))
    for limits in ({"image": 7}, {"image": {"count": 7}}):
        with pytest.raises(EngineUnavailable, match=r"7 of the kind 'image'.*8 frames take 8"):
            _check_limits({**needed_limits(Video(8)), **limits}, Video(8))
    with pytest.raises(EngineUnavailable, match="kind 'video'"):
        _check_limits({"image": 1, "video": 0, "audio": 0}, Video(8, "video"))
    _check_limits({"image": 0, "video": 0, "audio": 0}, None)


async def test_the_openai_engine_refuses_whole_videos_before_it_asks_anybody() -> None:
    engine = OpenAIEngine("m", {"base_url": "http://127.0.0.1:9/v1"})
    engine.expect([{}], Video(8, "video"))
    with pytest.raises(EngineUnavailable, match="--video-as"):
        await engine.start()


def test_engines_are_greeted_with_what_will_come() -> None:
    assert [len(subject.pictures) for _, subject in greetings(None)] == [1]
    assert [len(subject.pictures) for _, subject in greetings(Video(5))] == [1, 5]
    _, (what, whole) = greetings(Video(5, "video"))
    assert what == "a video"
    assert isinstance(whole, PreparedVideo)
    assert whole.passed_as == "video"


def test_vllm_gets_frames_with_their_times() -> None:
    pytest.importorskip("numpy")
    asked = replace(
        video("#ff0000", "#00ff00", "#0000ff", seconds=(0.5, 1.5, 2.5)), duration=3.0, total=30
    )
    frames, facts = _as_vllm(asked)
    assert frames.shape == (3, 12, 16, 3)
    assert frames[1, 5, 5].tolist() == [0, 255, 0]
    assert facts["frames_indices"] == [5, 15, 25]
    assert (facts["fps"], facts["duration"], facts["total_num_frames"]) == (10.0, 3.0, 30)
    assert facts["do_sample_frames"] is False


def test_all_frames_shrink_together() -> None:
    request = Request("1", "p", video("#ff0000", "#00ff00"))
    smaller = _resized(request, (8, 6)).subject
    assert isinstance(smaller, PreparedVideo)
    assert [one.pixels.size for one in smaller.pictures] == [(8, 6)] * 2
    assert [one.content_hash for one in smaller.pictures] == ["hash:0", "hash:1"]


class Renderer:
    """vLLM's renderer, as far as it is asked: keeps what it is given."""

    default_chat_tok_params = "as usual"

    def __init__(self) -> None:
        self.parts: list[dict[str, Any]] = []
        self.videos: list[Any] = []

    async def render_chat_async(self, chats: list[Any], _params: Any) -> Any:
        (((message,)),) = chats
        self.parts = message["content"]
        return None, [{"prompt_token_ids": [1]}]

    async def render_messages_async(self, chat: list[Any], _params: Any) -> Any:
        (message,) = chat
        self.parts = message["content"]
        return None, {"prompt_token_ids": [1], "multi_modal_data": {"video": [None]}}

    async def tokenize_prompts_async(self, prompts: list[Any], _params: Any) -> list[Any]:
        return prompts

    async def process_for_engine_async(self, prompt: Any, _arrival: float) -> Any:
        self.videos = prompt["multi_modal_data"]["video"]
        return prompt


def running_with(renderer: Renderer) -> Running:
    """One life of vLLM's engine of which there is nothing but how requests are rendered."""
    running = object.__new__(Running)
    running._engine = SimpleNamespace(renderer=renderer)
    running._chat_params = None
    return running


async def test_frames_stand_before_the_prompt_each_named_by_file_and_place() -> None:
    renderer = Renderer()
    running = running_with(renderer)
    shown = video("#ff0000", "#00ff00")
    names = []
    for prompt in ("Describe it.", "Name it."):
        await running._render(Request("1", prompt, shown), "")
        kinds = [part["type"] for part in renderer.parts]
        assert kinds == ["image_pil", "image_pil", "text"]
        assert [part["image_pil"] for part in renderer.parts[:2]] == [
            one.pixels for one in shown.pictures
        ]
        names.append([part["uuid"] for part in renderer.parts[:2]])
    assert names == [["hash:0", "hash:1"]] * 2, "what one prompt had encoded, the next one finds"


async def test_a_whole_video_is_one_part_named_by_file_and_frames() -> None:
    pytest.importorskip("numpy")
    renderer = Renderer()
    running = running_with(renderer)
    names = []
    for shown in (video("#ff0000", "#00ff00"), video("#ff0000", "#00ff00", "#0000ff")):
        await running._render(Request("1", "Say it.", replace(shown, passed_as="video")), "")
        assert [part["type"] for part in renderer.parts] == ["video_url", "text"]
        names.append(renderer.parts[0]["uuid"])
        ((frames, facts),) = renderer.videos
        assert len(frames) == len(facts["frames_indices"]) == len(shown.pictures)
    assert len(set(names)) == 2
    assert all(name.startswith("hash:") for name in names)
