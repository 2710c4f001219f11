"""What one run on this machine is to do, and what can be known to be wrong with it at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caption_flow.cli.folders import for_people, refuse_unwritable
from caption_flow.cli.gpus import Shares
from caption_flow.cli.workspace import Workspace
from caption_flow.config.dataset import LOCAL
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.recipe.stages import Recipe


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run is to do.

    ``server`` is the openai engine's; ``worker_arguments`` are those of ``caption-flow worker``
    beside the connection, ``worker_secrets`` what goes into its environment; ``gpus`` says which
    worker sees which. ``owner_options`` are the engine options that a file's `worker` section lays
    over the recipe's; ``as_written`` is the recipe before a rehearsal took its models away.
    ``job_config`` is what a workspace's configuration is to say; ``replaced`` are the keys of a
    file that the launcher has decided otherwise, ``notes`` further sentences for people.
    """

    config: OrchestratorConfig
    engine: str
    server: str | None
    worker_arguments: Sequence[str]
    worker_secrets: Mapping[str, str] = field(repr=False)
    gpus: Shares
    output: Path | None
    existing: str
    """What to do about a folder's images that have a ``.txt``; other datasets have none."""
    export_column: str
    limit: int | None
    owner_options: Mapping[str, Any] = field(default_factory=dict)
    as_written: Recipe | None = None
    workspace: Workspace | None = None
    job_config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    replaced: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def folder(self) -> Path | None:
        """The folder of images, if the dataset is one: then texts go beside them."""
        dataset = self.config.dataset
        return Path(dataset.dataset_path) if dataset.processor_type == LOCAL else None

    @property
    def dataset_name(self) -> str:
        """The dataset as people are told of it, on one line."""
        return for_people(self.folder or self.config.dataset.dataset_path)

    @property
    def data_dir(self) -> Path:
        """The folder of the run's results."""
        return self.config.storage.data_dir

    @property
    def destination(self) -> Path:
        """The folder for the ``.txt`` files, or for the one file of texts (`texts_file`)."""
        exports = self.data_dir / "exports" if self.workspace is None else self.workspace.exports
        return self.output or self.folder or exports

    @property
    def logs(self) -> Path:
        """The folder of the logs."""
        return self.data_dir / "logs" if self.workspace is None else self.workspace.logs

    @property
    def texts_file(self) -> Path | None:
        """The file that has all texts of a dataset that is no folder of images."""
        return None if self.folder else self.destination / "captions.jsonl"

    @property
    def skip(self) -> Callable[[bytes], bool] | None:
        """Which files to leave out, by their path within the dataset; None for none."""
        return self.has_caption if self.folder and self.existing == "skip" else None

    def has_caption(self, path: bytes) -> bool:
        """Tell whether an image's ``.txt`` is there already; ``path`` is within the dataset."""
        stem = os.path.splitext(os.fsdecode(path))[0]  # noqa: PTH122
        return os.path.lexists(self.destination / f"{stem}.txt")

    @property
    def workers(self) -> str:
        """How many workers there will be and where they run, for people."""
        seen = self.gpus.workers
        count = f"{len(seen)} worker{'s' if len(seen) > 1 else ''}"
        if self.server is not None:
            return f"{count}, {self.server}"
        devices = [gpus.replace(",", "+") for gpus in seen if gpus]
        if not devices:
            return f"{count} on the CPU"
        several = len(devices) > 1 or "+" in devices[0]
        return f"{count} on GPU{'s' if several else ''} {', '.join(devices)}"

    @property
    def says_what_was_replaced(self) -> str | None:
        """The sentence about keys of a file that the launcher has decided otherwise, if any."""
        if not self.replaced:
            return None
        return f"From your configuration, replaced by the launcher: {', '.join(self.replaced)}"

    def check_folders(self) -> None:
        """End the command if results could not be written: else that would be found out last."""
        option = "--data-dir" if self.workspace is None else "--workspace"
        refuse_unwritable(self.data_dir, f"{option} DIR puts the results elsewhere")
        texts = ".txt files" if self.texts_file is None else "texts"
        refuse_unwritable(self.destination, f"--output DIR puts the {texts} elsewhere")


def videos_skipped(count: int) -> str:
    """Return the sentence about videos that nobody asked for."""
    videos = "1 video" if count == 1 else f"{count:,} videos"
    return f"{videos} skipped: --video-frames N (dataset.video) captions videos"


def note_on_recipe(config: OrchestratorConfig) -> str | None:
    """Return a sentence if a run's folder has rows that another recipe made. Raises `StorageError`.

    Rows stay as they are when the recipe changes; whoever changed it should not have to guess.
    """
    from caption_flow.storage.database import open_for_reading, read_meta  # noqa: PLC0415  -- lazy

    data_dir = config.storage.data_dir
    connection = open_for_reading(data_dir)
    if connection is None:
        return None
    with closing(connection):
        recipe = read_meta(connection, "recipe")
        with closing(connection.execute("SELECT 1 FROM batches UNION SELECT 1 FROM parts")) as rows:
            has_rows = rows.fetchone() is not None
    if not has_rows or recipe in {None, config.recipe().fingerprint}:
        return None
    return (
        "the model, prompts or sampling have changed since the last run: what is captioned already "
        f"stays as it is, only the rest is asked in the new way; another data dir than "
        f"{for_people(data_dir)} "
        "captions everything anew"
    )
