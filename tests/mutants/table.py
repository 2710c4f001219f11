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
EXPORTER: Final = f"{STORAGE}/exporter"
EXPORT_TESTS: Final = (
    "tests/unit/storage/test_export_trainers.py",
    "tests/unit/storage/test_export_readers.py",
)
GPU_TESTS: Final = ("tests/unit/cli/test_gpus.py", "tests/unit/engines/test_devices.py")
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


def _outbox(name: str, promise: str, old: str, new: str) -> Mutant:
    return Mutant(name, promise, OUTBOX, old, new, OUTBOX_TESTS)


def _gpus(name: str, promise: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(name, promise, file, old, new, GPU_TESTS)


def _stall(name: str, promise: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, promise, f"worker/caption_flow/worker/{module}.py", old, new, STALL_TESTS)


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
        "commit.again |= commit.mask & commit.chunk.among(items)",
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
        "effects.append(ev.Wait(name, self.policy.lease_seconds / 3, all_out))",
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
        "if lease.isolated and left.bit_count() == 1:",
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
        "        future.add_done_callback(partial(self._committed, effect, write, link))",
        "        future.add_done_callback(partial(self._committed, effect, write, link))\n"
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
        "is_any_version=not place.offset and place.length is None",
        "is_any_version=True",
    ),
    _place(
        "end of a short file is passed on",
        "bytes that are not there are no image",
        "files",
        "if len(data) != length:",
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
        "if size is not None and whole != size:",
        "if size == -1:",
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
    # ------------------------------------------------------------------ exports
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
)
