"""Keeps pyarrow from importing pandas in the processes of this program."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _WithoutPandas(MetaPathFinder):
    """Finds no pandas."""

    def find_spec(
        self,
        fullname: str,
        _path: Sequence[str] | None,
        _target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is not wanted here", name=fullname)
        return None


def leave_pandas_out() -> None:
    """Let pyarrow take pandas for absent, unless somebody has imported it already.

    Before it makes its first array pyarrow imports pandas, where there is one, to know its types
    when it meets them: a second of processor time that would fall on the first rows, while an
    engine waits. It asks once and remembers the answer; whoever imports pandas later gets it, and
    ``to_pandas`` asks again.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa  # noqa: PLC0415  -- a fifth of a second, for those who need it

    finder = _WithoutPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)
