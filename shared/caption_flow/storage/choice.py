"""Which of a run's rows somebody wants: by how they ended, and by a condition on their columns.

Conditions are SQL, as in ``WHERE``, and are evaluated by DuckDB, batch by batch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from caption_flow.protocol.rows import CAPTIONED, FAILED

Ending = Literal["ok", "flagged", "failed"]
ENDINGS: Final[tuple[Ending, ...]] = get_args(Ending)
"""How a row may have ended: captioned without any flag, captioned with one, or failed."""
_DECIDE_ENDINGS: Final = ("status", "flags")


class ChoiceError(ValueError):
    """A condition that cannot be evaluated; ``str()`` is one sentence a person can act on."""


@dataclass(slots=True)
class Choice:
    """Rows of these endings (all, if none is named) for which the condition holds.

    ``left_out`` counts the rows that the last pass over the store did not choose.
    """

    endings: frozenset[Ending] = frozenset()
    condition: str | None = None
    left_out: int = 0

    def reads(self, present: Collection[str]) -> Collection[str]:
        """Return the columns that it takes to choose, of those there are."""
        if self.condition is not None:
            return present
        return [name for name in _DECIDE_ENDINGS if name in present] if self.endings else ()

    def check(self, schema: pa.Schema) -> None:
        """Raise `ChoiceError` if the condition cannot be evaluated for rows of this schema."""
        if self.condition is not None:
            _holds(self.condition, schema.empty_table())

    def of(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows of a batch that are wanted, and count the others."""
        chosen = batch
        if self.endings:
            chosen = chosen.filter(self._ended_so(chosen))
        if self.condition is not None and chosen.num_rows:
            chosen = chosen.filter(_holds(self.condition, chosen))
        self.left_out += batch.num_rows - chosen.num_rows
        return chosen

    def _ended_so(self, batch: pa.RecordBatch) -> pa.Array:
        status = batch.column("status")
        flagged = pa.array([False] * batch.num_rows)
        if "flags" in batch.schema.names:
            flagged = pc.greater(pc.fill_null(pc.list_value_length(batch.column("flags")), 0), 0)
        captioned = pc.equal(status, CAPTIONED)
        masks = {
            "ok": pc.and_(captioned, pc.invert(flagged)),
            "flagged": pc.and_(captioned, flagged),
            "failed": pc.equal(status, FAILED),
        }
        wanted = pa.array([False] * batch.num_rows)
        for ending in self.endings:
            wanted = pc.or_(wanted, masks[ending])
        return wanted


def _holds(condition: str, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    """Return for each row whether a condition holds; where it is null, it does not."""
    import duckdb  # noqa: PLC0415  -- a tenth of a second, and only conditions need it

    table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
    # Not for safety, the condition is its user's own: a condition is about rows and nothing else.
    with duckdb.connect(config={"enable_external_access": False}) as connection:
        connection.register("rows_of_the_run", table)
        query = f"SELECT coalesce(({condition}\n)::BOOLEAN, false) AS chosen FROM rows_of_the_run"  # noqa: S608
        try:
            chosen = connection.sql(query).to_arrow_table()
        except duckdb.Error as error:
            first, *_ = str(error).splitlines()
            raise ChoiceError(f"{condition!r} cannot be asked of the rows: {first}") from error
    return chosen.column("chosen").combine_chunks()
