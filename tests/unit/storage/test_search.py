"""A search finds a text in captions, names and reasons, however it is written."""

from __future__ import annotations

import unicodedata
from typing import Literal

import pyarrow as pa
import pytest

from caption_flow.storage.schema import stored_schema
from caption_flow.storage.search import Search
from tests.support.stored import failed, stored


def batch() -> pa.RecordBatch:
    rows = [
        stored(0, captions=["nothing", "A red Dog"]),
        stored(1, captions=None),
        stored(2, captions=[], filename="dogs/2.jpg", item_key="dogs/2.jpg"),
        failed(3, error="no dog in it"),
        stored(4, captions=["Ein Café", None]),
    ]
    return pa.RecordBatch.from_pylist(rows, stored_schema(("captions",), {"title": pa.string()}))


def found(text: str, rows: pa.RecordBatch, fields: frozenset[str] = frozenset()) -> list[int]:
    search = Search(text, fields)
    columns = search.reads(rows.schema.names, ("captions",))
    hits = search.holds(rows.select(columns)).to_pylist()
    return [number for number, hit in enumerate(hits) if hit]


@pytest.mark.parametrize("text", ["dog", "DOG"])
def test_any_caption_name_or_reason_counts_in_any_case(text: str) -> None:
    assert found(text, batch()) == [0, 2, 3]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_count_however_they_are_spelt(form: Literal["NFC", "NFD"]) -> None:
    other: Literal["NFC", "NFD"] = "NFD" if form == "NFC" else "NFC"
    name = unicodedata.normalize(other, "CAFÉ.jpg")
    more = stored(5, filename=name, item_key=name)
    rows = pa.RecordBatch.from_pylist([more, *batch().to_pylist()], batch().schema)
    assert found(unicodedata.normalize(form, "café"), rows) == [0, 5]


def test_part_of_a_batch_is_searched_as_itself() -> None:
    assert found("dog", batch().slice(1, 3)) == [1, 2]
    assert found("dog", batch().slice(4)) == []
    assert found("dog", batch().slice(5)) == []


def test_only_the_captions_of_named_fields_count() -> None:
    assert found("red", batch(), frozenset({"captions"})) == [0]
    assert found("red", batch(), frozenset({"title"})) == []


def test_what_is_searched_is_no_pattern() -> None:
    assert found(".", batch().select(["captions"])) == []
