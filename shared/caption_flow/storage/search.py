"""Which rows a text is in, as people search: any case, any spelling of an accented letter."""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Collection
from dataclasses import dataclass
from functools import reduce
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from caption_flow.protocol.rows import TEXTS

_NAMES: Final = ("filename", "item_key", "error")


def numbered(first: int, count: int) -> pa.Array:
    """Return so many numbers from ``first`` on.

    As bytes: `pa.array` imports pandas where it is installed, which takes a second.
    """
    numbers = array("q", range(first, first + count))
    return pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(numbers)])


@dataclass(frozen=True, slots=True)
class Search:
    """Rows that have ``text`` in a caption, in the item's name or in the reason of its failure.

    Only captions of ``fields`` are looked at, or of all fields if none is named.
    """

    text: str
    fields: frozenset[str] = frozenset()

    def reads(self, present: Collection[str], output_fields: Collection[str]) -> list[str]:
        """Return the columns that are looked at, of those there are."""
        wanted = self.fields or frozenset(output_fields)
        return [name for name in present if name in _NAMES or name in wanted]

    def holds(self, batch: pa.RecordBatch) -> pa.Array:
        """Return for each row of a batch of such columns (at least one) whether it has the text.

        Null is no: `filter` takes it so, and scalars in its place would import pandas, see below.
        """
        return reduce(
            pc.or_kleene,
            [
                self._is_in(batch.column(name))
                for name in batch.schema.names
                if name in _NAMES or batch.schema.field(name).type == TEXTS
            ],
        )

    def _is_in(self, column: pa.Array) -> pa.Array:
        if column.type != TEXTS:
            return self._in_texts(column)
        rows = pc.list_parent_indices(column)
        hits = pc.unique(rows.filter(self._in_texts(pc.list_flatten(column))))
        return pc.is_in(numbered(0, len(column)), value_set=hits)

    def _in_texts(self, texts: pa.Array) -> pa.Array:
        # File systems differ in whether an accented letter is one character or two.
        found = None
        for form in {
            unicodedata.normalize("NFC", self.text),
            unicodedata.normalize("NFD", self.text),
        }:
            hit = pc.match_substring(texts, form, ignore_case=True)
            found = hit if found is None else pc.or_kleene(found, hit)
        return found
