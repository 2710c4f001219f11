"""This process's relatives: killing engine processes that will not go, and noticing an orphanage.

Linux's ``/proc`` is read where there is one; elsewhere `multiprocessing` names the children.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import defaultdict
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


def descendants() -> frozenset[int]:
    """Return the ids of the processes that this one started, directly or through others."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for entry in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # "pid (name) state ppid ...": the name may itself hold spaces and brackets.
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            children[int(fields[1])].append(int(entry.name))
    found: set[int] = set()
    to_visit = list(children[os.getpid()])
    while to_visit:
        pid = to_visit.pop()
        if pid not in found:
            found.add(pid)
            to_visit.extend(children[pid])
    if not found:
        found.update(child.pid for child in multiprocessing.active_children() if child.pid)
    return frozenset(found)


def kill(pids: frozenset[int]) -> None:
    """End processes at once, without asking them."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
