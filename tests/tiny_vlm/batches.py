"""Training batches for the tiny model: painted pictures beside tokenized conversations.

Owns the pictures' variety (sizes, resampling, colour jitter, JPEG) and the layout of a batch in
Qwen2.5-VL's terms (patches, rotary positions). Knows nothing of weights or losses.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.tiny_vlm import scenes
from tests.tiny_vlm.lessons import Lesson, picture_lesson, reading_lesson
from tests.tiny_vlm.scenes import Figure, Scene
from tests.tiny_vlm.tokenizer import SpecialIds, conversation_frame

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PATCH_PIXELS = 14
# The visual tokens are 2 x 2 patches, so picture sides are multiples of this.
CELL_PIXELS = 2 * PATCH_PIXELS

# (width, height) after the image processor, and how often each is drawn. They are what the
# processor makes of pictures up to 5:3, given the pixel limits in `network.py`.
PICTURE_SIZES = {(112, 112): 6, (84, 84): 2, (112, 84): 1, (84, 112): 1, (140, 84): 1, (84, 140): 1}

COLOR_JITTER_LEVELS = 12
JPEG_SHARE = 0.4
# A visual token counts as part of a figure that covers more of it than this.
COVERED_SHARE = 0.08

Bytes: TypeAlias = NDArray[np.uint8]
Labels: TypeAlias = NDArray[np.int64]


# --- Pictures -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drawing:
    """A scene's geometry and how much of each pixel its figures cover, at one picture size."""

    scene: Scene
    masks: Bytes  # (figures, height, width)


class DrawingPool:
    """Drawings made once and repainted in new colours again and again, which is far cheaper."""

    def __init__(self, rng: random.Random, drawings_per_size: int) -> None:
        self._drawings = {
            size: [random_drawing(rng, *size) for _ in range(drawings_per_size)]
            for size in PICTURE_SIZES
        }

    def draw(self, rng: random.Random, size: tuple[int, int]) -> Drawing:
        drawing = rng.choice(self._drawings[size])
        return Drawing(scenes.recolored(drawing.scene, rng), drawing.masks)


def random_drawing(rng: random.Random, width: int, height: int) -> Drawing:
    """A drawing as the image processor leaves it: made at another size, then resampled."""
    scene = scenes.random_scene(rng)
    source = _source_size(rng, width, height)
    masks = [_resampled_mask(figure, source, (width, height)) for figure in scene.figures]
    return Drawing(scene, np.stack(masks))


def _source_size(rng: random.Random, width: int, height: int) -> tuple[int, int]:
    """From two thirds to four times the size and a little out of proportion, or just the size."""
    scale = rng.choice((0.67, 1.0, 1.0, 1.5, 2.0, 4.0))
    source_width = round(width * scale * rng.uniform(0.9, 1.1))
    source_height = round(height * scale * rng.uniform(0.9, 1.1))
    return (width, height) if rng.random() < 0.3 else (source_width, source_height)


def _resampled_mask(figure: Figure, source: tuple[int, int], size: tuple[int, int]) -> Bytes:
    mask = scenes.figure_mask(figure, *source)
    return np.asarray(mask.resize(size, Image.Resampling.BICUBIC), dtype=np.uint8)


def paint(drawing: Drawing, rng: random.Random) -> Bytes:
    """(height, width, 3): the drawing in slightly jittered colours, sometimes through JPEG."""
    palette = scenes.jittered_palette(rng, COLOR_JITTER_LEVELS)
    canvas = np.full((*drawing.masks.shape[1:], 3), palette[drawing.scene.background], np.float32)
    for figure, mask in zip(drawing.scene.figures, drawing.masks, strict=True):
        cover = mask[..., None].astype(np.float32) / 255.0
        canvas += cover * (np.asarray(palette[figure.color], np.float32) - canvas)
    picture = np.asarray(canvas + 0.5, dtype=np.uint8)
    return _through_jpeg(picture, rng) if rng.random() < JPEG_SHARE else picture


def _through_jpeg(picture: Bytes, rng: random.Random) -> Bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=rng.randint(60, 95))
    with Image.open(buffer) as decoded:
        return np.asarray(decoded, dtype=np.uint8)


def cell_truths(drawing: Drawing) -> Labels:
    """(4, cells): per visual token its figure's shape, its colour, the background, which figure.

    Beyond the last shape, colour and figure comes one more class each: "none".
    """
    figures = drawing.scene.figures
    cover = _cell_cover(drawing.masks)
    owner = np.where(cover.max(0) > COVERED_SHARE, cover.argmax(0), len(figures))
    shapes = [*(scenes.SHAPES.index(f.shape) for f in figures), len(scenes.SHAPES)]
    colors = [*(scenes.COLORS.index(f.color) for f in figures), len(scenes.COLORS)]
    ordinals = [*range(len(figures)), len(scenes.COUNT_WORDS) - 1]
    background = np.full_like(owner, scenes.COLORS.index(drawing.scene.background))
    by_figure = (np.asarray(classes)[owner] for classes in (shapes, colors, ordinals))
    shape, color, ordinal = by_figure
    return np.stack((shape, color, background, ordinal)).astype(np.int64)


# Classes of the rows of `cell_truths`.
CELL_CLASSES = (
    len(scenes.SHAPES) + 1,
    len(scenes.COLORS) + 1,
    len(scenes.COLORS),
    len(scenes.COUNT_WORDS),
)


def _cell_cover(masks: Bytes) -> NDArray[np.float32]:
    """(figures, cells): the share of each visual token's square that each figure covers."""
    count, height, width = masks.shape
    cells = masks.reshape(
        count, height // CELL_PIXELS, CELL_PIXELS, width // CELL_PIXELS, CELL_PIXELS
    )
    shares: NDArray[np.float32] = cells.mean((2, 4), dtype=np.float32) / np.float32(255)
    return shares.reshape(count, -1)


# --- Batches --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pictures:
    """A batch's pictures, all of one size, as the vision tower takes them."""

    patches: torch.Tensor  # (pictures * patches, channels * 2 * 14 * 14)
    grids: torch.Tensor  # (pictures, 3): frames, rows, columns of patches
    truths: torch.Tensor  # (4, pictures * cells), see `cell_truths`


@dataclass(frozen=True, slots=True)
class Batch:
    """Conversations padded on the right; only answer tokens have a label other than -100."""

    tokens: torch.Tensor  # (lessons, length)
    labels: torch.Tensor  # (lessons, length)
    positions: torch.Tensor  # (3, lessons, length): time, row, column for the rotary embedding
    pictures: Pictures | None


class Teacher:
    """Hands out batches, each of one picture size or of text alone."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        rng: random.Random,
        *,
        batch_size: int,
        drawings_per_size: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._ids = SpecialIds.of(tokenizer)
        self._rng = rng
        self._batch_size = batch_size
        self._pool = DrawingPool(rng, drawings_per_size)
        self._encoded: dict[str, list[int]] = {}
        self._prefix, self._suffix = (self._encode(part) for part in conversation_frame(tokenizer))

    def picture_batch(self) -> Batch:
        size = self._rng.choices(list(PICTURE_SIZES), list(PICTURE_SIZES.values()))[0]
        drawings = [self._pool.draw(self._rng, size) for _ in range(self._batch_size)]
        lessons = [
            picture_lesson(self._rng, drawing.scene, scenes.random_scene(self._rng))
            for drawing in drawings
        ]
        columns, rows = (side // CELL_PIXELS for side in size)
        tokens, labels = self._conversations(lessons, cells=rows * columns)
        positions = self._positions(tokens.shape[1], rows, columns)
        return Batch(tokens, labels, _shared(positions, len(lessons)), self._pictures(drawings))

    def text_batch(self) -> Batch:
        lessons = [
            reading_lesson(self._rng, scenes.random_scene(self._rng), joined_share=0.25)
            for _ in range(self._batch_size)
        ]
        tokens, labels = self._conversations(lessons, cells=0)
        positions = torch.arange(tokens.shape[1]).repeat(3, 1)
        return Batch(tokens, labels, _shared(positions, len(lessons)), None)

    def _pictures(self, drawings: Sequence[Drawing]) -> Pictures:
        pixels = np.stack([paint(drawing, self._rng) for drawing in drawings])
        truths = np.concatenate([cell_truths(drawing) for drawing in drawings], axis=1)
        rows, columns = (side // PATCH_PIXELS for side in pixels.shape[1:3])
        grids = torch.tensor([[1, rows, columns]] * len(drawings))
        return Pictures(patches_of(torch.from_numpy(pixels)), grids, torch.from_numpy(truths))

    def _conversations(
        self, lessons: Sequence[Lesson], *, cells: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        picture = self._ids.picture_tokens(cells) if cells else []
        questions = [
            [*self._prefix, *picture, *self._encode(lesson.prompt), *self._suffix]
            for lesson in lessons
        ]
        answers = [[*self._encode(lesson.answer), self._ids.end_of_turn] for lesson in lessons]
        rows = [q + a for q, a in zip(questions, answers, strict=True)]
        hidden = [[-100] * len(q) + a for q, a in zip(questions, answers, strict=True)]
        return _padded(rows, self._ids.padding), _padded(hidden, -100)

    def _positions(self, length: int, rows: int, columns: int) -> torch.Tensor:
        """(3, length): text counts up; a picture's tokens share a time and count rows, columns."""
        start, cells = len(self._prefix) + 1, rows * columns
        after = start + cells
        positions = torch.arange(length).repeat(3, 1)
        positions[0, start:after] = start
        positions[1, start:after] = start + torch.arange(rows).repeat_interleave(columns)
        positions[2, start:after] = start + torch.arange(columns).repeat(rows)
        positions[:, after:] = start + max(rows, columns) + torch.arange(length - after)
        return positions

    def _encode(self, text: str) -> list[int]:
        known = self._encoded.get(text)
        if known is None:
            known = list[int](self._tokenizer.encode(text, add_special_tokens=False))
            self._encoded[text] = known
        return known


def patches_of(pixels: torch.Tensor) -> torch.Tensor:
    """Cut (pictures, height, width, 3) bytes into patches in the order Qwen2.5-VL wants them.

    That is 2 x 2 patches of one visual token after another, values in -1..1, each patch doubled
    along time because a still picture stands for two frames.
    """
    count, height, width, channels = pixels.shape
    rows, columns = height // CELL_PIXELS, width // CELL_PIXELS
    split = pixels.reshape(
        count, rows, 2, PATCH_PIXELS, columns, 2, PATCH_PIXELS, channels
    )  # picture, row, inner row, y, column, inner column, x, channel
    ordered = split.permute(0, 1, 4, 2, 5, 7, 3, 6).float() / 127.5 - 1.0
    patches = ordered.reshape(count * rows * columns * 4, channels, 1, PATCH_PIXELS, PATCH_PIXELS)
    return patches.expand(-1, -1, 2, -1, -1).flatten(1)


def _shared(positions: torch.Tensor, lessons: int) -> torch.Tensor:
    return positions.unsqueeze(1).expand(3, lessons, -1)


def _padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])
