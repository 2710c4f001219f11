"""What is written of an item as text: which fields, in which words.

Every format that hands texts to trainers asks `Wording`, so that options mean the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from caption_flow.recipe.template import Context, Kind, Template, parse_template
from caption_flow.storage.contents import Row, StorageContents
from caption_flow.storage.exporter.columns import require
from caption_flow.storage.exporter.errors import ExportError

DEFAULT_COLUMN: Final = "captions"


@dataclass(frozen=True, slots=True)
class Wording:
    """Which texts an item has: those of ``columns``, in this order, or one made from ``template``.

    A template's placeholders are written as in prompts: ``{caption}``, ``{column:tags}``; a list's
    texts are joined by ", ". ``prefix`` and ``suffix`` go around each text that is not empty.
    """

    columns: tuple[str, ...] = (DEFAULT_COLUMN,)
    template: str | None = None
    prefix: str = ""
    suffix: str = ""
    _parsed: Template | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.template is not None:
            object.__setattr__(self, "_parsed", parse_template(self.template))

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that it takes to word an item."""
        if self._parsed is None:
            return self.columns
        return tuple(dict.fromkeys(one.name for one in self._parsed.placeholders))

    def check(self, contents: StorageContents) -> None:
        """Refuse what these contents have no columns for.

        Raises:
            ExportError: with the sentence about it.
        """
        if self._parsed is not None:
            if not self._parsed.placeholders:
                raise ExportError(
                    f"the template {self.template!r} names no column, such as {{caption}}: every "
                    "text would be the same"
                )
            spoken = (p for p in self._parsed.placeholders if p.kind is not Kind.ANGLE)
            require(contents, *(placeholder.name for placeholder in spoken))
            return
        require(contents, *self.columns)

    def lines(self, row: Row) -> list[str]:
        """Return an item's texts, each without line breaks; none where there is nothing to say."""
        return [
            f"{self.prefix}{line}{self.suffix}"
            for text in self._texts(row)
            if (line := one_line(text))
        ]

    def text(self, row: Row) -> str:
        """Return an item's texts as one, joined by ", "."""
        return ", ".join(self.lines(row))

    def _texts(self, row: Row) -> Sequence[str]:
        if self._parsed is None:
            return [text for name in self.columns for text in texts_of(row[name])]
        values = {name: row.get(name) for name in self.reads}
        if not any(map(caption_lines, values.values())):
            return ()
        return (self._parsed.render(Context(columns=values)),)


def caption_lines(value: Any) -> list[str]:
    """Return a column's value as lines: one per text, none for an empty one."""
    return [line for text in texts_of(value) if (line := one_line(text))]


def texts_of(value: Any) -> Sequence[str]:
    """Return a column's value as texts; a column need not be an output field."""
    if value is None:
        return ()
    if isinstance(value, (list, tuple)):
        return [str(text) for text in value if text is not None]
    return (str(value),)


def one_line(text: str) -> str:
    """Return a text with each line break, and the white space around it, as one space."""
    return " ".join(stripped for line in text.splitlines() if (stripped := line.strip()))
