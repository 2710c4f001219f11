"""What can happen to a worker's session, and what it asks its shell to do. Data only.

``now`` is never in an event: the shell passes it to `Session.handle` beside the event, in seconds
of a monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from caption_flow.protocol.messages import (
    Fetch,
    Image,
    LeaseId,
    OrchestratorMessage,
    Recalled,
    RecipeSpec,
    Release,
    Want,
    Welcome,
)
from caption_flow.worker.core.leases import Key
from caption_flow.worker.core.outbox import Batch

R = TypeVar("R")

# --------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Opened:
    """The orchestrator answered `Hello`."""

    welcome: Welcome


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection is gone."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A message came."""

    message: OrchestratorMessage


@dataclass(frozen=True, slots=True)
class EngineReady:
    """The engines answer, or others do now; ``width`` is how many items they work on at once.

    ``slab`` is how many are to be begun before engines are swapped, if they have to be.
    """

    width: int
    slab: int = 0


@dataclass(frozen=True, slots=True)
class EngineLost:
    """An engine is gone for good; ``suspects`` were in it when it died."""

    sentence: str
    suspects: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class RecipeUnusable:
    """The recipe just adopted cannot be run by this worker as it is."""

    sentence: str


@dataclass(frozen=True, slots=True)
class RowFinished(Generic[R]):
    """A begun item has its row, or has ``reached`` a stage that this worker does not run."""

    lease: LeaseId
    item: int
    row: R
    size_bytes: int = 0
    reached: int | None = None


@dataclass(frozen=True, slots=True)
class BytesWanted:
    """A begun item needs its bytes from the orchestrator."""

    lease: LeaseId
    item: int


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The pipeline has let go of these begun items; none of them is in an engine."""

    items: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The worker's owner wants it to end: drain."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


# --------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message, after those before it."""

    message: Want | Fetch | Release | Recalled


@dataclass(frozen=True, slots=True)
class SendBatch(Generic[R]):
    """Encode the batch and send it, after the messages before it."""

    batch: Batch[R]


@dataclass(frozen=True, slots=True)
class SendHeartbeat:
    """Send a `Heartbeat` with the shell's numbers."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop working on these items; their rows are no longer wanted."""

    items: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Stop working on up to ``count`` items that are in no engine yet, the youngest ones first.

    Answered by `Withdrawn`.
    """

    count: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand the bytes to whoever waits for them."""

    image: Image


@dataclass(frozen=True, slots=True)
class Adopt:
    """Make ready for this recipe; answered by `RecipeUnusable` if that is impossible."""

    recipe: RecipeSpec


@dataclass(frozen=True, slots=True)
class Redial:
    """Give the connection up and make another one."""

    reason: str


class Outcome(Enum):
    """How a session ends."""

    FINISHED = "finished"
    DRAINED = "drained"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Leave:
    """Say goodbye and end; returned once."""

    outcome: Outcome
    sentence: str = ""


Effect = Send | SendBatch[R] | SendHeartbeat | Abandon | Withdraw | Deliver | Adopt | Redial | Leave
Event = (
    Opened
    | Closed
    | Heard
    | EngineReady
    | EngineLost
    | RecipeUnusable
    | RowFinished[R]
    | BytesWanted
    | Withdrawn
    | StopAsked
    | Ticked
)
