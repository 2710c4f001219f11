"""A certificate of one's own is for the names it was asked for, and its key is nobody else's."""

from __future__ import annotations

import ssl
import stat
from ipaddress import ip_address
from pathlib import Path

import pytest

from caption_flow.certificates.describe import CertificateError, now, read_certificates
from caption_flow.certificates.self_signed import (
    make_self_signed,
    names_of_this_machine,
    parse_name,
    write_pair,
)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("captions.example.org", "captions.example.org"),
        ("captions.example.org.", "captions.example.org"),
        ("*.example.org", "*.example.org"),
        ("gpu_box-1", "gpu_box-1"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("203.0.113.7", ip_address("203.0.113.7")),
        ("2001:db8::7", ip_address("2001:db8::7")),
        ("[2001:db8::7]", ip_address("2001:db8::7")),
    ],
)
def test_names_and_addresses_are_read(written: str, name: object) -> None:
    assert parse_name(written) == name


@pytest.mark.parametrize(
    "written",
    [
        "",
        "wss://captions.example.org",
        "captions.example.org:8765",
        "a b",
        "-a.org",
        "a..b",
        "*",
        "a.*.org",
        "1.2.3",
        "256.1.1.1",
        "a" * 64 + ".org",
        ".".join(["abcdefgh"] * 40),
        "a\nb",
    ],
)
def test_what_is_no_name_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="is no host name or IP address"):
        parse_name(written)


def test_this_machine_is_reached_from_itself_under_its_own_names() -> None:
    names = names_of_this_machine()
    assert names[:3] == ["localhost", "127.0.0.1", "::1"]
    assert len(set(names)) == len(names)


def test_it_says_what_it_was_asked_for(tmp_path: Path) -> None:
    made = make_self_signed([parse_name("a.example"), parse_name("203.0.113.7")], days=90)
    write_pair(made, tmp_path / "c.pem", tmp_path / "k.pem")
    [read] = read_certificates(tmp_path / "c.pem")
    assert read == made.certificate
    assert read.names == ("a.example", "203.0.113.7")
    assert read.is_self_signed
    assert read.days_left(now()) in {89, 90}
    assert read.why_invalid(now()) is None
    assert read.key == "ECDSA, secp256r1"


def test_strict_clients_take_it_once_it_is_trusted(tmp_path: Path) -> None:
    made = make_self_signed([parse_name("a.example")], days=90)
    write_pair(made, tmp_path / "c.pem", tmp_path / "k.pem")
    client = ssl.create_default_context(cafile=tmp_path / "c.pem")
    client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    assert _shake_hands(client, server, "a.example")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        _shake_hands(client, server, "b.example")


def test_a_name_too_long_for_the_subject_is_still_certified() -> None:
    name = ".".join(["a" * 40, "b" * 40, "example"])
    certificate = make_self_signed([name], days=1).certificate
    assert certificate.names == (name,)


def test_two_are_never_the_same() -> None:
    made = [make_self_signed(["a.example"], days=1) for _ in range(2)]
    assert made[0].certificate.fingerprint != made[1].certificate.fingerprint
    assert made[0].key_pem != made[1].key_pem


def test_the_key_is_for_its_owner_alone_whatever_stood_there(tmp_path: Path) -> None:
    cert, key = tmp_path / "c.pem", tmp_path / "k.pem"
    key.write_text("anybody's")
    key.chmod(0o666)
    write_pair(make_self_signed(["a.example"], days=1), cert, key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert b"PRIVATE KEY" in key.read_bytes()
    assert b"PRIVATE KEY" not in cert.read_bytes()
    assert sorted(tmp_path.iterdir()) == [cert, key]


def test_files_that_cannot_be_replaced_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "c.pem").mkdir()
    (tmp_path / "k.pem").write_text("as it was")
    with pytest.raises(OSError, match=r"c\.pem"):
        write_pair(make_self_signed(["a.example"], days=1), tmp_path / "c.pem", tmp_path / "k.pem")
    assert (tmp_path / "k.pem").read_text() == "as it was"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("content", "holds"),
    [
        (b"", "no certificate that can be read"),
        (b"\x00\x01random", "no certificate that can be read"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no certificate"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "a private key and no"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\n", "a request for a certificate"),
    ],
)
def test_a_file_without_a_certificate_is_named_with_what_it_holds(
    tmp_path: Path, content: bytes, holds: str
) -> None:
    file = tmp_path / "some.pem"
    file.write_bytes(content)
    with pytest.raises(CertificateError, match=rf"some\.pem holds {holds}"):
        read_certificates(file)


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> bool:
    """Let the two speak through memory until both are content."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname=name)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for side in (asking, answering):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
    return True
