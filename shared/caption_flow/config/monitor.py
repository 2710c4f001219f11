"""The configuration of a monitor: which run it watches, and what it shows."""

from __future__ import annotations

from pydantic import Field

from caption_flow.config.secret import Secret
from caption_flow.config.section import Number, Section, WholeNumber
from caption_flow.config.worker import TLS_FINGERPRINT, VERIFY_SSL, Fingerprints, WebSocketUrl


class MonitorConfig(Section):
    """One monitor."""

    server: WebSocketUrl = Field(
        default="ws://127.0.0.1:8765", description="The orchestrator: `ws://` or `wss://`."
    )
    token: Secret | None = Field(
        default=None, description="A monitor's token: literal, `env:NAME` or `file:PATH`."
    )
    verify_ssl: bool = Field(default=True, description=VERIFY_SSL)
    tls_fingerprint: Fingerprints = Field(default=(), description=TLS_FINGERPRINT)
    refresh_rate: Number = Field(default=1.0, gt=0, description="Seconds between refreshes.")
    show_contributors: bool = Field(default=True, description="Show who contributed how much.")
    show_quality_metrics: bool = Field(default=True, description="Show failures and lengths.")
    show_chunk_progress: bool = Field(default=True, description="Show chunks done and handed out.")
    show_worker_queues: bool = Field(default=True, description="Show what each worker holds.")
    show_throughput_graph: bool = Field(default=True, description="Show items a second over time.")
    max_activity_items: WholeNumber = Field(
        default=20, ge=0, description="Lines of recent activity."
    )
