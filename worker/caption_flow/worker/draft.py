"""An item's row while it is being made: what its stages have given so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from caption_flow.protocol.rows import CAPTIONED, FAILED, Row, StageStats
from caption_flow.recipe.stages import Recipe, Stage
from caption_flow.recipe.template import Outputs
from caption_flow.worker.engines.base import Completion
from caption_flow.worker.images.load import LoadedImage

EMPTY_CAPTION: Final = "empty_caption"
IMAGE_CHANGED: Final = "image_changed"
MAX_ERROR_CHARACTERS: Final = 2000


class ItemError(Exception):
    """The item ends here; ``kind`` becomes the row's ``error_kind``."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


@dataclass(slots=True)
class Draft:
    """Collects an item's outputs and facts; `captioned` or `failed` make the row of them."""

    item_index: int
    recipe: Recipe
    outputs: Outputs = field(init=False)
    stats: list[StageStats] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    width: int | None = None
    height: int | None = None
    format: str | None = None
    file_size: int | None = None
    content_hash: str | None = None

    def __post_init__(self) -> None:
        self.outputs = self.recipe.no_outputs()

    def note_image(self, loaded: LoadedImage) -> None:
        """Note the picture's facts, not the picture.

        Raises:
            ItemError: an earlier stage saw another picture.

        """
        if self.content_hash not in {None, loaded.image.content_hash}:
            raise ItemError(IMAGE_CHANGED, "the image was changed between two of its stages")
        self.width, self.height, self.format = loaded.width, loaded.height, loaded.format
        self.file_size, self.content_hash = loaded.file_size, loaded.content_hash

    def add(
        self, stage: Stage, answers: Sequence[Completion], *, model: str, seconds: float
    ) -> None:
        """Add what a stage gave; ``answers`` are in the order of its prompts.

        Raises:
            ItemError: one of the answers is empty.

        """
        texts = tuple(valid_text(answer.text).strip() for answer in answers)
        self.stats.append(
            StageStats(
                stage=stage.name,
                tokens_in=sum(answer.tokens_in for answer in answers),
                tokens_out=sum(answer.tokens_out for answer in answers),
                finish_reasons=tuple(answer.finish_reason for answer in answers),
                milliseconds=round(seconds * 1000),
            )
        )
        if model not in self.models:
            self.models.append(model)
        for number, text in enumerate(texts, start=1):
            if not text:
                which = f", prompt {number}," if len(texts) > 1 else ""
                raise ItemError(
                    EMPTY_CAPTION,
                    f"stage '{stage.name}'{which} got an empty answer "
                    f"(finish reason '{answers[number - 1].finish_reason}')",
                )
        self.outputs = self.outputs.add(stage.name, stage.output_field, texts)

    def captioned(self) -> Row:
        """Return the row of an item that went through every stage."""
        return self._row(CAPTIONED, None, None)

    def failed(self, kind: str, sentence: str) -> Row:
        """Return the row of an item that did not; it keeps what earlier stages gave."""
        return self._row(FAILED, kind, valid_text(sentence)[:MAX_ERROR_CHARACTERS])

    def _row(self, status: str, kind: str | None, sentence: str | None) -> Row:
        return Row(
            item_index=self.item_index,
            status=status,
            outputs=self.outputs.fields,
            error_kind=kind,
            error=sentence,
            image_width=self.width,
            image_height=self.height,
            image_format=self.format,
            file_size=self.file_size,
            content_hash=self.content_hash,
            stage_stats=tuple(self.stats),
            models=tuple(self.models),
            recipe=self.recipe.fingerprint,
        )


def valid_text(text: str) -> str:
    """Return the text with what UTF-8 cannot say (lone surrogates) replaced by ``?``."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def size_of(row: Row) -> int:
    """Return roughly how many bytes the row takes on the wire."""
    texts = sum(len(text) for field_texts in row.outputs.values() for text in field_texts)
    return 256 + texts + len(row.error or "")
