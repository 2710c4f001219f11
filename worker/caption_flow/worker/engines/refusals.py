"""The kinds of refusal that engines with a real model share, told from what was said.

Pure: a text in, an ``error_kind`` out.
"""

from __future__ import annotations

import re
from typing import Final

PROMPT_TOO_LONG: Final = "prompt_too_long"
IMAGE_REJECTED: Final = "image_rejected"
ENGINE_REJECTED: Final = "engine_rejected"
CONTENT_REFUSED: Final = "content_refused"
"""Whoever runs the model does not want to answer this picture or prompt."""

_TOO_LONG: Final = re.compile(
    r"longer than the maximum|maximum (context|model) length|max_model_len|max_total_tokens"
    r"|context length is only"
    r"|too (long|large).*tokens|exceeds? the .*(context|length)|context_length_exceeded",
    re.IGNORECASE,
)
_ABOUT_IMAGE: Final = re.compile(
    r"aspect.ratio|image|pixel|picture|multi-?modal|mm_|placeholder", re.IGNORECASE
)


def kind_of_refusal(text: str) -> str:
    """Return the kind of a refusal that is explained like this."""
    if _TOO_LONG.search(text):
        return PROMPT_TOO_LONG
    return IMAGE_REJECTED if _ABOUT_IMAGE.search(text) else ENGINE_REJECTED
