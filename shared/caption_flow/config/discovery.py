"""Where configuration files are looked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

Component = Literal["orchestrator", "worker", "monitor"]
SUFFIXES: Final = (".yaml", ".yml", ".json")
ETC: Final = Path("/etc")


def find_config(
    component: Component,
    explicit: Path | None,
    cwd: Path,
    env: Mapping[str, str],
    *,
    etc: Path = ETC,
) -> Path | None:
    """Return the component's configuration file, or None; ``explicit`` wins, there or not."""
    if explicit is not None:
        return explicit
    candidates = (
        folder / f"{component}{suffix}"
        for folder in config_folders(cwd, env, etc=etc)
        for suffix in SUFFIXES
    )
    return next((path for path in candidates if path.is_file()), None)


def config_folders(cwd: Path, env: Mapping[str, str], *, etc: Path = ETC) -> Iterator[Path]:
    """Yield the folders in which files are looked for, first match first.

    ``etc`` is where a machine has its own.
    """
    home = Path(env["HOME"]) if env.get("HOME") else Path.home()
    yield cwd
    yield cwd / "config"
    yield home / ".caption-flow"
    yield (_absolute(env.get("XDG_CONFIG_HOME")) or home / ".config") / "caption-flow"
    yield etc / "caption-flow"
    for entry in (env.get("XDG_CONFIG_DIRS") or str(etc / "xdg")).split(":"):
        if folder := _absolute(entry):
            yield folder / "caption-flow"
    yield cwd / "configs"


def _absolute(text: str | None) -> Path | None:
    # The XDG base directory specification has relative entries ignored.
    return Path(text) if text and Path(text).is_absolute() else None
