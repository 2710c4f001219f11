"""Spot checks: some items of contributors of low trust are done again by others, and compared.

Pure: which items, by whom, how alike two answers are, and what follows from it. The second answer
is compared and dropped; the row stays the first one's. The rules:

- An item is chosen by a hash with a secret seed: nobody who does not know the seed can tell which.
- A check is for a session of another token than the item's row; for one of low trust only while
  none of full trust is there.
- Two answers agree as far as they have the same words: Dice's coefficient of their sets of words,
  ``2 * common / (words of the one + words of the other)``, from 0 to 1. Letters count without case;
  where a script has no spaces, each character is a word. An item that one captioned and the
  contributor says cannot be captioned agrees in nothing.
- A contributor stands by the mean over its checks, from ``min_samples`` on. Below the threshold it
  is flagged. Only checks by contributors of full trust cut anybody off: one of low trust must not
  be able to have another's work thrown away. Its own standing suffers from disagreement, too.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Final

from caption_flow.protocol.messages import LeaseId

MOST_PENDING: Final = 4096
"""Checks kept at a time; beyond, what is chosen is not checked."""
_MOST_TRIES: Final = 3
_AT_ONCE: Final = 8
"""Checks in one lease."""
_ALONE: Final = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
"""Letters of scripts that are written without spaces, or with words that grow endings."""
_WORD: Final = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")


@dataclass(frozen=True, slots=True)
class CheckPolicy:
    """What is checked, and what follows; ``share`` and ``threshold`` from 0 to 1."""

    share: float = 0.02
    threshold: float = 0.45
    min_samples: int = 20
    revokes: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """An item to be done again: what the contributor of its row said, None if it failed there."""

    shard: str
    item: int
    contributor: str
    answer: str | None
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """How a contributor stands: sums of agreement, over all checks and over the trusted ones."""

    checks: int = 0
    agreement: float = 0.0
    trusted_checks: int = 0
    trusted_agreement: float = 0.0
    flagged: bool = False
    cut_off: bool = False

    @property
    def mean(self) -> float | None:
        """The mean agreement over all checks."""
        return self.agreement / self.checks if self.checks else None

    def with_check(self, agreement: float, *, trusted: bool) -> Score:
        """Return the score with one check more."""
        return replace(
            self,
            checks=self.checks + 1,
            agreement=self.agreement + agreement,
            trusted_checks=self.trusted_checks + trusted,
            trusted_agreement=self.trusted_agreement + (agreement if trusted else 0.0),
        )


@dataclass(slots=True)
class _Lease:
    session: str
    checks: dict[int, Check]
    due: set[int]
    """Items that its session has neither reported nor given up, though nobody may ask any more."""


class SpotChecks:
    """The checks of a run that wait or are under way, and how contributors stand."""

    def __init__(self, policy: CheckPolicy, seed: bytes) -> None:
        self.policy = policy
        self.scores: dict[str, Score] = {}
        self._seed = seed
        self._waiting: OrderedDict[tuple[str, int], Check] = OrderedDict()
        self._leases: dict[int, _Lease] = {}

    # ------------------------------------------------------------------ what waits

    def chooses(self, shard: str, item: int) -> bool:
        """Tell whether an item is checked if somebody of low trust does it."""
        named = f"{item}:{shard}".encode("utf-8", "surrogateescape")
        drawn = int.from_bytes(hmac.digest(self._seed, named, hashlib.sha256)[:8])
        return drawn < self.policy.share * 2**64

    def add(self, check: Check) -> None:
        """Let a check wait, unless too many do."""
        if len(self._waiting) < MOST_PENDING:
            self._waiting[check.shard, check.item] = check

    @property
    def under_way(self) -> int:
        """How many checks somebody works on."""
        return sum(len(lease.checks) for lease in self._leases.values())

    @property
    def has_waiting(self) -> bool:
        """Whether any check waits for somebody."""
        return bool(self._waiting)

    def is_waiting_for(self, contributors: Collection[str]) -> bool:
        """Tell whether a check waits that one of these, each with another token, could make."""
        return any(self._is_for(check, contributors) for check in self._waiting.values())

    def _is_for(self, check: Check, contributors: Collection[str]) -> bool:
        return any(name != check.contributor for name in contributors)

    def take(self, contributor: str) -> list[Check]:
        """Take checks that a contributor may make, all of one shard, ascending; perhaps none."""
        taken: list[Check] = []
        for check in self._waiting.values():
            if check.contributor != contributor and (not taken or check.shard == taken[0].shard):
                taken.append(check)
                if len(taken) == _AT_ONCE:
                    break
        for check in taken:
            del self._waiting[check.shard, check.item]
        return sorted(taken, key=lambda check: check.item)

    # ------------------------------------------------------------------ leases

    def grant(self, lease: LeaseId, session: str, checks: Collection[Check]) -> None:
        """Note that a session makes checks under the number of a lease."""
        by_item = {check.item: check for check in checks}
        self._leases[lease] = _Lease(session, by_item, set(by_item))

    def holder(self, lease: int) -> str | None:
        """Return the session that has a lease for checks, None if it is none."""
        held = self._leases.get(lease)
        return None if held is None else held.session

    def has_any(self, session: str) -> bool:
        """Tell whether a session is at checks."""
        return any(one.session == session and one.checks for one in self._leases.values())

    def shard_of(self, lease: int, items: Collection[int]) -> str | None:
        """Return the shard of items of a lease for checks, if they are all in it."""
        held = self._leases.get(lease)
        if held is None or not items or not held.checks.keys() >= set(items):
            return None
        return next(iter(held.checks.values())).shard

    def answered(self, lease: int, items: Collection[int]) -> list[Check] | None:
        """Take the checks out of a lease that a report is about; None if items are not in it."""
        held = self._leases[lease]
        if len(set(items)) != len(items) or not held.due >= set(items):
            return None
        checks = [held.checks.pop(item) for item in items if item in held.checks]
        self._strike(lease, items)
        return checks

    def give_back(self, lease: int, items: Collection[int] | None = None) -> None:
        """Let checks wait again that their session gives up, all or some; not for ever."""
        held = self._leases.get(lease)
        if held is None:
            return
        for item in list(held.due if items is None else items):
            check = held.checks.pop(item, None)
            if check is not None and check.tries + 1 < _MOST_TRIES:
                self.add(replace(check, tries=check.tries + 1))
        self._strike(lease, held.due if items is None else items)

    def _strike(self, lease: int, items: Collection[int]) -> None:
        held = self._leases[lease]
        held.due = held.due.difference(items)
        if not held.due:
            del self._leases[lease]

    def lose(self, session: str) -> None:
        """Let all checks of a session wait again."""
        for lease in [one for one, held in self._leases.items() if held.session == session]:
            self.give_back(lease)

    def forget(self, contributor: str) -> None:
        """Drop the checks of a contributor's rows: they are taken back."""
        for key in [key for key, one in self._waiting.items() if one.contributor == contributor]:
            del self._waiting[key]
        for held in self._leases.values():
            others = (one for one in held.checks.values() if one.contributor != contributor)
            held.checks = {one.item: one for one in others}

    def abandon(self) -> None:
        """Drop what waits and what is under way: nobody makes it in time."""
        self._waiting.clear()
        for held in self._leases.values():
            held.checks.clear()

    # ------------------------------------------------------------------ judging

    def judge(self, check: Check, answer: str | None, checker: str, *, trusted: bool) -> list[str]:
        """Compare an answer with the row's; return whose score has changed, if it tells anything.

        ``checker`` is who gave it; of full trust, or not: then it may be the one that is wrong.
        """
        if answer is None and check.answer is not None:
            return []  # the picture cannot be had there: nothing to compare
        agreement = 1.0 if answer is None else likeness(check.answer or "", answer)
        judged = [check.contributor] if trusted else [check.contributor, checker]
        for name in judged:
            score = self.scores.get(name, Score()).with_check(agreement, trusted=trusted)
            self.scores[name] = self._verdict(score)
        return judged

    def _verdict(self, score: Score) -> Score:
        policy = self.policy
        flagged = _is_below(policy, score.checks, score.agreement)
        below = _is_below(policy, score.trusted_checks, score.trusted_agreement)
        cut_off = score.cut_off or (policy.revokes and below)
        return replace(score, flagged=flagged or below or cut_off, cut_off=cut_off)


def _is_below(policy: CheckPolicy, checks: int, agreement: float) -> bool:
    return checks >= policy.min_samples and agreement < policy.threshold * checks


def likeness(one: str, other: str) -> float:
    """Return how much two texts say the same, from 0 to 1; see the module's docstring."""
    first, second = set(_words(one)), set(_words(other))
    if not first and not second:
        return 1.0
    return 2.0 * len(first & second) / (len(first) + len(second))


def _words(text: str) -> Iterator[str]:
    return (found.group() for found in _WORD.finditer(text.casefold()))
