"""From a configuration to an orchestrator that can be run: store, source, recipe, tokens."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import cast

from caption_flow.config.dataset import DatasetConfig
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.orchestrator.core.spot_checks import CheckPolicy
from caption_flow.orchestrator.server.auth import Identity, Role, TokenTable, digest_of
from caption_flow.orchestrator.service import Orchestrator, Settings
from caption_flow.orchestrator.sources.base import RunFolder, Source
from caption_flow.orchestrator.sources.registry import source_for
from caption_flow.storage.database import open_for_reading, read_meta
from caption_flow.storage.store import RunStore
from caption_flow.storage.writer import Write


async def assemble(
    config: OrchestratorConfig,
    tokens: Iterable[tuple[str, str, str] | Identity],
    *,
    tls: ssl.SSLContext | None = None,
    limit: int | None = None,
    skip: Callable[[bytes], bool] | None = None,
    resume_leases: bool = True,
) -> Orchestrator:
    """Open everything a run needs.

    ``tokens`` are the configuration's (see `identities_of`), and (role, name, token) of those that
    this process made: reading the configuration anew does not touch them.

    ``limit`` narrows the dataset, ``skip`` a folder of files; see `LocalSource`. ``resume_leases``
    is false when the workers of earlier days are known to be gone.

    Raises:
        SourceError: the dataset is not there, holds nothing, or is of a kind not supported yet.
        StorageError: the run's folder cannot be used.
    """
    await asyncio.to_thread(check_dataset, config.dataset)
    await asyncio.to_thread(_check_same_dataset, config)
    store = await asyncio.to_thread(RunStore, config.storage.data_dir)
    try:
        source = await asyncio.to_thread(_open_source, config, store, limit, skip)
    except BaseException:
        store.release()
        raise
    table = TokenTable()
    configured = []
    for one in tokens:
        if isinstance(one, Identity):
            configured.append(one)
        else:
            role, name, token = one
            table.add(token, Identity(cast("Role", role), name))
    table.replace(configured)
    return Orchestrator(
        settings_of(config, tls),
        config.recipe(),
        store,
        source,
        table,
        dataset=source_for(config.dataset.processor_type).name_of(config.dataset),
        limit=limit,
        mock_results=config.mock_results,
        resume_leases=resume_leases,
    )


def identities_of(config: OrchestratorConfig) -> list[Identity]:
    """Return whom a configuration lets in. Raises `SecretError`."""
    entries = () if config.auth is None else config.auth.entries()
    return [
        Identity(role, entry.name, entry.limits, digest_of(entry.token.reveal()))
        for role, entry in entries
    ]


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
        checks=CheckPolicy(
            share=config.spot_checks.share,
            threshold=config.spot_checks.threshold,
            min_samples=config.spot_checks.min_samples,
            revokes=config.spot_checks.on_cheat == "revoke",
        ),
    )


def check_dataset(dataset: DatasetConfig) -> None:
    """Find out whether there is anything to caption; blocking. Raises `SourceError`."""
    source_for(dataset.processor_type).check(dataset)


def _check_same_dataset(config: OrchestratorConfig) -> None:
    """Look before the folder is opened: whoever is refused has changed nothing."""
    data_dir = config.storage.data_dir
    connection = open_for_reading(data_dir)
    if connection is None:
        return
    with closing(connection):
        remembered = read_meta(connection, "dataset")
    if remembered is not None:
        source = source_for(config.dataset.processor_type)
        source.check_same(config.dataset, remembered, data_dir)


def _open_source(
    config: OrchestratorConfig,
    store: RunStore,
    limit: int | None,
    skip: Callable[[bytes], bool] | None,
) -> Source:
    async def write(change: Write) -> None:
        await store.write(change)

    folder = RunFolder(
        store.data_dir,
        write,
        shards=store.snapshot.shards,
        columns=config.recipe().columns,
        limit=limit,
        skip=skip,
    )
    return source_for(config.dataset.processor_type).open(config.dataset, folder)
