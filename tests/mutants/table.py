"""One mutant for each promise: the smallest change of the source that breaks it. Data only.

A mutant that survives is a promise nobody checks. When a line named here changes, change it here,
too: `test_table.py` fails until every mutant fits again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CORE: Final = "orchestrator/caption_flow/orchestrator/core"
SERVICE: Final = "orchestrator/caption_flow/orchestrator/service.py"
SOURCES: Final = "orchestrator/caption_flow/orchestrator/sources"
STORAGE: Final = "shared/caption_flow/storage"
OUTBOX: Final = "worker/caption_flow/worker/core/outbox.py"

LEDGER_TESTS: Final = ("tests/unit/orchestrator", "tests/property/test_ledger.py")
STORAGE_TESTS: Final = (
    "tests/mutants/test_order_on_disk.py",
    "tests/integration/storage/test_commits.py",
    "tests/integration/storage/test_checkpoints.py",
    "tests/integration/storage/test_ownership.py",
    "tests/integration/storage/test_partials.py",
    "tests/integration/storage/test_uncatalogued.py",
    "tests/integration/storage/test_people.py",
)
PLACES_TESTS: Final = ("tests/unit/places",)
SERVICE_TESTS: Final = ("tests/integration/orchestrator/test_ending.py",)
IMAGES_TESTS: Final = ("tests/integration/orchestrator/test_conversations.py",)
STALL_TESTS: Final = (
    "tests/unit/worker/test_silence.py",
    "tests/integration/worker/test_pipeline.py",
)
LINKS: Final = "shared/caption_flow/places/links.py"
LINK_TESTS: Final = ("tests/integration/places/test_links.py",)
HUB_TESTS: Final = (
    "tests/integration/orchestrator/test_hub.py",
    "tests/integration/places/test_parquet.py",
)
TAR_TESTS: Final = ("tests/integration/orchestrator/test_tars.py",)
OBJECT_TESTS: Final = ("tests/integration/places/test_objects.py",)
COLUMN_TESTS: Final = (
    "tests/unit/orchestrator/test_metadata.py",
    "tests/integration/orchestrator/test_columns.py",
)
SERVING_TESTS: Final = (
    "tests/unit/orchestrator/test_turns.py",
    "tests/unit/places/test_portions.py",
    "tests/integration/orchestrator/test_image_memory.py",
)
GPU_TESTS: Final = ("tests/unit/cli/test_gpus.py", "tests/unit/engines/test_devices.py")
TLS_TESTS: Final = ("tests/integration/dialing/test_tls.py", "tests/unit/dialing")
SERVED: Final = "orchestrator/caption_flow/orchestrator/server/certificate.py"
SERVED_TESTS: Final = ("tests/integration/orchestrator/test_certificate.py",)
STEERING: Final = "orchestrator/caption_flow/orchestrator/steering.py"
STEERING_TESTS: Final = ("tests/integration/orchestrator/test_steering.py",)
CONNECTING_TESTS: Final = ("tests/unit/cli/test_connecting.py",)
SESSION_TESTS: Final = ("tests/unit/worker/test_session.py",)
SWAPPING_TESTS: Final = ("tests/integration/worker/test_swapping.py",)
WORKER_TESTS: Final = ("tests/integration/worker/test_client.py",)
VIDEO: Final = "worker/caption_flow/worker/images/video.py"
VIDEO_TESTS: Final = ("tests/unit/images/test_video.py", "tests/property/test_frames.py")
TAR_VIDEO_TESTS: Final = ("tests/unit/orchestrator/test_tar_videos.py",)
LOADING_VIDEO_TESTS: Final = ("tests/integration/worker/test_loading_videos.py",)
AUTH: Final = "orchestrator/caption_flow/orchestrator/server/auth.py"
CONVERSATION: Final = "orchestrator/caption_flow/orchestrator/server/conversation.py"
CHECKING: Final = "orchestrator/caption_flow/orchestrator/checking.py"
AUTH_TESTS: Final = ("tests/unit/orchestrator/test_auth.py",)
TOKEN_TESTS: Final = ("tests/integration/orchestrator/test_tokens.py",)
PRIVILEGE_TESTS: Final = ("tests/integration/orchestrator/test_privileges.py",)
RATION_TESTS: Final = ("tests/unit/orchestrator/test_rations.py", "tests/property/test_rations.py")
CHECK_TESTS: Final = ("tests/unit/orchestrator/test_spot_checks.py",)
CHECKING_TESTS: Final = ("tests/integration/orchestrator/test_spot_checks.py",)
GUARD: Final = "orchestrator/caption_flow/orchestrator/server/guard.py"
HOSTILE_TESTS: Final = (
    "tests/property/test_hostile_bytes.py",
    "tests/unit/orchestrator/test_guard.py",
    "tests/integration/orchestrator/test_hostile_peers.py",
)
BOMB_TESTS: Final = ("tests/unit/images/test_bombs.py",)
EXPORTER: Final = f"{STORAGE}/exporter"
EXPORT_TESTS: Final = (
    "tests/unit/storage/test_export_trainers.py",
    "tests/unit/storage/test_export_readers.py",
)
WORKSPACE: Final = "shared/caption_flow/cli/workspace.py"
WORKSPACE_TESTS: Final = ("tests/unit/cli/test_workspace.py", "tests/unit/cli/test_job_report.py")
REPORT: Final = "shared/caption_flow/cli/job_report.py"
ENTRY_TESTS: Final = ("tests/unit/config/test_multidatabackend.py",)
MATCHING: Final = "shared/caption_flow/incoming/matching.py"
IMPORTING: Final = "orchestrator/caption_flow/orchestrator/importing.py"
IMPORT_TESTS: Final = ("tests/unit/cli/test_import.py",)
VIEWER: Final = "shared/caption_flow/cli/viewer"
VIEWER_TESTS: Final = (
    "tests/unit/cli/test_viewer_state.py",
    "tests/unit/cli/test_viewer_screen.py",
    "tests/unit/cli/test_viewer_pictures.py",
)
BROWSE_TESTS: Final = ("tests/integration/storage/test_browse.py",)
TARS_OUT_TESTS: Final = ("tests/unit/storage/test_export_webdataset.py",)
UPLOAD_TESTS: Final = ("tests/integration/storage/test_hub_upload.py",)
INTERRUPTED_TESTS: Final = ("tests/e2e/test_hub_interruptions.py",)
CARD_TESTS: Final = ("tests/unit/storage/test_export_hub.py",)
OUTBOX_TESTS: Final = ("tests/unit/worker/test_outbox.py", "tests/property/test_outbox.py")


@dataclass(frozen=True, slots=True)
class Mutant:
    """``old``, which ``file`` contains exactly once, becomes ``new``; ``tests`` must fail then."""

    name: str
    promise: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _ledger(name: str, promise: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, promise, f"{CORE}/{module}.py", old, new, LEDGER_TESTS)


def _storage(name: str, promise: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, promise, f"{STORAGE}/{module}.py", old, new, STORAGE_TESTS)


def _place(name: str, promise: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, promise, f"shared/caption_flow/places/{module}.py", old, new, PLACES_TESTS)


def _tars(name: str, promise: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(
        name,
        promise,
        f"orchestrator/caption_flow/orchestrator/sources/{module}.py",
        old,
        new,
        TAR_TESTS,
    )


def _hub(name: str, promise: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(name, promise, file, old, new, HUB_TESTS)


def _columns(name: str, promise: str, module: str, old: str, new: str) -> Mutant:
    file = f"orchestrator/caption_flow/orchestrator/sources/{module}.py"
    return Mutant(name, promise, file, old, new, COLUMN_TESTS)


def _serving(name: str, promise: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(name, promise, file, old, new, SERVING_TESTS)


def _dialing(name: str, promise: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, promise, f"shared/caption_flow/dialing/{module}.py", old, new, TLS_TESTS)


def _outbox(name: str, promise: str, old: str, new: str) -> Mutant:
    return Mutant(name, promise, OUTBOX, old, new, OUTBOX_TESTS)


def _gpus(name: str, promise: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(name, promise, file, old, new, GPU_TESTS)


def _stall(name: str, promise: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, promise, f"worker/caption_flow/worker/{module}.py", old, new, STALL_TESTS)


def _video(name: str, promise: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(name, promise, file, old, new, VIDEO_TESTS)


def _hostile(name: str, promise: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(name, promise, file, old, new, HOSTILE_TESTS)


def _bombs(name: str, promise: str, old: str, new: str) -> Mutant:
    file = "worker/caption_flow/worker/images/cost.py"
    return Mutant(name, promise, file, old, new, BOMB_TESTS)


def _tars_out(name: str, promise: str, old: str, new: str) -> Mutant:
    return Mutant(name, promise, f"{EXPORTER}/webdataset.py", old, new, TARS_OUT_TESTS)


MUTANTS: Final[tuple[Mutant, ...]] = (
    # ------------------------------------------------------------------ stages
    _ledger(
        "partial counted as terminal",
        "an item is terminal only when all its stages are done",
        "book",
        "return 0, _open_again(commit, commit.reached)",
        "return commit.mask.bit_count(), []",
    ),
    _ledger(
        "accepted at another stage",
        "a report counts only for items that are still at the stage they were leased at",
        "ledger",
        "accepted = named & lease.granted & chunk.at(lease.stage)",
        "accepted = named & lease.granted & chunk.open",
    ),
    _ledger(
        "any stage reported",
        "a worker reports the stage that it carries items to, and no other",
        "ledger",
        "if event.reached is not None and not (onward and event.reached == reach):",
        "if event.reached is not None and not onward:",
    ),
    _ledger(
        "given to whom it is no use",
        "an item is leased only to a worker that runs its next stage",
        "backlog",
        "stages = sorted(session.serves, reverse=True)",
        "stages = sorted(range(self._policy.stages), reverse=True)",
    ),
    _ledger(
        "begun rather than finished",
        "what has been begun is done before more is begun",
        "backlog",
        "stages = sorted(session.serves, reverse=True)",
        "stages = sorted(session.serves)",
    ),
    _ledger(
        "every batch a lease",
        "items that reach a stage gather until somebody takes them",
        "backlog",
        "if other.stage == piece.stage and not other.attempts:",
        "if False:",
    ),
    _ledger(
        "asked for what is no use",
        "a worker gives up only what the idle one can take",
        "tail",
        "if busy and stages <= helper.serves]",
        "if busy]",
    ),
    _ledger(
        "done twice by whom it is no use",
        "a second lease goes to a worker that runs the stage",
        "tail",
        "for stage in session.serves & self._offers.keys():",
        "for stage in self._offers:",
    ),
    _ledger(
        "lost leases wait at the first stage",
        "what a lost lease leaves waits at the stage at which it was leased",
        "ledger",
        "Piece(lease.chunk, mask, attempts, lease.evidence, lease.stage)",
        "Piece(lease.chunk, mask, attempts, lease.evidence)",
    ),
    _ledger(
        "stage forgotten at a restart",
        "an item goes on after a restart where it was",
        "ledger",
        "chunk.admit(chunk.open & chunk.among(items), stage)",
        "pass",
    ),
    _ledger(
        "between stages and not found again",
        "items between stages that no lease names are found at a restart",
        "ledger",
        "self._claim(shard, first, self.policy.chunk_size, near, chunks)",
        "pass",
    ),
    _ledger(
        "old outputs kept",
        "an item whose file has changed begins at the first stage again",
        "book",
        "chunk.admit(mask, 0)",
        "pass",
    ),
    _ledger(
        "old outputs built upon",
        "what is on its way to a later stage begins again, too, when its file has changed",
        "book",
        "commit.again |= commit.mask & meant(commit.chunk)",
        "pass",
    ),
    _ledger(
        "results built upon old outputs",
        "no lease brings anything for an item that has begun again",
        "book",
        "self._disown(chunk, mask & chunk.committing, effects)",
        "pass",
    ),
    _storage(
        "earlier outputs lost at a restart",
        "a restart finds what stages gave, and goes on from there",
        "opening",
        "for stage, shards in between_stages(connection).items()",
        "for stage, shards in dict[int, dict[str, list[int]]]().items()",
    ),
    _storage(
        "earlier outputs replaced",
        "what a stage gave is added to what those before it gave",
        "partials",
        "msgspec.msgpack.encode(_merged(earlier.get(item, {}), row))",
        "msgspec.msgpack.encode(row)",
    ),
    _storage(
        "a row without earlier outputs",
        "a row has what all its stages gave",
        "partials",
        "fields = by_field(before)",
        "fields = by_field({})",
    ),
    _storage(
        "outputs taken from the network",
        "no worker says what another one said",
        "partials",
        "for name in own_fields:",
        "for name in output_fields:",
    ),
    _storage(
        "partial kept beside its row",
        "an item is between stages or has a row, never both",
        "partials",
        "delete_partials(connection, {shard: new})",
        "pass",
    ),
    _storage(
        "captioned without the last stage",
        "an item is captioned by whom runs the last stage",
        "writes",
        "if self.leg is not None and not self.leg.is_last and self.counts.get(CAPTIONED):",
        "if False:",
    ),
    # ------------------------------------------------------------------ reports and commits
    _ledger(
        "done before durable",
        "an item is terminal only when its row is on disk",
        "ledger",
        "return self._terminal\n",
        "return self._terminal + self.committing\n",
    ),
    _ledger(
        "duplicate accepted",
        "a report counts once, however often it is sent",
        "ledger",
        "accepted = named & lease.granted & chunk.at(lease.stage)",
        "accepted = named & lease.granted",
    ),
    _ledger(
        "foreign lease accepted",
        "a worker can touch only its own leases",
        "ledger",
        'effects.append(ev.Refuse(event.session, f"lease {event.lease} is not yours"))\n'
        "            return\n"
        "        chunk = lease.chunk",
        "pass\n        chunk = lease.chunk",
    ),
    _ledger(
        "foreign lease given back",
        "a worker can give back only its own leases",
        "ledger",
        'effects.append(ev.Refuse(event.session, f"lease {event.lease} is not yours"))\n'
        "            return\n"
        "        if not lease.live",
        "pass\n        if not lease.live",
    ),
    _ledger(
        "item outside the lease accepted",
        "nothing is accepted that was not leased to whoever reports it",
        "ledger",
        "accepted = named & lease.granted & chunk.at(lease.stage)",
        "accepted = named & chunk.at(lease.stage)",
    ),
    _ledger(
        "item outside the chunk not refused",
        "a report that names items out of reach closes its session",
        "records",
        "if smallest < self.first or max(items) >= self.first + self.count:",
        "if smallest < self.first:",
    ),
    _ledger(
        "unknown lease acknowledged at once",
        "an acknowledgement passes through the disk's queue, whatever is accepted",
        "ledger",
        "effects.append(\n                ev.Commit(_NO_TICKET, ",
        "str(\n                ev.Commit(_NO_TICKET, ",
    ),
    _ledger(
        "rejected rows forgotten",
        "items whose rows were not acceptable are done again",
        "ledger",
        "self._backlog.put(piece)",
        "pass",
    ),
    _ledger(
        "late report leaves its item waiting",
        "what has been reported is handed out to nobody",
        "ledger",
        "self._backlog.withdraw(chunk, mask)",
        "pass",
    ),
    _ledger(
        "late report leaves its item leased",
        "the first report wins: nobody else goes on with its items",
        "ledger",
        "if other.mask & mask:",
        "if other.mask & mask & 0:",
    ),
    # ------------------------------------------------------------------ leases
    _ledger(
        "lease never expires",
        "a lease ends when its worker is silent for lease_seconds",
        "roster",
        "if session.heard_at <= moment]",
        "if session.heard_at <= moment - 1e9]",
    ),
    _ledger(
        "messages do not renew",
        "any message renews what its worker holds",
        "roster",
        "session.heard_at = now",
        "session.heard_at = session.heard_at",
    ),
    _ledger(
        "remainder lost on expiry",
        "what a lost worker had not finished is leased again",
        "ledger",
        "self._wait(lease, left & ~half, attempts)",
        "self._wait(lease, 0, attempts)",
    ),
    _ledger(
        "finished items leased again",
        "what a lost worker had finished stays finished",
        "book",
        "left = lease.mask & ~lease.chunk.held(besides=lease)",
        "left = lease.granted & ~lease.chunk.held(besides=lease)",
    ),
    _ledger(
        "reconnect forgets leases",
        "a session that returns in time keeps what it holds",
        "ledger",
        "self._take_from(lease, lease.mask & ~named, effects, now)",
        "self._take_from(lease, lease.mask, effects, now)",
    ),
    _ledger(
        "granted while paused",
        "nothing is handed out while the run is paused",
        "ledger",
        "if self._roster.is_anyone_hungry and not self._paused:",
        "if self._roster.is_anyone_hungry:",
    ),
    _ledger(
        "question without an answer",
        "every question for work is answered",
        "ledger",
        "effects.append(ev.Wait(name, self.policy.lease_seconds / 3, all_out, rationed))",
        "pass",
    ),
    # ------------------------------------------------------------------ the tail
    _ledger(
        "trimmed items in two leases",
        "items that another worker has reported are no longer the first one's",
        "book",
        "effects.append(lease.trim(lease.mask & mask))\n        self.shrink(lease, mask, effects)",
        "effects.append(lease.trim(lease.mask & mask))",
    ),
    _ledger(
        "end announced too soon",
        "nobody hears that all is handed out while somebody may have something to spare",
        "handout",
        "            or may_spare(session)\n",
        "",
    ),
    _ledger(
        "stage forgotten at the end",
        "what another worker will pass on is not handed out yet",
        "handout",
        "or any(session.reach(lease.stage) < self._policy.stages for lease in leases)",
        "",
    ),
    _ledger(
        "full engines asked",
        "who can have nothing to spare is not asked for it",
        "tail",
        "return not session.is_starved and session.left > max(1, session.width)",
        "return not session.is_starved",
    ),
    _ledger(
        "least busy worker asked",
        "the one with the most left to do is asked first",
        "tail",
        "return max(able, key=lambda busy: busy[-1].left).pop() if able else None",
        "return max(able, key=lambda busy: busy[-1].left).pop(0) if able else None",
    ),
    _ledger(
        "asked for ever",
        "who has nothing to spare is left in peace",
        "handout",
        "session.spent = not spared",
        "session.spent = False",
    ),
    _ledger(
        "asked again before the answer",
        "for each idle worker one other is asked, and once",
        "handout",
        "busy = None if session in self._helped else tail.busiest(session)",
        "busy = tail.busiest(session)",
    ),
    _ledger(
        "answer waited for in vain",
        "a worker that vanished before it answered is asked anew",
        "ledger",
        "self._hand_out.answered(session)\n        for lease in list(session.leases.values()):\n"
        "            named",
        "for lease in list(session.leases.values()):\n            named",
    ),
    _ledger(
        "given up and forgotten",
        "what a worker gives up is handed out again",
        "ledger",
        "self._take_from(lease, lease.mask & named, effects, now)",
        "pass",
    ),
    _ledger(
        "more taken than was given up",
        "a worker keeps what it has not named",
        "ledger",
        "self._take_from(lease, lease.mask & named, effects, now)",
        "self._take_from(lease, lease.mask, effects, now)",
    ),
    _ledger(
        "given up, but not heard of",
        "what a returning worker does not have is handed out again, item by item",
        "ledger",
        "self._take_from(lease, lease.mask & ~named, effects, now)",
        "pass",
    ),
    _ledger(
        "straggler waited for",
        "items that take long are done a second time when others are idle",
        "tail",
        "if gone or now - lease.progress_at >= policy.straggler_seconds:",
        "if gone:",
    ),
    _ledger(
        "steady worker taken for a straggler",
        "who brings results is no straggler, however old its lease",
        "ledger",
        "lease.progress_at = now",
        "pass",
    ),
    _ledger(
        "busy workers trade items",
        "nobody is asked on behalf of a worker that has something to begin",
        "records",
        "return self.hungry > 0 and not self.idle",
        "return self.hungry > 0",
    ),
    _ledger(
        "vanished worker waited for",
        "idle workers share what a disconnected one holds",
        "tail",
        "if gone or now - lease.progress_at >= policy.straggler_seconds:",
        "if now - lease.progress_at >= policy.straggler_seconds:",
    ),
    _ledger(
        "ended leases forgotten at once",
        "what a lease brings after its end counts, also after a restart",
        "book",
        "effects.append(ev.EndLease(lease.id))",
        "effects.append(ev.ForgetLease(lease.id))",
    ),
    _ledger(
        "ended leases live again",
        "a lease that is over holds nothing after a restart",
        "ledger",
        "piece = Piece(chunk, open_items if stored.live else 0, stage=stored.stage)",
        "piece = Piece(chunk, open_items, stage=stored.stage)",
    ),
    _ledger(
        "items of ended leases lost",
        "what only ended leases had is handed out after a restart",
        "ledger",
        "waiting = chunk.open & ~chunk.held()",
        "waiting = 0",
    ),
    _ledger(
        "results for what has changed",
        "a result from before a reopening never counts",
        "book",
        "lease.granted &= ~mask",
        "pass",
    ),
    # ------------------------------------------------------------------ poison
    _ledger(
        "lost leases are not halved",
        "a lost lease's remainder is leased again in halves",
        "ledger",
        "half = lowest(left, (left.bit_count() + 1) // 2)",
        "half = left",
    ),
    _ledger(
        "quarantined in company",
        "an item is quarantined only when nothing else can be to blame",
        "ledger",
        "if is_last and left.bit_count() == 1:",
        "if attempts >= self.policy.max_attempts and left.bit_count() == 1:",
    ),
    _ledger(
        "quarantined too early",
        "an item has max_attempts attempts",
        "records",
        "return attempts >= max(1, self.max_attempts - 1)",
        "return attempts >= max(1, self.max_attempts - 2)",
    ),
    _ledger(
        "quarantined too late",
        "an item that kills its workers is given up after max_attempts",
        "records",
        "return attempts >= max(1, self.max_attempts - 1)",
        "return attempts >= self.max_attempts",
    ),
    _ledger(
        "suspects leased in company",
        "a suspected piece is leased to a worker that holds nothing else",
        "backlog",
        "if session.holds_isolated:",
        "if session.holds_isolated and False:",
    ),
    _ledger(
        "blamed for leaving politely",
        "a lease that is given back in peace blames nobody",
        "ledger",
        "self._wait(lease, self._book.end(lease, effects, why, now), lease.attempts)",
        "self._wait(lease, self._book.end(lease, effects, why, now), lease.attempts + 1)",
    ),
    _ledger(
        "blamed for a restart",
        "an orchestrator's restart blames nobody",
        "ledger",
        "if session.known:",
        "if session:",
    ),
    _ledger(
        "neighbours of a suspect blamed",
        "an engine's death blames those that were in it",
        "ledger",
        "if event.suspects:",
        "if not event.suspects:",
    ),
    # ------------------------------------------------------------------ the end
    _ledger(
        "end announced before the listing ends",
        "the end is told when no more items can come",
        "ledger",
        "return self._listing.finished and self._terminal == self._listing.found",
        "return self._terminal == self._listing.found",
    ),
    _ledger(
        "end announced before it is durable",
        "the end is told when every item is durable",
        "ledger",
        "return self._listing.finished and self._terminal == self._listing.found",
        "return self._listing.finished and not self.pending + self.leased",
    ),
    _ledger(
        "latecomer not told",
        "who joins after the end is told of it",
        "ledger",
        "effects.append(ev.Finish(session.id))",
        "pass",
    ),
    # ------------------------------------------------------------------ restarts, reopening
    _ledger(
        "restore forgets terminal items",
        "what is durable is never done again",
        "listing",
        "shard.uncut = RangeSet(done.gaps(shard.count))",
        "shard.uncut = RangeSet([(0, shard.count)])",
    ),
    _ledger(
        "lease numbers used again",
        "a late report never meets a new lease of the same number",
        "book",
        "self._lease_ids = counter(first_lease)",
        "self._lease_ids = counter(1)",
    ),
    _ledger(
        "leased items handed out after a restart",
        "leases survive an orchestrator's restart",
        "listing",
        "self._take(name, shard, start, stop)\n        return claimed",
        "pass\n        return claimed",
    ),
    _ledger(
        "restored chunk too short",
        "results on a lease that survived a restart are not refused",
        "ledger",
        "chunk.count = max(chunk.count, count)",
        "chunk.count = min(chunk.count, count)",
    ),
    _ledger(
        "unfinished items reopened",
        "only terminal items are reopened",
        "ledger",
        "done.remove(start, stop)",
        "pass",
    ),
    _ledger(
        "reopened items forgotten",
        "reopened items are done again",
        "listing",
        "shard.uncut.update(RangeSet(done.within(0, shard.count)))",
        "pass",
    ),
    # ------------------------------------------------------------------ on disk
    _storage(
        "written off before it is committed",
        "a write is reported done only after its commit",
        "writer",
        "        trouble = self._apply(good)\n"
        "        self._report([(future, rejected.get(future, trouble)) for _, future in group])",
        "        self._report([(future, rejected.get(future)) for _, future in group])\n"
        "        self._apply(good)",
    ),
    _storage(
        "commits that power loss takes back",
        "what is committed survives the loss of power",
        "database",
        "PRAGMA synchronous = FULL",
        "PRAGMA synchronous = NORMAL",
    ),
    _storage(
        "one bad write takes others with it",
        "a write that is not acceptable is dropped alone",
        "writer",
        "                rejected[future] = error\n            else:",
        "                rejected[future] = error\n            if not rejected:",
    ),
    _storage(
        "rows that nobody accepted stored",
        "of a batch, only the accepted rows are stored",
        "writes",
        "return rows if len(accepted) == len(items) else rows.take(pa.array(accepted))",
        "return rows",
    ),
    _storage(
        "stages credited to nobody",
        "each stage of a row says who ran it",
        "partials",
        '"stage_stats": stats and [{**one, **names} for one in stats]',
        '"stage_stats": stats and [{**one} for one in stats if names]',
    ),
    _storage(
        "rows of other items stored",
        "a row is stored for the item it was accepted for",
        "writes",
        'if tuple(rows.column("item_index").to_pylist()) != items:',
        "if rows.num_rows != len(items):",
    ),
    _storage(
        "rows deleted that no part holds",
        "results committed during a checkpoint are in the next one",
        "writes",
        "DELETE FROM batches WHERE batch <= ?",
        "DELETE FROM batches WHERE batch >= 0 OR batch <= ?",
    ),
    _storage(
        "part recorded before it is on disk",
        "a part is durable before the ledger names it",
        "parts",
        "            os.fsync(file.fileno())\n    except",
        "    except",
    ),
    _storage(
        "part named before its rename is durable",
        "the folder is synced before the ledger names a part",
        "parts",
        "fsync_folder(folder)\n    return Part(",
        "return Part(",
    ),
    _storage(
        "half a part under its final name",
        "a part gets its name only when it is whole",
        "parts",
        'temporary = folder / f".{final.stem}.tmp"',
        "temporary = final",
    ),
    _storage(
        "openings are not counted",
        "each orchestrator has lease numbers of its own",
        "store",
        'int(read_meta(connection, "incarnation") or 0) + 1',
        'int(read_meta(connection, "incarnation") or 1)',
    ),
    Mutant(
        "large images in one piece",
        "acknowledgements do not wait for a large image",
        "orchestrator/caption_flow/orchestrator/server/session.py",
        "end = self._offset, self._offset + PIECE_BYTES",
        "end = self._offset, self._offset + 2**26",
        IMAGES_TESTS,
    ),
    Mutant(
        "pieces of two connections joined",
        "an image's bytes are those of one answer",
        "worker/caption_flow/worker/core/fetches.py",
        "        self._pieces.clear()\n",
        "",
        ("tests/unit/worker/test_fetches.py",),
    ),
    Mutant(
        "acknowledged before the commit",
        "an acknowledgement says that rows are durable",
        SERVICE,
        "        future.add_done_callback(partial(self._committed, effect, write, link, size))",
        "        future.add_done_callback(partial(self._committed, effect, write, link, size))\n"
        "        if link is not None:\n"
        "            link.outgoing.acknowledge(effect.seq)",
        SERVICE_TESTS,
    ),
    # ------------------------------------------------------------------ the worker's outbox
    _outbox(
        "unacknowledged rows not sent again",
        "after a reconnect everything unacknowledged leaves again",
        "self._sent = self._acknowledged",
        "self._sent = self._sealed",
    ),
    _outbox(
        "rows forgotten when they leave",
        "a row stays until it is acknowledged",
        "self._batches.append(batch)",
        "self._rows -= len(batch.rows)",
    ),
    _outbox(
        "no back-pressure",
        "an outbox that is full makes the pipeline wait",
        "return max(0, self._capacity_rows - self._rows)",
        "return self._capacity_rows",
    ),
    _outbox(
        "no window",
        "a slow orchestrator fills the outbox, not the socket",
        "while len(self._batches) < self._window and (",
        "while (",
    ),
    _outbox(
        "new rows before old ones",
        "batches leave in the order of their numbers",
        "leaving = [batch for batch in self._batches if batch.seq > self._sent]",
        "leaving = [batch for batch in reversed(self._batches) if batch.seq > self._sent]",
    ),
    # ------------------------------------------------------------------ engines that hang
    _stall(
        "idle engine stalls",
        "an engine without requests is never silent",
        "core/silence",
        "if busy and beats == self._beats:",
        "if self._beats in (None, beats):",
    ),
    _stall(
        "stopped worker blames its engine",
        "time in which nobody looked is not the engine's silence",
        "core/silence",
        "min(now - self._looked, self.longest_gap_seconds)",
        "now - self._looked",
    ),
    _stall(
        "stall not noticed",
        "an engine that gives no token is restarted",
        "supervision",
        "if seconds >= self._stall_seconds:",
        "if seconds < 0:",
    ),
    _stall(
        "stall with tokens flowing",
        "tokens are signs of life",
        "supervision",
        "self._engine.beats + self._outcomes + self._life",
        "self._outcomes + self._life",
    ),
    _stall(
        "stall while others are answered",
        "answers and refusals are signs of life",
        "supervision",
        "self._engine.beats + self._outcomes + self._life",
        "self._engine.beats + self._life",
    ),
    _stall(
        "stall inherited by the next life",
        "an engine that was restarted has all its time again",
        "supervision",
        "self._engine.beats + self._outcomes + self._life",
        "self._engine.beats + self._outcomes",
    ),
    _stall(
        "stall waits for what cannot be cancelled",
        "a hung engine need not let go of its requests",
        "supervision",
        "await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)",
        "await asyncio.wait([task])",
    ),
    _stall(
        "stall in a restart goes on for ever",
        "an engine that hangs while it is loaded again is given up",
        "supervision",
        "async with asyncio.timeout(self._restart_seconds):",
        "async with asyncio.timeout(None):",
    ),
    _storage(
        "part forgets a folder's catalog",
        "a file keeps its index for good",
        "writes",
        'item_index < ? AND NOT "',
        'item_index < ? OR NOT "',
    ),
    _storage(
        "items of parts stay known",
        "the ledger does not grow with the dataset",
        "writes",
        "for shard, ranges in self.ranges.items() for span in ranges]",
        "for shard, ranges in self.ranges.items() for span in ranges[:0]]",
    ),
    _storage(
        "shard's facts are not renewed",
        "a source finds again what it noted last",
        "writes",
        "facts = excluded.facts",
        "facts = facts",
    ),
    _place(
        "another file is read",
        "a file counts as the one that was listed only if size and time agree",
        "files",
        "(found.st_size, found.st_mtime_ns) != (place.size, place.mtime_ns)",
        "found.st_size != place.size",
    ),
    _place(
        "part of a changed file is read",
        "a part of a file is what was listed, or nothing",
        "files",
        "if is_lister and not place.offset and place.length is None:",
        "if is_lister:",
    ),
    _place(
        "end of a short file is passed on",
        "bytes that are not there are no image",
        "files",
        "if len(data) != count:",
        "if False:",
    ),
    # ------------------------------------------------------------------ datasets of the hub, links
    Mutant(
        "names lead anywhere",
        "no name in a dataset leads to a private address",
        LINKS,
        '_check(ip_address(result["host"].partition("%")[0]), self._may_connect)',
        "pass",
        LINK_TESTS,
    ),
    Mutant(
        "addresses lead anywhere",
        "no address in a dataset, nor a redirect, leads to a private one",
        LINKS,
        "self._check_literal(url)",
        "pass",
        LINK_TESTS,
    ),
    Mutant(
        "embedded addresses lead anywhere",
        "an IPv6 address that embeds a private one is private",
        LINKS,
        "inner = address.ipv4_mapped or address.sixtofour or teredo or nat64 or address",
        "inner = address",
        LINK_TESTS,
    ),
    Mutant(
        "endless answers",
        "what is read of an address is bounded",
        LINKS,
        "if len(data) > most:",
        "if False:",
        LINK_TESTS,
    ),
    _hub(
        "broken file is done",
        "a file that cannot be read is told of at the end, and tried again by the next run",
        f"{SOURCES}/hub.py",
        "yield PassedOver(name, str(found))",
        "yield Listed(name, 0)",
    ),
    _hub(
        "columns taken on trust",
        "a column that prompts name and no file has is refused at the start",
        f"{SOURCES}/hub.py",
        "if there and missing:",
        "if there is None:",
    ),
    _hub(
        "columns of later prompts taken on trust",
        "prompts that change between runs are looked at again",
        f"{SOURCES}/hub.py",
        "if self._facts and known.issuperset(self._prompted):",
        "if self._facts:",
    ),
    _hub(
        "connection lost for good",
        "a lost connection is tried again",
        "shared/caption_flow/places/parquet.py",
        "on=UnreachableError,",
        "on=ZeroDivisionError,",
    ),
    _hub(
        "gone file waited for",
        "what will not pass is not asked for again",
        "shared/caption_flow/places/parquet.py",
        "kind = UnreachableError if _is_passing(error) else NotHereError",
        "kind = UnreachableError",
    ),
    _hub(
        "items fail at the first lost connection",
        "items wait while their shard is out of reach",
        SERVICE,
        "if pause is None or not error.is_passing:",
        "if error:",
    ),
    _hub(
        "kind of a failure lost on the way",
        "a row says the same, whether the worker or the orchestrator read its image",
        "orchestrator/caption_flow/orchestrator/server/session.py",
        "image.kind,",
        '"",',
    ),
    _tars(
        "cut tar forgotten",
        "a tar that is cut short is told of by every run",
        "tars",
        'trouble = "" if name in self._gone else facts.trouble',
        'trouble = ""',
    ),
    _tars(
        "another tar under the same name",
        "captions never go to other images because a tar was replaced",
        "tars",
        "if index.digest != known.digest:",
        "if index.digest == '':",
    ),
    _tars(
        "index is not kept",
        "a run that goes on opens no tar again",
        "tar_shelf",
        "written.replace(path)",
        "written.unlink()",
    ),
    _tars(
        "webshart index of another tar",
        "an index is taken only for the very tar that it is about",
        "tar_index",
        "if named != size:",
        "if named == -1:",
    ),
    _tars(
        "cut image",
        "an image that a tar ends within is a typed row",
        "tars",
        "if sample.image.offset + sample.image.length > facts.size:",
        "if sample.image.offset > facts.size:",
    ),
    Mutant(
        "object of another size",
        "an object that changed since it was listed gives no image",
        "shared/caption_flow/places/objects.py",
        "if listed[0] not in {None, found[0]}:",
        "if listed[0] == -1:",
        OBJECT_TESTS,
    ),
    Mutant(
        "body that breaks off",
        "what breaks off is asked for again, ETag or not",
        "shared/caption_flow/places/objects.py",
        "on=_BrokenOffError,",
        "on=ZeroDivisionError,",
        OBJECT_TESTS,
    ),
    Mutant(
        "another version of the same size",
        "an object of another ETag is another object",
        "shared/caption_flow/places/objects.py",
        "if None not in {old, new} and old != new:",
        "if None not in {old, new} and not old:",
        OBJECT_TESTS,
    ),
    Mutant(
        "weak ETags are other ones",
        "an ETag is the same, weak or strong",
        "shared/caption_flow/places/objects.py",
        'etag.removeprefix("W/")',
        "etag",
        OBJECT_TESTS,
    ),
    Mutant(
        "changed objects are nobody's",
        "an object that was replaced is a failed row, and says so",
        "shared/caption_flow/places/objects.py",
        'if error.kind == "changed" and is_lister:',
        "if error.kind == str(is_lister):",
        OBJECT_TESTS,
    ),
    _tars(
        "images of any version of a tar",
        "an image is read from the version of its tar that was listed",
        "tars",
        "image.offset, image.length, facts.size, facts.etag)",
        "image.offset, image.length, facts.size)",
    ),
    _tars(
        "columns of any version of a tar",
        "columns are read from the version of their tar that was listed",
        "tar_shelf",
        "member.offset, member.length, size=size, etag=etag)",
        "member.offset, member.length, size=size and size, etag=etag and None)",
    ),
    _tars(
        "columns of a local tar that is another by now",
        "columns are read from the version of their tar that was listed",
        "tar_shelf",
        "if TarFacts(status.st_size, str(status.st_mtime_ns)) != facts:",
        "if TarFacts(status.st_size, facts.version) != facts:",
    ),
    _tars(
        "first of two files of one name",
        "of files of one name in a tar the last counts",
        "tar_index",
        "    members[at] = member",
        "    members[at] = members[at]",
    ),
    _tars(
        "passed over silently",
        "what is passed over in a tar is counted and said",
        "tar_index",
        "replaced += 1",
        "replaced += 0",
    ),
    _tars(
        "one key, two samples",
        "a key is one sample's",
        "tar_index",
        "members = groups.setdefault(key, [])",
        'members = groups.setdefault(key if key == last else f"{key} {entry.offset}", [])',
    ),
    # ------------------------------------------------------------------ columns beside images
    _columns(
        "the run's caption comes back as a column",
        "a text that was read once stays what it was",
        "sidecars",
        "if recorded is not None and TEXT_COLUMN in recorded:",
        "if recorded is not None and TEXT_COLUMN + TEXT_COLUMN in recorded:",
    ),
    _columns(
        "an earlier caption of the run is a column",
        "a text that the run wrote itself is no column",
        "sidecars",
        "if data is None or is_ours(Path(os.fsdecode(file)), data):",
        "if data is None:",
    ),
    _columns(
        "metadata before what lies beside",
        "of several values of a column the nearest to the image counts",
        "sidecars",
        "found.update(self._json(path))",
        "found = {**self._json(path), **found}",
    ),
    _columns(
        "far metadata wins",
        "metadata nearer to an image wins",
        "metadata",
        "ORDER BY length(files.path)\n",
        "ORDER BY length(files.path) DESC\n",
    ),
    _columns(
        "metadata read once for ever",
        "metadata that changed is read again",
        "metadata",
        "if self._connection.execute(query, (path,)).fetchone() == facts:",
        "if self._connection.execute(query, (path,)).fetchone() is not None:",
    ),
    _columns(
        "each folder goes through all rows",
        "a folder without metadata costs the same however much is known",
        "metadata",
        "            if self._connection.execute(query, (path,)).fetchone() == facts:\n"
        "                return\n",
        "            by_file = 'DELETE FROM rows WHERE file IN '\n"
        "            by_file += '(SELECT file FROM files WHERE path = ?)'\n"
        "            if self._connection.execute(query, (path,)).fetchone() == facts != None:\n"
        "                return\n"
        "            self._connection.execute(by_file, (path,))\n",
    ),
    _columns(
        "looked for in every run",
        "images that metadata names are looked for once for each version of it",
        "local",
        "        self._sidecars.metadata.checked()\n",
        "",
    ),
    _columns(
        "columns read for each image sent",
        "to send an image nothing beside it is read",
        "local",
        "return next(map(self._item, self._catalog.entries(shard, [item])), None)",
        "return next(iter(self.describe(shard, [item])), None)",
    ),
    # ------------------------------------------------------------------ memory for images
    _serving(
        "no portion of one's own",
        "no worker stands still for others that take nothing",
        f"{CORE}/turns.py",
        "if worker in self._owners or size > self._portion:",
        "if worker or size > self._portion:",
    ),
    _serving(
        "no budget",
        "images on their way to workers have a budget of bytes",
        f"{CORE}/turns.py",
        "if min(size, self._budget) > room:",
        "if min(size, self._budget) > self._budget:",
    ),
    _serving(
        "first come, first served",
        "whoever holds least of the memory for images comes first",
        f"{CORE}/turns.py",
        "self._shared.get(self._waiting[ticket][0], 0), ticket)",
        "0, ticket)",
    ),
    _serving(
        "large files as a whole",
        "a large file is read in portions, as it is sent",
        "shared/caption_flow/places/portions.py",
        "if file.length > PORTION_BYTES:",
        "if file.length > 2**40:",
    ),
    _serving(
        "a portion taken for the whole",
        "an image is whole when its last portion has come",
        "orchestrator/caption_flow/orchestrator/server/session.py",
        "image.more or not is_last",
        "not is_last",
    ),
    # ------------------------------------------------------------------ which GPUs
    _gpus(
        "GPU numbers taken for names",
        "a worker's GPU numbers count the entries of CUDA_VISIBLE_DEVICES",
        "shared/caption_flow/cli/gpus.py",
        "counted = all(int(gpu) < len(visible) for gpu in wanted if gpu.isdecimal())",
        "counted = not any(gpu in named for gpu in wanted)",
    ),
    _gpus(
        "a worker with too few GPUs",
        "each worker of a run has as many GPUs as its model is spread over",
        "shared/caption_flow/cli/gpus.py",
        "full = len(gpus) - len(gpus) % gpus_per_worker",
        "full = len(gpus)",
    ),
    _gpus(
        "a model over more GPUs than chosen",
        "a model that is spread over more GPUs than were chosen is refused",
        "worker/caption_flow/worker/engines/devices.py",
        "if not chosen or needed <= len(chosen):",
        "if not chosen or needed >= len(chosen):",
    ),
    # ------------------------------------------------------------------ TLS
    _dialing(
        "any certificate",
        "whoever has another certificate than the pinned one gets no token",
        "tls",
        "if der is None or not is_one_of(der, self._fingerprints):",
        "if der is None:",
    ),
    _dialing(
        "token before the certificate",
        "the pinned certificate is looked at before anything is said",
        "tls",
        "        if der is None or not is_one_of(der, self._fingerprints):\n"
        "            raise WrongCertificateError\n"
        "        await super().handshake(*args, **options)\n",
        "        await super().handshake(*args, **options)\n"
        "        if der is None or not is_one_of(der, self._fingerprints):\n"
        "            raise WrongCertificateError\n",
    ),
    _dialing(
        "no verification",
        "a certificate that nobody pinned is of a trusted authority, and for the name dialled",
        "tls",
        "if endpoint.fingerprints or not endpoint.verify_ssl:",
        "if endpoint.fingerprints or endpoint.verify_ssl:",
    ),
    _dialing(
        "redirects",
        "nobody is followed elsewhere",
        "dial",
        "        return exc\n",
        "        return super().process_redirect(exc)\n",
    ),
    _dialing(
        "in clear",
        "another machine is not dialled in clear unless that is said",
        "endpoint",
        "if not self.is_on_this_machine and not self.insecure:",
        "if not self.is_on_this_machine and self.insecure:",
    ),
    _dialing(
        "fingerprint without effect",
        "a fingerprint is never without effect",
        "endpoint",
        "        if self.fingerprints:\n            return (",
        "        if self.fingerprints and self.insecure:\n            return (",
    ),
    Mutant(
        "fingerprint of a part",
        "a fingerprint is compared as a whole",
        "shared/caption_flow/certificates/fingerprint.py",
        "hmac.compare_digest(seen, one)",
        "hmac.compare_digest(seen[:31], one[:31])",
        ("tests/unit/certificates/test_fingerprint.py",),
    ),
    Mutant(
        "key for everybody",
        "a private key is readable by its owner alone",
        "shared/caption_flow/certificates/self_signed.py",
        "_written(key, made.key_pem, 0o600)",
        "_written(key, made.key_pem, 0o644)",
        ("tests/unit/certificates/test_self_signed.py",),
    ),
    Mutant(
        "certificate for good",
        "new connections get the certificate that is in the files",
        SERVED,
        "connection.context = self._current",
        "_ = self._current",
        SERVED_TESTS,
    ),
    Mutant(
        "half a change",
        "a certificate and a key that are replaced one after the other are waited for",
        SERVED,
        "if stamp == self._served or not is_settled:",
        "if stamp == self._served:",
        SERVED_TESTS,
    ),
    Mutant(
        "links not followed",
        "a name that leads to other files is a change",
        SERVED,
        "facts = path.stat()",
        "facts = path.lstat()",
        SERVED_TESTS,
    ),
    Mutant(
        "old TLS",
        "nothing older than TLS 1.2 is spoken",
        "shared/caption_flow/certificates/contexts.py",
        "context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)",
        "context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED",
        SERVED_TESTS,
    ),
    # ------------------------------------------------------------------ watching and steering
    Mutant(
        "monitors that act",
        "a monitor's token shows the state and does nothing else",
        "orchestrator/caption_flow/orchestrator/server/observers.py",
        'if identity.role != "admin":',
        "if False:",
        STEERING_TESTS,
    ),
    Mutant(
        "pause forgotten",
        "a pause outlasts the orchestrator",
        SERVICE,
        'await self._store.write(SetMeta({_PAUSED: "yes"}))',
        'await self._store.write(SetMeta({_PAUSED: ""}))',
        STEERING_TESTS,
    ),
    Mutant(
        "still finished",
        "a finished run goes on when failed items are put back",
        SERVICE,
        "            self.finished.clear()",
        "            pass",
        STEERING_TESTS,
    ),
    Mutant(
        "half applied",
        "a configuration of which something needs a restart changes nothing",
        STEERING,
        "        if in_the_way:",
        "        if False:",
        STEERING_TESTS,
    ),
    Mutant(
        "recipe kept to oneself",
        "workers hear of a changed recipe",
        SERVICE,
        "for link in self._conversations.links.values() if is_news else ():",
        "for link in ():",
        STEERING_TESTS,
    ),
    Mutant(
        "half of another recipe",
        "a row is of one recipe: what an earlier one gave to a later stage is not stored",
        SERVICE,
        "ev.CommitRejected(ticket) if is_outdated else ev.Committed(ticket)",
        "ev.Committed(ticket)",
        STEERING_TESTS,
    ),
    Mutant(
        "partials of another recipe kept",
        "items between stages begin again under another recipe, on disk, too",
        SERVICE,
        "            self.apply(ev.RecipeReplaced())\n"
        "            self._watch(self._store.write(ForgetPartials()))",
        "            self.apply(ev.RecipeReplaced())",
        STEERING_TESTS,
    ),
    Mutant(
        "credits kept",
        "rows that are taken back are nobody's any more",
        f"{CORE}/contributors.py",
        "self._counts.setdefault(name, Counter()).subtract(counts)",
        "pass",
        STEERING_TESTS,
    ),
    _ledger(
        "another recipe built upon",
        "items between stages begin again when the recipe is replaced",
        "ledger",
        "self._rewind(None, None, effects)",
        "pass",
    ),
    _ledger(
        "pieces in the wrong queue",
        "with another limit of attempts, what waits is found all the same",
        "backlog",
        "        for piece in waiting:\n            self.put(piece)",
        "        for piece in waiting:\n            piece.chunk.pieces.append(piece)",
    ),
    _ledger(
        "put aside too early",
        "an item is put aside after as many attempts as are allowed now",
        "ledger",
        "is_last = lease.isolated and attempts >= self.policy.max_attempts",
        "is_last = lease.isolated",
    ),
    Mutant(
        "old prompts to the end",
        "when the recipe changes, what is in no engine is given up",
        "worker/caption_flow/worker/core/session.py",
        "            self._give(held, effects)",
        "            pass",
        SESSION_TESTS,
    ),
    Mutant(
        "an unchanged model loaded again",
        "a changed recipe loads what it changes and nothing else",
        "worker/caption_flow/worker/runtime.py",
        "if self._made.get(model) == options[model]",
        "if False",
        WORKER_TESTS,
    ),
    Mutant(
        "engines pulled from under requests",
        "other engines are loaded when the old ones have answered",
        "worker/caption_flow/worker/pipeline.py",
        "if self._renewal is not None and not self._carried and self.may_swap:",
        "if self._renewal is not None and self.may_swap:",
        SWAPPING_TESTS,
    ),
    Mutant(
        "a token for everybody",
        "a token that happens to lie about is sent to no server named on the command line",
        "shared/caption_flow/cli/connecting.py",
        "        if self.server is not None:\n            return Found()",
        "        if False:\n            return Found()",
        CONNECTING_TESTS,
    ),
    Mutant(
        "a token to be read by all",
        "what an orchestrator leaves for its owner can be read by that user only",
        "shared/caption_flow/cli/local_access.py",
        "os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600",
        "os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644",
        CONNECTING_TESTS,
    ),
    Mutant(
        "another's access taken away",
        "an orchestrator takes away what it left itself and nothing else",
        "shared/caption_flow/cli/local_access.py",
        "if access is not None and access.token == token:",
        "if access is not None:",
        CONNECTING_TESTS,
    ),
    Mutant(
        "numbers without bound",
        "what workers say of themselves is bounded, and finite",
        "shared/caption_flow/protocol/messages.py",
        "        Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)],",
        "        float,",
        STEERING_TESTS,
    ),
    Mutant(
        "a name that moves the cursor",
        "what workers are called is shown with control characters written out",
        "shared/caption_flow/cli/status_view.py",
        '"worker": for_people(worker.name),',
        '"worker": worker.name,',
        ("tests/unit/cli/test_status_view.py",),
    ),
    _video(
        "frames from the beginning of spans",
        "frames are taken at the midpoints of equal spans",
        "shared/caption_flow/recipe/video.py",
        "(2 * number + 1) / (2 * count)",
        "(2 * number) / (2 * count)",
    ),
    _video(
        "a still frame twice",
        "each frame of a video is passed once",
        "worker/caption_flow/worker/core/frames.py",
        "list(dict.fromkeys(bisect_right(starts, first + time) - 1 for time in times))",
        "[bisect_right(starts, first + time) - 1 for time in times]",
    ),
    _video(
        "the next frame",
        "what is passed is the frame that is shown at the time",
        VIDEO,
        "if frame.pts == start:",
        "if (frame.pts or 0) > start:",
    ),
    _video(
        "recordings lie on their side",
        "frames are upright",
        VIDEO,
        "[Image.Transpose.ROTATE_270 if b > 0 else Image.Transpose.ROTATE_90]",
        "[Image.Transpose.ROTATE_90 if b > 0 else Image.Transpose.ROTATE_270]",
    ),
    _video(
        "everything is decoded",
        "frames are sought, not decoded to from the beginning",
        VIDEO,
        "(key >= 0 and self._listed.keys[key] > position)",
        "(key < 0)",
    ),
    _video(
        "pictures of any size",
        "no picture of more pixels than the limit is decoded",
        VIDEO,
        "if width * height > limits.pixels_in:",
        "if width * height > 2**62:",
    ),
    _video(
        "time without end",
        "a video that takes too long to decode is given up",
        VIDEO,
        "if time.thread_time() > self._ends_at:",
        "if time.thread_time() > self._ends_at + 1e9:",
    ),
    _video(
        "half a file",
        "a video that is cut short is a typed row",
        VIDEO,
        "return _mov_end(data) > len(data) if",
        "return _mov_end(data) > len(data) + 10**9 if",
    ),
    Mutant(
        "a large video is read",
        "a video beyond the limit is neither read nor sent",
        "worker/caption_flow/worker/loading.py",
        "        _check_size(job.item.place, video)\n",
        "",
        LOADING_VIDEO_TESTS,
    ),
    Mutant(
        "videos without number",
        "few video files are in memory at a time",
        "worker/caption_flow/worker/loading.py",
        "_VIDEOS_AT_ONCE: Final = 4",
        "_VIDEOS_AT_ONCE: Final = 400",
        LOADING_VIDEO_TESTS,
    ),
    Mutant(
        "videos among the others",
        "taking a tar's videos later leaves all other samples where they were",
        "orchestrator/caption_flow/orchestrator/sources/tar_index.py",
        "sorted(samples, key=lambda sample: sample.is_video)",
        "samples",
        TAR_VIDEO_TESTS,
    ),
    Mutant(
        "videos not counted",
        "videos that nobody asked for are counted",
        "orchestrator/caption_flow/orchestrator/sources/tars.py",
        "self.videos_left_out += facts.videos",
        "self.videos_left_out += 0",
        TAR_VIDEO_TESTS,
    ),
    Mutant(
        "frames of any recipe",
        "captions by other frames are those of another recipe",
        "shared/caption_flow/recipe/fingerprint.py",
        '"frames": frames, ',
        "",
        ("tests/unit/recipe/test_video.py",),
    ),
    Mutant(
        "each IPv6 address a suspect of its own",
        "whoever has one address of a network has them all",
        AUTH,
        "return str(ipaddress.ip_network((known, _NETWORK_BITS), strict=False))",
        "return address",
        AUTH_TESTS,
    ),
    Mutant(
        "removed tokens are forgotten",
        "a removed token lets nobody in until it is added again",
        AUTH,
        "            self._revoked.add(digest)\n",
        "",
        AUTH_TESTS,
    ),
    Mutant(
        "strangers wait without bound",
        "only so many refusals are held back at a time",
        "orchestrator/caption_flow/orchestrator/server/server.py",
        "if self._waiting >= MOST_WAITING:",
        "if False:",
        TOKEN_TESTS,
    ),
    Mutant(
        "an ended session's leases wait for it",
        "what a removed session holds goes back at once",
        CONVERSATION,
        "ev.SessionLeft(link.session))\n            closing",
        "ev.SessionDropped(link.session))\n            closing",
        TOKEN_TESTS,
    ),
    Mutant(
        "a revocation for today",
        "a removed token stays out after a restart",
        "orchestrator/caption_flow/orchestrator/membership.py",
        "_known(one, revoked=True)",
        "_known(one)",
        TOKEN_TESTS,
    ),
    Mutant(
        "a reconnected session is a second worker",
        "a session that reconnects is no second worker",
        "orchestrator/caption_flow/orchestrator/membership.py",
        " and one.session != link.session",
        "",
        TOKEN_TESTS,
    ),
    Mutant(
        "tokens for ever",
        "sessions end when their token expires",
        SERVICE,
        "            self.membership.expire()\n",
        "",
        TOKEN_TESTS,
    ),
    Mutant(
        "a ration that is not spent",
        "a contributor brings no more items than its token is for",
        f"{CORE}/ledger.py",
        "self._roster.spend(contributor, mask.bit_count())",
        "pass",
        RATION_TESTS,
    ),
    Mutant(
        "a ration for each session",
        "sessions of one contributor share its ration",
        f"{CORE}/roster.py",
        "held = (one.left for one in self if one.contributor == session.contributor)",
        "held = [session.left]",
        RATION_TESTS,
    ),
    Mutant(
        "short enough by assumption",
        "a text is measured where all together are too long",
        "shared/caption_flow/protocol/rows.py",
        "if text is None or text.size <= most:",
        "if text is None or text.size:",
        ("tests/integration/orchestrator/test_privileges.py",),
    ),
    Mutant(
        "reasons without failures",
        "a captioned row has no reason to fail",
        "shared/caption_flow/storage/writes.py",
        "if FAILED in status or kinds.null_count < len(kinds):",
        "if FAILED in status:",
        ("tests/integration/storage/test_commits.py",),
    ),
    Mutant(
        "rows of any length",
        "what is longer than anybody needs is refused",
        f"{STORAGE}/writes.py",
        "    check_bounds(rows)\n",
        "",
        PRIVILEGE_TESTS,
    ),
    Mutant(
        "messages as fast as they come",
        "who speaks too fast is heard more slowly",
        CONVERSATION,
        "                await pace.keep()\n",
        "",
        PRIVILEGE_TESTS,
    ),
    Mutant(
        "checks by oneself",
        "nobody checks what came with its own token",
        f"{CORE}/spot_checks.py",
        "if check.contributor != contributor and (",
        "if (",
        CHECK_TESTS,
    ),
    Mutant(
        "checks that can be foreseen",
        "who does not know the seed cannot tell which items are checked",
        f"{CORE}/spot_checks.py",
        "hmac.digest(self._seed,",
        'hmac.digest(b"s",',
        CHECK_TESTS,
    ),
    Mutant(
        "cut off on anybody's word",
        "one of low trust cannot have another cut off",
        f"{CORE}/spot_checks.py",
        "_is_below(policy, score.trusted_checks, score.trusted_agreement)",
        "_is_below(policy, score.checks, score.agreement)",
        CHECK_TESTS,
    ),
    Mutant(
        "an end before the checks",
        "the run does not end before a liar's last items are looked at",
        CHECKING,
        "still = pending or bool(self._cutting)",
        "still = bool(self._cutting)",
        CHECKING_TESTS,
    ),
    Mutant(
        "checks for anybody who asks",
        "a lease for checks is its session's alone",
        CHECKING,
        "        if holder != event.session:",
        "        if False:",
        CHECKING_TESTS,
    ),
    Mutant(
        "a cut that is not finished",
        "a cut that a kill interrupted is made at the next start",
        SERVICE,
        "                    self.cut_off(name)\n",
        "                    pass\n",
        CHECKING_TESTS,
    ),
    _storage(
        "stages of a cheat stay",
        "rows that a contributor had an earlier stage of are taken back, too",
        "reopen",
        '{name, *(one.get("contributor") for one in stats or ())}',
        "{name}",
    ),
    _hostile(
        "compressed rows are read",
        "rows whose size is their sender's word are refused",
        "shared/caption_flow/protocol/rows.py",
        "if _is_compressed(batch.metadata.to_pybytes()):",
        "if not batch.metadata.to_pybytes():",
    ),
    _hostile(
        "offsets of empty lists are believed",
        "an empty list that begins elsewhere crashes nobody",
        "shared/caption_flow/protocol/rows.py",
        "if len(values) == 0 and offsets is not None",
        "if len(values) < 0 and offsets is not None",
    ),
    _hostile(
        "words as large as reports",
        "only the rows of a report may be large",
        "shared/caption_flow/protocol/codec.py",
        "if len(frame) - rows > most:",
        "if len(frame) - rows > MAX_REPORT_BYTES:",
    ),
    _hostile(
        "as many leases as fit",
        "a message names a bounded number of leases",
        "shared/caption_flow/protocol/codec.py",
        "envelope.leases)[:5])) > MAX_LEASES_NAMED:",
        "envelope.leases)[:5])) > MAX_FRAME_BYTES:",
    ),
    _hostile(
        "strangers keep their place",
        "the oldest stranger makes room for the newest",
        GUARD,
        "if len(neighbours) > self.bounds.strangers_of_an_address:",
        "if len(neighbours) > 10**9:",
    ),
    _hostile(
        "endless headers",
        "an upgrade request is small",
        GUARD,
        "if self._requested > self._doorkeeper.bounds.request_bytes:",
        "if self._requested > 10**9:",
    ),
    _hostile(
        "pings for ever",
        "who sends nothing but pings is cut off",
        GUARD,
        "if self._control > self._doorkeeper.bounds.control_frames:",
        "if self._control > 10**9:",
    ),
    _hostile(
        "held without limit",
        "what all connections hold together is bounded",
        GUARD,
        "while self._total > self.bounds.held_bytes and self._held:",
        "while self._total > 10**12 and self._held:",
    ),
    _hostile(
        "the meekest goes",
        "of those that hold too much the greediest goes",
        GUARD,
        "greediest = max(self._held, key",
        "greediest = min(self._held, key",
    ),
    _hostile(
        "large messages without limit",
        "few connections at a time receive large messages",
        GUARD,
        "if len(self._large) < self.bounds.large:",
        "if len(self._large) < 10**9:",
    ),
    _hostile(
        "the deaf are waited for",
        "who reads nothing for long is cut off",
        "orchestrator/caption_flow/orchestrator/server/session.py",
        "async with asyncio.timeout(_TAKE_SECONDS):",
        "async with asyncio.timeout(None):",
    ),
    _bombs(
        "memory of tiles", "a tile is as large as it says", "max(sizes, key=_pixels)", "sizes[0]"
    ),
    _bombs(
        "scans without limit",
        "a JPEG has only so many scans",
        "if scans * pixels > _MOST_SCAN_PIXELS:",
        "if scans > _MOST_SCAN_PIXELS:",
    ),
    _bombs(
        "icons are believed",
        "pictures in icons are small",
        "_icons(data) if data[:4] == _ICON else ()",
        "_icons(data) if data[:4] == _PNG else ()",
    ),
    _bombs(
        "decoding all at once",
        "threads that decode share one limit of memory",
        "self._freed.wait_for(lambda: self._taken + size <= self.most)",
        "self._freed.wait_for(lambda: size <= self.most)",
    ),
    Mutant(
        "undo of the last format only",
        "--undo takes back all formats of one export",
        f"{STORAGE}/exported.py",
        "if last != self._export:",
        "if True:",
        ("tests/unit/storage/test_undo.py",),
    ),
    Mutant(
        "failed item in a list",
        "a list for trainers holds captioned items only",
        f"{EXPORTER}/captioned.py",
        'if row["status"] == FAILED:',
        'if row["status"] is None:',
        EXPORT_TESTS,
    ),
    Mutant(
        "one key for two images",
        "no image gets another one's caption",
        f"{EXPORTER}/kohya.py",
        "owner = claims.take(claim)",
        "owner = None",
        EXPORT_TESTS,
    ),
    Mutant(
        "namesakes share metadata",
        "captions go into the metadata of their own tar",
        f"{EXPORTER}/webshart.py",
        "if namesakes == 1 else (name,)",
        "if namesakes else (name,)",
        EXPORT_TESTS,
    ),
    Mutant(
        "webshart outside the folder",
        "a shard's name leads to no file outside the folder",
        f"{EXPORTER}/webshart.py",
        'if ".." in name.split("/") or name.startswith("/"):',
        "if not name:",
        EXPORT_TESTS,
    ),
    Mutant(
        "half a lance dataset",
        "an export that fails leaves nothing new behind",
        f"{EXPORTER}/lance_table.py",
        "shutil.rmtree(output_path, ignore_errors=True)",
        "pass",
        EXPORT_TESTS,
    ),
    Mutant(
        "lance over something else",
        "what is no Lance dataset is left as it is",
        f"{EXPORTER}/lance_table.py",
        "if not is_free:",
        "if False:",
        EXPORT_TESTS,
    ),
    Mutant(
        "pandas on the event loop",
        "pyarrow imports no pandas in the middle of a run",
        "shared/caption_flow/cli/arrow.py",
        "sys.meta_path.insert(0, absent)",
        "sys.meta_path.append(absent)",
        ("tests/unit/cli/test_arrow.py",),
    ),
    Mutant(
        "waits for an import",
        "a worker that is done, or cancelled, waits for no thread",
        "shared/caption_flow/cli/worker.py",
        "os._exit(code)",
        "sys.exit(code)",
        ("tests/e2e/test_drop_in_loading.py",),
    ),
    Mutant(
        "the machine's own file first",
        "configuration files are looked for in the promised order",
        "shared/caption_flow/config/discovery.py",
        """    yield home / ".caption-flow"
    yield (_absolute(env.get("XDG_CONFIG_HOME")) or home / ".config") / "caption-flow"
    yield etc / "caption-flow"
""",
        """    yield home / ".caption-flow"
    yield etc / "caption-flow"
    yield (_absolute(env.get("XDG_CONFIG_HOME")) or home / ".config") / "caption-flow"
""",
        ("tests/unit/config/test_discovery.py",),
    ),
    Mutant(
        "waits for a late worker",
        "a run is over when its last image is, whatever its workers are at",
        "shared/caption_flow/cli/local_run.py",
        "await _first_of(leading, watching, leader.finished.wait())",
        "await asyncio.wait({leading, watching}, return_when=asyncio.FIRST_COMPLETED)",
        ("tests/e2e/test_ends_soon.py",),
    ),
    Mutant(
        "key in clear",
        "a job's configuration names secrets by reference only",
        WORKSPACE,
        "or (secret := Secret(str(key))).reference is not None:",
        "or (secret := Secret(str(key))) is not None:",
        WORKSPACE_TESTS,
    ),
    Mutant(
        "replaced without a word",
        "the launcher lists what it replaced",
        WORKSPACE,
        "if key in overrides and _value_at",
        "if overrides.get(key) and _value_at",
        WORKSPACE_TESTS,
    ),
    Mutant(
        "a dataset of this folder only",
        "a job goes on from any working folder",
        WORKSPACE,
        "            return _absolute(path)\n",
        "            return path\n",
        WORKSPACE_TESTS,
    ),
    Mutant(
        "report of somebody else's job",
        "a command that is refused leaves a job's report as it was",
        REPORT,
        "if self._plan.workspace is None or self._began is None:",
        "if self._plan.workspace is None:",
        WORKSPACE_TESTS,
    ),
    Mutant(
        "stopped is finished",
        "a job is finished when every image is captioned or failed",
        REPORT,
        "if exit_code == EXIT_OK and is_complete",
        "if exit_code == EXIT_OK",
        WORKSPACE_TESTS,
    ),
    Mutant(
        "embeddings captioned",
        "entries without pictures are refused",
        "shared/caption_flow/config/multidatabackend.py",
        "if content in _NO_PICTURES:",
        "if False:",
        ENTRY_TESTS,
    ),
    Mutant(
        "a guess between two images",
        "no imported caption goes to one of two images that may be meant",
        MATCHING,
        "if len(items) == 1:",
        "if items:",
        IMPORT_TESTS,
    ),
    Mutant(
        "another folder's image",
        "a name with folders is of no image in another folder",
        MATCHING,
        'start_of = b"/".join(reversed(parts)) + b"/"',
        'start_of = parts[-1] + b"/"',
        IMPORT_TESTS,
    ),
    Mutant(
        "import lists all images",
        "an import adds only what it has texts for to a folder's run",
        IMPORTING,
        "skip=(lambda path: not self._matcher.has(path)) if self._is_local else None",
        "skip=None",
        IMPORT_TESTS,
    ),
    Mutant(
        "imported twice",
        "importing again adds no second row",
        IMPORTING,
        'return "kept" if shard in self.done and position in self.done[shard] else "imported"',
        'return "imported"',
        IMPORT_TESTS,
    ),
    Mutant(
        "imported without hash",
        "an imported image that changes is found out",
        IMPORTING,
        "content_hash=content.digest,",
        "content_hash=None,",
        IMPORT_TESTS,
    ),
    Mutant(
        "imported over other fields",
        "overwriting one field leaves the others as they are",
        IMPORTING,
        "matcher.amend(match, {**stored, **match.texts})",
        "matcher.amend(match, match.texts)",
        IMPORT_TESTS,
    ),
    Mutant(
        "imported between stages",
        "an item has a row or waits between stages, never both",
        IMPORTING,
        "await store.write(ForgetPartials({shard: items}))\n        if not",
        "pass\n        if not",
        IMPORT_TESTS,
    ),
    Mutant(
        "captions act on the terminal",
        "no text of a model or a dataset reaches a terminal as it is",
        f"{VIEWER}/entry.py",
        "yield Paragraph(for_people(line), style, is_indented=True)",
        "yield Paragraph(line, style, is_indented=True)",
        VIEWER_TESTS,
    ),
    Mutant(
        "an old search's answer counts",
        "the late answer of a search that was stopped changes nothing",
        f"{VIEWER}/state.py",
        "if looking is None or looking.look.number != number:",
        "if looking is None:",
        VIEWER_TESTS,
    ),
    Mutant(
        "kitty answers among the keys",
        "pictures are sent as the protocol says",
        f"{VIEWER}/pictures.py",
        "C=1,q=2,",
        "C=1,q=0,",
        VIEWER_TESTS,
    ),
    Mutant(
        "every part is read for failures",
        "a view reads no part that has no row of the kind that is looked for",
        f"{STORAGE}/browse.py",
        "(wants_failed and captioned < self.rows)",
        "wants_failed",
        BROWSE_TESTS,
    ),
    Mutant(
        "a moved row is taken for another",
        "the item on the screen is found again after a checkpoint",
        f"{STORAGE}/browse.py",
        'if row is not None and (row["shard"], row["item_index"]) == (shard, item_index):',
        "if row is not None:",
        BROWSE_TESTS,
    ),
    _tars_out(
        "another image's caption",
        "an image that changed since is never paired with its old caption",
        "return wanted.content_hash is None or wanted.content_hash == content_hash(image)",
        "return True",
    ),
    _tars_out(
        "whole tars made again",
        "a tar that is whole needs no image again",
        "(known.plan, known.bytes) == (plan, size)",
        "(known.plan, known.bytes) == (plan, None)",
    ),
    _tars_out(
        "tars trusted while they are written",
        "a crash between tar and manifest costs that tar",
        "self._manifest.set(TarFacts(path.name))",
        "self._manifest.set(self._manifest.get(path.name) or TarFacts(path.name))",
    ),
    _tars_out(
        "somebody else's tar replaced",
        "a tar that no export wrote is never touched",
        "elif known is None and size is not None:",
        "elif known is None and size is None:",
    ),
    _tars_out(
        "one key for two images in a tar",
        "each image has a sample of its own",
        "key = key_beside(key, claim.item_key)",
        "pass",
    ),
    _tars_out(
        "old tars stay",
        "tars that are no part of an export any more are removed",
        "(self.folder / file).unlink(missing_ok=True)",
        "pass",
    ),
    _tars_out(
        "a dataset out of reach",
        "an export stops where the dataset is out of reach",
        "if self._passing == _MOST_IN_A_ROW:",
        "if self._passing < 0:",
    ),
    Mutant(
        "dots in keys",
        "webdataset cuts names where the suffix begins",
        f"{EXPORTER}/tar_names.py",
        "%~.",
        "%~",
        ("tests/unit/storage/test_tar_names.py",),
    ),
    Mutant(
        "a commit over others'",
        "what others change at the hub meanwhile is kept",
        f"{EXPORTER}/hub_client.py",
        "parent_commit=parent,",
        "parent_commit=None,",
        UPLOAD_TESTS,
    ),
    Mutant(
        "impatience with the hub",
        "what the hub fails at for a moment is asked again",
        f"{EXPORTER}/hub_client.py",
        "return status in _PASSING",
        "return False",
        UPLOAD_TESTS,
    ),
    Mutant(
        "others' files go",
        "an upload removes its own files only",
        f"{EXPORTER}/hub.py",
        "sorted(self._ours() - kept)",
        "sorted(set(self._there().files) - kept)",
        UPLOAD_TESTS,
    ),
    Mutant(
        "the same files again",
        "what the repository has is not sent again",
        f"{EXPORTER}/hub.py",
        "        if self._has(shard):\n            shard.file",
        "        if False:\n            shard.file",
        UPLOAD_TESTS,
    ),
    Mutant(
        "two uploads of one folder",
        "one folder is uploaded from once at a time",
        f"{EXPORTER}/hub.py",
        "lock = FolderLock(folder)",
        'lock = FolderLock(Path(__import__("tempfile").mkdtemp()))',
        INTERRUPTED_TESTS,
    ),
    Mutant(
        "public after all",
        "what is to be private goes into no public repository",
        f"{EXPORTER}/hub.py",
        "if seen is not None and wants_private and not seen.private:",
        "if seen is None and wants_private and not seen:",
        UPLOAD_TESTS,
    ),
    Mutant(
        "captions among others' data",
        "a repository with others' data is refused",
        f"{EXPORTER}/hub.py",
        "        if in_the_way:",
        "        if False:",
        UPLOAD_TESTS,
    ),
    Mutant(
        "names as markup",
        "what others wrote never becomes markup of a card",
        f"{EXPORTER}/hub_card.py",
        r"""re.sub(r"([\\`*_{}\[\]<>()#|!~&])", r"\\\1", " ".join(name.split()))""",
        """" ".join(name.split())""",
        CARD_TESTS,
    ),
    Mutant(
        "a card in our hand",
        "a card that needs no change stays as people wrote it",
        f"{EXPORTER}/hub_card.py",
        "if text and _plain(head) == before:",
        "if False:",
        CARD_TESTS,
    ),
    Mutant(
        "files as large as batches",
        "files at the hub are of the size that was asked for",
        f"{EXPORTER}/hub_shards.py",
        "for piece in _pieces(batch, self._group_bytes):",
        "for piece in (batch,):",
        CARD_TESTS,
    ),
    Mutant(
        "two letters",
        "a text without a suffix is no image because it begins with BM",
        f"{SOURCES}/scan.py",
        "and head[6:10] == bytes(4)",
        "and True",
        ("tests/unit/orchestrator/test_scan.py",),
    ),
    Mutant(
        "half a picture",
        "a file that ends too early is told as such",
        "worker/caption_flow/worker/images/wholeness.py",
        "return at == len(data)",
        "return True",
        ("tests/unit/images/test_load.py",),
    ),
    Mutant(
        "hasty drain",
        "what workers finish last in a drain is stored",
        SERVICE,
        "DRAIN_WORK_SECONDS + DRAIN_ACK_SECONDS",
        "DRAIN_WORK_SECONDS",
        SERVICE_TESTS,
    ),
)
