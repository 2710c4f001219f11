"""From a terminal's bytes to keys, and to what the terminal says of itself. Pure.

Sequences are those of xterm (https://invisible-island.net/xterm/ctlseqs/ctlseqs.html); answers are
to the questions in `terminal.QUESTIONS`.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Final, Literal

_ESCAPE: Final = "\x1b"
_MOST_PENDING: Final = 4096
"""Characters of a sequence that never ends."""

_SEQUENCE: Final = re.compile(
    r"\x1b(?:\[(?P<csi>[0-9;?<>=]*)[ -/]*(?P<final>[@-~])"
    r"|O(?P<ss3>[A-Za-z])"
    r"|_(?P<apc>[^\x1b\x07]*)(?:\x1b\\|\x07)"
    r"|[\]P^X](?P<other>[^\x1b\x07]*)(?:\x1b\\|\x07))"
)
_BEGUN: Final = re.compile(r"\x1b(?:\[[0-9;?<>=]*[ -/]*|O|[\]P^X_][^\x1b\x07]*\x1b?)?\Z")

_BY_LETTER: Final = {
    "A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end",
}  # fmt: skip
_BY_NUMBER: Final = {
    "1": "home", "3": "delete", "4": "end", "5": "page-up", "6": "page-down", "7": "home",
    "8": "end",
}  # fmt: skip
_CONTROLS: Final = {
    "\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace", "\t": "tab",
    "\x03": "ctrl-c", "\x04": "ctrl-d", "\x0c": "ctrl-l", "\x15": "ctrl-u", "\x1a": "ctrl-z",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Key:
    """A key: the character itself, or a name such as ``page-down``."""

    name: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the terminal can do: it shows pictures in this way, or a cell has so many pixels."""

    can: Literal["kitty", "sixel", "cell"]
    size: tuple[int, int] = (0, 0)
    """Width and height of a cell, in pixels."""


class KeyDecoder:
    """Takes bytes as they come, in whatever pieces."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._pending = ""

    @property
    def is_waiting(self) -> bool:
        """Whether something has begun that may be the Escape key, or more than that."""
        return bool(self._pending)

    def feed(self, data: bytes) -> list[Key | Answer]:
        """Return what the bytes complete."""
        self._pending += self._decode(data)
        found: list[Key | Answer] = []
        while self._pending:
            if self._pending[0] != _ESCAPE:
                found += _key(self._pending[0])
                self._pending = self._pending[1:]
            elif (match := _SEQUENCE.match(self._pending)) is not None:
                self._pending = self._pending[match.end() :]
                found += _meaning(match)
            elif _BEGUN.match(self._pending) and len(self._pending) < _MOST_PENDING:
                break
            else:
                found.append(Key("escape"))
                self._pending = self._pending[1:]
        return found

    def give_up_waiting(self) -> list[Key | Answer]:
        """Return what has begun as the Escape key: nothing followed in time."""
        is_escape, self._pending = self._pending == _ESCAPE, ""
        return [Key("escape")] if is_escape else []


def _key(character: str) -> list[Key]:
    if character in _CONTROLS:
        return [Key(_CONTROLS[character])]
    return [Key(character)] if character.isprintable() else []


def _meaning(match: re.Match[str]) -> list[Key | Answer]:
    if match["ss3"] is not None:
        return _named(_BY_LETTER.get(match["ss3"]))
    if match["apc"] is not None:
        is_yes = match["apc"].startswith("Gi=31") and match["apc"].endswith(";OK")
        return [Answer("kitty")] if is_yes else []
    return [] if match["csi"] is None else _control(match["csi"], match["final"])


def _control(numbers: str, final: str) -> list[Key | Answer]:
    match final:
        case "c":
            features = numbers.removeprefix("?").split(";")[1:]
            return [Answer("sixel")] if numbers.startswith("?") and "4" in features else []
        case "t":
            return _cell(numbers.split(";"))
        case "~":
            return _named(_BY_NUMBER.get(numbers.split(";", maxsplit=1)[0]))
        case _:
            return _named(_BY_LETTER.get(final))


def _named(name: str | None) -> list[Key | Answer]:
    return [] if name is None else [Key(name)]


def _cell(numbers: list[str]) -> list[Key | Answer]:
    if len(numbers) != 3 or numbers[0] != "6" or not all(one.isdecimal() for one in numbers):
        return []
    height, width = int(numbers[1]), int(numbers[2])
    return [Answer("cell", (width, height))] if 0 < width < 500 and 0 < height < 500 else []
