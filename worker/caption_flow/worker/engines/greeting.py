"""What an engine is asked about before the first item: grey, and shaped as items will be."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from caption_flow.recipe.video import Video
from caption_flow.worker.engines.base import PreparedImage, PreparedVideo, Subject

_SIDE = 224


def greetings(video: Video | None) -> Iterator[tuple[str, Subject]]:
    """Yield one subject of each kind that requests will be about, with what people call it."""
    yield "a picture", _grey("greeting")
    if video is None:
        return
    pictures = tuple(_grey(f"greeting:{number}") for number in range(video.frames))
    yield (
        "a video" if video.passed_as == "video" else f"a video's frames, {video.frames} pictures",
        PreparedVideo(
            pictures,
            "greeting",
            video.passed_as,
            seconds=tuple(map(float, range(video.frames))),
            duration=float(video.frames),
            total=video.frames,
        ),
    )


def _grey(name: str) -> PreparedImage:
    return PreparedImage(Image.new("RGB", (_SIDE, _SIDE), "grey"), content_hash=name)
