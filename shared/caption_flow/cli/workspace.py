"""A job as a folder: what lies where in it, and what a launcher owns of a job's configuration.

orchestrator.json   the configuration, tokens by reference: `run --workspace DIR` goes on with it
caption_data/       ledger and Parquet
logs/               orchestrator.log, worker-0.log, ...
exports/            captions.jsonl, of datasets that are no folder of images
report.json         what has become of it; see docs/report.md
*.token             what orchestrator.json refers to, for this user only; new at each start
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from caption_flow.cli.local_access import NAME, write_privately
from caption_flow.config.dataset import DatasetConfig
from caption_flow.config.load import Overrides, laid_over
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.config.secret import Secret

CONFIG_FILE: Final = "orchestrator.json"
REPORT_FILE: Final = "report.json"
OWNED: Final = (
    "host",
    "port",
    "ssl",
    "dataset",
    "storage.data_dir",
    "storage.checkpoint_dir",
    "auth",
)
"""The keys that whoever launches a job decides, whatever its configuration says."""
NOT_SHARED: Final[Mapping[str, Any]] = {"host": "127.0.0.1", "port": 0, "ssl": None}
"""How a launched orchestrator listens: for its own workers, on any free port."""
_WORKERS_OWNED: Final = ("server", "token", "name")
"""Of a `worker` section: a launcher has as many workers as there are GPUs."""
_TOKEN_FILES: Final[Mapping[str, str]] = {"worker": "worker.token", "admin": "admin.token"}
_KEY_FILE: Final = "api_key.token"


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder of one job; ``folder`` is absolute, so that its configuration works anywhere."""

    folder: Path

    @classmethod
    def at(cls, path: Path) -> Workspace:
        """Return the workspace at a path, there or not."""
        return cls(Path(os.path.abspath(path.expanduser())))  # noqa: PTH100  -- links are kept

    @property
    def config(self) -> Path:
        """The job's configuration."""
        return self.folder / CONFIG_FILE

    @property
    def report(self) -> Path:
        """What has become of the job, for programs."""
        return self.folder / REPORT_FILE

    @property
    def data_dir(self) -> Path:
        """The run's folder: ledger and Parquet."""
        return self.folder / "caption_data"

    @property
    def logs(self) -> Path:
        """Where each process has its log."""
        return self.folder / "logs"

    @property
    def exports(self) -> Path:
        """Where tables of texts go."""
        return self.folder / "exports"

    def owned(self) -> dict[str, Any]:
        """Return what replaces a configuration's own, by key, but for the dataset."""
        return {
            **NOT_SHARED,
            "storage.data_dir": str(self.data_dir),
            "storage.checkpoint_dir": None,
            "auth": {
                f"{role}_tokens": [{"token": self._reference(name), "name": NAME}]
                for role, name in _TOKEN_FILES.items()
            },
        }

    def begin(self, content: Mapping[str, Any], tokens: Mapping[str, str]) -> None:
        """Lay the folder out for a run that begins; raises `OSError`.

        ``content`` is what `configuration_of` returned; ``tokens`` are those of the run, by role.
        """
        from caption_flow.storage.atomic import replaced_file  # noqa: PLC0415  -- pulls in pyarrow

        self.logs.mkdir(parents=True, exist_ok=True)
        self.exports.mkdir(exist_ok=True)
        for role, name in _TOKEN_FILES.items():
            write_privately(self.folder / name, tokens[role])
        text = json.dumps(self._without_secrets(content), indent=2)
        with replaced_file(self.config, durable=True) as file:
            file.write(f"{text}\n".encode("ascii"))

    def _reference(self, name: str) -> str:
        return f"file:{self.folder / name}"

    def _without_secrets(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Put what is secret and written out into a file of its own, and its name in its place."""
        worker = content["worker"]
        engine = worker.get("engine")
        key = engine.get("api_key") if isinstance(engine, dict) else None
        if key is None or (secret := Secret(str(key))).reference is not None:
            return dict(content)
        write_privately(self.folder / _KEY_FILE, secret.reveal())
        reference = self._reference(_KEY_FILE)
        return {**content, "worker": laid_over(worker, {"engine.api_key": reference})}


@dataclass(frozen=True, slots=True)
class Job:
    """A launched configuration; in a workspace with what its file is to say.

    ``replaced`` are the owned keys of which the configuration it came from said something else.
    """

    config: OrchestratorConfig
    content: Mapping[str, Any] = field(default_factory=dict, repr=False)
    replaced: tuple[str, ...] = ()


def configuration_of(
    workspace: Workspace, orchestrator: Mapping[Any, Any], worker: Mapping[Any, Any]
) -> dict[str, Any]:
    """Return what a workspace's configuration says: all that two sections say but what is ours.

    Raises:
        ValueError: something in it is nothing that JSON has.
    """
    kept = {key: value for key, value in worker.items() if key not in _WORKERS_OWNED}
    token = workspace.owned()["auth"]["worker_tokens"][0]["token"]
    content = {
        "orchestrator": _without_empty(laid_over(orchestrator, workspace.owned())),
        "worker": {**kept, "token": token},
    }
    try:
        json.dumps(content)
    except TypeError as error:
        raise ValueError(f"cannot be written as JSON: {error}") from error
    return content


def _without_empty(content: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return an orchestrator's content without those of the owned keys that say nothing."""
    changed = dict(content)
    for dotted in OWNED:
        *sections, last = dotted.split(".")
        inner = changed
        for section in sections:
            inner[section] = dict(inner.get(section) or {})
            inner = inner[section]
        if inner.get(last) is None:
            inner.pop(last, None)
    return changed


def replaced(
    written: Mapping[Any, Any], worker: Mapping[Any, Any], overrides: Overrides
) -> tuple[str, ...]:
    """Return the owned keys of which a configuration says something else than what is laid over.

    ``worker`` is its `worker` section, whose connection is always the launcher's.
    """
    ours = (
        key
        for key in OWNED
        if key in overrides and _value_at(written, key) not in (None, overrides[key])
    )
    return (*ours, *(f"worker.{key}" for key in _WORKERS_OWNED if worker.get(key) is not None))


def _value_at(content: Mapping[Any, Any], dotted: str) -> Any:
    value: Any = content
    for step in dotted.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def anchored(dataset: DatasetConfig) -> str:
    """Return a dataset's path so that it means the same from any working folder."""
    path = dataset.dataset_path
    match dataset.processor_type:
        case "local_filesystem":
            return _absolute(path)
        case "huggingface_datasets":
            is_folder = path.startswith((".", "~")) or Path(path).is_dir()
            return _absolute(path) if is_folder else path
        case "webdataset":
            return "::".join(_anchored_tars(part.strip()) for part in path.split("::"))
        case _:
            return path  # another package's: what it means is not known here


def _absolute(path: str) -> str:
    return os.path.abspath(Path(path).expanduser())  # noqa: PTH100  -- links are kept


def _anchored_tars(location: str) -> str:
    """Return the location of tars; it may be a pattern, which is no path to be looked up."""
    path = Path(location)
    is_hub_id = location.count("/") == 1 and not path.exists() and not path.parent.exists()
    if not location or location.startswith(("/", "~")) or "://" in location or is_hub_id:
        return location
    return f"{Path.cwd()}/{location}"
