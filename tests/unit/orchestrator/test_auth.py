"""Tokens and those who guess at them."""

from __future__ import annotations

import hmac

import pytest

from caption_flow.orchestrator.server.auth import Identity, Suspicion, TokenTable, bearer_token

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
