"""The state of a run as monitors are told it. These are the keys of ``caption-flow status --json``.

Keys stay what they are; later releases may add some, and readers pass over those they do not know.
What comes from workers, names above all, is stored and sent as it came: whoever shows it sees to
control characters.
"""

from __future__ import annotations

from typing import Any

import msgspec

from caption_flow.protocol.messages import TokenLimits


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all parts: every key has a default, since an older orchestrator lacks some."""


class Images(_Part, frozen=True):
    """Which way images came to a worker: read here, read where they lie, or sent to it."""

    here: int = 0
    there: int = 0
    served: int = 0


class Tokens(_Part, frozen=True):
    """Tokens of the models: of prompts with their images (in), and generated (out).

    Totals since the orchestrator was started, of rows that are durable; rates a second over the
    last minute.
    """

    total_in: int = msgspec.field(default=0, name="in")
    total_out: int = msgspec.field(default=0, name="out")
    in_per_second: float = 0.0
    out_per_second: float = 0.0


class WorkerReport(_Part, frozen=True):
    """One worker; what it says of itself is in ``stats``, as it says it."""

    name: str = ""
    contributor: str = ""
    """The name of its token."""
    version: str = ""
    engine: str = ""
    device: str = ""
    address: str = ""
    connected: bool = True
    """False for one that was lost, and whose leases wait for it."""
    stages: tuple[str, ...] = ()
    """Those it runs; none stands for all."""
    leases: int = 0
    items: int = 0
    """Items that it is still to do."""
    rate: float = 0.0
    """Items a second of late."""
    done: int = 0
    """Items finished since the worker was started, failed ones included."""
    failed: int = 0
    starved_seconds: float = 0.0
    """Seconds in which its engine had room and nothing to do, for another reason than the end."""
    last_seen_seconds: float = 0.0
    connected_seconds: float = 0.0
    images: Images = Images()
    stats: dict[str, float] = {}


class StorageReport(_Part, frozen=True):
    """What is on disk: in parts, and durable in the ledger but in no part yet."""

    parts: int = 0
    rows: int = 0
    """Rows in parts."""
    bytes: int = 0
    buffered_rows: int = 0
    last_checkpoint_at: float | None = None
    """Seconds since 1970."""


class Contributor(_Part, frozen=True):
    """Whose token brought how many of the run's rows, those of earlier days included."""

    name: str = ""
    rows: int = 0
    captioned: int = 0
    failed: int = 0
    may_connect: bool = False
    """Whether a token of that name lets workers in."""
    workers: int = 0
    """Connected ones."""
    limits: TokenLimits = TokenLimits()
    flagged: bool = False
    """Its answers differ from what others say of the same images."""
    checks: int = 0
    """Spot checks of its items."""
    agreement: float | None = None
    """The mean over them, from 0 to 1."""


class Report(_Part, frozen=True):
    """A run at one moment. Items: pending, leased, committing, captioned and failed are ``total``.

    ``total`` is final once ``listed``. Rates are items a second.
    """

    state: str = ""
    """``running``, ``paused``, ``finished`` or ``draining``."""
    time: float = 0.0
    """Seconds since 1970 on the orchestrator's clock."""
    uptime_seconds: float = 0.0
    version: str = ""
    dataset: str = ""
    recipe: str = ""
    """The fingerprint that new rows get."""
    total: int = 0
    listed: bool = False
    pending: int = 0
    leased: int = 0
    committing: int = 0
    """On their way to disk."""
    captioned: int = 0
    failed: dict[str, int] = {}
    """By kind, ``quarantined`` among them."""
    quarantined: int = 0
    flagged: dict[str, int] = {}
    """Rows by flag, since the orchestrator was started."""
    unserved: dict[str, int] = {}
    """Items that wait for a stage which no connected worker runs, by stage."""
    passed_over: dict[str, str] = {}
    """Shards of which not all could be read, with the reason."""
    rate: float = 0.0
    """Over the last minute."""
    rate_average: float = 0.0
    """Since the orchestrator first handed something out."""
    eta_seconds: float | None = None
    trouble: str | None = None
    """Why results cannot be stored at present."""
    tokens: Tokens = Tokens()
    workers: tuple[WorkerReport, ...] = ()
    storage: StorageReport = StorageReport()
    contributors: tuple[Contributor, ...] = ()


def to_wire(report: Report) -> dict[str, Any]:
    """Return a report as `caption_flow.protocol.messages.Status` carries it."""
    wire: dict[str, Any] = msgspec.to_builtins(report)
    return wire


def from_wire(report: dict[str, Any]) -> Report:
    """Return the report of a `Status`.

    Raises:
        ValueError: it is none.
    """
    return msgspec.convert(report, Report)
