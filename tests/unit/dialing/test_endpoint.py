"""Whom not to dial, and what to be warned of, before anything is sent."""

from __future__ import annotations

import pytest

from caption_flow.certificates.fingerprint import Fingerprint
from caption_flow.dialing.endpoint import Endpoint

PIN = (Fingerprint(bytes(32)),)
TOKEN = "t0ken"


@pytest.mark.parametrize(
    "url",
    [
        "ws://127.0.0.1:8765",
        "ws://127.0.0.2:8765",
        "ws://localhost:8765",
        "ws://LOCALHOST",
        "ws://[::1]:8765/path",
    ],
)
@pytest.mark.parametrize("verify_ssl", [True, False])
def test_this_machine_is_dialled_without_a_word(url: str, verify_ssl: bool) -> None:
    endpoint = Endpoint(url, TOKEN, verify_ssl=verify_ssl)
    assert (endpoint.why_not, endpoint.caution) == (None, None)


@pytest.mark.parametrize(
    "url",
    [
        "ws://example.org:8765",
        "ws://192.168.1.2:8765",
        "ws://[2001:db8::1]:8765",
        "ws://0.0.0.0:8765",
        "ws://localhost.example.org",
        "ws://127.0.0.1.example.org",
        "ws://127.0.0.1@example.org:8765",
        "WS://example.org",
    ],
)
def test_another_machine_takes_tls_or_the_users_word(url: str) -> None:
    endpoint = Endpoint(url, TOKEN)
    assert endpoint.why_not is not None
    assert "--insecure" in endpoint.why_not
    assert "wss://" in endpoint.why_not
    on_their_word = Endpoint(url, TOKEN, insecure=True)
    assert on_their_word.why_not is None
    assert on_their_word.caution is not None
    assert "in clear" in on_their_word.caution


@pytest.mark.parametrize("url", ["wss://example.org", "wss://127.0.0.1:8765"])
def test_tls_is_dialled_and_a_warning_given_if_nobody_checks_the_certificate(url: str) -> None:
    assert Endpoint(url, TOKEN).why_not is None
    assert Endpoint(url, TOKEN).caution is None
    assert Endpoint(url, TOKEN, fingerprints=PIN).caution is None
    assert Endpoint(url, TOKEN, verify_ssl=False, fingerprints=PIN).caution is None
    unchecked = Endpoint(url, TOKEN, verify_ssl=False)
    assert unchecked.why_not is None
    assert "--tls-fingerprint" in str(unchecked.caution)


@pytest.mark.parametrize("insecure", [True, False])
def test_a_fingerprint_is_not_quietly_without_effect(insecure: bool) -> None:
    endpoint = Endpoint("ws://127.0.0.1:8765", TOKEN, fingerprints=PIN, insecure=insecure)
    assert "has no certificate" in str(endpoint.why_not)


def test_no_sentence_shows_what_is_secret() -> None:
    endpoint = Endpoint(f"ws://me:{TOKEN}@example.org/?x={TOKEN}", TOKEN)
    assert TOKEN not in str(endpoint.why_not)
    assert TOKEN not in repr(Endpoint("ws://127.0.0.1", TOKEN))
    assert "example.org" in str(endpoint.why_not)
