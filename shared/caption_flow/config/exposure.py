"""Whether a configuration would let strangers in. Pure."""

from __future__ import annotations

from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.protocol.addresses import is_loopback


def check_exposure(config: OrchestratorConfig, insecure: bool) -> list[str]:
    """Return why the server must not start like this, as sentences; empty when it may.

    Beyond this machine it takes tokens, whatever anyone says, and TLS unless ``insecure`` says that
    something else protects the connection.
    """
    if is_loopback(config.host):
        return []
    problems = []
    if not config.has_tokens:
        problems.append(
            f"host: {config.host} lets other machines connect, which takes tokens; "
            "add auth.worker_tokens and auth.admin_tokens, or listen on 127.0.0.1"
        )
    if config.ssl is None and not insecure:
        problems.append(
            f"host: {config.host} lets other machines connect, and without ssl tokens and images "
            "cross the network in clear; set ssl.cert and ssl.key, listen on 127.0.0.1, or say "
            "--insecure if a tunnel or proxy protects the connection"
        )
    return problems
