"""What is looked at, and what keys do. Pure: events in, effects out; the shell reads and draws.

Rules: an item is where ``position`` says, counted from 0 over all rows, also while a filter passes
some over. What has to be looked for (the next row that a filter leaves, or a search finds) is one
`Look` at a time, named by a number, so that a late answer to an earlier one changes nothing. Keys
that are typed meanwhile wait for it; Escape and Ctrl-C end it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, assert_never

from caption_flow.storage.choice import ENDINGS, Ending
from caption_flow.storage.contents import Row

_MOST_TYPED: Final = 16
_STOPS: Final = frozenset({"escape", "ctrl-c"})


@dataclass(frozen=True, slots=True)
class Pressed:
    """A key; see `keys.Key`."""

    key: str


@dataclass(frozen=True, slots=True)
class Counted:
    """There are so many rows now; ``position`` is where the item on the screen is among them."""

    total: int
    output_fields: tuple[str, ...] = ()
    position: int | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """The row at a position; None if there is none any more."""

    position: int
    row: Row | None


@dataclass(frozen=True, slots=True)
class Progressed:
    """A look has gone over so many rows."""

    look: int
    rows: int


@dataclass(frozen=True, slots=True)
class Found:
    """A look has ended; None: there is no such row."""

    look: int
    position: int | None


@dataclass(frozen=True, slots=True)
class Troubled:
    """Something cannot be read."""

    sentence: str


Event = Pressed | Counted | Loaded | Progressed | Found | Troubled


@dataclass(frozen=True, slots=True)
class Load:
    """Read the row at a position."""

    position: int


@dataclass(frozen=True, slots=True)
class Look:
    """Look for a row from ``start`` on, or back; it ended as said, and has ``text``."""

    number: int
    start: int
    backward: bool
    ending: Ending | None
    text: str
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StopLooking:
    """Nobody waits for the look any more."""


@dataclass(frozen=True, slots=True)
class LookForNews:
    """Ask now whether there are new rows."""


@dataclass(frozen=True, slots=True)
class Suspend:
    """Give the terminal back until the process is continued."""


@dataclass(frozen=True, slots=True)
class Leave:
    """End."""


Effect = Load | Look | StopLooking | LookForNews | Suspend | Leave

Purpose = Literal["begin", "step", "search", "filter"]


@dataclass(slots=True)
class Looking:
    """A look that is under way."""

    look: Look
    purpose: Purpose
    rows: int = 0


@dataclass(slots=True)
class Prompt:
    """A line that is being typed; ``kind`` is the key that began it."""

    kind: Literal["/", ":"]
    text: str = ""


@dataclass(slots=True)
class Viewer:
    """See the module. ``condition`` is a filter of the command line's, for words only."""

    ending: Ending | None = None
    shown: tuple[str, ...] = ()
    search: str = ""
    is_conditioned: bool = False
    pictures: bool = True

    total: int = 0
    output_fields: tuple[str, ...] = ()
    position: int | None = None
    row: Row | None = None
    scroll: int = 0
    prompt: Prompt | None = None
    message: str = ""
    looking: Looking | None = None
    is_helping: bool = False
    _lines: int = 0
    _height: int = 1
    _looks: int = 0
    _typed: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_TYPED))
    _asked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._asked = self.shown

    @property
    def has_filter(self) -> bool:
        """Whether some rows are passed over."""
        return self.ending is not None or self.is_conditioned

    def handle(self, event: Event) -> list[Effect]:
        """Take an event and return what is to be done."""
        match event:
            case Pressed(key):
                return self._press(key)
            case Counted():
                return self._count(event)
            case Loaded(position, row):
                return self._load(position, row)
            case Progressed(number, rows):
                if self.looking is not None and self.looking.look.number == number:
                    self.looking.rows = rows
                return []
            case Found(number, position):
                return self._end_look(number, position)
            case Troubled(sentence):
                self.looking, self.message = None, sentence
                return []
            case _:
                assert_never(event)

    def note_layout(self, lines: int, height: int) -> None:
        """Hear how many lines of text there are, and how many of them are seen."""
        self._lines, self._height = lines, max(1, height)
        self.scroll = max(0, min(self.scroll, lines - self._height))

    # ------------------------------------------------------------------ news

    def _count(self, counted: Counted) -> list[Effect]:
        self.total = counted.total
        self.output_fields = counted.output_fields
        if not self.total:
            self.position = self.row = None
            return []
        if self.position is None:
            return [] if self.looking is not None else self._begin()
        # An item that was taken back has none: what is now in its place is shown.
        at = self.position if counted.position is None else counted.position
        self.position = min(at, self.total - 1)
        return [Load(self.position)]

    def _begin(self) -> list[Effect]:
        if self.has_filter or self.search:
            return self._look(0, "begin", text=self.search)
        return self._go(0)

    def _load(self, position: int, row: Row | None) -> list[Effect]:
        if position == self.position:
            self.row = row
        return [] if row is not None else [LookForNews()]

    # ------------------------------------------------------------------ going

    def _go(self, position: int) -> list[Effect]:
        self.position, self.scroll = position, 0
        return [Load(position)]

    def _look(
        self, start: int, purpose: Purpose, *, backward: bool = False, text: str = ""
    ) -> list[Effect]:
        self._looks += 1
        look = Look(self._looks, start, backward, self.ending, text, self.shown)
        self.looking = Looking(look, purpose)
        return [look]

    def _step(self, start: int, *, backward: bool) -> list[Effect]:
        """Go to the next item that the filter leaves, from ``start`` on or back."""
        if not 0 <= start < self.total:
            self.message = "this is the first item" if backward else "this is the last item"
            return []
        return self._look(start, "step", backward=backward) if self.has_filter else self._go(start)

    def _next_hit(self, *, backward: bool) -> list[Effect]:
        start = (self.position or 0) + (-1 if backward else 1)
        if not 0 <= start < self.total:
            self._say_not_found(backward=backward)
            return []
        return self._look(start, "search", backward=backward, text=self.search)

    def _end_look(self, number: int, position: int | None) -> list[Effect]:
        looking = self.looking
        if looking is None or looking.look.number != number:
            return []
        self.looking = None
        effects = self._go(position) if position is not None else self._not_found(looking)
        while self._typed and self.looking is None:
            effects += self._press(self._typed.popleft())
        return effects

    def _not_found(self, looking: Looking) -> list[Effect]:
        backward = looking.look.backward
        match looking.purpose:
            case "begin" if looking.look.text:
                self.message = f"{looking.look.text!r} is nowhere so far"
                return self._look(0, "begin") if self.has_filter else self._go(0)
            case "begin":
                self.message = f"no item {self.filter_words()} so far"
            case "step":
                where = "above" if backward else "below"
                self.message = f"no further item {where}, of those {self.filter_words()}"
            case "search":
                self._say_not_found(backward=backward)
            case "filter":
                if not backward and looking.look.start > 0:
                    return self._look(looking.look.start - 1, "filter", backward=True)
                nothing = self.ending
                effects = self.next_filter()
                self.message = f"no item is {nothing}"
                return effects
            case _:
                assert_never(looking.purpose)
        return []

    def _say_not_found(self, *, backward: bool) -> None:
        where, key, elsewhere = ("above", "n", "below") if backward else ("below", "N", "above")
        self.message = f"{self.search!r} is not {where}; {key} looks {elsewhere}"

    def filter_words(self) -> str:
        """Return what is shown only, in words."""
        said = [self.ending or "", "for which --filter holds" if self.is_conditioned else ""]
        return " and ".join(filter(None, said))

    # ------------------------------------------------------------------ keys

    def _press(self, key: str) -> list[Effect]:
        if self.looking is not None and key != "q":
            return self._press_while_looking(key)
        self.message = ""
        if self.prompt is not None:
            return self._type(self.prompt, key)
        if self.is_helping:
            self.is_helping = False
            return [Leave()] if key in {"q", "ctrl-c"} else []
        action = _ACTIONS.get(key)
        return [] if action is None else action(self)

    def _press_while_looking(self, key: str) -> list[Effect]:
        if key not in _STOPS:
            self._typed.append(key)
            return []
        self._typed.clear()
        self.looking, self.message = None, "stopped"
        return [StopLooking()]

    def _type(self, prompt: Prompt, key: str) -> list[Effect]:
        match key:
            case "enter":
                self.prompt = None
                return self._submit(prompt)
            case "escape" | "ctrl-c":
                self.prompt = None
            case "backspace" if not prompt.text:
                self.prompt = None
            case "backspace":
                prompt.text = prompt.text[:-1]
            case "ctrl-u":
                prompt.text = ""
            case _ if len(key) == 1:
                prompt.text += key
            case _:
                pass
        return []

    def _submit(self, prompt: Prompt) -> list[Effect]:
        if prompt.kind == ":":
            return self._jump(prompt.text.strip().replace(",", ""))
        self.search = prompt.text
        if not prompt.text or not self.total:
            return []
        return self._look(self.position or 0, "search", text=self.search)

    def _jump(self, text: str) -> list[Effect]:
        if not text:
            return []
        if not text.isdecimal() or not self.total:
            self.message = f"{text!r} is no number of an item"
            return []
        at = max(0, min(int(text[:18]), self.total) - 1)
        return self._step(at, backward=False)

    def next_item(self) -> list[Effect]:
        """Go on by one."""
        return self._step((-1 if self.position is None else self.position) + 1, backward=False)

    def previous_item(self) -> list[Effect]:
        """Go back by one."""
        return self._step((self.position or 0) - 1, backward=True)

    def next_or_hit(self) -> list[Effect]:
        """Go on, to what the search finds if there is one."""
        return self._next_hit(backward=False) if self.search else self.next_item()

    def previous_hit(self) -> list[Effect]:
        """Go back, to what the search finds if there is one."""
        return self._next_hit(backward=True) if self.search else self.previous_item()

    def first(self) -> list[Effect]:
        """Go to the first item."""
        return self._step(0, backward=False)

    def last(self) -> list[Effect]:
        """Go to the last item there is now."""
        return self._step(self.total - 1, backward=True)

    def page(self) -> list[Effect]:
        """Show more of the text; at its end, the next item."""
        if self.scroll + self._height < self._lines:
            return self.scroll_by(1)
        return self.next_item()

    def scroll_by(self, pages: int) -> list[Effect]:
        """Move the text by almost so many screens of it."""
        self.scroll += pages * max(1, self._height - 1)
        self.note_layout(self._lines, self._height)
        return []

    def ask(self, kind: Literal["/", ":"]) -> list[Effect]:
        """Begin to type what is to be searched, or gone to."""
        self.prompt = Prompt(kind)
        return []

    def next_filter(self) -> list[Effect]:
        """Show only items that ended in the next way; after the last way, all."""
        order: Sequence[Ending | None] = (None, *ENDINGS)
        self.ending = order[(order.index(self.ending) + 1) % len(order)]
        if not self.has_filter:
            return [] if self.position is not None or not self.total else self._go(0)
        return self._look(self.position or 0, "filter") if self.total else []

    def next_field(self) -> list[Effect]:
        """Show the next output field alone; after the last one, what was shown at first."""
        alone = [(name,) for name in self.output_fields]
        order = list(dict.fromkeys([self._asked, (), *alone] if self._asked else [(), *alone]))
        at = order.index(self.shown) if self.shown in order else 0
        self.shown, self.scroll = order[(at + 1) % len(order)], 0
        return []

    def toggle_pictures(self) -> list[Effect]:
        """Show pictures, or no longer."""
        self.pictures = not self.pictures
        return []

    def help(self) -> list[Effect]:
        """Show what keys do."""
        self.is_helping = True
        return []


_ACTIONS: Final[dict[str, Callable[[Viewer], list[Effect]]]] = {
    **dict.fromkeys(("j", "down", "right", "enter"), Viewer.next_item),
    **dict.fromkeys(("p", "k", "up", "left", "backspace"), Viewer.previous_item),
    "n": Viewer.next_or_hit,
    "N": Viewer.previous_hit,
    " ": Viewer.page,
    **dict.fromkeys(("page-down", "d"), lambda viewer: viewer.scroll_by(1)),
    **dict.fromkeys(("page-up", "u"), lambda viewer: viewer.scroll_by(-1)),
    **dict.fromkeys(("g", "home"), Viewer.first),
    **dict.fromkeys(("G", "end"), Viewer.last),
    "/": lambda viewer: viewer.ask("/"),
    ":": lambda viewer: viewer.ask(":"),
    "f": Viewer.next_filter,
    "t": Viewer.next_field,
    "i": Viewer.toggle_pictures,
    "r": lambda _: [LookForNews()],
    "?": Viewer.help,
    "ctrl-z": lambda _: [Suspend()],
    **dict.fromkeys(("q", "ctrl-c", "ctrl-d"), lambda _: [Leave()]),
}

HELP: Final = (
    ("n j ↓ → Enter", "next item"),
    ("p k ↑ ←", "previous item"),
    ("/", "search captions, names, errors"),
    ("n N", "then: next, previous hit"),
    ("Esc Ctrl-C", "stop a search"),
    (":", "go to an item by number"),
    ("g Home, G End", "first, last item"),
    ("f", "all, only ok, flagged, failed"),
    ("t", "one output field after another"),
    ("Space", "more of the text, then next item"),
    ("PgDn d, PgUp u", "move a long text"),
    ("i", "pictures on or off"),
    ("r", "look for new rows now"),
    ("q", "quit"),
)
"""Keys and what they do, for the screen of help."""
