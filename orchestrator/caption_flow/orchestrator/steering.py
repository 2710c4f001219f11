"""What monitors see and admins do, in terms of the run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, Protocol

from caption_flow.orchestrator.checking import Checking
from caption_flow.orchestrator.core.progress import Progress
from caption_flow.orchestrator.membership import Membership
from caption_flow.orchestrator.server.conversation import Link
from caption_flow.orchestrator.server.observers import SteeringError
from caption_flow.protocol.messages import AddToken, Done
from caption_flow.storage.errors import StorageError


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
    def checking(self) -> Checking:
        """The spot checks."""
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
    def flags(self) -> Mapping[str, int]:
        """Rows by flag."""
        ...

    @property
    def held(self) -> Collection[str]:
        """Who keeps items from being handed out."""
        ...

    def leases_of(self, link: Link) -> Collection[int]:
        """Return the leases that a worker has."""
        ...

    def drain(self) -> None:
        """End the run once what is in flight is in."""
        ...

    def stop(self) -> None:
        """End the run at once."""
        ...

    def hold(self, holder: Literal["admin"]) -> None:
        """Hand out nothing."""
        ...

    def let_go(self, holder: Literal["admin"]) -> None:
        """Hand out again, unless somebody else holds."""
        ...

    async def retry_failed(self, kind: str | None) -> Mapping[str, int]:
        """Take failed rows back and have their items done again; return how many of each kind."""
        ...


class Steersman:
    """Answers observers; see `caption_flow.orchestrator.server.observers.Steering`."""

    def __init__(self, run: Run, members: Membership) -> None:
        self._run = run
        self._members = members

    def report(self) -> dict[str, object]:
        """See `Steering`."""
        now = self._run.progress
        return {
            "state": self._state(),
            "total": now.total,
            "listed": now.listed,
            "captioned": now.captioned,
            "failed": dict(now.failures),
            "flagged": dict(self._run.flags),
            "pending": now.pending,
            "leased": now.leased,
            "unserved": dict(now.unserved),
            "rate": now.rate,
            "eta_seconds": now.eta_seconds,
            "trouble": None if self._run.trouble is None else str(self._run.trouble),
            "workers": [self._worker(link) for link in self._run.links],
            "contributors": self._members.report(self._run.checking.standings()),
        }

    def _worker(self, link: Link) -> dict[str, object]:
        return {
            "name": link.worker,
            "contributor": link.contributor,
            "stages": list(link.stages),
            "leases": len(self._run.leases_of(link)),
            "images": {
                way: int(link.stats.get(f"read_{way}", 0)) for way in ("here", "there", "served")
            },
            "stats": dict(link.stats),
        }

    def _state(self) -> str:
        if self._run.draining:
            return "draining"
        if self._run.is_complete:
            return "finished"
        return "paused" if "admin" in self._run.held else "running"

    def shut_down(self, *, now: bool) -> Done:
        """See `Steering`."""
        if now:
            self._run.stop()
            return Done("the orchestrator stops; what is acknowledged is safe")
        self._run.drain()
        return Done("the orchestrator drains: what is in flight is taken, then it ends")

    def pause(self) -> Done:
        """See `Steering`."""
        if "admin" in self._run.held:
            return Done("the run is paused already")
        self._run.hold("admin")
        return Done("paused: nothing is handed out until it is resumed")

    def resume(self) -> Done:
        """See `Steering`."""
        if "admin" not in self._run.held:
            return Done("the run is not paused")
        self._run.let_go("admin")
        return Done("resumed")

    async def retry_failed(self, kind: str | None) -> Done:
        """See `Steering`."""
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
        raise NotImplementedError

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
