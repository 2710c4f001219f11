"""What a recipe wants done about answers that look wrong: flag them, and perhaps ask again. Pure.

A flag never changes a text: captions are stored as the model gave them. How answers are judged is
`caption_flow.worker.core.judgement`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

LENGTH: Final = "length"
REPETITION: Final = "repetition"
REFUSAL: Final = "refusal"
EMPTY: Final = "empty"
DUPLICATE: Final = "duplicate"
FLAGS: Final = (LENGTH, REPETITION, REFUSAL, EMPTY, DUPLICATE)
"""Every flag there is, in the order in which rows have them."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Ask again, up to ``attempts`` times, with ``sampling`` laid over the stage's own."""

    attempts: int = 0
    flags: tuple[str, ...] = FLAGS
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Quality:
    """The flags a stage's answers may get, and which of them are worth another try."""

    flags: tuple[str, ...] = FLAGS
    retry: Retry = Retry()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what makes this pointless: the key, and a sentence."""
        if self.retry.attempts and not self.retry.sampling:
            yield (
                "quality",
                ("retry needs sampling that differs from the stage's, such as {temperature: 1.0}"),
            )
        if self.retry.attempts and not set(self.retry.flags) & set(self.flags):
            yield "quality", "retry.flags has none of the flags that are looked for"
