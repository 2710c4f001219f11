"""From a configuration to an orchestrator that can be run: store, source, recipe, tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.config.remembered import to_text
from caption_flow.orchestrator.membership import Token, identities_of
from caption_flow.orchestrator.server.auth import Identity, Role, TokenTable
from caption_flow.orchestrator.service import Orchestrator, settings_of
from caption_flow.orchestrator.sources.base import RunFolder, Source
from caption_flow.orchestrator.sources.registry import refuse_other_dataset, source_for
from caption_flow.orchestrator.steering import Configuration, Configured
from caption_flow.storage.store import RunStore
from caption_flow.storage.writer import Write

if TYPE_CHECKING:  # only for who serves TLS: the library of certificates takes a while to import
    from caption_flow.orchestrator.server.certificate import ServedCertificate


async def assemble(
    config: OrchestratorConfig,
    tokens: Iterable[Token],
    *,
    tls: ServedCertificate | None = None,
    limit: int | None = None,
    skip: Callable[[bytes], bool] | None = None,
    resume_leases: bool = True,
    stays_paused: bool = True,
    own_tokens: Iterable[Token] = (),
    read_again: Callable[[str | None], Configuration] | None = None,
) -> Orchestrator:
    """Open everything a run needs. ``tokens`` are those of the configuration.

    ``limit`` narrows the dataset, ``skip`` a folder of files; see `LocalSource`. ``resume_leases``
    is false when the workers of earlier days are known to be gone, ``stays_paused`` when starting
    the run means that it shall go on. ``own_tokens`` are this process's own: they stay when the
    configuration is reloaded, which takes ``read_again`` (see `Configured`).

    Raises:
        SourceError: the dataset is not there, holds nothing, or is of a kind not supported yet.
        StorageError: the run's folder cannot be used.
    """
    kind = source_for(config.dataset.processor_type)
    await asyncio.to_thread(kind.check, config.dataset)
    await asyncio.to_thread(refuse_other_dataset, config.dataset, config.storage.data_dir)
    store = await asyncio.to_thread(RunStore, config.storage.data_dir)
    try:
        source = await asyncio.to_thread(_open_source, config, store, limit, skip)
    except BaseException:
        store.release()
        raise
    table = TokenTable()
    table.replace(identities_of(config, tokens))
    for role, name, token in own_tokens:
        table.add(token, Identity(cast("Role", role), name))
    return Orchestrator(
        settings_of(config, tls),
        config.recipe(),
        store,
        source,
        table,
        dataset=kind.name_of(config.dataset),
        section=to_text(config.dataset),
        limit=limit,
        mock_results=config.mock_results,
        resume_leases=resume_leases,
        stays_paused=stays_paused,
        configured=None if read_again is None else Configured(config, read_again),
    )


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
