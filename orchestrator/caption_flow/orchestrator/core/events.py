"""What can happen to the ledger, and what it asks its shell to do. Data only.

Sessions are named by the worker's session id, chunks by ``(shard, first)``. ``now`` is never in an
event: the shell passes it to `Ledger.handle` beside the event, in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType

from caption_flow.protocol.messages import LeaseId

Ticket = NewType("Ticket", int)
"""Names one commit on its way to the disk."""

# --------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class ItemsFound:
    """The source has listed a shard up to ``count`` items; counts only grow."""

    shard: str
    count: int


@dataclass(frozen=True, slots=True)
class ListingFinished:
    """The source has listed every shard to its end."""


@dataclass(frozen=True, slots=True)
class SessionJoined:
    """A worker connected, for the first time or again with the same session id.

    ``holds`` are the items of its leases that the worker still has: what it does not name is handed
    out again. ``serves`` are the stages it runs, None for all. ``contributor`` is whose it is.
    """

    session: str
    worker: str
    holds: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    serves: frozenset[int] | None = None
    contributor: str = ""


@dataclass(frozen=True, slots=True)
class SessionDropped:
    """A connection ended without a word; its leases live on until they expire."""

    session: str


@dataclass(frozen=True, slots=True)
class SessionLeft:
    """A worker said goodbye: what it holds goes back at once and nobody is to blame."""

    session: str


@dataclass(frozen=True, slots=True)
class Heard:
    """Any message from a session: its leases are renewed."""

    session: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A worker asks for up to ``chunks`` leases.

    ``width`` is how many items it works on at once, 0 when it did not say; ``idle`` is how many it
    has beyond those.
    """

    session: str
    chunks: int
    width: int = 0
    idle: int = 0


@dataclass(frozen=True, slots=True)
class Reported:
    """A worker reports items of a lease in batch ``seq``.

    They are finished, captioned or failed, or have ``reached`` a stage that it does not run.
    """

    session: str
    lease: int
    seq: int
    items: tuple[int, ...]
    reached: int | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """The commit ``ticket`` is on disk."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class CommitRejected:
    """The rows of ``ticket`` were not acceptable; the items are as if never reported."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Released:
    """A worker gives back what is unfinished of a lease.

    With ``engine_died`` the ``suspects`` (items that were in the engine; all of them when empty)
    have one more attempt against them.
    """

    session: str
    lease: int
    engine_died: bool = False
    suspects: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Recalled:
    """A worker answers `Recall`: it gives up these items, by lease, and has not begun them."""

    session: str
    leases: Mapping[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Reopened:
    """Terminal items are to be done again; those that are not terminal are passed over.

    Their rows no longer count: the shell has seen to that on disk before it says this.
    """

    shard: str
    items: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rewound:
    """Items between stages begin again at the first; those that have no stage behind them stay.

    What their stages gave no longer counts. The shell takes it off the disk after it has said this,
    and before it hands over anything that is reported later.
    """

    shard: str
    items: frozenset[int]


@dataclass(frozen=True, slots=True)
class Rationed:
    """So many more rows of a contributor may count; None is no limit.

    Its sessions are granted no more than that. What they hold already they may report.
    """

    contributor: str
    items: int | None


@dataclass(frozen=True, slots=True)
class Awaited:
    """The end is not to be announced, ``still`` or not: the shell waits for something else."""

    still: bool


@dataclass(frozen=True, slots=True)
class RecipeReplaced:
    """From now on another recipe is handed out: all items between stages begin again at the first.

    What their stages gave no longer counts, as with `Rewound`.
    """


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """From now on work is handed out in other portions, and given up sooner or later.

    Chunks and leases that exist stay what they are; silence is measured by the new time.
    """

    chunk_size: int
    lease_seconds: float
    max_attempts: int


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Paused:
    """Hand out nothing until `Resumed`; results are still taken."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """Hand out again."""


Event = (
    ItemsFound
    | ListingFinished
    | SessionJoined
    | SessionDropped
    | SessionLeft
    | Heard
    | Wanted
    | Reported
    | Committed
    | CommitRejected
    | Released
    | Recalled
    | Reopened
    | Rewound
    | Rationed
    | Awaited
    | RecipeReplaced
    | PolicyChanged
    | Ticked
    | Paused
    | Resumed
)

# --------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Grant:
    """Send these items to the session as a lease, and remember the lease across restarts.

    Their next stage is ``stage``: what those before it gave goes with them.
    """

    session: str
    lease: LeaseId
    shard: str
    chunk_first: int
    chunk_count: int
    items: tuple[int, ...]
    stage: int = 0


@dataclass(frozen=True, slots=True)
class Remember:
    """Remember across restarts that these items are the lease, instead of those granted."""

    lease: LeaseId
    session: str
    worker: str
    shard: str
    chunk_first: int
    chunk_count: int
    items: tuple[int, ...]
    live: bool
    stage: int


@dataclass(frozen=True, slots=True)
class EndLease:
    """Remember that the lease is over; what it still brings counts until its chunk is done."""

    lease: LeaseId


@dataclass(frozen=True, slots=True)
class Wait:
    """Tell the session that there is nothing now; the ledger grants by itself when there is.

    ``all_handed_out``: see `caption_flow.protocol.messages.Wait`.
    """

    session: str
    seconds: float
    all_handed_out: bool = False
    rationed: bool = False
    """Its contributor may bring no more than its sessions hold."""


@dataclass(frozen=True, slots=True)
class Trim:
    """Tell the session that another worker does these items of its lease."""

    session: str
    lease: LeaseId
    items: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recall:
    """Ask the session to give up half of what it has not begun: others have nothing to do."""

    session: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Make a report durable, then say `Committed`; then acknowledge ``seq`` to the session.

    ``accepted`` are positions within the report's items: the others are already had. An empty one
    goes through the disk's queue all the same, since what it repeats may still be on its way.
    The items were at ``stage``, and their worker carries them to ``reach``; they are there now if
    this is ``partial``, else terminal.
    """

    ticket: Ticket
    session: str
    worker: str
    seq: int
    shard: str
    chunk_first: int
    items: tuple[int, ...]
    accepted: tuple[int, ...]
    stage: int = 0
    reach: int = 0
    partial: bool = False


@dataclass(frozen=True, slots=True)
class CommitQuarantine:
    """Make a failure of kind ``quarantined`` durable for one item, then say `Committed`.

    ``attempts`` are the leases that were lost with the item in them; ``evidence`` says how the last
    one was lost, and ``worker`` whose it was.
    """

    ticket: Ticket
    shard: str
    chunk_first: int
    item: int
    attempts: int
    evidence: str
    worker: str


@dataclass(frozen=True, slots=True)
class ForgetLease:
    """The lease's chunk is done: nothing about it has to be remembered."""

    lease: LeaseId


@dataclass(frozen=True, slots=True)
class Refuse:
    """Close the session, saying why: it broke the protocol and nothing of its message counts."""

    session: str
    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Every item is terminal: tell one session, or all when none is named."""

    session: str | None = None


Effect = (
    Grant
    | Remember
    | EndLease
    | ForgetLease
    | Wait
    | Trim
    | Recall
    | Commit
    | CommitQuarantine
    | Refuse
    | Finish
)
