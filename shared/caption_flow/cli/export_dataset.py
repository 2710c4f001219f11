"""The dataset of a run that is over, or goes on elsewhere: opened to read its images again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from caption_flow.cli.configuration import load_or_refuse
from caption_flow.cli.export_images import DatasetImages
from caption_flow.cli.failures import usage_error
from caption_flow.cli.folders import for_people
from caption_flow.config.dataset import LOCAL, DatasetConfig
from caption_flow.config.remembered import DATASET_SECTION, from_text
from caption_flow.orchestrator.sources.base import RunFolder, SourceError
from caption_flow.orchestrator.sources.registry import source_for
from caption_flow.storage.database import open_for_reading, read_meta
from caption_flow.storage.opening import KnownShard, known_shards
from caption_flow.storage.writer import Write


@contextmanager
def images_of(
    data_dir: Path, config: Path | None, dataset_path: str | None
) -> Iterator[DatasetImages]:
    """Open the dataset that a run captioned.

    What it was, the run's folder remembers; ``config`` is a file that says it instead, and
    ``dataset_path`` where it is now. Ends the command if it is not there, or is another one.

    Raises:
        StorageError: the run's folder cannot be read.
    """
    remembered, shards = _known(data_dir)
    dataset = _section(remembered, config, dataset_path)
    folder = RunFolder(data_dir, _refuse, shards=shards, only_reads=True)
    try:
        kind = source_for(dataset.processor_type)
        kind.check(dataset)
        if config is not None and remembered.get("dataset"):
            kind.check_same(dataset, remembered["dataset"], data_dir)
        source = kind.open(dataset, folder)
    except SourceError as error:
        usage_error(
            f"the images cannot be read again: {error} (--dataset PLACE says where they are now)"
        )
    with closing(source), closing(DatasetImages(source, shards)) as images:
        yield images


async def _refuse(_: Write) -> None:
    raise RuntimeError("whoever only reads a dataset writes nothing into the run's folder")


def _known(data_dir: Path) -> tuple[dict[str, str], dict[str, KnownShard]]:
    """Return what the ledger remembers of the dataset, and its shards."""
    connection = open_for_reading(data_dir)
    if connection is None:
        return {}, {}
    with closing(connection):
        facts = {name: read_meta(connection, name) for name in ("dataset", DATASET_SECTION)}
        return {name: fact for name, fact in facts.items() if fact}, known_shards(connection)


def _section(
    remembered: dict[str, str], config: Path | None, dataset_path: str | None
) -> DatasetConfig:
    if config is not None:
        section = load_or_refuse(config, {}).config.dataset
    elif DATASET_SECTION in remembered:
        section = from_text(remembered[DATASET_SECTION])
    elif dataset_path is not None:
        section = DatasetConfig(type=LOCAL, dataset_path=dataset_path)
    else:
        was = remembered.get("dataset")
        usage_error(
            f"this run does not say how to read its images again"
            f"{f', only that they were {for_people(was)}' if was else ''}: --config FILE with its "
            "dataset section does, or --dataset DIR for a folder of images"
        )
    if dataset_path is None:
        return section
    return section.model_copy(update={"dataset_path": dataset_path})
