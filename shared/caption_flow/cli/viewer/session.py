"""The view as long as it lasts: keys and rows in, screens out. The shell around `state`."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, assert_never

from PIL import Image

from caption_flow.cli.failures import EXIT_FAILED
from caption_flow.cli.viewer.keys import Answer, Key, KeyDecoder
from caption_flow.cli.viewer.pictures import DEFAULT_CELL, Colours, Drawn, Size, Way, draw
from caption_flow.cli.viewer.screen import compose, layout
from caption_flow.cli.viewer.state import (
    Counted,
    Effect,
    Event,
    Found,
    Leave,
    Load,
    Loaded,
    Look,
    LookForNews,
    Pressed,
    Progressed,
    StopLooking,
    Suspend,
    Troubled,
    Viewer,
)
from caption_flow.cli.viewer.terminal import Terminal
from caption_flow.cli.viewer.threads import Newest, in_thread
from caption_flow.storage.browse import RowIndex, Wanted
from caption_flow.storage.choice import Choice, ChoiceError, Ending
from caption_flow.storage.contents import Row
from caption_flow.storage.errors import StorageError
from caption_flow.storage.search import Search

_ESCAPE_SECONDS: Final = 0.05
"""How soon a sequence goes on after its first character, which is also the Escape key."""
_REPORT_SECONDS: Final = 0.1
_MOST_KEPT: Final = 4
"""Decoded pictures, each of a few megabytes."""
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

FindPicture = Callable[[Row], Image.Image | str]
"""Returns a row's picture, or half a sentence that says why there is none; blocking."""


@dataclass(frozen=True, slots=True)
class Looks:
    """How things are drawn; ``is_fixed`` if the terminal is not to be asked."""

    way: Way
    colours: Colours
    is_fixed: bool = False


@dataclass(frozen=True, slots=True)
class _Sought:
    """A picture for a screen."""

    item: tuple[str, int, str | None]
    box: Size
    way: Way
    cell: Size


class _LeftError(Exception):
    """The user has had enough."""


class Session:
    """One view of one run; see `run`."""

    def __init__(
        self,
        terminal: Terminal,
        index: RowIndex,
        viewer: Viewer,
        find_picture: FindPicture,
        *,
        looks: Looks,
        where: str,
        condition: str | None = None,
        refresh_seconds: float,
    ) -> None:
        self._terminal = terminal
        self._index = index
        self._viewer = viewer
        self._find_picture = find_picture
        self._looks = looks
        self._where = where
        self._condition = condition
        self._refresh_seconds = refresh_seconds
        self._way = looks.way
        self._size, cell = terminal.size()
        self._cell = cell or DEFAULT_CELL
        self._keys = KeyDecoder()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._stop = threading.Event()
        self._code = 0
        self._kept: OrderedDict[tuple[str, int, str | None], Image.Image] = OrderedDict()
        self._drawn: tuple[_Sought, Drawn | str | None] | None = None

    async def run(self) -> int:
        """Show and obey until the user leaves; return the exit code."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._terminal.input, self._read_keys)
        loop.add_signal_handler(signal.SIGWINCH, self._resize)
        for number in _ENDING:
            loop.add_signal_handler(number, self._end, 128 + number)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._rows = Newest(self._load, tasks)
                self._pictures = Newest(self._draw_picture, tasks)
                self._news = Newest(self._count, tasks)
                tasks.create_task(self._watch())
                if not self._looks.is_fixed:
                    self._terminal.ask()
                await self._go_on()
        except* _LeftError:
            pass
        finally:
            self._stop.set()
            loop.remove_reader(self._terminal.input)
        return self._code

    async def _go_on(self) -> None:
        """Go on until the user leaves, which raises `_LeftError`, so that all tasks end."""
        while True:
            self._draw()
            event = await self._events.get()
            while True:
                for effect in [] if event is None else self._viewer.handle(event):
                    self._carry_out(effect)
                if self._events.empty():
                    break
                event = self._events.get_nowait()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Load(position):
                self._rows.ask(position)
            case Look():
                self._stop.set()
                self._stop = threading.Event()
                self._tasks.create_task(self._look(effect, self._stop))
            case StopLooking():
                self._stop.set()
            case LookForNews():
                self._news.ask(True)
            case Suspend():
                self._terminal.suspend()
                self._resize()
            case Leave():
                raise _LeftError
            case _:
                assert_never(effect)

    # ------------------------------------------------------------------ what comes in

    def _read_keys(self) -> None:
        data = self._terminal.read()
        if not data:
            self._end(0)
            return
        self._take(self._keys.feed(data))
        if self._keys.is_waiting:
            asyncio.get_running_loop().call_later(_ESCAPE_SECONDS, self._give_up, data)

    def _give_up(self, _data: bytes) -> None:
        self._take(self._keys.give_up_waiting())

    def _take(self, found: list[Key | Answer]) -> None:
        for one in found:
            if isinstance(one, Key):
                self._events.put_nowait(Pressed(one.name))
            else:
                self._learn(one)

    def _learn(self, answer: Answer) -> None:
        """Draw pictures better than was thought possible."""
        is_plain = self._way in {Way.BLOCKS, Way.NONE, Way.SIXEL} and not self._looks.is_fixed
        if answer.can == "cell":
            self._cell = answer.size
        elif answer.can == "kitty" and is_plain:
            self._way = Way.KITTY
        elif answer.can == "sixel" and is_plain and self._way is not Way.KITTY:
            self._way = Way.SIXEL
        self._events.put_nowait(None)

    def _resize(self) -> None:
        self._size, cell = self._terminal.size()
        self._cell = cell or self._cell
        self._terminal.forget()
        self._events.put_nowait(None)

    def _end(self, code: int) -> None:
        self._code = code
        self._viewer.prompt = None
        self._viewer.looking = None
        self._events.put_nowait(Pressed("q"))

    # ------------------------------------------------------------------ rows

    async def _watch(self) -> None:
        while True:
            self._news.ask(False)
            await asyncio.sleep(self._refresh_seconds)

    async def _count(self, is_asked: bool) -> None:
        row, near = self._viewer.row, self._viewer.position

        def count() -> tuple[bool, int | None]:
            is_new = self._index.refresh()
            if row is None or near is None or not is_new:
                return is_new, near
            return is_new, self._index.position_of(row["shard"], row["item_index"], near)

        try:
            is_new, position = await in_thread(count)
        except StorageError as error:
            self._events.put_nowait(Troubled(str(error)))
            return
        if is_new or is_asked or self._index.total != self._viewer.total:
            fields = self._index.output_fields
            self._events.put_nowait(Counted(self._index.total, fields, position))

    async def _load(self, position: int) -> None:
        try:
            row = await in_thread(lambda: self._index.row(position))
        except StorageError as error:
            self._events.put_nowait(Troubled(str(error)))
        else:
            self._events.put_nowait(Loaded(position, row))

    async def _look(self, look: Look, stop: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        endings: frozenset[Ending] = frozenset(() if look.ending is None else (look.ending,))
        search = Search(look.text, frozenset(look.fields)) if look.text else None
        wanted = Wanted(Choice(endings, self._condition), search)

        def work() -> int | None:
            rows, said_at = 0, time.monotonic()
            for looked in self._index.look(wanted, look.start, backward=look.backward):
                if stop.is_set() or looked.found is not None:
                    return looked.found
                rows += looked.rows
                if time.monotonic() - said_at > _REPORT_SECONDS:
                    said_at = time.monotonic()
                    event = Progressed(look.number, rows)
                    loop.call_soon_threadsafe(self._events.put_nowait, event)
            return None

        try:
            found = await in_thread(work)
        except (StorageError, ChoiceError) as error:
            self._events.put_nowait(Troubled(str(error)))
        else:
            self._events.put_nowait(Found(look.number, found))

    # ------------------------------------------------------------------ what is seen

    def _draw(self) -> None:
        picture = self._picture()
        frame = compose(self._viewer, self._size, self._looks.colours, self._where, picture)
        try:
            self._terminal.show(frame, self._way)
        except OSError as error:  # the terminal is gone
            self._code = EXIT_FAILED
            raise _LeftError from error

    def _picture(self) -> Drawn | str | None:
        """Return what is drawn already for this screen; have it drawn if it is not."""
        row = self._viewer.row
        place = layout(self._size, pictures=self._viewer.pictures and self._way is not Way.NONE)
        if row is None or place.box is None or self._viewer.is_helping:
            return None
        item = (row["shard"], row["item_index"], row["content_hash"])
        sought = _Sought(item, place.box, self._way, self._cell)
        if self._drawn is not None and self._drawn[0] == sought:
            return self._drawn[1]
        self._pictures.ask((sought, row))
        return None

    async def _draw_picture(self, asked: tuple[_Sought, Row]) -> None:
        sought, row = asked

        def work() -> Drawn | str | None:
            image = self._kept.get(sought.item) or self._find_picture(row)
            if isinstance(image, str):
                return image
            self._kept[sought.item] = image
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
            return draw(image, sought.box, sought.way, self._looks.colours, sought.cell)

        self._drawn = sought, await in_thread(work)
        self._events.put_nowait(None)
