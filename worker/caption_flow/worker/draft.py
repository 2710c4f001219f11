"""An item's row while it is being made: what its stages have given so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from caption_flow.protocol.rows import CAPTIONED, FAILED, PARTIAL, Row, StageStats
from caption_flow.recipe.serving import StageColumn
from caption_flow.recipe.stages import Recipe, Stage
from caption_flow.recipe.template import Outputs
from caption_flow.worker.engines.base import Completion
from caption_flow.worker.images.load import LoadedImage

EMPTY_CAPTION: Final = "empty_caption"
MAX_ERROR_CHARACTERS: Final = 2000


class ItemError(Exception):
    """The item ends here; ``kind`` becomes the row's ``error_kind``."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


@dataclass(slots=True)
class Draft:
    """Collects an item's outputs and facts; `captioned` or `failed` make the row of them.

    What stages gave on other workers is in ``earlier``, for prompts: a row says only what was done
    here, and the orchestrator knows the rest.
    """

    item_index: int
    recipe: Recipe
    earlier: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """By stage and output field."""
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
        for stage in self.recipe.stages:
            if (given := self.earlier.get(stage.name)) is not None:
                texts = given.get(stage.output_field, ())
                self.outputs = self.outputs.add(stage.name, stage.output_field, texts)

    @property
    def _own(self) -> Outputs:
        """What the stages gave here."""
        return self.outputs.only(self.outputs.by_stage.keys() - self.earlier.keys())

    def note_image(self, loaded: LoadedImage) -> None:
        """Note the picture's facts, not the picture."""
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

    def partial(self) -> Row:
        """Return the row of an item that is to go on at another worker."""
        given = self._own.by_stage
        ran = [given[stage.name] for stage in self.recipe.stages if stage.name in given]
        columns = {StageColumn(one.stage, one.field).name: one.texts for one in ran}
        return replace(self._row(PARTIAL, None, None), outputs=columns)

    def failed(self, kind: str, sentence: str) -> Row:
        """Return the row of an item that did not; it keeps what earlier stages gave."""
        return self._row(FAILED, kind, valid_text(sentence)[:MAX_ERROR_CHARACTERS])

    def _row(self, status: str, kind: str | None, sentence: str | None) -> Row:
        return Row(
            item_index=self.item_index,
            status=status,
            outputs=self._own.fields,
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
