"""Making a certificate of one's own: who vouches for it is its fingerprint."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from caption_flow.certificates.describe import Certificate, describe, now

_EARLIER: Final = timedelta(days=1)
"""Clocks of rented machines may be behind."""
_LONGEST_COMMON_NAME: Final = 64  # RFC 5280, appendix A.1
_LONGEST_DNS_NAME: Final = 253
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.IGNORECASE)

Name = str | ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Made:
    """A certificate and its key, as PEM."""

    certificate: Certificate
    cert_pem: bytes
    key_pem: bytes


def names_of_this_machine() -> list[str]:
    """Return what this machine is called by those on it, and its own names. May ask a resolver."""
    own = [name for name in (socket.gethostname(), socket.getfqdn()) if _is_name(name)]
    return list(dict.fromkeys(["localhost", "127.0.0.1", "::1", *own]))


def parse_name(text: str) -> Name:
    """Read a host name (also ``*.example.org``, and with letters of any language) or an address.

    Raises:
        ValueError: it is neither; the sentence says what is expected.
    """
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(text.strip("[]"))
    try:
        name = text.rstrip(".").encode("idna" if not text.isascii() else "ascii").decode()
    except UnicodeError:
        name = ""
    if not _is_name(name) or _looks_like_an_address(name):
        raise ValueError(
            f"'{text}' is no host name or IP address; write captions.example.org or 203.0.113.7, "
            "without ws:// and without a port"
        )
    return name


def make_self_signed(names: Sequence[Name], *, days: int) -> Made:
    """Make a certificate for these names, valid from now on for so many days, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    common_name = str(names[0])[:_LONGEST_COMMON_NAME]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    public = key.public_key()
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    begins = now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins - _EARLIER)
        .not_valid_after(begins + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), False)
        # It can vouch for no other certificate, whoever comes to trust it.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Made(
        describe(certificate),
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def write_pair(made: Made, cert: Path, key: Path) -> None:
    """Write both files, each whole or not at all; the key for this user's eyes only.

    Raises:
        OSError: the folder cannot be written to.
    """
    # Both are on disk before either takes its place, so that hardly a moment has one of each pair.
    with _written(key, made.key_pem, 0o600), _written(cert, made.cert_pem, 0o644):
        pass


@contextlib.contextmanager
def _written(path: Path, content: bytes, mode: int) -> Iterator[None]:
    """Write beside the file, and put it in its place once all inner ones are in theirs."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "wb") as file:  # noqa: PTH123  -- a descriptor, not a path
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _general(name: Name) -> x509.GeneralName:
    return x509.DNSName(name) if isinstance(name, str) else x509.IPAddress(name)


def _is_name(name: str) -> bool:
    labels = name.removeprefix("*.").split(".")
    return len(name) <= _LONGEST_DNS_NAME and all(_LABEL.fullmatch(label) for label in labels)


def _looks_like_an_address(name: str) -> bool:
    """Tell whether its last part is a number, as in 1.2.3: no such name can be in the DNS."""
    return name.rpartition(".")[2].isdecimal()
