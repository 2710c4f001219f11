"""Pictures whose captions are known, and an eye that tells them apart."""

from __future__ import annotations

import hashlib

from PIL import Image, ImageChops, ImageStat

from caption_flow.worker.engines.base import PreparedImage
from tests.tiny_vlm import scenes

SCENES = {
    colour: scenes.Scene(background, (scenes.Figure(shape, colour, 0.5, 0.5, 0.33),))
    for colour, shape, background in (
        ("red", "circle", "white"),
        ("blue", "square", "yellow"),
        ("green", "triangle", "black"),
        ("orange", "circle", "blue"),
    )
}
_SIZE = (32, 32)


def picture(name: str) -> PreparedImage:
    """Return one of `SCENES`; any other name is a picture that nothing is expected of."""
    scene = SCENES.get(name, SCENES["red"])
    content_hash = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    return PreparedImage(scenes.render(scene, 112, 112), content_hash)


def caption(name: str) -> str:
    """Return what is to be seen in one of `SCENES`."""
    return scenes.short_caption(SCENES[name])


def seen(image: Image.Image) -> str:
    """Return the caption of the scene that a picture looks most like."""
    small = image.convert("RGB").resize(_SIZE)

    def distance(name: str) -> float:
        scene = scenes.render(SCENES[name], 112, 112).resize(_SIZE)
        return sum(ImageStat.Stat(ImageChops.difference(small, scene)).mean)

    return caption(min(SCENES, key=distance))
