"""What a dataset's card says of its rows, counted while they are written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from caption_flow.protocol.rows import CAPTIONED


@dataclass(slots=True)
class Tally:
    """Counts of rows; none of it grows with their number.

    ``contributors`` counts captioned rows by whose they are; who had only earlier stages of rows is
    named with none. ``texts`` counts by output field.
    """

    rows: int = 0
    captioned: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    contributors: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    texts: Counter[str] = field(default_factory=Counter)
    recipes: set[str] = field(default_factory=set)

    def add(self, batch: pa.RecordBatch, output_fields: list[str]) -> None:
        """Count the rows of a batch; columns that it lacks count for nothing."""
        self.rows += batch.num_rows
        names = batch.schema.names
        for name in output_fields:
            self.texts[name] += pc.sum(pc.list_value_length(batch.column(name))).as_py() or 0
        if "recipe" in names:
            self.recipes.update(filter(None, pc.unique(batch.column("recipe")).to_pylist()))
        for name, counter in (("models", self.models), ("flags", self.flags)):
            if name in names:
                counter.update(_counts(pc.list_flatten(batch.column(name))))
        if "status" not in names:
            return
        done = batch.filter(pc.equal(batch.column("status"), CAPTIONED))
        self.captioned += done.num_rows
        if "error_kind" in names:
            self.failures.update(_counts(batch.column("error_kind")))
        if "contributor" in names:
            self.contributors.update(_counts(done.column("contributor")))
        if "stage_stats" in names:
            self.contributors.update(dict.fromkeys(_of_stages(done.column("stage_stats")), 0))


def _counts(values: pa.Array) -> dict[str, int]:
    return {
        one["values"]: one["counts"] for one in pc.value_counts(values).to_pylist() if one["values"]
    }


def _of_stages(stats: pa.ListArray) -> list[str]:
    names = pc.unique(pc.struct_field(pc.list_flatten(stats), "contributor"))
    return [name for name in names.to_pylist() if name]
