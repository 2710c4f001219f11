"""Tokens and those who guess at them."""

from __future__ import annotations

import hmac
from typing import Any

import pytest

from caption_flow.orchestrator.server.auth import (
    Identity,
    Suspicion,
    TokenTable,
    bearer_token,
    digest_of,
)
from caption_flow.protocol.messages import TokenLimits

ADA = Identity("worker", "ada")
BOB = Identity("admin", "bob")


def table(**tokens: Identity) -> TokenTable:
    made = TokenTable()
    for token, identity in tokens.items():
        made.add(token, identity)
    return made


def test_a_token_says_who_and_in_which_role() -> None:
    tokens = table(secret=ADA, other=BOB)

    assert tokens.identify("secret") == ADA
    assert tokens.identify("other") == BOB


@pytest.mark.parametrize("token", ["", "secre", "secrets", "SECRET", "gehëim", "\0", "x" * 10_000])
def test_anything_else_is_nobody(token: str) -> None:
    assert table(secret=ADA).identify(token) is None


def test_without_tokens_nobody_is_let_in() -> None:
    assert TokenTable().identify("") is None


@pytest.mark.parametrize("token", ["first", "second", "third", "wrong"])
def test_every_token_is_compared_in_constant_time_wherever_it_stands(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    compare_digest = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(len(one))
        return compare_digest(one, other)

    tokens = table(first=ADA, second=BOB, third=ADA)
    monkeypatch.setattr(hmac, "compare_digest", compare)

    tokens.identify(token)

    assert compared == [32, 32, 32], "digests of one length, all of them"


def test_no_token_is_kept_in_clear() -> None:
    tokens = table(a_rather_secret_token=ADA)

    assert "a_rather_secret_token" not in repr(vars(tokens))


def identity(token: str, name: str = "ada", **limits: Any) -> Identity:
    return Identity("worker", name, TokenLimits(**limits), digest_of(token))


def test_a_revoked_token_lets_nobody_in_wherever_it_stands_until_it_is_admitted_again() -> None:
    tokens = table(own=ADA)
    tokens.replace([identity("configured")])
    tokens.admit(identity("added"))
    for token in ("own", "configured", "added"):
        assert tokens.identify(token) is not None
        tokens.revoke([digest_of(token)])
        assert tokens.identify(token) is None
    tokens.replace([identity("configured")])
    assert tokens.identify("configured") is None
    tokens.admit(identity("configured", "bob"))
    assert tokens.identify("configured") == Identity("worker", "bob")


def test_another_configuration_replaces_its_own_tokens_and_no_others() -> None:
    tokens = table(own=ADA)
    tokens.replace([identity("configured"), identity("both")])
    tokens.admit(identity("added"))
    tokens.replace([identity("both"), identity("new")])
    known = {token for token in ("own", "added", "both", "new") if tokens.identify(token)}
    assert known == {"own", "added", "both", "new"}
    assert tokens.identify("configured") is None


def test_whom_a_token_let_in_is_looked_up_as_it_stands_today() -> None:
    tokens = TokenTable()
    before = identity("a token")
    tokens.replace([identity("a token", max_workers=3)])
    assert tokens.current(before) == identity("a token", max_workers=3)
    tokens.replace([identity("a token", "somebody else")])
    assert tokens.current(before) is None
    tokens.replace([])
    assert tokens.current(before) is None


def test_a_token_expires_at_its_moment() -> None:
    guest = identity("a token", expires=100.0)
    assert not guest.has_expired(99.9)
    assert guest.has_expired(100.0)
    assert not identity("a token").has_expired(1e12)


def test_no_digest_is_shown_with_an_identity() -> None:
    assert repr(digest_of("x")) not in repr(identity("x"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("?", "?", True),
    ],
)
def test_an_ipv6_network_is_one_suspect_however_many_addresses_it_has(
    one: str, other: str, same: bool
) -> None:
    suspicion = Suspicion()
    for _ in range(5):
        suspicion.refuse(one)
    assert (suspicion.refuse(other) > 1.0) == same
    suspicion.trust(other)
    assert (suspicion.refuse(one) == 0.1) == same


def test_refusals_are_worth_fewer_and_fewer_lines() -> None:
    suspicion = Suspicion()
    worth = []
    for _ in range(20):
        suspicion.refuse("10.0.0.1")
        worth.append(suspicion.is_worth_a_line("10.0.0.1"))
    assert [number for number, is_worth in enumerate(worth, 1) if is_worth] == [1, 2, 4, 8, 16]


def test_wrong_tokens_are_answered_more_and_more_slowly_up_to_a_bound() -> None:
    suspicion = Suspicion()

    delays = [suspicion.refuse("10.0.0.1") for _ in range(100)]

    assert delays[:3] == [0.1, 0.2, 0.4]
    assert delays == sorted(delays)
    assert max(delays) == 8.0


def test_one_address_does_not_slow_another() -> None:
    suspicion = Suspicion()
    for _ in range(10):
        suspicion.refuse("10.0.0.1")

    assert suspicion.refuse("10.0.0.2") == 0.1


def test_a_right_token_ends_the_suspicion() -> None:
    suspicion = Suspicion()
    for _ in range(10):
        suspicion.refuse("10.0.0.1")

    suspicion.trust("10.0.0.1")
    suspicion.trust("never heard of")

    assert suspicion.refuse("10.0.0.1") == 0.1


def test_the_table_of_addresses_is_bounded_and_forgets_the_quietest() -> None:
    suspicion = Suspicion()
    suspicion.refuse("quiet")
    suspicion.refuse("busy")
    for number in range(5000):
        suspicion.refuse(f"10.{number}")
        suspicion.refuse("busy")

    assert len(suspicion._failures) <= 4096
    assert suspicion.refuse("quiet") == 0.1
    assert suspicion.refuse("busy") == 8.0


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer secret", "secret"),
        ("bearer  spaced out ", "spaced out"),
        ("Basic c2VjcmV0", None),
        ("Bearer", None),
        ("Bearer  ", None),
        ("secret", None),
        ("", None),
        (None, None),
    ],
)
def test_the_token_is_what_follows_bearer(header: str | None, token: str | None) -> None:
    assert bearer_token(header) == token
