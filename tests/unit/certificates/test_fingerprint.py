"""A fingerprint is read however it is written, and matches one certificate only."""

from __future__ import annotations

import hashlib

import pytest

from caption_flow.certificates.fingerprint import (
    Fingerprint,
    fingerprint_of,
    is_one_of,
    parse_fingerprint,
    shown,
)

DER = b"not looked into"
SEEN = hashlib.sha256(DER)
WITH_COLONS = SEEN.digest().hex(":")


@pytest.mark.parametrize(
    "written",
    [
        SEEN.hexdigest(),
        SEEN.hexdigest().upper(),
        WITH_COLONS,
        WITH_COLONS.upper(),
        f"  {WITH_COLONS}\n",
        f"sha256:{SEEN.hexdigest()}",
        f"SHA256 Fingerprint={WITH_COLONS.upper()}",
        f"sha256 Fingerprint={WITH_COLONS.upper()}",
        f"SHA-256: {WITH_COLONS}",
    ],
)
def test_any_usual_spelling_is_read(written: str) -> None:
    assert parse_fingerprint(written) == fingerprint_of(DER)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "sha256:",
        SEEN.hexdigest()[:-1],
        SEEN.hexdigest() + "0",
        SEEN.hexdigest()[:-1] + "g",
        hashlib.sha1(DER, usedforsecurity=False).hexdigest(),
        WITH_COLONS[:-3],
        WITH_COLONS.replace(":", "-"),
        ":" + WITH_COLONS[1:],
        SEEN.hexdigest()[:32] + ":" + SEEN.hexdigest()[32:],
    ],
)
def test_what_is_no_sha_256_is_refused_with_what_to_write(written: str) -> None:
    with pytest.raises(ValueError, match=r"64 hexadecimal digits.*inspect-cert"):
        parse_fingerprint(written)


def test_it_is_shown_as_openssl_shows_it_and_can_be_read_again() -> None:
    assert shown(fingerprint_of(DER)) == WITH_COLONS.upper()
    assert parse_fingerprint(shown(fingerprint_of(DER))) == fingerprint_of(DER)


def test_a_certificate_is_one_of_those_pinned_or_none() -> None:
    other = Fingerprint(bytes(32))
    assert is_one_of(DER, [fingerprint_of(DER)])
    assert is_one_of(DER, [other, fingerprint_of(DER)])
    assert is_one_of(DER, [fingerprint_of(DER), other])
    assert not is_one_of(DER, [other])
    assert not is_one_of(DER, [])
    assert not is_one_of(DER + b"!", [fingerprint_of(DER)])
    assert not is_one_of(DER, [Fingerprint(fingerprint_of(DER)[:-1] + b"?")])
