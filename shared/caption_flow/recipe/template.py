"""Prompt templates: parsed once, rendered for each item.

Pure and total: any text parses, and any parsed text renders whatever an item holds. Which names
are worth an error is `caption_flow.recipe.stages`'s business, before the first item.

======================  ===========================================================================
``{caption}``           the output field ``caption`` as earlier stages filled it, else the column
``<caption>``           the same, where such a field or column exists; else left alone as text
``{column:title}``      the dataset's column, else an earlier stage's field; ``{col:title}`` too
``{stage.field}``       what one stage put into the field
``{stage_output_0}``    the first text of one stage
``{{caption}}``         the literal text ``{caption}``
======================  ===========================================================================

Everything else is literal text: lone braces, JSON, and a tag with its end (``<b>..</b>``). What a
placeholder is replaced by is never read as a template again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

Columns = Mapping[str, Any]
"""An item's dataset columns: a key for every column the dataset has, ``None`` where it is null."""

_NAME: Final = r"\w[\w.:-]*"
_TOKEN: Final = re.compile(
    # An explicit column may be called almost anything: the prefix leaves no doubt what is meant.
    r"\{(?:column|col): *(?P<column>[^{}\s][^{}\n]*)\}"
    rf"|\{{(?P<bare>{_NAME})\}}"
    r"|<(?P<angle>\w[\w.-]*)>"
    r"|(?P<open>\{\{|\{)"
    r"|(?P<close>\})"
)
_STAGE_OUTPUT: Final = re.compile(r"(?P<stage>.+)_output_(?P<position>[0-9]{1,9})", re.DOTALL)
_JOINER: Final = ", "


class Kind(Enum):
    """How a placeholder was written, which decides where its value is looked for."""

    BARE = "bare"
    COLUMN = "column"
    ANGLE = "angle"


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A name to be replaced; ``source`` is the text as the prompt has it."""

    name: str
    kind: Kind
    source: str


Segment = str | Placeholder


@dataclass(frozen=True, slots=True)
class StageReference:
    """What ``{stage.field}`` or ``{stage_output_0}`` reach: one stage's texts, or one of them."""

    stage: str
    field: str | None = None
    position: int | None = None


@dataclass(frozen=True, slots=True)
class StageOutput:
    """The texts one stage gave one item, one per prompt, and the field they go to.

    ``columns`` are fields that take parts of the answers; one may be empty.
    """

    stage: str
    field: str
    texts: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def fields(self) -> dict[str, tuple[str, ...]]:
        """Every field this stage fills, and its texts."""
        return {self.field: self.texts, **self.columns}


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the stages gave one item so far. Immutable: `add` returns another.

    ``order`` lists the recipe's stages, so that fields are the same whichever stage ends first.
    """

    order: tuple[str, ...] = ()
    by_stage: Mapping[str, StageOutput] = field(default_factory=dict)

    def add(
        self,
        stage: str,
        field_name: str,
        texts: Iterable[str],
        columns: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Outputs:
        """Return these outputs and one stage's; a stage added again replaces what it gave."""
        added = StageOutput(stage, field_name, tuple(texts), columns or {})
        return Outputs(self.order, {**self.by_stage, stage: added})

    def only(self, stages: Iterable[str]) -> Outputs:
        """Return the outputs of the named stages alone."""
        wanted = frozenset(stages)
        kept = {name: output for name, output in self.by_stage.items() if name in wanted}
        return Outputs(self.order, kept)

    @property
    def fields(self) -> dict[str, list[str]]:
        """Each output field's texts, appended in the order of the recipe's stages."""
        rank = {stage: position for position, stage in enumerate(self.order)}
        # The sort is stable: stages that `order` does not name stay as they were added, at the end.
        outputs = sorted(self.by_stage.values(), key=lambda o: rank.get(o.stage, len(rank)))
        fields: dict[str, list[str]] = {}
        for output in outputs:
            for name, texts in output.fields.items():
                fields.setdefault(name, []).extend(texts)
        return fields


@dataclass(frozen=True, slots=True)
class Context:
    """Everything a placeholder may name while one item's prompts are rendered."""

    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)
    by_stage: Mapping[str, StageOutput] = field(default_factory=dict)
    columns: Columns = field(default_factory=dict)

    @classmethod
    def of(cls, outputs: Outputs, columns: Columns) -> Context:
        """Return the context of an item with these outputs and dataset columns."""
        return cls(outputs.fields, outputs.by_stage, columns)

    def text_of(self, placeholder: Placeholder) -> str:
        """Return what replaces the placeholder; one that names nothing here is empty.

        In angle brackets a name that means nothing is not a placeholder at all, but text.
        """
        value = self._look_up(placeholder)
        if value is not None:
            return value
        return placeholder.source if placeholder.kind is Kind.ANGLE else ""

    def _look_up(self, placeholder: Placeholder) -> str | None:
        name = placeholder.name
        if placeholder.kind is Kind.COLUMN:
            return _first_of(self._column(name), self._field(name))
        return _first_of(self._field(name), self._stage_output(name), self._column(name))

    def _column(self, name: str) -> str | None:
        return value_text(self.columns[name]) if name in self.columns else None

    def _field(self, name: str) -> str | None:
        return _JOINER.join(self.fields[name]) if name in self.fields else None

    def _stage_output(self, name: str) -> str | None:
        for reference in stage_references(name):
            output = self.by_stage.get(reference.stage)
            if output is None:
                continue
            if reference.position is None:
                if reference.field in output.fields:
                    return _JOINER.join(output.fields[reference.field])
            elif reference.position < len(output.texts):
                return output.texts[reference.position]
        return None


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed prompt: literal text and placeholders, in order."""

    segments: tuple[Segment, ...]

    @property
    def placeholders(self) -> tuple[Placeholder, ...]:
        """The placeholders, in order, repeated as often as they occur."""
        return tuple(part for part in self.segments if isinstance(part, Placeholder))

    def render(self, context: Context) -> str:
        """Return the prompt for one item. Never fails and never reads a value as a template."""
        return "".join(
            part if isinstance(part, str) else context.text_of(part) for part in self.segments
        )


def parse_template(text: str) -> Template:
    """Parse a prompt. Every text is a template; what is no placeholder is literal."""
    return _Parser(text).parse()


def stage_references(name: str) -> tuple[StageReference, ...]:
    """Return what a name could reach in a stage, the likeliest first.

    A stage's name may itself contain dots, an output field's cannot: the last dot divides.
    """
    references = []
    stage, dot, field_name = name.rpartition(".")
    if dot and stage and field_name:
        references.append(StageReference(stage, field=field_name))
    if found := _STAGE_OUTPUT.fullmatch(name):
        references.append(StageReference(found["stage"], position=int(found["position"])))
    return tuple(references)


def value_text(value: Any) -> str:
    """Return a column's value as prompts show it; nulls, also inside lists, leave nothing."""
    match value:
        case None:
            return ""
        case str():
            return value
        case bytes() | bytearray():
            return bytes(value).decode("utf-8", errors="replace")
        case list() | tuple() | set() | frozenset():
            return _JOINER.join(value_text(one) for one in value if one is not None)
        case _:
            return str(value)


def _first_of(*values: str | None) -> str | None:
    return next((value for value in values if value is not None), None)


class _Parser:
    """One pass over a prompt, remembering which braces are open.

    Doubled braces are an escape only in pairs. Without the memory, the end of ``{"a": {"b": 1}}``
    would lose a brace to an escape nobody wrote.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._segments: list[Segment] = []
        self._open: list[int | None] = []  # where an open "{{" stands in segments; None for "{"

    def parse(self) -> Template:
        position = 0
        while found := _TOKEN.search(self._text, position):
            self._segments.append(self._text[position : found.start()])
            position = self._read(found)
        self._segments.append(self._text[position:])
        return Template(tuple(_merged(self._segments)))

    def _read(self, found: re.Match[str]) -> int:
        """Take one token, and return where reading goes on."""
        if found["column"] is not None:
            self._placeholder(found["column"].strip(), Kind.COLUMN, found[0])
        elif found["bare"] is not None:
            self._placeholder(found["bare"], Kind.BARE, found[0])
        elif found["angle"] is not None:
            self._angle(found["angle"], found[0])
        elif found["open"] is not None:
            self._open.append(len(self._segments) if found["open"] == "{{" else None)
            self._segments.append(found["open"])
        else:
            return found.start() + self._close(found.start())
        return found.end()

    def _placeholder(self, name: str, kind: Kind, source: str) -> None:
        self._segments.append(Placeholder(name, kind, source))

    def _angle(self, name: str, source: str) -> None:
        if f"</{name}>" in self._text:
            self._segments.append(source)  # a tag with its end is mark-up around something
        else:
            self._placeholder(name, Kind.ANGLE, source)

    def _close(self, position: int) -> int:
        """Take one closing brace, or the two that end an escape; return how many were taken."""
        if self._open and (opened := self._open[-1]) is not None:
            if self._text.startswith("}}", position):
                self._open.pop()
                self._segments[opened] = "{"
                self._segments.append("}")
                return 2
        elif self._open:
            self._open.pop()
        self._segments.append("}")
        return 1


def _merged(segments: Iterable[Segment]) -> Iterable[Segment]:
    """Join neighbouring literals, and drop empty ones."""
    literal = ""
    for part in segments:
        if isinstance(part, str):
            literal += part
            continue
        if literal:
            yield literal
        literal = ""
        yield part
    if literal:
        yield literal
