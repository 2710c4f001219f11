"""Keeps pyarrow from importing pandas, which takes a second of processor time for nothing.

pyarrow tries to import it once in a process, when it first makes an array of Python objects, so as
to know pandas' own objects if it is given any. That is in the middle of a run, on the event loop.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

_NAME: Final = "pandas"


class _Absent(importlib.abc.MetaPathFinder):
    """Says that there is no pandas."""

    def find_spec(
        self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> Any:
        if name == _NAME:
            raise ModuleNotFoundError(f"no {_NAME} for pyarrow", name=_NAME)
        return None


def keep_pandas_out() -> None:
    """Have pyarrow look for pandas now, and not find it; others import it as ever.

    For the processes of our own commands, before they do anything else with pyarrow. Whoever calls
    ``to_pandas`` afterwards is not in its way: that imports pandas itself.
    """
    import pyarrow as pa  # noqa: PLC0415  -- only commands that use it should wait for it

    if _NAME in sys.modules:
        return
    absent = _Absent()
    sys.meta_path.insert(0, absent)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(absent)
