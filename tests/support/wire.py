"""What the sockets of a test speak: plain WebSockets, or TLS beneath them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from caption_flow.certificates.contexts import unverifying_context
from caption_flow.orchestrator.server.certificate import ServedCertificate
from tests.support.certificates import pair


@dataclass(frozen=True)
class Wire:
    """Both ends of it; all None is plain."""

    served: ServedCertificate | None = None
    client: ssl.SSLContext | None = None

    @property
    def scheme(self) -> str:
        return "ws" if self.client is None else "wss"


PLAIN = Wire()


def tls(folder: Path) -> Wire:
    """TLS with a certificate that is made in a folder, and clients that take any."""
    made = pair(folder)
    return Wire(ServedCertificate(made.cert, made.key), unverifying_context())
