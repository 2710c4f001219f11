"""An item's row while it is being made: what its stages have given so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from caption_flow.protocol.rows import (
    CAPTIONED,
    FAILED,
    MAX_TEXT_BYTES,
    PARTIAL,
    Row,
    StageStats,
)
from caption_flow.recipe.quality import FLAGS
from caption_flow.recipe.serving import StageColumn
from caption_flow.recipe.stages import Recipe, Stage
from caption_flow.recipe.structure import StructureBroken
from caption_flow.recipe.template import Outputs
from caption_flow.worker.engines.base import Completion
from caption_flow.worker.images.video import Loaded, LoadedVideo

EMPTY_CAPTION: Final = "empty_caption"
INVALID_JSON: Final = "invalid_json"
INVALID_ANSWER: Final = "invalid_answer"
"""An answer that is none of the stage's choices, or does not match its regex."""
TEXT_TOO_LONG: Final = "text_too_long"
IMAGE_CHANGED: Final = "image_changed"
MAX_ERROR_CHARACTERS: Final = 2000


class ItemError(Exception):
    """The item ends here; ``kind`` becomes the row's ``error_kind``."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine said to one prompt in the end.

    ``flags`` are of `caption_flow.recipe.quality`. Tokens are of all attempts: the engine wrote
    them all, and read the prompt for each.
    """

    completion: Completion
    flags: frozenset[str] = frozenset()
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def text(self) -> str:
        """Its text, as it is stored."""
        return valid_text(self.completion.text).strip()


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
    is_video: bool = False
    scaled_to: tuple[int, int] | None = None
    flags: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.outputs = self.recipe.no_outputs()
        for stage in self.recipe.stages:
            if (given := self.earlier.get(stage.name)) is not None:
                texts = given.get(stage.output_field, ())
                columns = {name: tuple(given.get(name, ())) for name in stage.columns}
                self.outputs = self.outputs.add(stage.name, stage.output_field, texts, columns)

    @property
    def _own(self) -> Outputs:
        """What the stages gave here."""
        return self.outputs.only(self.outputs.by_stage.keys() - self.earlier.keys())

    def note_image(self, loaded: Loaded) -> None:
        """Note the facts of the picture or video, not its pixels.

        Raises:
            ItemError: an earlier stage saw another picture.

        """
        if self.content_hash not in {None, loaded.content_hash}:
            raise ItemError(IMAGE_CHANGED, "the file was changed between two of its stages")
        self.width, self.height, self.format = loaded.width, loaded.height, loaded.format
        self.file_size, self.content_hash = loaded.file_size, loaded.content_hash
        self.is_video = isinstance(loaded, LoadedVideo)

    def add(self, stage: Stage, answers: Sequence[Answer], *, model: str, seconds: float) -> None:
        """Add what a stage gave; ``answers`` are in the order of its prompts.

        Raises:
            ItemError: one of the answers is empty, or not of the form the stage asks for.

        """
        self._note(stage, answers, model, seconds)
        columns: dict[str, tuple[str, ...]] = dict.fromkeys(stage.columns, ())
        for number, answer in enumerate(answers, start=1):
            which = f", prompt {number}," if len(answers) > 1 else ""
            for name, parts in _read(stage, answer, f"stage '{stage.name}'{which}").items():
                columns[name] += parts
        texts = (answer.text for answer in answers)
        self.outputs = self.outputs.add(stage.name, stage.output_field, texts, columns)

    def _note(self, stage: Stage, answers: Sequence[Answer], model: str, seconds: float) -> None:
        self.stats.append(
            StageStats(
                stage=stage.name,
                tokens_in=sum(answer.tokens_in for answer in answers),
                tokens_out=sum(answer.tokens_out for answer in answers),
                finish_reasons=tuple(answer.completion.finish_reason for answer in answers),
                milliseconds=round(seconds * 1000),
            )
        )
        if model not in self.models:
            self.models.append(model)
        for answer in answers:
            self.flags |= answer.flags
            self._note_scaling(answer.completion.image_scaled_to)

    def _note_scaling(self, size: tuple[int, int] | None) -> None:
        """Keep the smallest size the picture was seen in."""
        if size is not None and (self.scaled_to is None or size < self.scaled_to):
            self.scaled_to = size

    def captioned(self) -> Row:
        """Return the row of an item that went through every stage."""
        return self._row(CAPTIONED, None, None)

    def partial(self) -> Row:
        """Return the row of an item that is to go on at another worker."""
        given = self._own.by_stage
        ran = [given[stage.name] for stage in self.recipe.stages if stage.name in given]
        columns = {
            StageColumn(one.stage, name).name: texts
            for one in ran
            for name, texts in one.fields.items()
        }
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
            recipe=self.recipe.video_fingerprint if self.is_video else self.recipe.fingerprint,
            image_scaled_to=None if self.scaled_to is None else "{}x{}".format(*self.scaled_to),
            flags=tuple(flag for flag in FLAGS if flag in self.flags),
        )


def _read(stage: Stage, answer: Answer, where: str) -> Mapping[str, tuple[str, ...]]:
    """Return the columns of an answer. Raises `ItemError`."""
    reason = f"(finish reason '{answer.completion.finish_reason}')"
    length = len(answer.text.encode())
    if length > MAX_TEXT_BYTES:
        raise ItemError(
            TEXT_TOO_LONG,
            f"{where} got an answer of {length} bytes, and at most {MAX_TEXT_BYTES} are kept; "
            "lower max_tokens",
        )
    if not answer.text:
        raise ItemError(EMPTY_CAPTION, f"{where} got an empty answer {reason}")
    if stage.structure is None:
        return {}
    try:
        return stage.structure.read(answer.text)
    except StructureBroken as error:
        kind = INVALID_ANSWER if stage.structure.json_schema is None else INVALID_JSON
        hint = "; raise max_tokens" if answer.completion.finish_reason == "length" else ""
        raise ItemError(kind, f"{where} got an answer that {error} {reason}{hint}") from error


def valid_text(text: str) -> str:
    """Return the text with what UTF-8 cannot say (lone surrogates) replaced by ``?``."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def size_of(row: Row) -> int:
    """Return roughly how many bytes the row takes on the wire."""
    texts = sum(len(text) for field_texts in row.outputs.values() for text in field_texts)
    return 256 + texts + len(row.error or "")
