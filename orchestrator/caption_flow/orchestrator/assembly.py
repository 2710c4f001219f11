"""From a configuration to an orchestrator that can be run: store, source, recipe, tokens."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import cast

from caption_flow.config.dataset import DatasetConfig
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.orchestrator.server.auth import Identity, Role, TokenTable
from caption_flow.orchestrator.service import Orchestrator, Settings
from caption_flow.orchestrator.sources.base import Source, SourceError
from caption_flow.orchestrator.sources.local import (
    SHARD,
    LocalSource,
    check_folder,
    check_same_dataset,
    name_of_dataset,
)
from caption_flow.orchestrator.sources.scan import ScanOptions
from caption_flow.storage.catalog import Catalog
from caption_flow.storage.database import open_for_reading, read_meta
from caption_flow.storage.store import RunStore
from caption_flow.storage.writer import Write


async def assemble(
    config: OrchestratorConfig,
    tokens: Iterable[tuple[str, str, str]],
    *,
    tls: ssl.SSLContext | None = None,
    limit: int | None = None,
    skip: Callable[[bytes], bool] | None = None,
    resume_leases: bool = True,
) -> Orchestrator:
    """Open everything a run needs. ``tokens`` are (role, name, token).

    ``limit`` and ``skip`` narrow a local dataset; see `LocalSource`. ``resume_leases`` is false
    when the workers of earlier days are known to be gone.

    Raises:
        SourceError: the dataset is not there, holds nothing, or is of a kind not supported yet.
        StorageError: the run's folder cannot be used.
    """
    await asyncio.to_thread(check_dataset, config.dataset)
    await asyncio.to_thread(_check_same_dataset, config)
    store = await asyncio.to_thread(RunStore, config.storage.data_dir)
    table = TokenTable()
    for role, name, token in tokens:
        table.add(token, Identity(cast("Role", role), name))
    return Orchestrator(
        settings_of(config, tls),
        config.recipe(),
        store,
        _source(config.dataset, store, limit, skip),
        table,
        dataset=name_of_dataset(Path(config.dataset.dataset_path)),
        mock_results=config.mock_results,
        resume_leases=resume_leases,
    )


def settings_of(config: OrchestratorConfig, tls: ssl.SSLContext | None) -> Settings:
    """Pick what the orchestrator itself needs from a configuration."""
    return Settings(
        host=config.host,
        port=config.port,
        tls=tls,
        chunk_size=config.chunk_size,
        chunks_per_request=config.chunks_per_request,
        lease_seconds=config.lease_seconds,
        max_attempts=config.max_attempts,
        checkpoint_interval=config.storage.checkpoint_interval,
        checkpoint_rows=config.storage.caption_buffer_size,
    )


def check_dataset(dataset: DatasetConfig) -> None:
    """Find out whether there is anything to caption; blocking. Raises `SourceError`."""
    if dataset.processor_type != "local_filesystem":
        raise SourceError(
            f"dataset.type {dataset.type} cannot be read by this release yet: "
            "put the images into a folder and use type: local_filesystem"
        )
    check_folder(Path(dataset.dataset_path), scan_options(dataset))


def _check_same_dataset(config: OrchestratorConfig) -> None:
    """Look before the folder is opened: whoever is refused has changed nothing."""
    data_dir = config.storage.data_dir
    connection = open_for_reading(data_dir)
    if connection is None:
        return
    with closing(connection), closing(Catalog(data_dir)) as catalog:
        remembered = read_meta(connection, "dataset")
        check_same_dataset(Path(config.dataset.dataset_path), remembered, catalog, data_dir)


def scan_options(dataset: DatasetConfig) -> ScanOptions:
    """Pick what concerns the walk through a folder."""
    return ScanOptions(
        recursive=dataset.recursive,
        follow_symlinks=dataset.follow_symlinks,
        include_hidden=dataset.include_hidden,
        include=tuple(dataset.include),
        exclude=tuple(dataset.exclude),
    )


def _source(
    dataset: DatasetConfig,
    store: RunStore,
    limit: int | None,
    skip: Callable[[bytes], bool] | None,
) -> Source:
    async def write(change: Write) -> None:
        await store.write(change)

    return LocalSource(
        Path(dataset.dataset_path),
        scan_options(dataset),
        Catalog(store.data_dir),
        write,
        listed=store.snapshot.counts.get(SHARD, 0),
        limit=limit,
        skip=skip,
    )
