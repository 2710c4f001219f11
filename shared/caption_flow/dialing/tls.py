"""TLS of a client: which certificates are taken, and that none is shown a token before it was."""

from __future__ import annotations

import ssl
from functools import partial
from typing import Any, cast

from websockets.asyncio.client import ClientConnection

from caption_flow.certificates.contexts import unverifying_context, verifying_context
from caption_flow.certificates.fingerprint import Fingerprint, is_one_of
from caption_flow.dialing.endpoint import Endpoint


class WrongCertificateError(Exception):
    """The certificate is none of those that were pinned."""


def context_for(endpoint: Endpoint) -> ssl.SSLContext | None:
    """Return what decides on the peer's certificate; None for an address without TLS.

    One whose certificate is pinned is looked at by `connection_for`, not by OpenSSL.
    """
    if not endpoint.is_encrypted:
        return None
    if endpoint.fingerprints or not endpoint.verify_ssl:
        return unverifying_context()
    return verifying_context()


def connection_for(endpoint: Endpoint) -> type[ClientConnection]:
    """Return what makes a connection of the socket library's."""
    if not endpoint.fingerprints:
        return ClientConnection
    pinned = partial(_PinnedConnection, fingerprints=endpoint.fingerprints)
    return cast("type[ClientConnection]", pinned)  # it is called, and nothing else


class _PinnedConnection(ClientConnection):
    """Says nothing, and so shows no token, to a peer without one of the pinned certificates."""

    def __init__(self, *args: Any, fingerprints: tuple[Fingerprint, ...], **options: Any) -> None:
        super().__init__(*args, **options)
        self._fingerprints = fingerprints

    async def handshake(self, *args: Any, **options: Any) -> None:
        # TLS is established here, whichever way the connection was made: the peer has proven that
        # it has its certificate's key. The upgrade request, with the token, comes next.
        tls = self.transport.get_extra_info("ssl_object")
        der = None if tls is None else tls.getpeercert(binary_form=True)
        if der is None or not is_one_of(der, self._fingerprints):
            raise WrongCertificateError
        await super().handshake(*args, **options)
