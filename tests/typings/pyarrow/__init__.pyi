# pyarrow is compiled and says nothing of its types; mypy takes it for Any, and so does pyright.
from typing import Any

def __getattr__(name: str) -> Any: ...
