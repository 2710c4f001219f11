"""What is kept, and for how long."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from caption_flow.places.kept import Kept


def test_what_was_asked_for_last_is_kept_within_bounds() -> None:
    made: list[str] = []
    kept: Kept[str, str] = Kept(2, len)

    def ask(key: str) -> str:
        def make() -> str:
            made.append(key)
            return key

        return kept.get(key, make)

    for key in ("a", "b", "a", "c", "a", "b"):
        assert ask(key) == key
    assert made == ["a", "b", "c", "b"]


def test_the_newest_is_kept_however_heavy_it_is() -> None:
    kept: Kept[str, str] = Kept(2, len)
    kept.get("heavy", lambda: "x" * 100)
    assert kept.get("heavy", lambda: "made anew") == "x" * 100


def test_who_wants_the_same_waits_for_one_making() -> None:
    kept: Kept[str, int] = Kept(2, lambda _: 1)
    began, may_end, made = threading.Event(), threading.Event(), []

    def make() -> int:
        made.append(1)
        began.set()
        assert may_end.wait(10)
        return 7

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(kept.get, "a", make)
        assert began.wait(10)
        others = [pool.submit(kept.get, "a", make) for _ in range(3)]
        may_end.set()
        assert [asked.result(10) for asked in (first, *others)] == [7] * 4
    assert made == [1]


def test_what_failed_is_tried_anew() -> None:
    kept: Kept[str, int] = Kept(2, lambda _: 1)
    with pytest.raises(ZeroDivisionError):
        kept.get("a", lambda: 1 // 0)
    assert kept.get("a", lambda: 1) == 1
