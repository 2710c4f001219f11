"""Who was let in or out while a run went on, and how those stand whose work is checked.

Tokens are kept as digests. Names are the contributors of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from sqlite3 import Connection
from typing import cast

import msgspec

from caption_flow.protocol.messages import RoleName, TokenLimits
from caption_flow.storage.database import columns_of


@dataclass(frozen=True, slots=True)
class KnownToken:
    """A token that was added, or that was ``revoked``, wherever else it stands."""

    digest: bytes
    role: RoleName
    name: str
    limits: TokenLimits = field(default_factory=TokenLimits)
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How a contributor's items agreed with what others said of them.

    ``agreement`` is the sum over all ``checks`` of values from 0 to 1; the ``trusted`` ones are
    those made by contributors of full trust.
    """

    checks: int = 0
    agreement: float = 0.0
    trusted_checks: int = 0
    trusted_agreement: float = 0.0
    flagged: bool = False
    cut_off: bool = False
    """Its tokens are revoked for it, and its rows are to be taken back."""


@dataclass(frozen=True, slots=True)
class KeepTokens:
    """Remember tokens that were added or revoked, in place of what was known of them."""

    tokens: Sequence[KnownToken]

    def prepare(self) -> None:
        """Nothing to validate."""

    def apply(self, connection: Connection) -> None:
        """Insert or replace each of them."""
        connection.executemany(
            "INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?, ?)",
            [
                (one.digest, one.role, one.name, msgspec.msgpack.encode(one.limits), one.revoked)
                for one in self.tokens
            ],
        )


@dataclass(frozen=True, slots=True)
class KeepStanding:
    """Remember how a contributor stands; None forgets it."""

    contributor: str
    standing: Standing | None

    def prepare(self) -> None:
        """Nothing to validate."""

    def apply(self, connection: Connection) -> None:
        """Insert, replace or delete it."""
        one = self.standing
        if one is None:
            connection.execute("DELETE FROM standings WHERE contributor = ?", (self.contributor,))
            return
        connection.execute(
            "INSERT OR REPLACE INTO standings VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                self.contributor,
                one.checks,
                one.agreement,
                one.trusted_checks,
                one.trusted_agreement,
                one.flagged,
                one.cut_off,
            ),
        )


def known_tokens(connection: Connection) -> list[KnownToken]:
    """Return the tokens added or revoked; a ledger of an earlier release knows none."""
    if not columns_of(connection, "tokens"):
        return []
    query = "SELECT digest, role, name, limits, revoked FROM tokens"
    with closing(connection.execute(query)) as rows:
        return [
            KnownToken(
                digest,
                cast("RoleName", role),
                name,
                msgspec.msgpack.decode(limits, type=TokenLimits),
                bool(revoked),
            )
            for digest, role, name, limits, revoked in rows
        ]


def known_standings(connection: Connection) -> dict[str, Standing]:
    """Return how contributors stand; a ledger of an earlier release knows of none."""
    if not columns_of(connection, "standings"):
        return {}
    query = (
        "SELECT contributor, checks, agreement, trusted_checks, trusted_agreement, flagged, "
        "cut_off FROM standings"
    )
    with closing(connection.execute(query)) as rows:
        return {
            name: Standing(checks, agreement, trusted, trusted_agreement, bool(flag), bool(cut))
            for name, checks, agreement, trusted, trusted_agreement, flag, cut in rows
        }
