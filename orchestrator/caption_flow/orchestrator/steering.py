"""What monitors see and admins do, in terms of the run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Protocol

import structlog

from caption_flow.config.changes import changed_keys, models_to_load, obstacles
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.config.problems import ConfigError
from caption_flow.config.secret import SecretError
from caption_flow.orchestrator.checking import Checking
from caption_flow.orchestrator.core.progress import Progress, TokenTally
from caption_flow.orchestrator.membership import Membership, Token, identities_of
from caption_flow.orchestrator.server.conversation import Link
from caption_flow.orchestrator.server.observers import SteeringError
from caption_flow.protocol.messages import AddToken, Done, LeaseId
from caption_flow.protocol.report import (
    Contributor,
    Images,
    Report,
    StorageReport,
    Tokens,
    WorkerReport,
    to_wire,
)
from caption_flow.storage.errors import StorageError
from caption_flow.storage.opening import KnownPart

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration with its tokens, and sentences about what in it has no effect."""

    config: OrchestratorConfig
    tokens: Sequence[Token]
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Configured:
    """What a run was started with, and how to read it anew: its own file, or a text in its place.

    ``read`` blocks, and raises `ConfigError` or `SecretError` with all that is wrong.
    """

    config: OrchestratorConfig
    read: Callable[[str | None], Configuration]


class Run(Protocol):
    """The orchestrator, as far as it can be steered."""

    @property
    def progress(self) -> Progress:
        """The run at this moment."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether every item is captioned or failed."""
        ...

    @property
    def draining(self) -> bool:
        """Whether the run is being ended."""
        ...

    @property
    def trouble(self) -> StorageError | None:
        """Why results cannot be stored at present, or None."""
        ...

    @property
    def links(self) -> Collection[Link]:
        """The connected workers."""
        ...

    @property
    def absent(self) -> Collection[Link]:
        """Workers that were lost and have not come back."""
        ...

    @property
    def flags(self) -> Mapping[str, int]:
        """Rows by flag."""
        ...

    @property
    def held(self) -> Collection[str]:
        """Who keeps items from being handed out."""
        ...

    @property
    def uptime_seconds(self) -> float:
        """How long the orchestrator has been there."""
        ...

    @property
    def dataset(self) -> str:
        """What the run is about."""
        ...

    @property
    def recipe(self) -> str:
        """The fingerprint of the recipe that is handed out."""
        ...

    @property
    def answers(self) -> TokenTally:
        """The tokens of the orchestrator's own time."""
        ...

    @property
    def checking(self) -> Checking:
        """The spot checks."""
        ...

    @property
    def shelf(self) -> Collection[KnownPart]:
        """The parts on disk."""
        ...

    @property
    def clock(self) -> float:
        """The time on the clock of the run, in seconds."""
        ...

    def leases_of(self, link: Link) -> Mapping[LeaseId, int]:
        """Return how many items are left of each lease that a worker has."""
        ...

    def drain(self) -> None:
        """End the run once what is in flight is in."""
        ...

    def stop(self) -> None:
        """End the run at once."""
        ...

    async def pause(self) -> None:
        """Hand out nothing, also after a restart."""
        ...

    async def resume(self) -> None:
        """Hand out again, unless somebody else holds."""
        ...

    async def retry_failed(self, kind: str | None) -> Mapping[str, int]:
        """Take failed rows back and have their items done again; return how many of each kind."""
        ...

    async def adopt(self, config: OrchestratorConfig) -> None:
        """Go on by another configuration, which has no obstacles."""
        ...


class Steersman:
    """Answers observers; see `caption_flow.orchestrator.server.observers.Steering`."""

    def __init__(self, run: Run, members: Membership, configured: Configured | None = None) -> None:
        self._run = run
        self._members = members
        self._configured = configured
        self._reloading = asyncio.Lock()

    # ------------------------------------------------------------------ what is so

    def report(self) -> dict[str, object]:
        """See `Steering`."""
        run, now = self._run, self._run.progress
        return to_wire(
            Report(
                state=self._state(),
                time=time.time(),
                uptime_seconds=run.uptime_seconds,
                version=_version(),
                dataset=run.dataset,
                recipe=run.recipe,
                total=now.total,
                listed=now.listed,
                pending=now.pending,
                leased=now.leased,
                committing=now.committing,
                captioned=now.captioned,
                failed=dict(now.failures),
                quarantined=now.failures.get("quarantined", 0),
                flagged=dict(run.flags),
                unserved=dict(now.unserved),
                passed_over=dict(now.passed_over),
                rate=now.rate,
                rate_average=now.rate_average,
                eta_seconds=now.eta_seconds,
                trouble=None if run.trouble is None else str(run.trouble),
                tokens=self._answered(),
                workers=tuple(self._workers()),
                storage=self._stored(now.done),
                contributors=tuple(self._contributors()),
            )
        )

    def _state(self) -> str:
        if self._run.draining:
            return "draining"
        if self._run.is_complete:
            return "finished"
        return "paused" if "admin" in self._run.held else "running"

    def _answered(self) -> Tokens:
        answers = self._run.answers
        rate_in, rate_out = answers.rates(now=self._run.clock)
        return Tokens(
            total_in=answers.total_in,
            total_out=answers.total_out,
            in_per_second=rate_in,
            out_per_second=rate_out,
        )

    def _workers(self) -> Iterable[WorkerReport]:
        for link in self._run.links:
            yield self._worker(link, connected=True)
        for link in self._run.absent:
            if self._run.leases_of(link):
                yield self._worker(link, connected=False)

    def _worker(self, link: Link, *, connected: bool) -> WorkerReport:
        leases, stats, now = self._run.leases_of(link), link.stats, time.monotonic()
        ways = {way: int(stats.get(f"read_{way}", 0)) for way in ("here", "there", "served")}
        return WorkerReport(
            name=link.worker,
            contributor=link.contributor,
            version=link.version,
            engine=link.engine,
            device=link.device,
            address=link.address,
            connected=connected,
            stages=link.stages,
            leases=len(leases),
            items=sum(leases.values()),
            rate=stats.get("rate", 0.0) if connected else 0.0,
            done=int(stats.get("done", 0)),
            failed=int(stats.get("failed", 0)),
            starved_seconds=stats.get("starved", 0.0),
            last_seen_seconds=now - link.heard_at,
            connected_seconds=now - link.joined_at if connected else 0.0,
            images=Images(**ways),
            stats=dict(stats),
        )

    def _stored(self, done: int) -> StorageReport:
        shelf = self._run.shelf
        rows = sum(part.rows for part in shelf)
        return StorageReport(
            parts=len(shelf),
            rows=rows,
            bytes=sum(part.bytes for part in shelf),
            buffered_rows=max(0, done - rows),
            last_checkpoint_at=max((part.recorded_at for part in shelf), default=None),
        )

    def _contributors(self) -> Iterable[Contributor]:
        return self._members.report(self._run.checking.standings())

    # ------------------------------------------------------------------ what is to be

    def shut_down(self, *, now: bool) -> Done:
        """See `Steering`."""
        if now:
            self._run.stop()
            return Done("the orchestrator stops; what is acknowledged is safe")
        self._run.drain()
        return Done("the orchestrator drains: what is in flight is taken, then it ends")

    async def pause(self) -> Done:
        """See `Steering`."""
        self._refuse_at_the_end()
        if "admin" in self._run.held:
            return Done("the run is paused already")
        await _noted(self._run.pause())
        return Done("paused: nothing is handed out until it is resumed, also after a restart")

    async def resume(self) -> Done:
        """See `Steering`."""
        if "admin" not in self._run.held:
            return Done("the run is not paused")
        await _noted(self._run.resume())
        return Done("resumed")

    async def retry_failed(self, kind: str | None) -> Done:
        """See `Steering`."""
        self._refuse_at_the_end()
        known = self._run.progress.failures
        if kind is not None and kind not in known:
            there = f"; there are {', '.join(sorted(known))}" if known else ""
            raise SteeringError(f"no item failed as {kind!r}{there}")
        try:
            counts = await self._run.retry_failed(kind)
        except StorageError as error:
            raise SteeringError(str(error)) from error
        return Done(f"{sum(counts.values())} items are tried again", {"items": dict(counts)})

    async def reload(self, config: str | None) -> Done:
        """See `Steering`."""
        self._refuse_at_the_end()
        # One after the other: each is compared with what the one before it has come to.
        async with self._reloading:
            if self._configured is None:
                raise SteeringError("this run has no configuration that could be reloaded")
            try:
                fresh = await asyncio.to_thread(self._configured.read, config)
            except (ConfigError, SecretError) as error:
                raise SteeringError(f"nothing was changed:\n{error}") from error
            return await self._take_over(self._configured, fresh)

    async def _take_over(self, before: Configured, fresh: Configuration) -> Done:
        old, new = before.config, fresh.config
        in_the_way = obstacles(old, new)
        if in_the_way:
            raise SteeringError("\n".join(["nothing was changed:", *in_the_way]))
        self._members.replace(identities_of(new, fresh.tokens))
        self._configured = Configured(new, before.read)
        changed, to_load = changed_keys(old, new), models_to_load(old.recipe(), new.recipe())
        log.info("the configuration was reloaded", changed=", ".join(changed), load=to_load)
        await _noted(self._run.adopt(new))
        facts = {"changed": changed, "models_to_load": to_load, "warnings": list(fresh.warnings)}
        return Done(_said_of(changed, to_load), facts)

    def _refuse_at_the_end(self) -> None:
        if self._run.draining:
            raise SteeringError("the run is being ended")

    async def add_token(self, asked: AddToken) -> Done:
        """See `Steering`."""
        added = await self._members.add(asked)
        self._run.checking.forgive(asked.name)
        return added

    async def remove_token(self, name: str) -> Done:
        """See `Steering`."""
        return await self._members.remove(name)

    def list_tokens(self) -> Done:
        """See `Steering`."""
        return self._members.listed()


async def _noted(change: Awaitable[None]) -> None:
    """Wait for a change, which is in force at once, to be on disk."""
    try:
        await change
    except StorageError as error:
        raise SteeringError(f"this is in force, but cannot be noted: {error}") from error


def _said_of(changed: Sequence[str], to_load: Sequence[str]) -> str:
    if not changed:
        return "nothing has changed but, perhaps, the tokens that the configuration refers to"
    loading = f"; workers load {', '.join(to_load)} anew" if to_load else ""
    return f"in force: {', '.join(changed)}{loading}"


def _version() -> str:
    try:
        return metadata.version("caption-flow")
    except metadata.PackageNotFoundError:
        return ""
