"""What every command says before it dials an orchestrator, and the words of options about TLS."""

from __future__ import annotations

from typing import Final

import structlog

from caption_flow.cli.failures import usage_error
from caption_flow.dialing.endpoint import Endpoint

log = structlog.get_logger()

TLS_FINGERPRINT_HELP: Final = (
    "SHA-256 of the server's certificate, as `inspect-cert` prints it there: that one is taken, "
    "self-made or not, and no other. May be given several times."
)
NO_VERIFY_SSL_HELP: Final = (
    "Do not check the server's certificate; whoever stands between gets the token. For one "
    "self-made there is --tls-fingerprint."
)
INSECURE_HELP: Final = (
    "Allow ws:// to another machine: a tunnel or a private network protects the connection."
)


def refuse_unsafe(endpoint: Endpoint, *, on_own_word: bool = True) -> None:
    """End the command if the orchestrator must not be dialled; warn if it is risky.

    Nobody is warned of what was not said ``on_own_word`` but by the orchestrator, on this machine.
    """
    if endpoint.why_not is not None:
        usage_error(endpoint.why_not)
    if endpoint.caution is not None and on_own_word:
        log.warning(endpoint.caution)
