"""Certificates for tests: self-signed ones, an authority's, and ones with something wrong."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from caption_flow.certificates.fingerprint import Fingerprint, fingerprint_of

HERE = ("localhost", "127.0.0.1")
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in files."""

    cert: Path
    key: Path
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Authority:
    """Who signs certificates; ``file`` is what `SSL_CERT_FILE` may name."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    file: Path


def authority(folder: Path, name: str = "an authority of the tests") -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _signed(
        key, subject=name, names=(), issuer=name, signer=key, begins=-1.0, ends=30.0, is_ca=True
    )
    file = folder / "authority.pem"
    file.write_bytes(certificate.public_bytes(Encoding.PEM))
    return Authority(certificate, key, file)


def pair(
    folder: Path,
    names: Sequence[str] = HERE,
    *,
    by: Authority | None = None,
    begins_in_days: float = -1.0,
    ends_in_days: float = 30.0,
    passphrase: bytes | None = None,
) -> Pair:
    """Write ``cert.pem`` and ``key.pem``, each in one step; self-signed unless ``by`` another."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = names[0] if names else "nameless"
    issuer = subject if by is None else by.certificate.subject.rfc4514_string().removeprefix("CN=")
    signer = key if by is None else by.key
    certificate = _signed(
        key,
        subject=subject,
        names=names,
        issuer=issuer,
        signer=signer,
        begins=begins_in_days,
        ends=ends_in_days,
    )
    folder.mkdir(exist_ok=True)
    written = Pair(
        folder / "cert.pem",
        folder / "key.pem",
        fingerprint_of(certificate.public_bytes(Encoding.DER)),
    )
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    replace(written.cert, certificate.public_bytes(Encoding.PEM))
    replace(written.key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return written


def replace(path: Path, content: bytes) -> None:
    """Put a new file in the place of the old one."""
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(content)
    fresh.chmod(0o600)
    fresh.replace(path)


def _signed(
    key: ec.EllipticCurvePrivateKey,
    *,
    subject: str,
    names: Sequence[str],
    issuer: str,
    signer: ec.EllipticCurvePrivateKey,
    begins: float,
    ends: float,
    is_ca: bool = False,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins * DAY)
        .not_valid_after(now + ends * DAY)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    )
    if names:
        alternatives = x509.SubjectAlternativeName([_general(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    return builder.sign(signer, hashes.SHA256())


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
