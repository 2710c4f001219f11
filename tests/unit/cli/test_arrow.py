"""No command of ours imports pandas for pyarrow's sake, and whoever wants it has it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.cli import ROOTS

pytest.importorskip("pandas")

SCRIPT = f"""
import sys
sys.path[:0] = {ROOTS!r}
import pyarrow as pa
if {{ours}}:
    from caption_flow.cli.arrow import keep_pandas_out
    keep_pandas_out()
table = pa.table({{{{"texts": [["a", None], []], "number": [1, 2]}}}})
assert table.to_pylist() == [
    {{{{"texts": ["a", None], "number": 1}}}}, {{{{"texts": [], "number": 2}}}}
]
print("pandas" in sys.modules)
import pandas
print(len(table.to_pandas()), len(pa.Table.from_pandas(pandas.DataFrame({{{{"a": [1, 2, 3]}}}}))))
print(any(type(one).__name__ == "_Absent" for one in sys.meta_path))
"""


@pytest.mark.parametrize("ours", [True, False])
def test_pyarrow_imports_pandas_unless_it_is_kept_out(ours: bool) -> None:
    """The second case shows that the first still makes a difference with this pyarrow."""
    said = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(ours=ours)], check=True, capture_output=True, text=True
    )
    assert said.stdout.splitlines() == [str(not ours), "2 3", "False"]
