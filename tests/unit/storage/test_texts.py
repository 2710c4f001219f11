"""What goes into a text: fields in the order asked for, templates, words before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exporter import ExportError
from caption_flow.storage.exporter.texts import Wording, caption_lines, one_line
from caption_flow.storage.exporter.txt import export_txt


def row(**columns: Any) -> dict[str, Any]:
    return {"item_key": "a.jpg", "filename": "a.jpg", "status": "captioned", **columns}


def test_several_fields_are_lines_in_the_order_asked_for() -> None:
    item = row(short=["a cat"], long=["a cat sits", "on a mat"])
    assert Wording(("long", "short")).lines(item) == ["a cat sits", "on a mat", "a cat"]


def test_a_template_makes_one_text_of_fields_and_columns() -> None:
    wording = Wording(template="{caption}. Tags: {column:tags}")
    item = row(caption=["a cat", "it\nsits"], tags=["pet", None, "fur"])
    assert wording.lines(item) == ["a cat, it sits. Tags: pet, fur"]


def test_a_template_leaves_an_item_without_any_of_it_without_a_text() -> None:
    wording = Wording(template="{caption}. Tags: {column:tags}")
    assert wording.lines(row(caption=[], tags=None)) == []
    assert wording.lines(row(caption=["a cat"], tags=None)) == ["a cat. Tags:"]


@given(st.text(alphabet="{}<>:ascret col", max_size=30))
def test_what_a_caption_says_is_never_read_as_a_template(caption: str) -> None:
    said = Wording(template="{caption}!").lines(row(caption=[caption], secret=["no"]))
    plain = caption_lines([caption])
    assert said == [one_line(f"{caption}!")] if plain else said == []


def test_words_before_and_after_go_around_each_text_and_around_no_empty_one() -> None:
    wording = Wording(("captions",), prefix="ohwx, ", suffix=" end")
    assert wording.lines(row(captions=["a cat", " ", "a dog"])) == [
        "ohwx, a cat end",
        "ohwx, a dog end",
    ]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{captoin}", "there is no column named 'captoin'; did you mean 'caption'"),
        ("{column:tag}", "there is no column named 'tag'"),
        ("the same for all", "names no column"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused_before_any_file(
    tmp_path: Path, template: str, says: str
) -> None:
    contents = StorageContents([row(caption=["a cat"])])
    with pytest.raises(ExportError, match=says):
        export_txt(contents, tmp_path, wording=Wording(template=template))
    assert not list(tmp_path.iterdir())


def test_a_field_may_have_files_of_its_own(tmp_path: Path) -> None:
    contents = StorageContents([row(short=["a cat"], long=["a cat sits"])])
    for name in ("short", "long"):
        export_txt(contents, tmp_path, wording=Wording((name,)), suffix=f".{name}.txt")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.short.txt": "a cat",
        "a.long.txt": "a cat sits",
    }
