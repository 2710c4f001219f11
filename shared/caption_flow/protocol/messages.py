"""Every message that crosses the wire, as a typed, immutable object.

Owns names and shapes, nothing else: `codec` turns these into msgpack maps and back, and validates
while doing so. The map's key ``type`` tells the messages apart. Items are named by their index
within a shard and only ever inside a lease; no message carries a path that the receiver would open
on behalf of the sender, except `ItemDescription.place`, which an orchestrator tells its workers.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NewType

import msgspec

from caption_flow.protocol.places import Place

LeaseId = NewType("LeaseId", int)
WorkerName = Annotated[str, msgspec.Meta(max_length=200)]
ShortText = Annotated[str, msgspec.Meta(max_length=200)]
SessionId = Annotated[str, msgspec.Meta(min_length=16, max_length=64)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Index = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
Items = Annotated[tuple[Index, ...], msgspec.Meta(max_length=2**20)]
HeldItems = Annotated[dict[int, Items], msgspec.Meta(max_length=100_000)]
"""Items by lease."""
DRAIN_WORK_SECONDS: Final = 10.0
"""How long a worker that heard `Drain` lets begun items finish."""
DRAIN_ACK_SECONDS: Final = 5.0
"""How long its last rows may take from then on to be durable, and acknowledged."""
MAX_BATCH_ROWS: Final = 4096
Stats = Annotated[
    dict[
        Annotated[str, msgspec.Meta(max_length=64)],
        Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)],
    ],
    msgspec.Meta(max_length=128),
]
"""Numbers for people by name: a bounded number of them, none infinite."""


class Message(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    """Base of all messages; unknown fields are ignored so that minor versions can add some."""


# --------------------------------------------------------------------------- parts of messages


class StructureSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a stage's answers must look like (see `caption_flow.recipe.structure.Structure`)."""

    json_schema: dict[str, Any] | None = None
    choice: tuple[str, ...] = ()
    regex: str | None = None
    columns: tuple[str, ...] = ()


class QualitySpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """The flags of a stage's answers (see `caption_flow.recipe.quality.Quality`)."""

    flags: tuple[str, ...] = ()
    retry_attempts: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    retry_flags: tuple[str, ...] = ()
    retry_sampling: dict[str, Any] = {}


class StageSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One stage of the recipe as a worker needs it (see `caption_flow.recipe.stages.Stage`)."""

    name: str
    model: str
    prompts: tuple[str, ...]
    output_field: str
    requires: tuple[str, ...] = ()
    sampling: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    structure: StructureSpec | None = None
    quality: QualitySpec | None = None


class VideoSpec(msgspec.Struct, frozen=True):
    """How videos are shown to the models (see `caption_flow.recipe.video.Video`)."""

    frames: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    passed_as: Literal["images", "video"]
    max_bytes: Index


class RecipeSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """The ordered stages of a run, and the fingerprint written into each row."""

    stages: tuple[StageSpec, ...]
    fingerprint: str
    mock_results: bool = False
    video: VideoSpec | None = None
    """How videos are shown; None where they are not captioned."""


class Limits(msgspec.Struct, frozen=True):
    """What the orchestrator expects of a worker's pace; seconds, rows and bytes."""

    lease_seconds: float
    heartbeat_seconds: float
    chunks_per_request: Count
    max_frame_bytes: Count
    max_unacknowledged_batches: Count
    max_attempts: Count = 3
    """Deaths of an engine, or of a worker, with an item in it before the item is put aside."""


class ItemDescription(msgspec.Struct, frozen=True, array_like=True):
    """One item of a grant: where a worker that sees the dataset finds it, and its columns."""

    index: Index
    place: Place | None = None
    columns: dict[str, Any] | None = None
    earlier: dict[str, dict[str, tuple[str, ...]]] | None = None
    """What the stages before the lease's gave, by stage and output field."""
    is_video: bool = False


class GrantedLease(msgspec.Struct, frozen=True):
    """One lease: items of one chunk, described, in ascending order of index."""

    lease: LeaseId
    shard: str
    chunk: str
    items: tuple[ItemDescription, ...]
    stage: Count = 0
    """The position of their next stage in the recipe."""


RoleName = Literal["worker", "monitor", "admin"]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class TokenLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the holder of a token may do at most; None is no limit."""

    max_workers: Count | None = None
    """Sessions at a time."""
    max_items: Index | None = None
    """Items that count, in all."""
    expires: Annotated[float, msgspec.Meta(ge=0, le=253_402_300_799)] | None = None
    """Seconds since 1970 after which it lets nobody in and ends the sessions that it let in."""
    trust: Literal["full", "low"] = "full"
    """Of ``low`` trust, a share of the items is done a second time by others and compared."""


# --------------------------------------------------------------------------- worker -> orchestrator


class Hello(Message, frozen=True, tag="hello"):
    """The first message of a worker. ``session`` survives reconnects and is the worker's secret."""

    name: WorkerName
    session: SessionId
    version: ShortText = ""
    engine: ShortText = ""
    device: ShortText = ""
    leases: HeldItems = {}
    """What the worker still has of each lease: items to do, in work, or done and not acknowledged.
    What it does not name is handed out again."""
    stages: Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=100)] = ()
    """The stages that the worker runs; none stands for all."""


class Want(Message, frozen=True, tag="want"):
    """Ask for up to ``chunks`` leases; answered by one `Grant`, `Wait` or `Finished`.

    ``width`` is how many items the worker works on at once, 0 when it does not say; ``idle`` is how
    many it has beyond those: one that has none is helped out near the end.
    """

    chunks: Count
    width: Count = 0
    idle: Count = 0


class Results(Message, frozen=True, tag="results"):
    """A batch of finished items, captioned or failed, as one Arrow IPC stream (`storage.schema`).

    ``items`` names the item index of each row, in the order of the rows. Captions and failures
    travel alike: both are rows, and both are acknowledged only when they are durable.

    With ``reached`` they are neither: their next stage is the one at that position, which the
    worker does not run, and the rows say what the stages before it gave, each in its own column
    (`recipe.serving.StageColumn`). Rows never repeat what came with the lease.
    """

    seq: Annotated[int, msgspec.Meta(ge=1)]
    lease: int
    items: Annotated[tuple[Index, ...], msgspec.Meta(max_length=MAX_BATCH_ROWS)]
    rows: bytes
    reached: Count | None = None


class Fetch(Message, frozen=True, tag="fetch"):
    """Ask for the bytes of items of a lease that the worker cannot read itself."""

    lease: int
    items: Annotated[tuple[Index, ...], msgspec.Meta(max_length=MAX_BATCH_ROWS)]


class Release(Message, frozen=True, tag="release"):
    """Give back what is unfinished of a lease.

    ``engine_died`` blames the named suspects (items that were in the engine when it died).
    """

    lease: int
    engine_died: bool = False
    suspects: Annotated[tuple[Index, ...], msgspec.Meta(max_length=2**16)] = ()
    reason: str = ""


class Recalled(Message, frozen=True, tag="recalled"):
    """The answer to `Recall`: what the worker gives up; nothing, if its engine has it all."""

    leases: HeldItems = {}


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    """Sent in silence, so that leases stay alive; ``stats`` are numbers for people."""

    stats: Stats = {}


# --------------------------------------------------------------------------- orchestrator -> worker


class Welcome(Message, frozen=True, tag="welcome"):
    """The answer to `Hello`: who the worker is, what to do, and the pace that is expected."""

    worker: str
    recipe: RecipeSpec
    limits: Limits
    leases: tuple[int, ...] = ()
    """Leases of an earlier connection that are still this worker's."""
    total: int | None = None
    """Items of the run, once the source is listed to its end."""


class Grant(Message, frozen=True, tag="grant"):
    """Leases for the receiving worker."""

    leases: tuple[GrantedLease, ...]


class Wait(Message, frozen=True, tag="wait"):
    """Nothing to hand out now; ask again after ``seconds``.

    ``all_handed_out``: nothing is left of the run but what workers are at, as far as is known.
    ``reason`` is for people, where it is not simply that.
    """

    seconds: float
    all_handed_out: bool = False
    reason: str = ""


class Ack(Message, frozen=True, tag="ack"):
    """Every batch up to ``seq`` is on disk and will survive anything."""

    seq: int


class Trim(Message, frozen=True, tag="trim"):
    """Items of a lease that another worker does now; forget those not begun."""

    lease: int
    items: tuple[Index, ...]


class Recall(Message, frozen=True, tag="recall"):
    """Others are idle: give up half of what the engine has not begun, and say what it was."""


class Image(Message, frozen=True, tag="image"):
    """The bytes of one item asked for with `Fetch`, or the reason why there are none.

    Large ones come in pieces, in order, so that other messages need not wait for the whole:
    ``offset`` is where in the whole a piece begins; all but the last say that there is ``more``.
    ``kind`` is the ``error_kind`` that an ``error`` has in the item's row.
    """

    lease: int
    item: Index
    payload: bytes = b""
    error: str = ""
    offset: Index = 0
    more: bool = False
    kind: str = ""


class RecipeChanged(Message, frozen=True, tag="recipe"):
    """The recipe of all items granted after this message.

    A worker finishes under the old one what its engines have begun, and gives back the rest: it is
    granted anew. ``limits`` are new, too, unless None.
    """

    recipe: RecipeSpec
    limits: Limits | None = None


class Drain(Message, frozen=True, tag="drain"):
    """No more leases; send what is finished, the orchestrator closes soon."""

    reason: str = ""


class Finished(Message, frozen=True, tag="finished"):
    """Every item of the run is terminal."""

    captioned: int
    failed: int


# --------------------------------------------------------------------------- monitor and admin


class StatusRequest(Message, frozen=True, tag="status"):
    """Ask for one `Status` (monitor and admin)."""


class Status(Message, frozen=True, tag="status_report"):
    """The state of the run, for people and scripts (see `caption_flow.protocol.report.Report`)."""

    report: dict[str, Any]


class Shutdown(Message, frozen=True, tag="shutdown"):
    """Admin: end the run, after draining unless ``now``; answered with `Done`."""

    now: bool = False


class Pause(Message, frozen=True, tag="pause"):
    """Admin: hand out nothing until `Resume`; what workers have, they finish."""


class Resume(Message, frozen=True, tag="resume"):
    """Admin: hand out again."""


class RetryFailed(Message, frozen=True, tag="retry_failed"):
    """Admin: take failed rows back so that their items are tried again, of one kind or of any."""

    kind: str | None = None


class Reload(Message, frozen=True, tag="reload"):
    """Admin: read the configuration anew: the one sent here, or the orchestrator's own file."""

    config: str | None = None
    """A whole configuration, YAML or JSON."""


class AddToken(Message, frozen=True, tag="add_token"):
    """Admin: let the holder of a token in; only the SHA-256 of it crosses the wire."""

    role: RoleName
    name: WorkerName
    digest: Digest
    limits: TokenLimits = TokenLimits()


class RemoveToken(Message, frozen=True, tag="remove_token"):
    """Admin: let the holder of the tokens of that name in no more, and end their sessions."""

    name: WorkerName


class ListTokens(Message, frozen=True, tag="list_tokens"):
    """Admin: ask who may connect; names, roles and limits, never tokens."""


class Done(Message, frozen=True, tag="done"):
    """What an admin asked for is done: one sentence for people, and facts for scripts."""

    message: str
    facts: dict[str, Any] = {}


class Problem(Message, frozen=True, tag="problem"):
    """Why a request was refused; the connection may close after it."""

    message: str
    fault: Literal["peer", "orchestrator"] = "peer"


WorkerMessage = Hello | Want | Results | Fetch | Release | Recalled | Heartbeat
ObserverMessage = (
    StatusRequest
    | Shutdown
    | Pause
    | Resume
    | RetryFailed
    | Reload
    | AddToken
    | RemoveToken
    | ListTokens
)
OrchestratorMessage = (
    Welcome
    | Grant
    | Wait
    | Ack
    | Trim
    | Recall
    | Image
    | RecipeChanged
    | Drain
    | Finished
    | Status
    | Done
    | Problem
)
