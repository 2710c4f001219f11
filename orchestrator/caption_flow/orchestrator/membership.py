"""Who may connect, as it changes while a run goes on, and what each may do at most.

Tokens added and removed are remembered in the run's folder, as digests: a token that was removed
lets nobody in until it is added again, also where the configuration names it. Whatever takes a
token's rights away ends the sessions that it let in, and their leases go back at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, cast

import msgspec
import structlog

from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.orchestrator.core import events as ev
from caption_flow.orchestrator.core.contributors import Contributors
from caption_flow.orchestrator.server.auth import NO_LIMITS, Identity, Role, TokenTable, digest_of
from caption_flow.orchestrator.server.conversation import Link
from caption_flow.orchestrator.server.observers import SteeringError
from caption_flow.orchestrator.server.server import expiry
from caption_flow.protocol.messages import AddToken, Done
from caption_flow.protocol.report import Contributor
from caption_flow.storage.opening import Snapshot
from caption_flow.storage.people import KeepTokens, KnownToken
from caption_flow.storage.writer import Write

Token = tuple[str, str, str]
"""Role, name, and the token itself."""

log = structlog.get_logger()

_MOST_KNOWN: Final = 10_000
"""Every token is compared with whatever a stranger offers."""


class Run(Protocol):
    """What membership needs of the orchestrator."""

    @property
    def links(self) -> Iterable[Link]:
        """The connected workers."""
        ...

    def write(self, write: Write) -> asyncio.Future[None]:
        """Queue a write; the future is done when it is durable."""
        ...

    def apply(self, event: ev.Event) -> None:
        """Tell the ledger and do what it says."""
        ...

    def end_sessions(self, verdict: Callable[[Identity], str | None]) -> None:
        """End the sessions for whose token there is a reason to; their leases go back at once."""
        ...


class Membership:
    """The tokens of a run, durable changes of them, and their limits."""

    def __init__(self, tokens: TokenTable, snapshot: Snapshot, run: Run) -> None:
        self._tokens = tokens
        self._run = run
        self.contributors = Contributors(snapshot.contributors)
        self._exhausted: set[str] = set()
        """Contributors of whom it is said that they have reached their limit."""
        for one in snapshot.tokens:
            if not one.revoked:
                tokens.admit(Identity(one.role, one.name, one.limits, one.digest))
        tokens.revoke(one.digest for one in snapshot.tokens if one.revoked)

    # ------------------------------------------------------------------ changes

    async def add(self, asked: AddToken) -> Done:
        """Let somebody in, durably.

        Raises:
            SteeringError: the name or the token is somebody's already, or it would expire at once.
        """
        identity = Identity(asked.role, asked.name, asked.limits, asked.digest)
        self._check_new(identity)
        await self._run.write(KeepTokens([_known(identity)]))
        self._tokens.admit(identity)
        log.info("a token was added", role=identity.role, who=identity.name)
        return Done(f"{identity.name} may connect as {_article(identity.role)}")

    def _check_new(self, identity: Identity) -> None:
        name = identity.name
        if not name.strip() or not name.isprintable():
            raise SteeringError("a name has printable characters, and not only spaces")
        if identity.has_expired(time.time()):
            raise SteeringError(f"nothing was added: {expiry(identity)}")
        for one in self._tokens:
            if one.name == name:
                raise SteeringError(
                    f"{name!r} has a token as {_article(one.role)} already; remove it first, or "
                    "choose another name"
                )
            if one.digest == identity.digest:
                raise SteeringError(f"this token is {one.name!r}'s already; each has its own")
        if sum(1 for _ in self._tokens) >= _MOST_KNOWN:
            raise SteeringError(f"there are {_MOST_KNOWN} tokens already; remove some first")

    async def remove(self, name: str) -> Done:
        """Let the holder of the tokens of that name in no more, durably.

        Raises:
            SteeringError: nobody has that name, or nobody would be left who may do such things.
        """
        found = [one for one in self._tokens if one.name == name]
        if not found:
            names = ", ".join(sorted({repr(one.name) for one in self._tokens}))
            raise SteeringError(f"no token is {name!r}'s; there are {names}")
        if not any(one.role == "admin" and one.name != name for one in self._tokens):
            raise SteeringError(f"{name!r} has the last admin's token: add another one first")
        ended = await self.revoke(found, "its token was removed")
        return Done(
            f"{name} may connect no more; {_number(ended, 'session')} ended", {"sessions": ended}
        )

    async def revoke(self, identities: Sequence[Identity], why: str) -> int:
        """Let the holders of tokens in no more, end their sessions, and make that durable."""
        digests = {one.digest for one in identities}
        self._tokens.revoke(digests)
        ended = self._end(lambda identity: why if identity.digest in digests else None)
        for one in identities:
            log.warning("a token was revoked", role=one.role, who=one.name, why=why)
        await self._run.write(KeepTokens([_known(one, revoked=True) for one in identities]))
        return ended

    def of(self, name: str) -> list[Identity]:
        """Return the tokens of a name that let somebody in."""
        return [one for one in self._tokens if one.name == name]

    def replace(self, identities: Iterable[Identity]) -> None:
        """Take these for the configuration's tokens, in place of those that were.

        For whoever reads a configuration anew (`identities_of` makes them from one). Ends
        the sessions of tokens that are no longer there, or have another role or name now; new
        limits apply at once. Tokens that were added or removed meanwhile stay so, as do those that
        this process made for itself.
        """
        self._tokens.replace(identities)
        self._end(
            lambda one: None if self._tokens.current(one) else "its token is configured no more"
        )
        for link in self._run.links:
            self.ration(link.identity)

    def expire(self) -> None:
        """End the sessions of tokens whose time is over."""
        now = time.time()

        def verdict(identity: Identity) -> str | None:
            known = self._tokens.current(identity) or identity
            return expiry(known) if known.has_expired(now) else None

        self._end(verdict)

    def _end(self, verdict: Callable[[Identity], str | None]) -> int:
        ended = 0

        def counted(identity: Identity) -> str | None:
            nonlocal ended
            why = verdict(identity)
            ended += why is not None
            return why

        self._run.end_sessions(counted)
        return ended

    # ------------------------------------------------------------------ limits

    def lets_in(self, identity: Identity) -> bool:
        """Tell whether a token still lets in whom it let in a moment ago."""
        return self._tokens.current(identity) is not None

    def refusal(self, link: Link) -> str | None:
        """Return why a worker may not join beside the others of its contributor, or None."""
        known = self._tokens.current(link.identity)
        if known is None:
            return "the token is known no more"
        most = known.limits.max_workers
        beside = sum(
            one.contributor == link.contributor and one.session != link.session
            for one in self._run.links
        )
        if most is None or beside < most:
            return None
        return (
            f"the token of {link.contributor!r} is for {_number(most, 'worker')} at a time, and "
            f"{beside} {'is' if beside == 1 else 'are'} connected"
        )

    def ration(self, identity: Identity) -> None:
        """Tell the ledger how many more rows of a contributor may count."""
        most = self._limit(identity)
        name = identity.name
        left = None if most is None else self.contributors.left(name, most)
        if left:
            self._exhausted.discard(name)
        self._run.apply(ev.Rationed(name, left))

    def exhausted(self, link: Link) -> str:
        """Return what to say to a worker that is given nothing, since its token has its limit."""
        most = self._limit(link.identity)
        if link.contributor not in self._exhausted:
            self._exhausted.add(link.contributor)
            log.info("a contributor has reached its limit", who=link.contributor, max_items=most)
        items = _number(most or 0, "item")
        return f"the token of {link.contributor!r} is for {items}, done or in work: no more"

    def _limit(self, identity: Identity) -> int | None:
        return (self._tokens.current(identity) or identity).limits.max_items

    def is_trusted(self, identity: Identity) -> bool:
        """Tell whether what a token brings is taken without checks."""
        return (self._tokens.current(identity) or identity).limits.trust == "full"

    def take_back(self, contributors: Mapping[str, Mapping[str, int]]) -> None:
        """Uncount rows whose items are to be done again; their contributors may bring more."""
        self.contributors.take_back(contributors)
        for link in self._run.links:
            if link.contributor in contributors:
                self.ration(link.identity)

    # ------------------------------------------------------------------ what is told

    def listed(self) -> Done:
        """Return who may connect; never a token, nor what could stand for one."""
        workers = Counter(link.contributor for link in self._run.links)
        tokens = [
            {
                "name": one.name,
                "role": one.role,
                **_shown(one),
                **({"workers": workers[one.name]} if one.role == "worker" else {}),
            }
            for one in sorted(self._tokens, key=lambda one: (one.role, one.name))
        ]
        return Done(f"{len(tokens)} tokens", {"tokens": tokens})

    def report(self, standings: Mapping[str, Mapping[str, Any]]) -> list[Contributor]:
        """Return who contributes or has: counts, sessions and limits, by name.

        ``standings`` say how those stand who are checked. Costs a look at each token and name.
        """
        credit = self.contributors
        workers = Counter(link.contributor for link in self._run.links)
        known = {one.name: one for one in self._tokens if one.role == "worker"}
        names = dict.fromkeys([*sorted(known), *sorted(self.contributors)])
        named = [
            Contributor(
                name=name,
                rows=credit.captioned(name) + credit.failed(name),
                captioned=credit.captioned(name),
                failed=credit.failed(name),
                may_connect=name in known,
                workers=workers[name],
                limits=known[name].limits if name in known else NO_LIMITS,
                **standings.get(name, {}),
            )
            for name in names
        ]
        return [one for one in named if one.rows or one.workers or one.flagged or one.checks]


def identities_of(config: OrchestratorConfig, tokens: Iterable[Token]) -> list[Identity]:
    """Return whom tokens of a configuration let in, with their limits, which go by role and name.

    Where entries have the same, the limits of the last one count for all.
    """
    entries = () if config.auth is None else config.auth.entries()
    limits = {(str(role), entry.name): entry.limits for role, entry in entries}
    return [
        Identity(cast("Role", role), name, limits.get((role, name), NO_LIMITS), digest_of(token))
        for role, name, token in tokens
    ]


def _known(identity: Identity, *, revoked: bool = False) -> KnownToken:
    return KnownToken(identity.digest, identity.role, identity.name, identity.limits, revoked)


def _shown(identity: Identity) -> dict[str, Any]:
    """Return the limits that there are, as plain values."""
    limits: dict[str, Any] = msgspec.to_builtins(identity.limits)
    return limits


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _article(role: str) -> str:
    return f"an {role}" if role == "admin" else f"a {role}"
