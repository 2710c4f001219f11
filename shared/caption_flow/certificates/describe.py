"""What a certificate says: whose it is, for which names, until when, and its fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from caption_flow.certificates.fingerprint import Fingerprint, fingerprint_of

_DAY: Final = timedelta(days=1)


class CertificateError(Exception):
    """A certificate or key cannot be used; one sentence with the file and what is wrong."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate. Texts in it are whatever its maker wrote."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    """Host names and addresses it is for (subject alternative names)."""
    not_before: datetime
    not_after: datetime
    key: str
    fingerprint: Fingerprint

    @property
    def is_self_signed(self) -> bool:
        """Whether it names itself as its issuer."""
        return self.subject == self.issuer

    def days_left(self, now: datetime) -> int:
        """Return the whole days until it expires; negative once it has."""
        return (self.not_after - now) // _DAY

    def why_invalid(self, now: datetime) -> str | None:
        """Say why it does not count at this time, or None."""
        if now >= self.not_after:
            return f"it expired on {self.not_after:%Y-%m-%d}"
        if now < self.not_before:
            return f"it is not valid before {self.not_before:%Y-%m-%d %H:%M} UTC"
        return None


def read_certificates(path: Path) -> list[Certificate]:
    """Read a file, PEM or DER: first the certificate itself, then those of its issuers.

    Raises:
        CertificateError: it cannot be read, or holds none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return [describe(one) for one in _parse(content)]
    except ValueError as error:
        raise CertificateError(f"{path} holds {_instead(content)}") from error


def describe(certificate: x509.Certificate) -> Certificate:
    """Return what a certificate says. Raises ValueError if it is malformed."""
    return Certificate(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        names=_names(certificate),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        key=_key(certificate),
        fingerprint=fingerprint_of(certificate.public_bytes(Encoding.DER)),
    )


def describe_der(der: bytes) -> Certificate:
    """Return what a certificate in DER form says. Raises ValueError if it is malformed."""
    return describe(x509.load_der_x509_certificate(der))


def now() -> datetime:
    """Return the time that validity is held against."""
    return datetime.now(UTC)


def _parse(content: bytes) -> list[x509.Certificate]:
    if b"-----BEGIN" in content:
        return x509.load_pem_x509_certificates(content)
    return [x509.load_der_x509_certificate(content)]


def _instead(content: bytes) -> str:
    """Say what a file without a certificate seems to hold."""
    if b"PRIVATE KEY-----" in content:
        return "a private key and no certificate"
    if b"CERTIFICATE REQUEST-----" in content:
        return "a request for a certificate, and none yet"
    return "no certificate that can be read (PEM or DER)"


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    alternatives = extension.value
    addresses = alternatives.get_values_for_type(x509.IPAddress)
    return (*alternatives.get_values_for_type(x509.DNSName), *map(str, addresses))


def _key(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    match key:
        case rsa.RSAPublicKey():
            return f"RSA, {key.key_size} bits"
        case ec.EllipticCurvePublicKey():
            return f"ECDSA, {key.curve.name}"
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            return type(key).__name__.removesuffix("PublicKey")
        case _:
            return type(key).__name__
