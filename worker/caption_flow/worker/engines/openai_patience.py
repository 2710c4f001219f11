"""How long an unwilling server is borne with: when to ask again, and whose fault it is in the end.

Pure: the time and chance come in as arguments. A request that fails is asked again after a while.
In the end it is refused, if the server answers others meanwhile and fails on this one again and
again. Where the request may have been the server's end, the engine has died: whoever supervises it
finds out which one it was. A server that is away or too busy is no request's fault.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Final

from caption_flow.worker.engines.base import EngineDied, EngineUnavailable, RequestRefused

SERVER_FAULT: Final = "server_fault"
"""The ``error_kind`` of items on which a server fails that answers others."""

FAULTS_IN_COMPANY: Final = 4
"""Faults on one request, while others are answered, that make it the request's own."""
FAULTS_ALONE: Final = 7
"""Faults on one request, while nothing is answered, that make the server a broken one: 30 s."""
BREAKS: Final = 3
"""Connections that broke with a request in them, one after the other, that make it a suspect."""
LONGEST_DELAY_SECONDS: Final = 30.0
LONGEST_RETRY_AFTER_SECONDS: Final = 120.0
"""A server that asks for more is asked earlier: it may have said so to everybody, of an hour."""


class TroubleKind(Enum):
    """What a failed attempt tells about the server."""

    BUSY = "busy"
    """It answers, and wants to be asked later."""
    AWAY = "away"
    """No connection can be made."""
    BROKEN = "broken"
    """The connection broke with the request in it: the server ended, perhaps."""
    FAULT = "fault"
    """It answers, but not with a chat completion."""
    TIMEOUT = "timeout"
    """It took the request and has said nothing since."""


class Trouble(Exception):
    """An attempt that failed and may be made again; ``str()`` says what was seen.

    ``lasted_seconds`` is how long nothing at all was heard.
    """

    def __init__(
        self,
        kind: TroubleKind,
        sentence: str,
        *,
        retry_after_seconds: float | None = None,
        lasted_seconds: float = 0.0,
    ) -> None:
        super().__init__(sentence)
        self.kind = kind
        self.retry_after_seconds = retry_after_seconds
        self.lasted_seconds = lasted_seconds


@dataclass(slots=True)
class Health:
    """What all requests to one server have seen of it."""

    answered_at: float = -math.inf
    lost_at: float = -math.inf


class Patience:
    """The patience with one request; ``health`` is shared by all to the same server."""

    def __init__(
        self, health: Health, *, patience_seconds: float, first_delay_seconds: float
    ) -> None:
        self._health = health
        self._patience_seconds = patience_seconds
        self._first_delay_seconds = first_delay_seconds
        self._tries = 0
        self._since: float | None = None
        self._breaks = 0
        self._faults = 0
        self._first_fault = -math.inf

    def delay_after(self, trouble: Trouble, *, now: float, chance: float) -> float:
        """Return in how many seconds to try again; ``chance`` is between 0 and 1.

        Raises:
            RequestRefused: the server answers others and fails on this one.
            EngineDied: the server fails on this request, and answers no other.
            EngineUnavailable: the server has been away or busy for too long.

        """
        self._tries += 1
        if self._since is None:
            self._since = now - trouble.lasted_seconds
        match trouble.kind:
            case TroubleKind.AWAY:
                self._health.lost_at = now
            case TroubleKind.BROKEN:
                self._health.lost_at = now
                self._count_break(trouble)
            case TroubleKind.FAULT:
                self._count_fault(trouble, 1, now)
            case TroubleKind.TIMEOUT:
                self._count_fault(trouble, 2, now)  # each has cost minutes already
            case TroubleKind.BUSY:
                pass
        delay = self._delay(trouble, chance)
        waited = now - max(self._since, self._health.answered_at)
        if waited + delay > self._patience_seconds:
            gone = trouble.kind in {TroubleKind.AWAY, TroubleKind.BUSY}
            sentence = f"{trouble} (asked {self._tries} times in {waited:.0f} s)"
            raise EngineUnavailable(sentence) if gone else EngineDied(sentence)
        return delay

    def _count_break(self, trouble: Trouble) -> None:
        self._breaks += 1
        if self._breaks >= BREAKS:
            raise EngineDied(f"{trouble} ({self._breaks} times with the same request)")

    def _count_fault(self, trouble: Trouble, weight: int, now: float) -> None:
        # A server that went away meanwhile failed on everybody: nothing is proved by that.
        if not self._faults or self._health.lost_at > self._first_fault:
            self._faults, self._first_fault = 0, now
        self._faults += weight
        if self._faults >= FAULTS_IN_COMPANY and self._health.answered_at > self._first_fault:
            raise RequestRefused(
                SERVER_FAULT,
                f"{trouble} ({self._tries} times, while it answered other requests)",
            )
        if self._faults >= FAULTS_ALONE:
            raise EngineDied(f"{trouble} ({self._tries} times in a row)")

    def _delay(self, trouble: Trouble, chance: float) -> float:
        """Return a wait that doubles each time, less up to half of it: not all come back at once.

        What the server asks for is waited in full, and that much more.
        """
        doublings = min(self._tries - 1, 16)
        doubled = min(LONGEST_DELAY_SECONDS, self._first_delay_seconds * 2.0**doublings)
        own = doubled * (1 - chance / 2)
        if trouble.retry_after_seconds is None:
            return own
        asked = min(trouble.retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS)
        return asked + self._first_delay_seconds * chance


def retry_after_seconds(value: str | None, *, now: datetime) -> float | None:
    """Read a ``Retry-After`` header (RFC 9110, 10.2.3): seconds, or a date; None for neither."""
    if value is None:
        return None
    text = value.strip()
    if text.replace(".", "", 1).isdecimal():  # some servers say fractions of a second
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - now).total_seconds())
