"""Whether videos can be decoded here. Imports nothing heavy: commands ask before they start."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

MISSING_LIBRARY: Final = "videos need PyAV: pip install 'caption-flow[video]'"


def can_decode_videos() -> bool:
    """Tell whether PyAV, which brings FFmpeg, is installed."""
    return find_spec("av") is not None
