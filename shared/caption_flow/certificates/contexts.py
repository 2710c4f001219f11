"""What every TLS connection of ours starts from: nothing older than TLS 1.2."""

from __future__ import annotations

import ssl


def verifying_context() -> ssl.SSLContext:
    """Return a client's context: the certificate is of an authority this machine trusts.

    Which those are, the machine says, or ``SSL_CERT_FILE`` in the environment. Blocking: it reads
    them.
    """
    return _modern(ssl.create_default_context())


def unverifying_context() -> ssl.SSLContext:
    """Return a client's context that takes any certificate, for who looks at it otherwise."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return _modern(context)


def serving_context() -> ssl.SSLContext:
    """Return a server's context, without a certificate as yet.

    Sessions are not resumed: a client that comes back sees the certificate that is served then.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    context.num_tickets = 0
    return _modern(context)


def _modern(context: ssl.SSLContext) -> ssl.SSLContext:
    # A machine's own policy may be stricter; it is left alone then.
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    return context
