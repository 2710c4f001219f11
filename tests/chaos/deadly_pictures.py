"""Pictures whose decoding kills the process, as a hole in a C library does: a plugin of Pillow's.

`teach` puts a ``sitecustomize`` into a folder that is to stand in ``PYTHONPATH``: every Python that
is started then knows the format.
"""

from __future__ import annotations

from pathlib import Path

MAGIC = b"DEADLY"
_PLUGIN = f"""
import os, resource, signal
from PIL import Image

def accept(prefix):
    return prefix.startswith({MAGIC!r})

def open_deadly(fp, filename):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), signal.SIGSEGV)

Image.register_open("DEADLY", open_deadly, accept)
"""


def teach(folder: Path) -> str:
    """Write the plugin; return the folder as `PYTHONPATH` wants it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_PLUGIN)
    return str(folder)
