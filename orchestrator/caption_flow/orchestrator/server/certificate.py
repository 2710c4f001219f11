"""The certificate that is served, from two files that may be replaced while it is.

Connections keep what they were made with; each new one gets what is served at that time. A pair
that cannot be used changes nothing but the log.
"""

from __future__ import annotations

import asyncio
import ssl
import stat
from pathlib import Path
from typing import Final, NoReturn

import structlog

from caption_flow.certificates.contexts import serving_context
from caption_flow.certificates.describe import (
    Certificate,
    CertificateError,
    now,
    read_certificates,
)
from caption_flow.certificates.fingerprint import shown

log = structlog.get_logger()

LOOK_SECONDS: Final = 2.0
"""How often the files are looked at."""
FEW_DAYS: Final = 14
"""With fewer left, the log says so when a certificate is taken up."""

_Stamp = tuple[tuple[int, int, int, int] | None, ...]
"""Of each file: device, inode, size and time of change; None if it is not there."""


class ServedCertificate:
    """Serves what is in a certificate's and a key's file; give `context` to whoever listens."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Load both; blocking.

        Raises:
            CertificateError: they cannot be used.
        """
        self._cert, self._key = cert, key
        self._seen = self._served = self._stamp()
        self._complained: _Stamp | None = None
        self._current, self.certificate = _load(cert, key)
        self.context = serving_context()
        # OpenSSL asks for each client hello, also for those that name no server.
        self.context.sni_callback = self._use_current
        self._say("serving a certificate")

    async def watch(self) -> NoReturn:
        """Look at the files again and again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Take up files that have changed and have not changed since the last look; blocking.

        The two are seldom replaced in the same moment: half a change is waited out.
        """
        stamp = self._stamp()
        is_settled, self._seen = stamp == self._seen, stamp
        if stamp == self._served or not is_settled:
            return
        try:
            self._current, self.certificate = _load(self._cert, self._key)
        except CertificateError as error:
            if stamp != self._complained:
                log.warning("the new certificate cannot be used, the old one stays", why=str(error))
            self._complained = stamp
            return
        self._served = stamp
        self._say("the certificate was replaced, new connections get the new one")

    def _use_current(
        self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _: ssl.SSLContext
    ) -> None:
        connection.context = self._current

    def _stamp(self) -> _Stamp:
        return tuple(_stamp_of(path) for path in (self._cert, self._key))

    def _say(self, what: str) -> None:
        certificate = self.certificate
        log.info(
            what,
            names=", ".join(certificate.names) or certificate.subject,
            until=f"{certificate.not_after:%Y-%m-%d}",
            sha256=shown(certificate.fingerprint),
        )
        days = certificate.days_left(now())
        why_invalid = certificate.why_invalid(now())
        if why_invalid is not None:
            log.warning("workers that check the certificate will refuse it", why=why_invalid)
        elif days < FEW_DAYS:
            log.warning(
                "the certificate expires soon; new files are taken up as they are", days=days
            )
        if _readable_by_all(self._key):
            log.warning("the private key can be read by every user of this machine", key=self._key)


def _load(cert: Path, key: Path) -> tuple[ssl.SSLContext, Certificate]:
    """Return a context that serves the pair, and what its certificate says."""
    certificate = read_certificates(cert)[0]
    _check_readable(key)
    context = serving_context()

    def refuse_to_ask() -> str:
        # Otherwise OpenSSL asks on the terminal, and waits.
        raise CertificateError(
            f"{key} is encrypted with a passphrase; write it without one, readable by you alone "
            f"(openssl pkey -in {key} -out NEW)"
        )

    try:
        context.load_cert_chain(cert, key, password=refuse_to_ask)
    except ssl.SSLError as error:
        raise CertificateError(_why(cert, key, error)) from error
    except OSError as error:
        raise CertificateError(f"{cert} and {key} cannot be read: {error.strerror}") from error
    return context, certificate


def _check_readable(key: Path) -> None:
    try:
        content = key.read_bytes()
    except OSError as error:
        raise CertificateError(f"{key} cannot be read: {error.strerror or error}") from error
    if b"PRIVATE KEY-----" not in content:
        raise CertificateError(f"{key} holds no private key (PEM)")


def _why(cert: Path, key: Path, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{key} is not the key of {cert}"
    return f"{cert} and {key} cannot be used: {error.reason or error}"


def _stamp_of(path: Path) -> tuple[int, int, int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _readable_by_all(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False
