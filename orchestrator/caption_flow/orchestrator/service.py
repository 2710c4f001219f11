"""The orchestrator: events in, effects run. Knows everybody; decides nothing the ledger can decide.

One task a connection reads messages and turns them into ledger events; effects become writes to the
store and messages to workers. All of it runs on one event loop, so that the ledger needs no locks;
whatever blocks (SQLite, Parquet, listing, describing) runs in threads.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, assert_never

import msgspec
import structlog
from websockets.asyncio.server import Server

from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.config.remembered import DATASET_SECTION
from caption_flow.orchestrator.checking import Checking
from caption_flow.orchestrator.core import events as ev
from caption_flow.orchestrator.core.ledger import Ledger, Policy, StoredLease
from caption_flow.orchestrator.core.progress import Progress, Tally, TokenTally
from caption_flow.orchestrator.core.ranges import RangeSet
from caption_flow.orchestrator.core.spot_checks import CheckPolicy
from caption_flow.orchestrator.membership import Membership
from caption_flow.orchestrator.server.auth import Identity, TokenTable
from caption_flow.orchestrator.server.conversation import (
    MOST_UNACKNOWLEDGED,
    Conversations,
    Link,
)
from caption_flow.orchestrator.server.server import listen
from caption_flow.orchestrator.server.session import (
    GOING_AWAY,
    NORMAL,
    close,
)
from caption_flow.orchestrator.sources.base import (
    UNREADABLE,
    Changed,
    Item,
    Listed,
    PassedOver,
    ShardError,
    Source,
    SourceError,
    Vanished,
)
from caption_flow.orchestrator.steering import Configured, Steersman
from caption_flow.places.base import MISSING, NotHereError, PlaceError
from caption_flow.places.portions import Room, in_portions
from caption_flow.places.reader import PlaceReader
from caption_flow.protocol.codec import (
    MAX_FRAME_BYTES,
    MAX_REPORT_BYTES,
    ProtocolError,
)
from caption_flow.protocol.messages import (
    DRAIN_ACK_SECONDS,
    DRAIN_WORK_SECONDS,
    Drain,
    Finished,
    Grant,
    GrantedLease,
    Image,
    ItemDescription,
    LeaseId,
    Limits,
    Message,
    Recall,
    RecipeChanged,
    RecipeSpec,
    Trim,
    Wait,
    Welcome,
)
from caption_flow.protocol.places import Place
from caption_flow.protocol.rows import CAPTIONED, FAILED, Row
from caption_flow.recipe.serving import Leg, by_stage, positions
from caption_flow.recipe.stages import Recipe
from caption_flow.recipe.wire import to_spec
from caption_flow.storage.errors import StorageError, StorageFullError
from caption_flow.storage.opening import KnownPart, RememberedLease, Snapshot
from caption_flow.storage.partials import ForgetPartials, Partial
from caption_flow.storage.reopen import Opened
from caption_flow.storage.store import RunStore
from caption_flow.storage.writer import Write
from caption_flow.storage.writes import (
    CatalogEntry,
    CommitFailure,
    CommitPartials,
    CommitRows,
    CompareRows,
    EndLease,
    ForgetLease,
    ListShard,
    RememberColumns,
    RememberItems,
    RememberLease,
    SetMeta,
)

if TYPE_CHECKING:  # only for who serves TLS: the library of certificates takes a while to import
    from caption_flow.orchestrator.server.certificate import ServedCertificate

log = structlog.get_logger()

Holder = Literal["disk", "drain", "admin"]
"""Who may keep items from being handed out."""

_TICK_SECONDS: Final = 0.5
_PROGRESS_SECONDS: Final = 5.0
_SEED: Final = "spot_check_seed"
_QUARANTINED: Final = "quarantined"
_SHARD_PAUSES_SECONDS: Final = (5.0, 20.0, 60.0)
"""What is out of reach is tried again after each of these, then its leased items fail."""
_PAUSED: Final = "paused"
"""The fact that an admin has paused the run, by its presence."""
_GRANT_BYTES: Final = MAX_FRAME_BYTES // 8
"""Texts of earlier stages and columns in one message, about; a lease with more comes in several."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the orchestrator behaves; times in seconds."""

    host: str = "127.0.0.1"
    port: int = 8765
    tls: ServedCertificate | None = None
    chunk_size: int = 1000
    chunks_per_request: int = 2
    lease_seconds: float = 120.0
    max_attempts: int = 3
    checkpoint_interval: float = 60.0
    checkpoint_rows: int = 1000
    drain_seconds: float = DRAIN_WORK_SECONDS + DRAIN_ACK_SECONDS
    checks: CheckPolicy = field(default_factory=CheckPolicy)


def settings_of(config: OrchestratorConfig, tls: ServedCertificate | None) -> Settings:
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


class Orchestrator:
    """Leads one run. Make it, then `run` it; `drain` or `stop` ends it from outside."""

    def __init__(
        self,
        settings: Settings,
        recipe: Recipe,
        store: RunStore,
        source: Source,
        tokens: TokenTable,
        *,
        dataset: str,
        section: str = "",
        limit: int | None = None,
        mock_results: bool = False,
        resume_leases: bool = True,
        stays_paused: bool = True,
        configured: Configured | None = None,
    ) -> None:
        """Restore the run from its store, which is to remember that it is about ``dataset``.

        ``section`` is how that is configured, as `caption_flow.config.remembered` writes it.
        ``limit`` is how many items of it there are to be at most.

        Without ``resume_leases`` the workers of earlier days are known to be gone: what they held
        is handed out again at once instead of waiting for them. A run that was paused stays so if
        it ``stays_paused``. What it is ``configured`` with can be replaced while it runs.
        """
        self.settings = settings
        self.port: int | None = None
        self._recipe = recipe
        self._spec: RecipeSpec = to_spec(recipe, mock_results)
        self._store = store
        self._source = source
        self._dataset = dataset
        self._section = section
        self._room = _Room(store.snapshot.counts, None if source.catalogued else limit)
        self._places = PlaceReader(is_lister=True)
        self._tokens = tokens
        self._clock: Callable[[], float] = time.monotonic
        # What comes first and next is another recipe's: no stage of it can be taken up again.
        self._is_resumed = store.snapshot.meta.get("recipe") == recipe.fingerprint
        leases = _resumable(store.snapshot, recipe) if resume_leases else []
        self._ledger, self._stale = _restored_ledger(
            settings,
            store,
            leases,
            store.snapshot.between if self._is_resumed else {},
            stages=len(recipe.stages),
            now=self._clock(),
        )
        self._began = self._clock()
        self._stays_paused = stays_paused
        self._tally = Tally(store.snapshot.totals, now=self._clock())
        self._answers = TokenTally(now=self._clock())
        self._earlier_recipes: set[str] = set()
        """Fingerprints of recipes that this very orchestrator has handed out before."""
        self._flags: Counter[str] = Counter()
        """Rows of this orchestrator's own time by flag; what was stored before is in the parts."""
        self._buffered = store.snapshot.buffered
        self.membership = Membership(tokens, store.snapshot, self)
        self._seed = store.snapshot.meta.get(_SEED) or secrets.token_hex(32)
        self.checking = Checking(
            settings.checks,
            bytes.fromhex(self._seed),
            store.snapshot.standings,
            self.membership,
            self,
            patience_seconds=settings.lease_seconds,
        )
        self.steering = Steersman(self, self.membership, configured)
        self._conversations = Conversations(self, self.steering)
        self._tasks: set[asyncio.Task[None]] = set()
        self._checkpoint_due = asyncio.Event()
        self._ending = asyncio.Event()
        self._draining = False
        self._held: set[Holder] = set()
        self._unserved: frozenset[str] = frozenset()
        """Stages that nobody runs and something waits for, when this was last looked at."""
        self._passed_over: dict[str, str] = {}
        """Shards of which not all can be read, with the reason."""
        self._given_up: dict[str, str] = {}
        """Those of which items failed for it, with the reason."""
        self._failure: Exception | None = None
        self._trouble: StorageError | None = None
        self.ready = asyncio.Event()
        self.something_to_do = asyncio.Event()
        """Set once there are items to hand out, or it is sure that there are none."""
        self.finished = asyncio.Event()

    # ------------------------------------------------------------------ what others may know

    @property
    def progress(self) -> Progress:
        """The run at this moment."""
        ledger = self._ledger
        progress = self._tally.progress(
            total=ledger.found,
            listed=ledger.listed,
            pending=ledger.pending,
            leased=ledger.leased,
            workers=len(self._conversations.links),
            now=self._clock(),
        )
        return replace(
            progress,
            unserved=self._waiting_for_nobody(),
            committing=ledger.committing,
            passed_over=dict(self._passed_over),
        )

    def _waiting_for_nobody(self) -> dict[str, int]:
        """Return the items that wait for a stage that no worker runs; none while nobody is here."""
        if not self._conversations.links:
            return {}
        stages = self._recipe.stages
        return {stages[stage].name: items for stage, items in self._ledger.unserved.items()}

    @property
    def left_out(self) -> int:
        """Images that the source left out because they have a caption already."""
        return self._source.left_out

    @property
    def videos_left_out(self) -> int:
        """Videos that the source left out because nobody asked for them."""
        return self._source.videos_left_out

    @property
    def draining(self) -> bool:
        """Whether the run is being ended."""
        return self._draining

    @property
    def trouble(self) -> StorageError | None:
        """Why results cannot be stored at present, or None."""
        return self._trouble

    @property
    def is_complete(self) -> bool:
        """Whether every item is captioned or failed, as far as the ledger knows now."""
        return self._ledger.finished

    @property
    def links(self) -> Collection[Link]:
        """The connected workers."""
        return self._conversations.links.values()

    @property
    def flags(self) -> Mapping[str, int]:
        """Rows of this orchestrator's own time by flag."""
        return self._flags

    @property
    def held(self) -> Collection[Holder]:
        """Who keeps items from being handed out."""
        return self._held

    def leases_of(self, link: Link) -> Mapping[LeaseId, int]:
        """Return how many items are left of each lease that a worker has."""
        leases = self._ledger.leases_of(link.session)
        return {lease: left for lease, (_, _, left) in leases.items()}

    @property
    def absent(self) -> Collection[Link]:
        """Workers that were lost and have not come back."""
        return self._conversations.absent.values()

    @property
    def uptime_seconds(self) -> float:
        """How long this orchestrator has been there."""
        return self._clock() - self._began

    @property
    def dataset(self) -> str:
        """What the run is about."""
        return self._dataset

    @property
    def recipe(self) -> str:
        """The fingerprint of the recipe that is handed out."""
        return self._recipe.fingerprint

    @property
    def answers(self) -> TokenTally:
        """The tokens of this orchestrator's own time."""
        return self._answers

    @property
    def shelf(self) -> Collection[KnownPart]:
        """The parts on disk."""
        return self._store.shelf.values()

    @property
    def clock(self) -> float:
        """The time on the clock of this run, in seconds."""
        return self._clock()

    # ------------------------------------------------------------------ life

    async def run(self) -> None:
        """Serve until told to end, then flush everything to Parquet.

        Raises:
            ServerError: it cannot listen.
            SourceError: the dataset cannot be listed.
            StorageError: results can no longer be stored, or not be flushed at the end. What was
                acknowledged is safe.
        """
        self._store.start(self._on_trouble)
        try:
            async with self._serving() as server:
                if not self._is_resumed:
                    self._watch(self._store.write(ForgetPartials()))
                self._watch(self._store.write(self._facts()))
                self._take_up_pause()
                for lease in self._stale:
                    self._watch(self._store.write(ForgetLease(lease)))
                self.port = int(server.sockets[0].getsockname()[1])
                self.ready.set()
                self._spawn(self._list_dataset(), "listing")
                self._spawn(self._tick(), "clock")
                self._spawn(self._checkpoint_regularly(), "checkpoints")
                if self.settings.tls is not None:
                    self._spawn(self.settings.tls.watch(), "certificate")
                for name in list(self.checking.unfinished):
                    self.cut_off(name)
                await self._ending.wait()
                if self._failure is None:
                    await self._let_workers_finish()
                await self._say_goodbye()
        finally:
            await self._wind_up()
        if self._failure is not None:
            raise self._failure

    def drain(self) -> None:
        """Hand out nothing more, take what is in flight for a bounded time, flush and end."""
        self._draining = True
        self._ending.set()

    def stop(self) -> None:
        """End at once; what is acknowledged is safe, the final flush still happens."""
        self.settings = replace(self.settings, drain_seconds=0.0)
        self.drain()

    def hold(self, holder: Holder) -> None:
        """Hand out nothing until every holder has let go; results are still taken."""
        self._held.add(holder)
        self.apply(ev.Paused())

    def let_go(self, holder: Holder) -> None:
        """Hand out again, unless somebody else holds."""
        self._held.discard(holder)
        if not self._held:
            self.apply(ev.Resumed())

    def end_sessions(self, verdict: Callable[[Identity], str | None]) -> None:
        """End the sessions for whose token there is a reason to; their leases go back at once."""
        for closing in self._conversations.end(verdict):
            self._keep(closing)

    def write(self, write: Write) -> asyncio.Future[None]:
        """Queue a write; the future is done when it is durable, and the run ends if it fails."""
        future = self._store.write(write)
        self._watch(future)
        return future

    def look_at(self, write: CompareRows) -> asyncio.Future[None]:
        """Queue a look at rows; the future fails with `ProtocolError` if they are none."""
        return self._store.write(write)

    def cut_off(self, name: str) -> None:
        """Let a contributor in no more, and have all that it had a part in done again."""
        self._spawn(self._cut_off(name), f"cutting {name} off")

    async def _cut_off(self, name: str) -> None:
        why = "its answers differ from what others say of the same images"
        # When this is durable, so is whatever the contributor had on its way.
        await self.membership.revoke(self.membership.of(name), why)
        between = await self._store.partials_of(name)
        for shard, items in between.items():
            self.apply(ev.Rewound(shard, items))
        await self._store.write(ForgetPartials(between))
        counts = await self._take_back(self._store.reopen_contributor(name))
        log.warning("all of a contributor is done again", who=name, items=sum(counts.values()))
        self.checking.cut_off_is_done(name, self._clock())

    async def pause(self) -> None:
        """Hand out nothing until `resume`, also after a restart."""
        self.hold("admin")
        await self._store.write(SetMeta({_PAUSED: "yes"}))

    async def resume(self) -> None:
        """Hand out again."""
        self.let_go("admin")
        await self._store.write(SetMeta({_PAUSED: ""}))

    def _take_up_pause(self) -> None:
        if not self._store.snapshot.meta.get(_PAUSED):
            return
        if self._stays_paused:
            log.warning("the run is paused, as it was: `caption-flow resume` lets it go on")
            self.hold("admin")
        else:
            self._watch(self._store.write(SetMeta({_PAUSED: ""})))

    async def adopt(self, config: OrchestratorConfig) -> None:
        """Go on with other portions, limits and checkpoints, and by another recipe.

        There are no `obstacles`. Items that are leased are finished by the recipe they were granted
        under, if their worker has begun them and carries them to the end.

        Raises:
            StorageError: it cannot be noted which recipe is in force.
        """
        settings, recipe = settings_of(config, self.settings.tls), config.recipe()
        spec = to_spec(recipe, config.mock_results)
        replaced = recipe.fingerprint != self._recipe.fingerprint
        if replaced:
            self._earlier_recipes.add(self._recipe.fingerprint)
            self._earlier_recipes.discard(recipe.fingerprint)
        is_news = spec != self._spec or _limits(settings) != _limits(self.settings)
        self._recipe, self._spec = recipe, spec
        kept = {name: getattr(self.settings, name) for name in ("host", "port", "drain_seconds")}
        self.settings = replace(settings, **kept)
        # Before anything is granted or taken by the new rules.
        for link in self._conversations.links.values() if is_news else ():
            link.outgoing.send(RecipeChanged(spec, _limits(settings)))
        self.apply(
            ev.PolicyChanged(settings.chunk_size, settings.lease_seconds, settings.max_attempts)
        )
        self._checkpoint_due.set()  # the time until the next one counts from here
        self.checking.adopt(settings.checks, recipe_is_new=replaced)
        if replaced:
            # Before the facts: no disk that knows this recipe holds what stages of another gave.
            self.apply(ev.RecipeReplaced())
            self._watch(self._store.write(ForgetPartials()))
        await self._store.write(self._facts())

    async def retry_failed(self, kind: str | None) -> Mapping[str, int]:
        """Take failed rows back and have their items done again; return how many of each kind.

        Raises:
            StorageError: the parts concerned cannot be written anew.
        """
        await self._store.checkpoint()
        return await self._take_back(self._store.reopen_failures(kind))

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._ending.set()

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[Server]:
        server = await listen(
            self._conversations.serve,
            self._tokens,
            host=self.settings.host,
            port=self.settings.port,
            tls=None if self.settings.tls is None else self.settings.tls.context,
        )
        try:
            yield server
        finally:
            self._store.stop_waiting()  # whoever reads from a connection may wait for the disk
            server.close(close_connections=True)
            await server.wait_closed()

    async def _let_workers_finish(self) -> None:
        self.hold("drain")
        for link in self._conversations.links.values():
            link.outgoing.send(Drain("the orchestrator is shutting down"))
        began = self._clock()
        # Asked anew each time: `stop` takes the patience away. A change of the ledger is no event.
        while self._clock() - began < self.settings.drain_seconds and (  # noqa: ASYNC110
            self._ledger.committing or self._anybody_works()
        ):
            await asyncio.sleep(0.05)

    def _anybody_works(self) -> bool:
        return any(self._ledger.leases_of(session) for session in self._conversations.links)

    async def _say_goodbye(self) -> None:
        links = list(self._conversations.links.values())
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                for outgoing in (*self._conversations.observers, *(one.outgoing for one in links)):
                    await outgoing.flush()
        code = NORMAL if self._ledger.finished else GOING_AWAY
        await asyncio.gather(
            *(close(link.connection, code, "the orchestrator ends") for link in links),
            return_exceptions=True,
        )

    async def _wind_up(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._store.stop_waiting()
        try:
            moved = await self._store.checkpoint()
            log.info("flushed to Parquet", rows=moved)
        except StorageError as error:
            self._failure = self._failure or error
        finally:
            await self._places.close()
            self._source.close()
            await self._store.close()

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        self._keep(asyncio.get_running_loop().create_task(work, name=name))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Exception):
            if not isinstance(error, SourceError | StorageError):
                log.error("a task of the orchestrator failed", task=task.get_name(), exc_info=error)
            self._fail(error)

    # ------------------------------------------------------------------ tasks

    async def _list_dataset(self) -> None:
        async for finding in self._source.listing():
            match finding:
                case Listed(shard, count, facts):
                    await self._listed(shard, self._room.take(shard, count), facts)
                    if self._room.is_full:
                        break
                case Changed(shard, items):
                    await self._reopen(shard, items)
                case Vanished(_, count, examples) if count:
                    log.warning(
                        "items are gone from the dataset, their captions are kept",
                        items=count,
                        such_as=examples,
                    )
                case PassedOver(shard, reason, partly):
                    self._pass_over(shard, reason, partly=partly)
        if self._source.videos_left_out:
            log.warning(
                "videos are skipped: dataset.video (run --video-frames N) captions them",
                videos=self._source.videos_left_out,
            )
        self.apply(ev.ListingFinished())
        log.info("the dataset is listed", items=self._ledger.found)

    async def _listed(self, shard: str, count: int, facts: str) -> None:
        """Make known that there are items; they are on disk before any of them is handed out."""
        if not self._source.catalogued:
            known = self._store.snapshot.shards.get(shard)
            if known is None or (known.count, known.facts) != (count, facts):
                await self._store.write(ListShard(shard, count, facts))
        self.apply(ev.ItemsFound(shard, count))

    def _pass_over(self, shard: str, reason: str, *, partly: bool = False) -> None:
        if shard not in self._passed_over:
            what = "not all of a shard can be read" if partly else "a shard is passed over"
            log.error(what, shard=shard, reason=reason)
        self._passed_over[shard] = reason

    async def _reopen(self, shard: str, items: frozenset[int]) -> None:
        """Take rows back, durably, and only then have their items done again.

        Items between stages begin again at once: from here on nothing of theirs may be added to.
        """
        self.apply(ev.Rewound(shard, items))
        await self._store.write(ForgetPartials({shard: items}))
        counts = await self._take_back(self._store.reopen({shard: items}))
        if counts:
            log.info("items have changed and are captioned again", items=sum(counts.values()))

    async def _take_back(self, opening: Awaitable[Opened]) -> Mapping[str, int]:
        """Have items done again once their rows are gone from the disk; return counts by kind."""
        opened = await opening
        self._tally.take_back(opened.counts)
        self.membership.take_back(opened.contributors)
        if opened.items:
            self.finished.clear()
        for shard, indices in opened.items.items():
            self.apply(ev.Reopened(shard, tuple(sorted(indices))))
        return opened.counts

    async def _tick(self) -> None:
        told = 0.0
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self.apply(ev.Ticked())
            self.membership.expire()
            self.checking.look(self._clock())
            if self._clock() - told >= _PROGRESS_SECONDS:
                told = self._clock()
                self._warn_of_stages()
                self.log_progress()

    def _warn_of_stages(self) -> None:
        """Say once of each stage that nobody runs it though items wait for it."""
        waiting = self._waiting_for_nobody()
        for stage, items in waiting.items():
            if stage not in self._unserved:
                log.warning(
                    "items wait for a stage that no connected worker runs: start one that does, "
                    "with the stage in its --stages or without --stages",
                    stage=stage,
                    items=items,
                )
        self._unserved = frozenset(waiting)

    def log_progress(self) -> None:
        """Log ``step N/M``, the form that programs look for in the log's last lines."""
        now = self.progress
        total = now.total if now.listed else f"{now.total}+"
        log.info(
            f"step {now.done}/{now.total}",  # noqa: G004  -- the form is what counts
            captioned=now.captioned,
            failed=now.failed,
            **({"flagged": dict(self._flags)} if self._flags else {}),
            total=total,
            rate=f"{now.rate:.1f}/s",
            workers=now.workers,
            **({"waiting_for_stage": dict(now.unserved)} if now.unserved else {}),
            **({"shards_passed_over": len(now.passed_over)} if now.passed_over else {}),
        )

    async def _checkpoint_regularly(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.settings.checkpoint_interval):
                    await self._checkpoint_due.wait()
            self._checkpoint_due.clear()
            if not self._buffered:
                continue
            due, self._buffered = self._buffered, 0
            try:
                moved = await self._store.checkpoint()
            except StorageFullError as error:
                self._buffered += due
                log.error(str(error))  # noqa: TRY400  -- a full disk needs room, not a traceback
                await asyncio.sleep(_PROGRESS_SECONDS)
            else:
                log.info("checkpoint", rows=moved)

    def _on_trouble(self, trouble: StorageError | None) -> None:
        self._trouble = trouble
        if trouble is None:
            log.info("results are stored again")
            self.let_go("disk")
        else:
            log.error(str(trouble))
            self.hold("disk")

    def _facts(self) -> SetMeta:
        return SetMeta(
            {
                "dataset": self._dataset,
                DATASET_SECTION: self._section,
                "recipe": self._recipe.fingerprint,
                "output_fields": "\n".join(self._recipe.output_fields),
                "stages": _told_of(self._recipe),
                _SEED: self._seed,
            }
        )

    # ------------------------------------------------------------------ for conversations

    def welcome(self, link: Link, held: Collection[int]) -> Welcome:
        """See `Leader`."""
        leases = self._ledger.leases_of(link.session)
        return Welcome(
            worker=link.worker,
            recipe=self._spec,
            limits=_limits(self.settings),
            leases=tuple(lease for lease in held if lease in leases),
            total=self._ledger.found if self._ledger.listed else None,
        )

    def refusal(self, link: Link) -> str | None:
        """See `Leader`."""
        return self.membership.refusal(link)

    def lets_in(self, identity: Identity) -> bool:
        """See `Leader`."""
        return self.membership.lets_in(identity)

    def serves(self, link: Link) -> frozenset[int]:
        """See `Leader`."""
        return positions(self._recipe, link.stages)

    def shard_to_read(self, link: Link, lease: int, items: tuple[int, ...]) -> str | None:
        """See `Leader`."""
        return self.checking.shard_to_read(link.session, lease, items) or self._ledger.may_read(
            link.session, lease, items
        )

    async def read_image(
        self, lease: int, shard: str, item: int, room: Room
    ) -> AsyncGenerator[Image]:
        """See `Leader`."""
        if shard in self._given_up:  # described once more, it would be waited for once more
            yield Image(lease, item, error=self._given_up[shard], kind=UNREADABLE)
            return
        sent = 0
        try:
            where = partial(self._place_of, shard, item)
            async with aclosing(in_portions(self._places, where, room)) as portions:
                async for data, more in portions:
                    yield Image(lease, item, data, offset=sent, more=more)
                    sent += len(data)
        except PlaceError as error:  # as the worker would say itself
            yield Image(lease, item, error=str(error), kind=error.kind, offset=sent)
        except (NotHereError, ShardError, SourceError) as error:
            kind = UNREADABLE if isinstance(error, ShardError) else MISSING
            why = f"its bytes cannot be read: {error}"
            yield Image(lease, item, error=why, kind=kind, offset=sent)
        except Exception:  # a defect is no reason to have the worker wait for ever
            log.exception("an image could not be read", shard=shard, item=item)
            why = "the orchestrator failed while reading it; its log says how"
            yield Image(lease, item, error=why, kind=MISSING, offset=sent)

    def _place_of(self, shard: str, item: int) -> Place:
        """Return where an item is; blocking. Raises `PlaceError`, `ShardError`, `SourceError`."""
        found = self._source.locate(shard, item)
        if found is None:
            raise PlaceError(MISSING, "the item is not in the dataset")
        if found.place is None:
            raise PlaceError(found.kind, found.reason or "the item is not in the dataset")
        return found.place

    # ------------------------------------------------------------------ effects

    def apply(  # noqa: C901, PLR0912  -- one match over all effects is the map of the shell
        self, event: ev.Event, *, link: Link | None = None, payload: bytes = b""
    ) -> None:
        """See `Leader`."""
        event = self._beside_the_ledger(event, link, payload)
        for effect in self._ledger.handle(event, now=self._clock()):
            match effect:
                case ev.Commit():
                    self._commit(effect, link, payload)
                case ev.CommitQuarantine():
                    self._quarantine(effect)
                case ev.Grant():
                    self._grant(effect)
                case ev.Remember():
                    self._remember(effect, effect.worker, live=effect.live)
                case ev.EndLease(lease):
                    self._watch(self._store.write(EndLease(lease)))
                case ev.ForgetLease(lease):
                    self._watch(self._store.write(ForgetLease(lease)))
                case ev.Wait(session, seconds, all_handed_out, rationed):
                    self._tell_to_wait(session, Wait(seconds, all_handed_out), rationed=rationed)
                case ev.Trim(session, lease, items):
                    self._tell(session, Trim(lease, items))
                case ev.Recall(session):
                    self._tell(session, Recall())
                case ev.Refuse(session, reason):
                    self.refuse(session, reason)
                case ev.Finish(session):
                    self._finish(session)
                case _:
                    assert_never(effect)
        if self._ledger.pending or self._ledger.finished:
            self.something_to_do.set()
        if isinstance(event, ev.Wanted):
            self.checking.look(self._clock())

    def _beside_the_ledger(self, event: ev.Event, link: Link | None, payload: bytes) -> ev.Event:
        """Have an event heard that concerns others, too; return what of it concerns the ledger."""
        match event:
            case ev.Reported() | ev.Released():
                if self.checking.takes(event, link, payload):
                    return ev.Heard(event.session)
            case ev.SessionJoined(session) if session in self._conversations.links:
                self.membership.ration(self._conversations.links[session].identity)
                self.checking.notices(event)
            case _:
                self.checking.notices(event)
        return event

    def _tell_to_wait(self, session: str, wait: Wait, *, rationed: bool) -> None:
        link = self._conversations.links.get(session)
        if link is not None:
            reason = self.membership.exhausted(link) if rationed else ""
            link.outgoing.send(msgspec.structs.replace(wait, reason=reason))

    def _tell(self, session: str, message: Message) -> None:
        link = self._conversations.links.get(session)
        if link is not None:
            link.outgoing.send(message)

    def _commit(self, effect: ev.Commit, link: Link | None, payload: bytes) -> None:
        leg = Leg(self._recipe, effect.stage, effect.reach)
        contributor = "" if link is None else link.contributor
        rows = [effect.items[at] for at in effect.accepted]
        payload = payload if rows else b""
        write: CommitRows | CommitPartials
        if effect.partial:
            write = CommitPartials(
                shard=effect.shard,
                items=effect.items,
                accepted=effect.accepted,
                payload=payload,
                leg=leg,
                contributor=contributor,
                worker=effect.worker,
                earlier_recipes=frozenset(self._earlier_recipes),
            )
        else:
            write = CommitRows(
                shard=effect.shard,
                chunk_first=effect.chunk_first,
                items=effect.items,
                accepted=effect.accepted,
                payload=payload,
                output_fields=self._recipe.output_fields,
                contributor=contributor,
                worker=effect.worker,
                optional_fields=self._recipe.optional_fields,
                leg=leg,
                known_kinds=self.membership.contributors.kinds(contributor),
            )
            self.membership.contributors.set_out(contributor, len(rows))
            if link is not None and not effect.stage and leg.is_last:
                write.compared = self.checking.chosen(link, effect.shard, rows)
        future = self._store.write(write)
        size = len(payload)  # now: what of it is not accepted is cut away on the way to disk
        if link is not None:
            self._conversations.begun(size)
        future.add_done_callback(partial(self._committed, effect, write, link, size))

    def _committed(
        self,
        effect: ev.Commit,
        write: CommitRows | CommitPartials,
        link: Link | None,
        size: int,
        done: asyncio.Future[None],
    ) -> None:
        if link is not None:
            self._conversations.settled(link, size)
        error = None if done.cancelled() else done.exception()
        if isinstance(write, CommitRows):
            counts = {} if error is not None or done.cancelled() else write.counts
            self.membership.contributors.arrive(write.contributor, len(write.accepted), counts)
        if isinstance(error, ProtocolError):
            if link is not None:
                link.refused = True
            self.apply(ev.CommitRejected(effect.ticket))
            self.refuse(effect.session, str(error))
        elif error is not None or done.cancelled():
            self._cannot_store(error)
        else:
            self._count(write.counts)
            self._answers.add(*write.tokens, now=self._clock())
            self._flags.update(write.flags)
            if link is not None and isinstance(write, CommitRows):
                self.checking.stored(link, write, self._clock())
            is_outdated = isinstance(write, CommitPartials) and write.is_outdated
            ticket = effect.ticket
            self.apply(ev.CommitRejected(ticket) if is_outdated else ev.Committed(ticket))
            if link is not None and not link.refused:
                link.outgoing.acknowledge(effect.seq)

    def _count(self, counts: Mapping[str, int]) -> None:
        self._tally.add(counts, now=self._clock())
        self._buffered += sum(counts.values())
        if self._buffered >= self.settings.checkpoint_rows:
            self._checkpoint_due.set()

    def _quarantine(self, effect: ev.CommitQuarantine) -> None:
        row = Row(
            effect.item,
            FAILED,
            error_kind=_QUARANTINED,
            error=(
                f"given up after {effect.attempts} attempts that ended with the worker or its "
                f"engine; the last one: {effect.evidence}"
            ),
            recipe=self._recipe.fingerprint,
        )
        log.warning("item quarantined", shard=effect.shard, item=effect.item, why=effect.evidence)
        future = self._store.write(
            CommitFailure(effect.shard, effect.chunk_first, row, self._recipe.output_fields, "")
        )

        def stored(done: asyncio.Future[None]) -> None:
            if done.cancelled() or done.exception() is not None:
                self._cannot_store(None if done.cancelled() else done.exception())
                return
            self._count({_QUARANTINED: 1})
            self.apply(ev.Committed(effect.ticket))

        future.add_done_callback(stored)

    def _grant(self, effect: ev.Grant) -> None:
        link = self._conversations.links.get(effect.session)
        if link is None:
            return
        self._tally.begin(now=self._clock())
        self._answers.begin(now=self._clock())
        remembered = self._remember(effect, link.worker, live=True)
        self._spawn(self._send_grant(link, effect, remembered), f"grant {effect.lease}")

    def _remember(
        self, effect: ev.Grant | ev.Remember, worker: str, *, live: bool
    ) -> asyncio.Future[None]:
        remembered = self._store.write(
            RememberLease(
                effect.lease,
                effect.session,
                worker,
                effect.shard,
                effect.chunk_first,
                effect.chunk_count,
                effect.items,
                live,
                effect.stage,
            )
        )
        self._watch(remembered)
        return remembered

    def grant_checks(self, link: Link, lease: LeaseId, shard: str, items: tuple[int, ...]) -> None:
        """Send a worker items to do, as any others; no disk has to know of it."""
        granted = GrantedLease(lease, shard, f"{shard}:{items[0]}", ())
        self._spawn(self._send_checks(link, granted, items), f"grant {lease}")

    async def _send_checks(self, link: Link, lease: GrantedLease, items: tuple[int, ...]) -> None:
        found = await asyncio.to_thread(_describe, self._source, lease.shard, items)
        for parcel in _parcels(tuple(_description_of(item) for item in found)):
            link.outgoing.send(Grant((msgspec.structs.replace(lease, items=parcel),)))

    def may_check(self, link: Link) -> bool:
        """Tell whether a worker runs every stage."""
        return len(self.serves(link)) == len(self._recipe.stages)

    def may_hold_more(self, link: Link) -> bool:
        """Tell whether a worker may be given a lease beside those it has."""
        return self._ledger.may_hold_more(link.session)

    def reserve_lease(self) -> LeaseId:
        """Return a number that no lease has or will have."""
        return self._ledger.reserve_lease()

    @property
    def all_terminal(self) -> bool:
        """Whether every item of the run has its row."""
        return self._ledger.all_terminal

    def compare(self, items: tuple[int, ...], payload: bytes) -> CompareRows:
        """Return the write that looks at rows of the run's recipe."""
        recipe = self._recipe
        return CompareRows(
            items, payload, recipe.output_fields, recipe.optional_fields, recipe.fingerprint
        )

    async def _send_grant(
        self, link: Link, effect: ev.Grant, remembered: asyncio.Future[None]
    ) -> None:
        found = await self._described(effect.shard, effect.items)
        entries = [_entry_of(item) for item in found]
        if not self._source.catalogued:
            await self._store.write(RememberItems(effect.shard, entries))
        elif self._recipe.columns:
            await self._store.write(RememberColumns(effect.shard, entries))
        # What comes in under a lease that no disk knows would be acknowledged and not stored.
        await remembered
        items = tuple(_description_of(item) for item in found)
        if effect.stage:
            items = _with_earlier(items, await self._store.partials(effect.shard, effect.items))
        lease = GrantedLease(
            effect.lease, effect.shard, f"{effect.shard}:{effect.chunk_first}", (), effect.stage
        )
        for parcel in _parcels(items):
            link.outgoing.send(Grant((msgspec.structs.replace(lease, items=parcel),)))

    async def _described(self, shard: str, items: Sequence[int]) -> list[Item]:
        """Have leased items described; those of a shard that stays unreadable without places."""
        pauses = () if shard in self._given_up else _SHARD_PAUSES_SECONDS
        for pause in (*pauses, None):
            try:
                return await asyncio.to_thread(_describe, self._source, shard, items)
            except ShardError as error:
                if pause is None or not error.is_passing:
                    self._given_up[shard] = str(error)
                    self._pass_over(shard, f"leased items have failed: {error}", partly=True)
                    return _all_of(error.items, items)
                log.warning("a shard is out of reach, its items wait", shard=shard, reason=error)
                await asyncio.sleep(pause)
        raise AssertionError("unreachable: the last try returns or raises")

    def begun(self, size: int) -> None:
        """Take note that a report of so many bytes is being looked at."""
        self._conversations.begun(size)

    def settled(self, link: Link, size: int) -> None:
        """Take note that it has been."""
        self._conversations.settled(link, size)

    def refuse(self, session: str, reason: str) -> None:
        """Close a session that broke the protocol."""
        closing = self._conversations.drop(session, reason)
        if closing is not None:
            self._keep(closing)

    def _finish(self, session: str | None) -> None:
        counts = self._tally.counts
        captioned = counts.get(CAPTIONED, 0)
        message = Finished(captioned, sum(counts.values()) - captioned)
        if session is None:
            self.log_progress()
            log.info(
                "every item is captioned or failed", captioned=captioned, failed=message.failed
            )
            self.finished.set()
        for link in list(self._conversations.links.values()):
            if session is None or link.session == session:
                link.outgoing.send(message)

    def _watch(self, future: asyncio.Future[None]) -> None:
        future.add_done_callback(self._watched)

    def _watched(self, done: asyncio.Future[None]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._cannot_store(None if done.cancelled() else done.exception())

    def _cannot_store(self, error: BaseException | None) -> None:
        if isinstance(error, Exception):
            self._fail(error)


class _Room:
    """How many items there may still be, where the caller wants no more than ``limit`` in all."""

    def __init__(self, counts: Mapping[str, int], limit: int | None) -> None:
        self._counts = dict(counts)
        self._limit = limit

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another item."""
        return self._limit is not None and sum(self._counts.values()) >= self._limit

    def take(self, shard: str, count: int) -> int:
        """Return how many of a shard's items there is room for; never less than before."""
        before = self._counts.get(shard, 0)
        if self._limit is not None:
            others = sum(self._counts.values()) - before
            count = max(before, min(count, self._limit - others))
        self._counts[shard] = count
        return count


def _limits(settings: Settings) -> Limits:
    """Return what workers are told of their pace."""
    return Limits(
        lease_seconds=settings.lease_seconds,
        heartbeat_seconds=max(0.5, min(10.0, settings.lease_seconds / 4)),
        chunks_per_request=settings.chunks_per_request,
        max_frame_bytes=MAX_REPORT_BYTES,
        max_unacknowledged_batches=MOST_UNACKNOWLEDGED,
        max_attempts=settings.max_attempts,
    )


def _describe(source: Source, shard: str, items: Sequence[int]) -> list[Item]:
    """Have leased items described; all of them, or `SourceError`."""
    found = list(source.describe(shard, items))
    if [item.index for item in found] != list(items):
        raise SourceError(
            f"{type(source).__name__} describes {len(found)} of {len(items)} items of {shard}"
        )
    return found


def _all_of(known: Sequence[Item], items: Sequence[int]) -> list[Item]:
    by_index = {item.index: item for item in known}
    return [by_index.get(item) or Item(item, None, kind=UNREADABLE) for item in items]


def _entry_of(item: Item) -> CatalogEntry:
    return CatalogEntry(item.index, item.path, key=item.key, url=item.url, columns=item.columns)


def _description_of(item: Item) -> ItemDescription:
    columns = dict(item.columns) if item.columns else None
    return ItemDescription(item.index, item.place, columns, is_video=item.is_video)


def _with_earlier(
    items: Sequence[ItemDescription], partials: Mapping[int, Partial]
) -> tuple[ItemDescription, ...]:
    """Return items with what earlier stages gave, without those that are elsewhere meanwhile."""
    return tuple(
        msgspec.structs.replace(item, earlier=by_stage(partials[item.index]))
        for item in items
        if item.index in partials
    )


def _parcels(items: Sequence[ItemDescription]) -> Iterator[tuple[ItemDescription, ...]]:
    """Yield the items in as few messages as their texts fit into; at least one."""
    parcel: list[ItemDescription] = []
    size = 0
    for item in items:
        fields = [] if item.earlier is None else item.earlier.values()
        texts = (text for field in fields for texts in field.values() for text in texts)
        length = sum(len(text.encode()) for text in texts)
        length += sum(len(text.encode()) for text in map(str, (item.columns or {}).values()))
        if parcel and size + length > _GRANT_BYTES:
            yield tuple(parcel)
            parcel, size = [], 0
        parcel.append(item)
        size += length
    yield tuple(parcel)


def _told_of(recipe: Recipe) -> str:
    """Return what exports tell people of the stages, as JSON."""
    names = ("name", "model", "prompts", "output_field")
    told = [{name: getattr(stage, name) for name in names} for stage in recipe.stages]
    return msgspec.json.encode(told).decode()


def _resumable(snapshot: Snapshot, recipe: Recipe) -> list[RememberedLease]:
    """Return the leases whose results are still worth having.

    Whole rows of another recipe are, if they have this one's fields: they were made in good faith,
    and acknowledged they have to be stored. What would be added to earlier stages is not.
    """
    if snapshot.meta.get("recipe") == recipe.fingerprint:
        return snapshot.leases
    if snapshot.meta.get("output_fields") != "\n".join(recipe.output_fields):
        return []
    return [lease for lease in snapshot.leases if not lease.stage]


def _restored_ledger(
    settings: Settings,
    store: RunStore,
    leases: Sequence[RememberedLease],
    between: Mapping[int, Mapping[str, list[tuple[int, int]]]],
    *,
    stages: int,
    now: float,
) -> tuple[Ledger, list[int]]:
    """Return the ledger as the disk has it, and the remembered leases that bring nothing more."""
    policy = Policy(
        chunk_size=settings.chunk_size,
        lease_seconds=settings.lease_seconds,
        max_attempts=settings.max_attempts,
        stages=stages,
    )
    ledger = Ledger(policy, first_lease=store.incarnation << 32)
    snapshot = store.snapshot
    ledger.restore(
        {shard: RangeSet(ranges) for shard, ranges in snapshot.terminal.items()},
        snapshot.counts,
        [
            StoredLease(
                lease.lease,
                lease.session,
                lease.worker,
                lease.shard,
                lease.chunk_first,
                lease.chunk_count,
                tuple(item for start, stop in lease.ranges for item in range(start, stop)),
                lease.live,
                lease.stage,
            )
            for lease in leases
        ],
        {
            stage: {shard: RangeSet(ranges) for shard, ranges in shards.items()}
            for stage, shards in between.items()
        },
        now=now,
    )
    known = {lease.lease for lease in leases if ledger.knows(lease.lease)}
    return ledger, [lease.lease for lease in snapshot.leases if lease.lease not in known]
