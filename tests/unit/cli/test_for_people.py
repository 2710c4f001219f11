from __future__ import annotations

import os
from pathlib import Path

import pytest

from caption_flow.cli.folders import for_people


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain.png", "plain.png"),
        ("写真 🐱.png", "写真 🐱.png"),
        ("two\nlines\t.png", r"two\nlines\t.png"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png"),
        ("\u2028", r"\u2028"),
        ("\x9b31m", r"\x9b31m"),
    ],
)
def test_a_name_is_one_line_that_does_nothing_to_a_terminal(name: str, shown: str) -> None:
    assert for_people(name) == shown
    shown.encode("utf-8")


def test_paths_are_shown_from_where_the_user_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert for_people(tmp_path / "a" / "b") == "a/b"
    assert for_people(tmp_path.parent / "other") == str(tmp_path.parent / "other")
    assert for_people(Path("../x")) == "../x"
