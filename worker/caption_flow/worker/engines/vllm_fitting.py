"""How far a picture has to shrink so that it and its prompt fit into the model's context.

Pure: counts in, a size out. Models spend tokens on pixels in ways of their own, some none at all,
so a size is a guess that the next rendering proves or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

MIN_FITTED_PIXELS: Final = 4096
"""64 x 64: below that a picture shows nothing worth a caption."""
MAX_TRIES: Final = 8
_SHARE_FOR_ANSWER: Final = 4
_MARGIN: Final = 0.95
_MOST_AT_ONCE: Final = 0.75

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a prompt came to: its tokens in all, and those of them that are the picture's."""

    tokens: int
    image_tokens: int

    @property
    def text_tokens(self) -> int:
        """What shrinking the picture does not change."""
        return self.tokens - self.image_tokens


def room_wanted(max_tokens: int, max_model_len: int) -> int:
    """Return how much room an answer is made by shrinking the picture, in tokens.

    All it may take, up to a quarter of the context: more would cost detail for what is seldom used.
    """
    return max(1, min(max_tokens, max_model_len // _SHARE_FOR_ANSWER))


def smaller(size: Size, rendered: Rendered, budget: int) -> Size | None:
    """Return the size to try next, None when the picture is as small as it may get.

    ``budget`` are the tokens that prompt and picture are to have together.
    """
    pixels = size[0] * size[1]
    if pixels <= MIN_FITTED_PIXELS:
        return None
    left = max(0, budget - rendered.text_tokens)
    share = min(left / max(rendered.image_tokens, 1) * _MARGIN, _MOST_AT_ONCE)
    scale = math.sqrt(max(share, MIN_FITTED_PIXELS / pixels))
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))
