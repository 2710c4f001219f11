"""How the owner of a run steers it from the same machine without having configured anything.

An orchestrator leaves its address and a token of its own, new at each start, in a file that only
its user can read, and takes the file away at its end. Who may read it may end the process anyway.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

ACCESS_FILE: Final = "local-admin.json"
NAME: Final = "local"
"""Whose the token is."""
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  -- read


@dataclass(frozen=True, slots=True)
class Access:
    """Where an orchestrator on this machine is, and its owner's token."""

    server: str
    token: str = field(repr=False)
    verify_ssl: bool = True


def read_access(data_dir: Path) -> Access | None:
    """Return how to reach the orchestrator that runs on a folder, or None if nobody says."""
    try:
        said = json.loads((data_dir / ACCESS_FILE).read_text("utf-8"))
        return Access(str(said["server"]), str(said["token"]), bool(said["verify_ssl"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_access(data_dir: Path, access: Access) -> None:
    """Put an access where only this user can read it; raises `OSError`."""
    path = data_dir / ACCESS_FILE
    write_privately(path, json.dumps(asdict(access)))


def write_privately(path: Path, text: str) -> None:
    """Write a file that only this user can read, in place of any other; raises `OSError`."""
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
        file.write(text)
    fresh.replace(path)


def remove_access(data_dir: Path, token: str) -> None:
    """Take the access with this token away; another orchestrator's is left, and so is none."""
    access = read_access(data_dir)
    if access is not None and access.token == token:
        (data_dir / ACCESS_FILE).unlink(missing_ok=True)


def address_on_this_machine(host: str, port: int, *, tls: bool) -> str:
    """Return the URL under which a server that listens like this is reached from its machine."""
    host = _EVERYWHERE.get(host.strip("[]"), host.strip("[]"))
    shown = f"[{host}]" if ":" in host else host
    return f"{'wss' if tls else 'ws'}://{shown}:{port}"
