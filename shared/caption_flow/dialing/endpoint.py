"""Where an orchestrator is, what to show it, and whether that is safe. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from caption_flow.certificates.fingerprint import Fingerprint
from caption_flow.protocol.addresses import is_loopback


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an orchestrator is, and what to show it.

    With ``fingerprints`` its certificate has to be one of these, and nothing else is asked of it.
    ``insecure`` is the user's word that something else protects a ``ws://`` connection.
    """

    url: str
    token: str = field(repr=False)
    verify_ssl: bool = True
    fingerprints: tuple[Fingerprint, ...] = ()
    insecure: bool = False

    @property
    def shown(self) -> str:
        """The URL as logs may show it: no user, no password, no query."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection is one of TLS."""
        return urlsplit(self.url).scheme == "wss"

    @property
    def is_on_this_machine(self) -> bool:
        """Whether only this machine can answer at the address."""
        return is_loopback(urlsplit(self.url).hostname or "")

    @property
    def why_not(self) -> str | None:
        """Why nobody should dial this, before anything is sent; None if all is well."""
        if self.is_encrypted:
            return None
        if self.fingerprints:
            return (
                f"a TLS fingerprint is given, and {self.shown} has no certificate to hold against "
                "it; write wss:// for an orchestrator that has one"
            )
        if not self.is_on_this_machine and not self.insecure:
            return (
                f"{self.shown} is another machine, and over ws:// the token and the images cross "
                "the network in clear; use wss://, or say --insecure if a tunnel or a private "
                "network protects the connection"
            )
        return None

    @property
    def caution(self) -> str | None:
        """What somebody who dials this should be warned of; None if there is nothing."""
        if self.is_encrypted and not self.verify_ssl and not self.fingerprints:
            return (
                f"the certificate of {self.shown} is not checked: whoever answers there, or stands "
                "between, gets the token; --tls-fingerprint checks it, self-made ones too"
            )
        if not self.is_encrypted and not self.is_on_this_machine:
            return f"the token and the images go to {self.shown} in clear, as --insecure allows"
        return None
