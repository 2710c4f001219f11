"""Whether an answer looks wrong: which flags of `caption_flow.recipe.quality` it gets.

Pure, and never about content: a text goes in, names of flags come out, the text stays as it is.
Each rule would rather miss something than flag an ordinary caption, also one that quotes a refusal
it sees on a sign.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Final

from caption_flow.recipe.quality import DUPLICATE, EMPTY, LENGTH, REFUSAL, REPETITION

MIN_LOOP_TURNS: Final = 4
MIN_LOOP_CHARACTERS: Final = 80
MAX_LOOP_UNIT_CHARACTERS: Final = 400
_ANCHOR_CHARACTERS: Final = 16
_ANCHOR_STRIDE: Final = 32

MAX_REFUSAL_CHARACTERS: Final = 400
"""A longer answer says something about the picture, whatever it begins with."""

MIN_DUPLICATE_WORDS: Final = 6
"""Shorter texts ("a red car") are rightly the same for many pictures."""
DUPLICATE_IMAGES: Final = 5
"""How many other pictures must have had a text before the next one is flagged."""
MAX_REMEMBERED_TEXTS: Final = 4096


def is_loop(text: str) -> bool:
    """Tell whether somewhere in the text one piece follows itself again and again.

    Never true unless a piece of at most `MAX_LOOP_UNIT_CHARACTERS` comes `MIN_LOOP_TURNS` times in
    a row, over `MIN_LOOP_CHARACTERS`; where that goes on, as loops do, it is soon found. White
    space and capitals don't count. Time is linear in the text.
    """
    text = " ".join(text.casefold().split())
    last = len(text) - MIN_LOOP_CHARACTERS
    return any(_loops_from(text, at) for at in range(0, last + 1, _ANCHOR_STRIDE))


def _loops_from(text: str, start: int) -> bool:
    """Tell whether the text from here on repeats its own beginning."""
    anchor = text[start : start + _ANCHOR_CHARACTERS]
    found = start
    for _ in range(MIN_LOOP_TURNS):  # the anchor may come several times in one turn
        end = start + MAX_LOOP_UNIT_CHARACTERS + _ANCHOR_CHARACTERS
        found = text.find(anchor, found + 1, end)
        if found < 0:
            return False
        unit = found - start
        length = max(MIN_LOOP_TURNS * unit, MIN_LOOP_CHARACTERS)
        if start + length <= len(text):
            same = text[start : start + length - unit]
            if text.startswith(same, found):
                return True
    return False


_DECLINE: Final = (
    r"(?:cannot|can't|can\ not|am\ unable|'m\ unable|am\ not\ able|'m\ not\ able|won't)"
)
_SERVICE: Final = (
    r"(?:assist|help|comply|fulfil?l|provide|generate|create|engage|discuss|answer|respond|continue"
    r"|do\ that|process|describe\ (?:this|the|that|these)\ (?:image|picture|photo)"
    r"|(?:see|view|open|access|analy[sz]e|display)\ (?:the\ |this\ |that\ |any\ |an?\ )?"
    r"(?:image|picture|photo|file|attachment|content))"
)
_REFUSAL: Final = re.compile(
    rf"""
    (?:unfortunately|sorry|apologies|my\ apologies|i\ apologi[sz]e
       |(?:i'm|i\ am)\ (?:so\ |very\ |really\ |truly\ )?sorry)
    ,?\ (?:but\ )?(?:as\ an?\ [\w\s-]{{2,40}},?\ )?i\ ?{_DECLINE}
    | i\ ?{_DECLINE}\ (?:to\ )?{_SERVICE}
    | i\ (?:must|have\ to)\ (?:respectfully\ )?(?:decline|refuse)
    | as\ an?\ (?:ai|artificial\ intelligence|large\ language|language|vision)\b[\w\s-]{{0,40}},?
      \ i\ ?(?:{_DECLINE}|don't|do\ not)
    # Chinese, German, French and Spanish
    | (?:抱歉|很抱歉|对不起|不好意思)[\uff0c,\s]*(?:但)?我(?:无法|不能|没有办法)
    | 我(?:无法|不能)(?:查看|提供|协助|帮助|满足|回答)
    | (?:es\ )?tut\ mir\ (?:sehr\ )?leid,?\ (?:aber\ )?(?:ich\ kann|dabei|das\ kann)
    | (?:je\ suis\ )?d[ée]sol[ée]e?,?\ (?:mais\ )?je\ ne\ (?:peux|suis)
    | lo\ (?:siento|lamento),?\ (?:pero\ )?no\ puedo
    """,
    re.VERBOSE | re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Tell whether the answer as a whole declines: it begins so, and says little else."""
    text = " ".join(text.replace("\u2019", "'").split())
    return len(text) <= MAX_REFUSAL_CHARACTERS and _REFUSAL.match(text) is not None


class SeenTexts:
    """Texts a worker has seen, and for how many pictures. Bounded: the longest unseen go first."""

    def __init__(self, *, max_texts: int = MAX_REMEMBERED_TEXTS) -> None:
        self._max_texts = max_texts
        self._images: OrderedDict[int, set[str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._images)

    def is_common(self, stage: str, text: str, image: str) -> bool:
        """Note a text about a picture; tell whether `DUPLICATE_IMAGES` others had the same.

        ``image`` is the picture's content hash: copies of one picture are one.
        """
        words = text.casefold().split()
        if len(words) < MIN_DUPLICATE_WORDS:
            return False
        key = hash((stage, *words))
        images = self._images.setdefault(key, set())
        self._images.move_to_end(key)
        if len(self._images) > self._max_texts:
            self._images.popitem(last=False)
        others = len(images - {image})
        if len(images) <= DUPLICATE_IMAGES:
            images.add(image)
        return others >= DUPLICATE_IMAGES


def judge(text: str, finish_reason: str) -> frozenset[str]:
    """Return the flags an answer gets for itself, without comparing it to others."""
    found = {
        LENGTH: finish_reason == "length",
        EMPTY: not text.strip(),
        REPETITION: is_loop(text),
        REFUSAL: is_refusal(text),
    }
    return frozenset(flag for flag, is_so in found.items() if is_so)


class Judge:
    """Flags answers, each by its own rules and by what was said of other pictures."""

    def __init__(self, seen: SeenTexts | None = None) -> None:
        self._seen = SeenTexts() if seen is None else seen

    def flags(
        self, text: str, finish_reason: str, *, stage: str, image: str, is_free: bool
    ) -> frozenset[str]:
        """Return the flags of an answer.

        ``is_free`` is False where the recipe itself says which texts there may be: those are bound
        to come again, and a choice may well be worded like a refusal.
        """
        flags = judge(text, finish_reason)
        if not is_free:
            return flags - {REPETITION, REFUSAL}
        if self._seen.is_common(stage, text, image):
            flags |= {DUPLICATE}
        return flags
